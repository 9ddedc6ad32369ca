/**
 * The pages hold what they promise: configs pass the check, commands run and print what is shown, references list what
 * there is, links lead somewhere. A comment in front of a block says how it is meant:
 *
 * - `keeps running`: goes on in the background (a gateway, a subscriber); `not run: why`: one of the reasons below
 * - `output`, `output of NAME`: what the block before has printed, or what keeps running; `...` stands for any text
 * - `file: PATH`: the reader saves it there; a config without it stands by itself and is checked as it is
 * - `in an empty folder`: the page goes on in one, without this repository, but with npm
 * - `shown: PATH`, `shown in: PATH`: the file that is there, or a part of it; `change of: PATH`: a diff to it
 * - `fragment of: KIND`: belongs into a document of that kind, see `wrap`; `warns: TEXT`: the one warning it gets
 * - `options of KIND` over a table: made from the kind's schema; UPDATE_DOCS=1 writes it anew
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { glob, readFile, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { after, before, describe, test } from "node:test";
import { parse } from "yaml";
import { loadSpec } from "../../kernel/config.ts";
import { codes } from "../../kernel/errors.ts";
import { kernelKinds } from "../../kernel/kernel-kinds.ts";
import { findPlugins } from "../../kernel/registry.ts";
import { createClone, type Clone } from "../helpers/clone.ts";
import { createDocShell, type DocShell } from "../helpers/doc-shell.ts";
import { startTestGateway } from "../helpers/gateway.ts";
import { parsePage, type Block, type Page } from "../helpers/markdown.ts";
import { startRegistry, type Registry } from "../helpers/registry.ts";
import { optionHead, optionRows, optionTable } from "../helpers/option-table.ts";

const root = join(import.meta.dirname, "../..");
const bin = join(root, "kernel/cli.ts");
const notRunReasons = [
  "measures for minutes",
  "needs Docker",
  "needs Kafka",
  "runs the tests",
  "is in docs/install.md",
];

/** Its commands need the published packages: pack.test.ts and image.test.ts run them. */
const ofPublished = "docs/install.md";

/** README first, since it starts the gateway that the others use; then by name. */
const files = ["README.md", "CHANGELOG.md", ...(await list(["docs/*.md", "docs/adr/*.md"]))];
const pages = new Map<string, Page>();
for (const file of files) pages.set(file, parsePage(await readFile(join(root, file), "utf8")));

/** Files by name, those of others' packages and what was built left out. */
async function list(pattern: string | string[], cwd = root): Promise<string[]> {
  const exclude = (name: string) => ["node_modules", "dist", "data"].includes(name);
  const found: string[] = [];
  for await (const file of glob(pattern, { cwd, exclude })) found.push(file);
  return found.toSorted((a, b) => a.localeCompare(b));
}

function page(file: string): Page {
  const found = pages.get(file);
  assert.ok(found, `there is no ${file}`);
  return found;
}

/** The cells of a table's column that are code, without the marks. */
function column(file: string, head: string): string[] {
  const table = page(file).tables.find((each) => each.head[0] === head);
  assert.ok(table, `${file} has no table that begins with ${head}`);
  return table.rows.map(([cell = ""]) => cell.replaceAll("`", ""));
}

const publishPipeline =
  "kind: Pipeline\nname: publish\nfilters: [{ name: sink, kind: FileMQTT, topic: { default: devices } }]\n";

/** A whole config around a fragment. */
function wrap(kind: string, text: string): string {
  const indented = text.replaceAll(/^(?=.)/gm, "  ");
  if (kind === "MQTTProxy") return `kind: MQTTProxy\nname: mqttproxy\nport: 1883\n${text}\n---\n${publishPipeline}`;
  if (kind === "Pipeline") return `kind: Pipeline\nname: pipeline\n${text}`;
  if (kind === "Pipeline filters") return `kind: Pipeline\nname: pipeline\nfilters:\n${indented}`;
  throw new Error(`no page may have a fragment of ${kind}: say in wrap() what goes around it`);
}

/** Every problem and warning, without its place. */
async function check(
  path: string,
  env: NodeJS.ProcessEnv = {},
  from = bin,
): Promise<{ problems: string[]; warnings: string[] }> {
  const { problems, warnings } = await loadSpec({ path, cwd: root, env, bins: [from] });
  return {
    problems: problems.map(({ where, message }) => `${where}: ${message}`),
    warnings: warnings.map(({ message }) => message),
  };
}

function isLike(printed: string, expected: string): boolean {
  const pattern = expected.trimEnd().replaceAll(/[\\^$.*+?()[\]{}|]/g, "\\$&");
  return new RegExp(`^${pattern.replaceAll("\\.\\.\\.", ".*")}$`).test(printed.trimEnd());
}

/** Real clients that a page uses and this machine may lack. */
function missingTools({ blocks }: Page): string[] {
  const text = blocks.filter(({ language }) => language === "sh").map((block) => block.text);
  return ["mosquitto_pub", "mosquitto_sub", "curl", "openssl"].filter((tool) => {
    const isUsed = text.some((commands) => commands.includes(`${tool} `));
    return isUsed && spawnSync("sh", ["-c", `command -v ${tool}`]).status !== 0;
  });
}

describe("pages", () => {
  let clone: Clone;
  let shell: DocShell;
  let registry: Registry | undefined;
  before(async () => {
    clone = await createClone();
    shell = createDocShell(clone.folder, dirname(clone.folder));
  });
  after(async () => {
    await shell.nextPage(false);
    await registry?.close();
    await clone.remove();
  });

  async function follow(block: Block, printed: string): Promise<string> {
    const { language, note, text } = block;
    const [verb, rest = ""] = note.split(/: (.*)/s);
    switch (verb) {
      case "file":
        await shell.write(rest, text);
        return "";
      case "shown":
        assert.equal(text, await shell.read(rest));
        return "";
      case "shown in":
        assert.ok((await shell.read(rest)).includes(text), `${rest} does not have this`);
        return "";
      case "change of": {
        const lines = (sign: string) =>
          text.split("\n").flatMap((line) => (line.startsWith(sign) ? [line.slice(1)] : []));
        await shell.change(rest, lines("-").join("\n"), lines("+").join("\n"));
        return "";
      }
      case "in an empty folder":
        registry ??= await startRegistry();
        await shell.enterEmptyFolder(registry.env);
    }
    switch (language) {
      case "sh":
        if (verb === "not run") {
          assert.ok(notRunReasons.includes(rest), `"${rest}" is no reason for not running it`);
          if (rest.includes(ofPublished))
            assert.ok(
              page(ofPublished).blocks.some((each) => each.text === text),
              rest,
            );
          return "";
        }
        if (note !== "keeps running") return shell.run(text);
        await shell.keepRunning(text);
        return "";
      case "text":
        if (note === "output") assert.ok(isLike(printed, text), `printed was\n${printed}\nand not\n${text}`);
        else if (note.startsWith("output of ")) await shell.hasPrinted(note.slice("output of ".length), text);
        return "";
      case "yaml":
        await checkConfig(verb ?? "", rest, text);
        return "";
      case "json":
        JSON.parse(text);
        return "";
      default:
        throw new Error(`a ${language} block is used by nothing: give it a file`);
    }
  }

  async function checkConfig(verb: string, rest: string, text: string): Promise<void> {
    const isFragment = verb === "fragment of";
    const file = join(clone.folder, "checked.yaml");
    await writeFile(file, isFragment ? wrap(rest, text) : text);
    const { problems, warnings } = await check(file, {}, join(clone.folder, "kernel/cli.ts"));
    assert.deepEqual(problems, []);
    // What the wrapping lacks.
    const about = /no MQTTProxy document|no rule for Connect/;
    const hasProxy = text.includes("kind: MQTTProxy");
    const left = warnings.filter((warning) => hasProxy || !about.test(warning));
    if (verb === "warns")
      assert.ok(left.length === 1 && left[0]?.includes(rest), `the warnings are ${left.join("; ")}`);
    else assert.deepEqual(left, []);
  }

  for (const file of files.filter((each) => each !== ofPublished)) {
    test(`${file}: every block does what it says`, async (t) => {
      const missing = missingTools(page(file));
      if (missing.length > 0) {
        assert.notEqual(process.env["CI"], "true", `${missing.join(", ")}: not found`);
        t.skip(`not found: ${missing.join(", ")}`);
        return;
      }
      t.after(() => shell.nextPage(true));
      let printed = "";
      for (const block of page(file).blocks) {
        try {
          printed = await follow(block, printed);
        } catch (error) {
          throw new Error(`${file}:${block.line}: ${(error as Error).message}`, { cause: error });
        }
      }
    });
  }
});

test("every link leads somewhere", async () => {
  for (const [file, { links }] of pages) {
    for (const { line, target } of links) {
      if (/^https?:/.test(target)) continue;
      const [path = "", anchor] = target.split("#");
      const to = join(dirname(file), path);
      const where = `${file}:${line}: ${target}`;
      if (path !== "") assert.ok(await stat(join(root, to)).catch(() => undefined), `${where} is not there`);
      if (anchor === undefined) continue;
      const anchors = path === "" ? page(file).anchors : pages.get(to)?.anchors;
      assert.ok(anchors?.has(anchor), `${where}: no such heading`);
    }
  }
});

test("each kind's table has its schema's options, defaults and descriptions", async () => {
  const registry = await findPlugins({ folder: root, dirs: [], bins: [bin] });
  const kinds = new Map([...kernelKinds, ...registry.kinds()].map((each) => [each.kind, each.schema]));
  const shown = new Set<string>();
  for (const file of ["docs/configuration.md", "docs/filters.md"]) {
    const text = await readFile(join(root, file), "utf8");
    const updated = text.replaceAll(
      /(<!-- options of (\w+) -->\n)(?:\n(?:<!-- prettier-ignore -->\n)?(?:\|.*\n)+)?/g,
      (_, note: string, kind: string) => {
        const schema = kinds.get(kind);
        assert.ok(schema, `${file}: there is no kind ${kind}`);
        shown.add(kind);
        // Its lines are too long to be aligned.
        return `${note}\n<!-- prettier-ignore -->\n${optionTable(schema as Record<string, unknown>)}\n`;
      },
    );
    if (process.env["UPDATE_DOCS"] === "1") await writeFile(join(root, file), updated);
    for (const { note, head, rows } of parsePage(process.env["UPDATE_DOCS"] === "1" ? updated : text).tables) {
      const kind = /^options of (\w+)$/.exec(note)?.[1];
      if (kind === undefined) continue;
      const advice = `${kind} in ${file}: UPDATE_DOCS=1 node --test test/e2e/docs.test.ts`;
      assert.deepEqual(head, optionHead, advice);
      assert.deepEqual(rows, optionRows(kinds.get(kind) as Record<string, unknown>), advice);
      shown.delete(kind);
    }
    // A note that no table follows.
    assert.deepEqual([...shown], []);
  }
  for (const kind of kinds.keys()) {
    const heading = kind.toLowerCase();
    const has = ["docs/configuration.md", "docs/filters.md"].some((file) => page(file).anchors.has(heading));
    assert.ok(has, `no page describes ${kind}`);
  }
});

test("the table of metrics has every metric that the code names, and every one that a gateway shows", async () => {
  const listed = column("docs/configuration.md", "Metric").toSorted();
  const named = new Set<string>();
  for (const file of await list(["kernel/**/*.ts", "plugins/**/*.ts"])) {
    const text = await readFile(join(root, file), "utf8");
    for (const [, name = ""] of text.matchAll(/"(sluice_\w+)"/g)) named.add(name);
  }
  assert.deepEqual(listed, [...named].toSorted());

  const filters = [
    { name: "auth", kind: "MQTTClientAuth", auth: [] },
    { name: "control", kind: "ConnectControl" },
    {
      name: "mapper",
      kind: "TopicMapper",
      route: [{ name: "all", matchExpr: "" }],
      policies: [{ name: "all", topicIndex: 0, route: [{ topic: "t", exprs: [""] }] }],
      setKV: { topic: "t" },
    },
    // Port 9 of loopback: nobody there, and nobody needed.
    { name: "kafka", kind: "KafkaMQTT", backend: ["127.0.0.1:9"], topic: { default: "t" } },
    { name: "file", kind: "FileMQTT", topic: { default: "t" } },
  ];
  const documents = [
    { kind: "MQTTProxy", name: "mqttproxy", host: "127.0.0.1", port: 0 },
    { kind: "Pipeline", name: "all", filters },
    { kind: "AdminAPI", name: "admin-api", port: 0 },
  ];
  const { gateway, stop } = await startTestGateway(documents.map((each) => JSON.stringify(each)).join("\n---\n"));
  const text = await gateway.host.metrics.text();
  await stop();
  const shown = [...text.matchAll(/^# HELP (sluice_\w+) /gm)].map(([, name = ""]) => name);
  assert.ok(shown.length > 40);
  assert.deepEqual(
    shown.filter((name) => !listed.includes(name)),
    [],
  );
});

test("every metric that a page names is in the table of metrics", async () => {
  const known = new Set(column("docs/configuration.md", "Metric"));
  for (const file of files) {
    const text = await readFile(join(root, file), "utf8");
    for (const [name] of text.matchAll(/\bsluice_[a-z0-9_]+/g)) assert.ok(known.has(name), `${file}: ${name}`);
  }
  // "Bounds" leaves the prefix out.
  for (const { head, rows } of page("docs/configuration.md").tables) {
    const at = head.indexOf("Counted in");
    if (at < 0) continue;
    for (const row of rows) {
      const metric = /^`(\w+)`/.exec(row[at] ?? "")?.[1];
      if (metric === undefined) assert.equal(row[at], "-");
      else assert.ok(known.has(`sluice_${metric}`), `${row[0]}: there is no sluice_${metric}`);
    }
  }
});

test("docs/errors.md has every error code with its meaning, and no other", () => {
  const table = page("docs/errors.md").tables.find(({ head }) => head[0] === "Code");
  const meanings = table?.rows.map(([code = "", meaning = ""]) => [code.replaceAll("`", ""), meaning]);
  assert.deepEqual(Object.fromEntries(meanings ?? []), codes);
});

test("docs/http-api.md lists every route, and no other", async () => {
  const { api, stop } = await startTestGateway("kind: AdminAPI\nname: admin-api\nport: 0\n");
  try {
    const groups = (await (await fetch(`${api}/apis/v2`)).json()) as { entries: { method: string; path: string }[] }[];
    const routes = groups.flatMap(({ entries }) =>
      entries.map(({ method, path }) => `${method} ${path.replace("/apis/v2", "") || "/"}`),
    );
    assert.deepEqual(column("docs/http-api.md", "Method and path").toSorted(), routes.toSorted());
  } finally {
    await stop();
  }
});

test("docs/architecture.md lists every file of the kernel, and the packages that it imports", async () => {
  const table = page("docs/architecture.md").tables.find(({ head }) => head[0] === "File");
  assert.ok(table);
  const listed = new Map(table.rows.map(([file = "", , imports = ""]) => [file.replaceAll("`", ""), imports]));
  const kernel = join(root, "kernel");
  const sources = await list(["**/*.ts", "*.schema.json"], kernel);
  assert.deepEqual(new Set(listed.keys()), new Set(sources));
  for (const file of sources) {
    const text = await readFile(join(kernel, file), "utf8");
    const found = [...text.matchAll(/(?:from|import\() ?"(?!\.|node:)([^"]+)"/g)].map(([, name = ""]) => name);
    const packages = new Set(found.map((name) => name.split("/")[0] ?? ""));
    const shown = new Set((listed.get(file) ?? "").split(", ").filter((name) => name !== ""));
    assert.deepEqual(shown, packages, `imports of ${file}`);
  }
});

test("docs/adr/README.md lists every decision", () => {
  const listed = page("docs/adr/README.md").links.map(({ target }) => `docs/adr/${target}`);
  assert.deepEqual(
    listed.toSorted(),
    files.filter((file) => /^docs\/adr\/\d/.test(file)),
  );
});

test("no page names a place on somebody's machine", async () => {
  for (const file of files) {
    const text = await readFile(join(root, file), "utf8");
    assert.doesNotMatch(text, /(^|[\s"'`(])\/(work|home|root|Users|tmp)\//m, file);
  }
});

describe("config/", () => {
  test("every file passes the check without a warning", async () => {
    const env = { KAFKA_BROKERS: "127.0.0.1:9092" };
    const configs = await list("config/**/*.yaml");
    assert.ok(configs.length >= 4);
    for (const file of configs)
      assert.deepEqual(await check(join(root, file), env), { problems: [], warnings: [] }, file);
  });

  test("the config for Kafka differs from the one for files in its sink and hints alone", async () => {
    const own = new Set(["hints", "dir", "backend"]);
    const shared = async (name: string) => {
      const text = await readFile(join(root, "config", name), "utf8");
      const documents = text.split(/^---$/m).map((document) => parse(document) as unknown);
      return JSON.stringify(documents, (key, value: unknown) => (own.has(key) ? undefined : value));
    };
    const forFiles = await shared("sluice.yaml");
    assert.equal(forFiles.replace('"kind":"FileMQTT"', '"kind":"KafkaMQTT"'), await shared("sluice-kafka.yaml"));
  });
});
