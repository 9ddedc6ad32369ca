/**
 * What every plugin owes the gateway, as tests of node:test: `await testPlugin(new URL("..", import.meta.url))` in a test
 * file of the package. The bundled plugins run the same.
 */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test, type TestContext } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import type { Command, KindInfo } from "@sluice/kernel";
import { findPlugins } from "@sluice/kernel/internal";
import { testFilter } from "./contract-filter.ts";
import { testService } from "./contract-service.ts";
import { checkUse, findUses, type Use } from "./examples.ts";
import { createTestSource } from "./host.ts";
import type { Workbench } from "./instance.ts";

export interface ContractOptions {
  /** Markdown with an example of each kind; the package's README.md if left out. */
  readonly readme?: URL | string;
  /** By kind: options that the example's are replaced by while it runs, such as a free port. */
  readonly options?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
}

/** Registers the tests. @param folder of the package, where its package.json is */
export async function testPlugin(folder: URL | string, options: ContractOptions = {}): Promise<void> {
  const root = toPath(folder);
  const { name } = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as { name: string };
  const registry = await findPlugins({ ahead: [root], folder: root, dirs: [], bins: [] });
  const kinds = registry.kinds().filter((kind) => kind.package === name);
  const readme = toPath(options.readme ?? join(root, "README.md"));

  describe(`${name} keeps the contract`, () => {
    test("its manifest and schemas are sound", () => {
      assert.deepEqual(
        registry.problems().map(({ message }) => message),
        [],
      );
    });
    for (const [command, { package: from, entry }] of registry.commands()) {
      if (from !== name) continue;
      test(`its command ${command} can be listed, explained and run`, async () => {
        const module = (await import(pathToFileURL(entry).href)) as {
          default?: Partial<Record<keyof Command, unknown>>;
        };
        const { summary, help, run } = module.default ?? {};
        assert.deepEqual([typeof summary, typeof help, typeof run], ["string", "string", "function"]);
      });
    }
    for (const kind of kinds)
      describe(kind.kind, () => testKind(kind, { root, readme, own: options.options?.[kind.kind] ?? {} }));
  });
}

const toPath = (place: URL | string): string => (place instanceof URL ? fileURLToPath(place) : place);

interface Place {
  readonly root: string;
  readonly readme: string;
  /** Options for running it. */
  readonly own: Readonly<Record<string, unknown>>;
}

function testKind(info: KindInfo, { root, readme, own }: Place): void {
  const { kind, schema } = info;
  const family = info.family === "service" ? "service" : "filter";

  async function examples(): Promise<Use[]> {
    const uses = findUses(await readFile(readme, "utf8"), readme, kind);
    assert.ok(uses.length > 0, `no YAML block of ${readme} shows ${kind}`);
    return uses;
  }

  test("its schema describes every option", () => assert.deepEqual(undescribed(schema), []));

  test("its schema accepts what the README shows", async () => {
    for (const use of await examples()) assert.deepEqual((await checkUse(root, family, use)).problems, []);
  });

  test("its schema refuses an option that it does not know", async () => {
    const [use] = await examples();
    const { problems } = await checkUse(root, family, { ...use!, ["notAnOption"]: 1 });
    assert.match(problems.join("\n"), /notAnOption/, `add "additionalProperties": false`);
  });

  /** With the README's first example. */
  async function prepare(t: TestContext): Promise<Workbench> {
    const [use] = await examples();
    const { loaded, problems } = await checkUse(root, family, { ...use!, ...own });
    assert.ok(loaded, problems.join("\n"));
    const folder = await mkdtemp(join(tmpdir(), "sluice-contract-"));
    t.after(() => rm(folder, { recursive: true, force: true }));
    return { kind: loaded.kind, options: loaded.options, source: createTestSource(folder).source };
  }

  if (family === "service") testService(prepare);
  else testFilter(prepare);
}

/** By dotted path. */
function undescribed(schema: object, prefix = ""): string[] {
  const { properties = {} } = schema as { properties?: Record<string, { description?: unknown; $ref?: unknown }> };
  return Object.entries(properties).flatMap(([name, option]) => {
    const path = `${prefix}${name}`;
    const isDescribed = typeof option.description === "string" || option.$ref !== undefined;
    return [...(isDescribed ? [] : [path]), ...undescribed(option, `${path}.`)];
  });
}
