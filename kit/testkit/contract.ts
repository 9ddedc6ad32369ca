/**
 * What every plugin owes the gateway, as tests of node:test: `await testPlugin(new URL("..", import.meta.url))` in a test
 * file of the package. The bundled plugins run the same.
 */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test, type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import { inspect } from "node:util";
import type { Command, Filter, FilterKind, Health, KindInfo, Service, ServiceKind } from "@sluice/kernel";
import { createHost, findPlugins } from "@sluice/kernel/internal";
import { checkUse, findUses, type Use } from "./examples.ts";
import { collectGarbage, usedBytes } from "./heap.ts";
import { createTestSource } from "./host.ts";
import { trackResources } from "./resources.ts";
import { samplesOf } from "./samples.ts";

export interface ContractOptions {
  /** Markdown with an example of each kind; the package's README.md if left out. */
  readonly readme?: URL | string;
  /** By kind: options that the example's are replaced by while it runs, such as a free port. */
  readonly options?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
}

/** How long a packet may wait before its deadline passes in these tests, and how long the filter may take to give up then. */
const deadlineMs = 200;
const graceMs = 2000;
/** Before the heap is measured: the first instances fill caches. */
const warmUps = 20;
const reloads = 100;
/** A tenth of this for each reload would be a leak of an instance's options, a buffer, a listener. */
const heapLimitBytes = 2 ** 20;

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

interface Workbench {
  readonly kind: FilterKind | ServiceKind;
  readonly options: unknown;
  readonly source: ReturnType<typeof createTestSource>["source"];
}

interface Instance<T> {
  readonly it: T;
  /** As the gateway ends it. */
  readonly close: () => Promise<void>;
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

async function buildFilter({ kind, options, source }: Workbench): Promise<Instance<Filter>> {
  const { host, abort } = createHost(source, "contract/filter", {});
  const it = await (kind as FilterKind).create(structuredClone(options), host);
  return {
    it,
    async close() {
      await it.close?.();
      abort();
    },
  };
}

/** Error classes that tell of a mistake in the code, or of a packet that was not checked: the same packet fails again. */
const mistakes = [TypeError, SyntaxError, RangeError, ReferenceError, assert.AssertionError] as const;

type Sample = ReturnType<typeof samplesOf>[number];

/** One packet, with a deadline: what the filter returned, or the error that it threw. @param isLate it has passed already */
async function answer(
  filter: Filter,
  sample: Sample,
  o: { readonly clientId?: string; readonly isLate?: boolean } = {},
): Promise<{ result: unknown } | { error: unknown }> {
  const deadline = new AbortController();
  if (o.isLate) deadline.abort();
  const ctx = sample({ clientId: o.clientId ?? "client-1", signal: deadline.signal });
  const settled = Promise.try(() => filter.handle(ctx)).then(
    (result) => ({ result }),
    (error: unknown) => ({ error }),
  );
  const inTime = await within(deadlineMs, settled);
  if (inTime) return inTime;
  deadline.abort();
  const atLast = await within(graceMs, settled);
  assert.ok(atLast, `a ${ctx.type} is still waited for ${graceMs} ms after ctx.signal has aborted`);
  return atLast;
}

/** Undefined where it takes longer. */
async function within<T>(ms: number, work: Promise<T>): Promise<T | undefined> {
  const over = new AbortController();
  try {
    return await Promise.race([work, sleep(ms, undefined, { signal: over.signal })]);
  } finally {
    over.abort();
  }
}

/** Why the contract does not allow this answer; undefined where it does. */
function faultOf(kind: FilterKind, outcome: { result: unknown } | { error: unknown }): string | undefined {
  if ("result" in outcome) {
    const { result } = outcome;
    if (result === undefined || (kind.results as readonly unknown[]).includes(result)) return undefined;
    return `it returned ${inspect(result)}, which is not among its results`;
  }
  const { error } = outcome;
  if (!(error instanceof Error)) return `it threw ${inspect(error)}, which is no Error`;
  // A call that failed outside names its cause, as fetch does.
  if (error.cause !== undefined || !mistakes.some((each) => error instanceof each)) return undefined;
  return `it threw ${error.stack}: return a result for what a retry can't mend`;
}

function testFilter(prepare: (t: TestContext) => Promise<Workbench>): void {
  test("it answers every packet in time: nothing, a declared result, or a fault that a retry can mend", async (t) => {
    const bench = await prepare(t);
    const kind = bench.kind as FilterKind;
    const { it, close } = await buildFilter(bench);
    t.after(close);
    for (const type of kind.packets) {
      // At once, as from as many devices.
      const faults = samplesOf(type).map(async (sample, n) => {
        const fault = faultOf(kind, await answer(it, sample, { clientId: `device-${n}` }));
        return fault === undefined ? [] : [`the ${type} number ${n} of the samples: ${fault}`];
      });
      assert.deepEqual((await Promise.all(faults)).flat(), []);
    }
  });

  test("it gives up a packet whose deadline has passed before it began", async (t) => {
    const bench = await prepare(t);
    const { it, close } = await buildFilter(bench);
    t.after(close);
    for (const type of (bench.kind as FilterKind).packets) await answer(it, samplesOf(type)[0]!, { isLate: true });
  });

  test("close leaves no timer, socket, file or listener behind", async (t) => {
    const bench = await prepare(t);
    await leavesNothing(t, async () => {
      const { it, close } = await buildFilter(bench);
      isHealth(it.health?.());
      for (const type of (bench.kind as FilterKind).packets) await answer(it, samplesOf(type)[0]!);
      await close();
    });
    await leavesNothing(t, async () => (await buildFilter(bench)).close());
  });

  test(`${reloads} reloads leave the heap flat`, async (t) => {
    const bench = await prepare(t);
    await staysFlat(t, async (previous: Instance<Filter> | undefined) => {
      const next = await buildFilter(bench);
      if (previous) {
        next.it.adopt?.(previous.it);
        await previous.close();
      }
      return next;
    });
  });
}

function testService(prepare: (t: TestContext) => Promise<Workbench>): void {
  async function build({ kind, options, source }: Workbench): Promise<Instance<Service>> {
    const { host, abort } = createHost(source, "contract", {});
    const it = await (kind as ServiceKind).create(structuredClone(options), host);
    return {
      it,
      async close() {
        await it.stop?.();
        abort();
      },
    };
  }

  test("stop leaves no timer, socket, file or listener behind", async (t) => {
    const bench = await prepare(t);
    await leavesNothing(t, async () => {
      const { it, close } = await build(bench);
      await it.start?.();
      isHealth(it.health?.());
      await close();
    });
  });

  test("it can be stopped without having been started, as when the change of a config is given up", async (t) => {
    const bench = await prepare(t);
    await leavesNothing(t, async () => (await build(bench)).close());
  });

  test(`${reloads} reloads leave the heap flat`, async (t) => {
    const bench = await prepare(t);
    await staysFlat(t, async (previous: Instance<Service> | undefined) => {
      const next = await build(bench);
      if (previous) next.it.adopt?.(previous.it);
      await next.it.start?.();
      await previous?.close();
      return next;
    });
  });
}

function isHealth(health: Health | undefined): void {
  if (health === undefined) return;
  assert.equal(typeof health.ok, "boolean");
  assert.doesNotMatch(health.detail ?? "", /\n/, "health's detail is one line");
}

async function leavesNothing(t: TestContext, work: () => Promise<void>): Promise<void> {
  const tracker = trackResources();
  t.after(() => tracker.close());
  await tracker.run(work);
  assert.deepEqual(await tracker.left(), []);
}

/** No instance is kept by anything, and nothing else grows. */
async function staysFlat<T extends object>(
  t: TestContext,
  reload: (previous: Instance<T> | undefined) => Promise<Instance<T>>,
): Promise<void> {
  let current: Instance<T> | undefined;
  const instances: WeakRef<T>[] = [];
  for (let n = 0; n < warmUps; n++) current = await reload(current);
  const before = await usedBytes();
  for (let n = 0; n < reloads; n++) {
    current = await reload(current);
    instances.push(new WeakRef(current.it));
  }
  const grown = (await usedBytes()) - before;
  await current?.close();
  current = undefined;
  await collectGarbage();
  const kept = instances.filter((each) => each.deref() !== undefined).length;
  t.diagnostic(`the heap has grown by ${Math.round(grown / 1024)} KiB in ${reloads} reloads`);
  // The engine may hold the one that was used last.
  assert.ok(kept <= 2, `${kept} of ${reloads} instances are still held by something after their close`);
  assert.ok(grown < heapLimitBytes, `the heap has grown by ${grown} bytes in ${reloads} reloads`);
}
