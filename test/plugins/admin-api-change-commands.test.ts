import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { TestContext } from "node:test";
import { parseAllDocuments } from "yaml";
import apply from "../../plugins/admin-api/apply.ts";
import create from "../../plugins/admin-api/create.ts";
import remove from "../../plugins/admin-api/delete.ts";
import describe from "../../plugins/admin-api/describe.ts";
import diff from "../../plugins/admin-api/diff.ts";
import get from "../../plugins/admin-api/get.ts";
import history from "../../plugins/admin-api/history.ts";
import rollback from "../../plugins/admin-api/rollback.ts";
import type { Command, ConfigDocument, KindInfo, ObjectHealth } from "../../kernel/plugin.ts";
import { startAdminApi } from "../helpers/admin-api.ts";
import { runCommand, type CommandRun, createMemoryConfig, type MemoryConfig } from "@sluice/testkit";

const initial: ConfigDocument[] = [
  { kind: "MQTTProxy", name: "mqttproxy", port: 1883 },
  { kind: "Pipeline", name: "publish", filters: [] },
];

const kinds = ["MQTTProxy", "Pipeline", "Cron"].map((kind): KindInfo => ({
  kind,
  family: "kernel",
  package: "k",
  version: "1",
  description: "",
  schema: {},
}));

interface Setup {
  readonly memory: MemoryConfig;
  /** Of the gateway; may be changed. */
  readonly health: ObjectHealth[];
  readonly run: (command: Command, args: string, stdin?: string) => Promise<CommandRun>;
  readonly file: (name: string, text: string) => string;
}

async function start(t: TestContext): Promise<Setup> {
  const memory = createMemoryConfig(initial);
  const health: ObjectHealth[] = [{ name: "mqttproxy", ok: true, detail: "127.0.0.1:1883" }];
  const overrides = { config: memory.config, kinds: () => kinds, health: () => health };
  const api = await startAdminApi(t, { overrides });
  const folder = mkdtempSync(join(tmpdir(), "sluice-change-"));
  t.after(() => rmSync(folder, { recursive: true }));
  return {
    memory,
    health,
    run: (command, args, stdin = "") =>
      runCommand(command, args.split(" ").filter(Boolean), { env: { SLUICE_API: api.url }, stdin }),
    file(name, text) {
      const path = join(folder, name);
      writeFileSync(path, text);
      return path;
    },
  };
}

test("apply shows the plan, makes the change and says which version runs", async (t) => {
  const { run, memory, file } = await start(t);
  const proxy = file("proxy.yaml", "kind: MQTTProxy\nname: mqttproxy\nport: ${PORT}\n---\nkind: Pipeline\nname: new\n");
  const dry = await run(apply, `-f ${proxy} --dry-run`);
  const plan = "~ change MQTTProxy mqttproxy (port)\n+ build Pipeline new\n  1 kept as they are\n";
  assert.deepEqual(dry, { code: 0, stdout: `${plan}dry run: nothing was changed\n`, stderr: "" });
  assert.equal(memory.config.version(), 1);
  assert.deepEqual(await run(apply, `-f ${proxy}`), { code: 0, stdout: `${plan}version 2 runs\n`, stderr: "" });
  assert.equal(memory.config.documents().find(({ name }) => name === "mqttproxy")?.["port"], "${PORT}");
  const again = await run(apply, `-f ${proxy}`);
  assert.equal(again.stdout, "no difference\nversion 2 runs\n");

  const more = file("more.json", '[{"kind": "Pipeline", "name": "json"}]');
  const both = await run(apply, `-f ${more} -f - --json`, "kind: Pipeline\nname: piped\n");
  assert.deepEqual([both.code, (JSON.parse(both.stdout) as { version: number }).version], [0, 3]);
  assert.equal(memory.config.documents().length, 5);
});

test("a change that is refused changes nothing, exits with 1 and lists every problem", async (t) => {
  const { run, memory } = await start(t);
  const invalid = await run(
    apply,
    "-f -",
    "kind: Pipeline\nname: a\ninvalid: 1\n---\nkind: Pipeline\nname: b\ninvalid: 1",
  );
  assert.deepEqual([invalid.code, invalid.stdout], [1, ""]);
  assert.match(invalid.stderr, /answered 400: .*nothing was changed\n {2}a\.yaml.*invalid\n {2}b\.yaml.*invalid\n$/);
  const broken = await run(apply, "-f -", "kind: Pipeline\nname: [\n");
  assert.deepEqual([broken.code, broken.stdout], [1, ""]);
  assert.match(broken.stderr, /^standard input:3:1: /);
  const taken = await run(create, "-f -", "kind: Pipeline\nname: publish");
  assert.deepEqual([taken.code, /409: conflict name: publish/.test(taken.stderr)], [1, true]);
  memory.readOnly = true;
  const readOnly = await run(apply, "-f -", "kind: Pipeline\nname: a");
  assert.deepEqual([readOnly.code, /answered 409/.test(readOnly.stderr)], [1, true]);
  assert.equal(memory.config.version(), 1);
});

test("what was shown is what happens: a change by somebody else in between is 412", async (t) => {
  const { run, memory } = await start(t);
  memory.onApply = () => {
    // The first call is the plan's, the second the change's.
    memory.onApply = () => {
      delete memory.onApply;
      return memory.config.apply({ put: [{ kind: "Pipeline", name: "other" }] }, { by: "another" });
    };
    return Promise.resolve();
  };
  const late = await run(apply, "-f -", "kind: Pipeline\nname: a");
  assert.deepEqual([late.code, late.stdout.split("\n")[0]], [1, "+ build Pipeline a"]);
  assert.match(late.stderr, /answered 412/);
  assert.deepEqual(
    memory.config.documents().map(({ name }) => name),
    ["mqttproxy", "publish", "other"],
  );
});

test("--wait ends when the changed objects are healthy, or says what isn't", async (t) => {
  const { run, health } = await start(t);
  health.push({ name: "publish/kafka", ok: false, detail: "no broker answers" });
  const other = await run(apply, "-f - --wait", "kind: Pipeline\nname: a");
  assert.deepEqual([other.code, other.stdout.endsWith("version 2 runs\nhealthy\n")], [0, true], "publish is not of it");
  const late = await run(apply, "-f - --wait --timeout 0.3", "kind: Pipeline\nname: publish\nflow: []");
  assert.equal(late.code, 1);
  assert.match(late.stderr, /was made, but after 0\.3 s .*\n {2}publish\/kafka: no broker answers\n$/);
  const waiting = run(apply, "-f - --wait --timeout 20", "kind: Pipeline\nname: publish\nflow: [a]");
  setTimeout(() => health.pop(), 100);
  assert.equal((await waiting).code, 0);
});

test("get shows all objects, those of a kind by any of its names, or one", async (t) => {
  const { run, health } = await start(t);
  health.push({ name: "publish/kafka", ok: false, detail: "no broker answers" });
  const table = await run(get, "");
  assert.deepEqual(
    table.stdout.split("\n").map((line) => line.replace(/ {2,}/g, " | ")),
    [
      "KIND | NAME | HEALTH | DETAIL",
      "MQTTProxy | mqttproxy | ok | 127.0.0.1:1883",
      "Pipeline | publish | unhealthy | publish/kafka: no broker answers",
      "",
    ],
  );
  assert.deepEqual(await run(get, "all"), table);
  for (const name of ["mqttproxy", "MQTTProxy", "mqtt", "mp"]) {
    assert.deepEqual(JSON.parse((await run(get, `${name} -o json`)).stdout), [initial[0]], name);
  }
  for (const name of ["pipeline", "pipelines", "pl"]) {
    const yaml = await run(get, `${name} publish -o yaml`);
    assert.deepEqual(
      parseAllDocuments(yaml.stdout).map((each) => each.toJS() as unknown),
      [initial[1]],
    );
  }
  const all = parseAllDocuments((await run(get, "all -o yaml")).stdout);
  assert.deepEqual(
    all.map((each) => each.toJS() as unknown),
    initial,
  );
  assert.equal((await run(get, "cron")).stdout, "no objects\n");
  assert.deepEqual(await run(get, "mp none"), { code: 1, stdout: "", stderr: 'there is no MQTTProxy named "none"\n' });
  const unknown = await run(get, "filter");
  assert.deepEqual([unknown.code, /choose one of .*mqttproxy\|mqtt\|mp/.test(unknown.stderr)], [2, true]);
});

test("describe shows an object's options and status", async (t) => {
  const { run } = await start(t);
  const shown = await run(describe, "mqtt mqttproxy");
  const status = { healthy: true, health: [{ name: "mqttproxy", ok: true, detail: "127.0.0.1:1883" }] };
  assert.deepEqual(parseAllDocuments(shown.stdout)[0]?.toJS(), { ...initial[0], status });
  const other = await run(describe, "pipeline mqttproxy");
  assert.deepEqual(other, { code: 1, stdout: "", stderr: 'there is no Pipeline named "mqttproxy"\n' });
});

test("delete removes by name, by kind and by file: all or nothing", async (t) => {
  const { run, memory, file } = await start(t);
  const names = (): string[] => memory.config.documents().map(({ name }) => name);
  const missing = await run(remove, "pipeline publish none");
  assert.deepEqual([missing.code, names()], [1, ["mqttproxy", "publish"]]);
  const dry = await run(remove, "mp mqttproxy --dry-run");
  assert.match(dry.stdout, /^- drop MQTTProxy mqttproxy\n/);
  assert.deepEqual((await run(remove, "mp mqttproxy")).code, 0);
  assert.deepEqual(names(), ["publish"]);
  await run(apply, "-f -", "[{kind: Pipeline, name: a}, {kind: Pipeline, name: b}, {kind: Cron, name: c}]");
  assert.equal((await run(remove, `-f ${file("a.yaml", "kind: Pipeline\nname: a\n")}`)).code, 0);
  assert.deepEqual(names(), ["publish", "b", "c"]);
  assert.equal((await run(remove, "pl --all")).code, 0);
  assert.deepEqual(names(), ["c"]);
});

test("diff exits with 0 for no difference, 1 for one, and 2 for what is refused", async (t) => {
  const { run, memory } = await start(t);
  const same = await run(diff, "-f -", JSON.stringify(initial[0]));
  assert.deepEqual(same, { code: 0, stdout: "no difference\n", stderr: "" });
  const other = await run(diff, "-f -", "kind: Pipeline\nname: publish\nflow: []");
  const changed = `~ change Pipeline publish (filters, flow)
  1 kept as they are

--- Pipeline publish, as it runs
+++ Pipeline publish, as it would
@@ -1,3 +1,3 @@
 kind: Pipeline
 name: publish
-filters: []
+flow: []
`;
  assert.deepEqual(other, { code: 1, stdout: changed, stderr: "" });
  const added = await run(diff, "-f -", "kind: Pipeline\nname: new");
  assert.match(
    added.stdout,
    /\n--- \/dev\/null\n\+\+\+ Pipeline new, as it would\n@@ .*@@\n\+kind: Pipeline\n\+name: new\n$/,
  );
  for (const text of ["kind: Pipeline\nname: a\ninvalid: 1", "kind: ["]) {
    const refused = await run(diff, "-f -", text);
    assert.deepEqual([refused.code, refused.stdout], [2, ""]);
    assert.notEqual(refused.stderr, "");
  }
  assert.equal(memory.config.version(), 1);
});

test("history lists, and rollback takes the one before or the one that is named", async (t) => {
  const { run, memory } = await start(t);
  assert.equal((await run(rollback, "")).code, 1, "there is none before the first");
  await run(apply, "-f -", "kind: Pipeline\nname: a");
  await run(apply, "-f -", "kind: Pipeline\nname: b");
  const lines = (await run(history, "")).stdout.split("\n").map((line) => line.replace(/ {2,}/g, " | "));
  assert.equal(lines[0], "VERSION | WHEN | BY | CHANGED");
  assert.match(lines[1] ?? "", /^3 \| 1970-01-01T00:00:03Z \| .+ \| build Pipeline b$/);
  assert.match(lines[3] ?? "", /^1 \| .* \| start \| -$/);
  assert.match((await run(rollback, "--dry-run")).stdout, /^- drop Pipeline b\n/);
  assert.match((await run(rollback, "")).stdout, /^- drop Pipeline b\n(?:.*\n)*version 4 runs\n$/);
  assert.equal((await run(rollback, "1")).code, 0);
  assert.deepEqual(memory.config.documents(), initial);
  assert.equal((await run(rollback, "99")).code, 1);
});

test("wrong usage is exit code 2, a gateway that can't be reached 3", async (t) => {
  const { run, memory } = await start(t);
  const cases: [Command, string][] = [
    [apply, ""],
    [apply, "-f /nonexistent/file"],
    [apply, "-f - more"],
    [apply, "-f - --timeout never"],
    [create, ""],
    [get, "all name"],
    [get, "mp a b"],
    [get, "-o xml"],
    [describe, "mp"],
    [remove, ""],
    [remove, "mp"],
    [remove, "mp a --all"],
    [remove, "mp a -f -"],
    [diff, ""],
    [history, "1"],
    [rollback, "latest"],
    [rollback, "1 2"],
  ];
  for (const [command, args] of cases) {
    const result = await run(command, args, "kind: Pipeline\nname: a");
    assert.deepEqual([result.code, result.stdout], [2, ""], `${command.summary}: ${args}`);
    assert.notEqual(result.stderr, "");
  }
  assert.equal(memory.config.version(), 1);
  for (const [command, args] of [
    [apply, "-f -"],
    [create, "-f -"],
    [get, ""],
    [describe, "mp a"],
    [remove, "mp a"],
    [diff, "-f -"],
    [history, ""],
    [rollback, ""],
  ] as const) {
    const result = await run(command, `${args} --api http://127.0.0.1:9`, "kind: Pipeline\nname: a");
    assert.deepEqual([result.code, result.stdout], [3, ""], command.summary);
  }
});
