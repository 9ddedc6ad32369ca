/** Changes of the config from inside: all or nothing, in the files as in what runs, remembered and undone. */
import assert from "node:assert/strict";
import { chmod, lstat, mkdir, mkdtemp, readdir, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import mqtt, { type MqttClient } from "mqtt";
import { pino } from "pino";
import { loadSpec } from "../../kernel/config.ts";
import { createGateway, type Gateway } from "../../kernel/gateway.ts";
import type { ConfigChange, ConfigDocument, Plan } from "../../kernel/plugin.ts";
import { createReloader, type Reloader } from "../../kernel/reload.ts";
import { watchInputs } from "../../kernel/watch.ts";
import { eventually } from "../helpers/eventually.ts";

const bin = fileURLToPath(new URL("../../kernel/cli.ts", import.meta.url));

const proxy = `# Devices.
kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: \${PORT:-0}   # any
rules:
- when: {packetType: Connect}
  pipeline: door
brokerMode: true
`;
const door = `kind: Pipeline
name: door
filters:
- name: control
  kind: ConnectControl
  bannedClients: [nobody] # so far
`;
const admin = "kind: AdminAPI\nname: admin-api\nport: 0\n";
const all = `${proxy}---\n${door}---\n${admin}`;

interface Running {
  readonly gateway: Gateway;
  readonly reloader: Reloader;
  readonly folder: string;
  readonly path: string;
  readonly text: () => Promise<string>;
  readonly connect: (clientId?: string) => Promise<MqttClient>;
  readonly inputs: ReadonlySet<string>;
}

/** From a file, or from a folder of `files`. */
async function start(t: TestContext, files: Record<string, string> = { "sluice.yaml": all }): Promise<Running> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-apply-"));
  for (const [name, text] of Object.entries(files)) await writeFile(join(folder, name), text);
  const names = Object.keys(files);
  const path = names.length === 1 ? join(folder, names[0] ?? "") : folder;
  const { gateway, reloader, inputs } = await run(path);
  t.after(async () => {
    await gateway.stop();
    await rm(folder, { recursive: true });
  });
  const port = () => Number(String(gateway.host.proxies.get("mqttproxy")?.status().address).split(":").at(-1));
  return {
    gateway,
    reloader,
    folder,
    path,
    inputs,
    text: () => readFile(path, "utf8"),
    async connect(clientId = "c") {
      const client = await mqtt.connectAsync(`mqtt://127.0.0.1:${port()}`, { clientId, reconnectPeriod: 0 });
      t.after(() => client.endAsync(true));
      return client;
    },
  };
}

async function run(path: string) {
  const log = pino({}, { write: () => undefined });
  const gateway = createGateway({ log, version: "0.0.0-test" });
  const reloader = createReloader({
    load: (overlay = new Map()) => loadSpec({ path, cwd: "/", env: {}, bins: [bin], overlay }),
    gateway,
    log,
  });
  const { plan, problems, inputs } = await reloader.reload("start");
  assert.ok(plan, problems.map(({ where, message }) => `${where}: ${message}`).join("\n"));
  return { gateway, reloader, inputs };
}

const doorWith = (...bannedClients: string[]): ConfigDocument => ({
  kind: "Pipeline",
  name: "door",
  filters: [{ name: "control", kind: "ConnectControl", bannedClients }],
});
const changes = (plan: Plan): string[] =>
  plan.items.filter(({ action }) => action !== "keep").map(({ action, name }) => `${action} ${name}`);
const apply = ({ gateway }: Running, change: ConfigChange) => gateway.host.config.apply(change, { by: "api" });

test("a change runs and stands in the file, nothing else of it is touched, and a restart has it", async (t) => {
  const running = await start(t);
  const client = await running.connect();
  const result = await apply(running, { put: [doorWith("nobody", "evil")] });
  assert.deepEqual([result.version, changes(result.plan)], [2, ["change door/control"]]);
  assert.equal(await running.text(), all.replace("[nobody]", "[nobody, evil]"));
  await assert.rejects(running.connect("evil"));
  assert.equal(client.connected, true);
  assert.deepEqual((await readdir(running.folder)).toSorted(), ["sluice.yaml"]);
  const again = await run(running.path);
  assert.deepEqual(again.gateway.host.config.documents(), running.gateway.host.config.documents());
  await again.gateway.stop();
});

test("several documents, one of them wrong: nothing runs, nothing is written, and every problem is told", async (t) => {
  const running = await start(t);
  const bad = { kind: "Pipeline", name: "bad", filters: [{ name: "x", kind: "ConnectControl", banedClients: [] }] };
  const worse = { kind: "MQTTProxy", name: "worse", port: "high" };
  const error = await apply(running, { put: [doorWith("evil"), bad, worse] }).then(
    () => undefined,
    (reason: unknown) => reason as { code: string; problems: { where: string; message: string }[] },
  );
  assert.equal(error?.code, "CONFIG_INVALID");
  // The line that it would have in the file.
  assert.deepEqual(
    error.problems.map(({ where }) => where.replace(/^.*sluice\.yaml/, "")),
    [":27:3 > bad > x > banedClients", ":31:1 > worse > port"],
  );
  assert.equal(await running.text(), all);
  assert.equal(running.gateway.host.config.version(), 1);
  await running.connect("evil");
});

test("what can't be built changes nothing, in the files either", async (t) => {
  const running = await start(t);
  const used = Number((await running.connect()).options.port);
  const put = [{ kind: "MQTTProxy", name: "second", host: "127.0.0.1", port: used }];
  await assert.rejects(apply(running, { put }), {
    code: "LISTEN_FAILED",
    message: /^[^ ]*sluice\.yaml:\d+:\d+ > second > port: can't listen on 127\.0\.0\.1:\d+/,
  });
  assert.equal(await running.text(), all);
  assert.deepEqual(await readdir(running.folder), ["sluice.yaml"]);
  assert.equal(running.gateway.host.config.history().length, 1);
});

test("a dry run tells the plan and does nothing", async (t) => {
  const running = await start(t);
  const { config } = running.gateway.host;
  const result = await config.apply({ put: [doorWith("evil")] }, { by: "api", dryRun: true });
  assert.deepEqual([result.version, changes(result.plan)], [1, ["change door/control"]]);
  assert.equal(await running.text(), all);
  await running.connect("evil");
});

test("of two changes made to the same version one is refused; an edit that was not read yet counts", async (t) => {
  const running = await start(t);
  const { config } = running.gateway.host;
  const outcomes = await Promise.allSettled(
    ["one", "two"].map((name) => config.apply({ put: [doorWith(name)] }, { by: "api", ifVersion: 1 })),
  );
  assert.deepEqual(
    outcomes.map((each) => (each.status === "rejected" ? (each.reason as { code: string }).code : each.value.version)),
    [2, "CONFIG_CONFLICT"],
  );
  await writeFile(running.path, all.replace("nobody", "by-hand"));
  await assert.rejects(config.apply({ put: [doorWith("x")] }, { by: "api", ifVersion: 2 }), {
    code: "CONFIG_CONFLICT",
  });
  assert.deepEqual(
    config.history().map(({ version, by }) => [version, by]),
    [
      [3, "file"],
      [2, "api"],
      [1, "start"],
    ],
  );
  await assert.rejects(running.connect("by-hand"));
});

test("documents come and go, and in a folder their files with them", async (t) => {
  const running = await start(t, { "a.yaml": `${proxy}---\n${door}`, "b.yaml": admin });
  const extra = { kind: "Pipeline", name: "extra", filters: [] };
  assert.deepEqual(changes((await apply(running, { put: [extra] })).plan), ["build extra"]);
  assert.equal(
    await readFile(join(running.folder, "extra.yaml"), "utf8"),
    "kind: Pipeline\nname: extra\nfilters: []\n",
  );
  const { plan } = await apply(running, {
    remove: [{ kind: "AdminAPI", name: "admin-api" }, { name: "extra" }],
    put: [{ kind: "AdminAPI", name: "admin-api", port: 0 }],
  });
  assert.deepEqual(changes(plan), ["drop extra"]);
  assert.deepEqual((await readdir(running.folder)).toSorted(), ["a.yaml", "admin-api.yaml"]);
  await assert.rejects(apply(running, { remove: [{ name: "extra" }] }), { code: "CONFIG_NOT_FOUND" });
});

test("files that may not be written: a link, and one that is marked", async (t) => {
  const running = await start(t);
  const refused = () => assert.rejects(apply(running, { put: [doorWith("evil")] }), { code: "CONFIG_READ_ONLY" });
  await chmod(running.path, 0o444);
  await refused();
  await chmod(running.path, 0o640);
  await rename(running.path, join(running.folder, "real"));
  await symlink("real", running.path);
  await refused();
  assert.ok((await lstat(running.path)).isSymbolicLink());
  await rm(running.path);
  await rename(join(running.folder, "real"), running.path);
  assert.equal(await running.text(), all);
  assert.equal(running.gateway.host.config.version(), 1);
  await running.connect("evil");
  await apply(running, { put: [doorWith("evil")] });
  assert.equal((await lstat(running.path)).mode & 0o777, 0o640);
});

test("a place that is taken by a folder is found before anything is applied", async (t) => {
  const running = await start(t, { "a.yaml": all, "b.yaml": "# none\nkind: Pipeline\nname: b\nfilters: []\n" });
  await mkdir(join(running.folder, "extra.yaml"));
  const put = [doorWith("evil"), { kind: "Pipeline", name: "extra", filters: [] }];
  await assert.rejects(apply(running, { put }), { code: "CONFIG_READ_ONLY" });
  assert.equal(await readFile(join(running.folder, "a.yaml"), "utf8"), all);
  assert.deepEqual((await readdir(running.folder)).toSorted(), ["a.yaml", "b.yaml", "extra.yaml"]);
  await running.connect("evil");
});

test("a file that is edited while the change is made: the edit wins, and what ran is back", async (t) => {
  const running = await start(t);
  const client = await running.connect();
  // The filter is made after the files were read and before they are written.
  const plugin = join(running.folder, "node_modules", "editor");
  await mkdir(plugin, { recursive: true });
  await writeFile(
    join(plugin, "package.json"),
    JSON.stringify({
      name: "editor",
      version: "1.0.0",
      type: "module",
      keywords: ["sluice-plugin"],
      engines: { sluice: "^1.0.0" },
      sluice: { kinds: { Editor: { family: "filter", entry: "./index.js", schema: "./schema.json" } } },
    }),
  );
  await writeFile(join(plugin, "schema.json"), '{"type": "object", "description": "Edits."}');
  await writeFile(
    join(plugin, "index.js"),
    `import { appendFileSync } from "node:fs";
export default { kind: "Editor", packets: ["Connect"], results: [], create(_, host) {
  appendFileSync(host.folder + "/sluice.yaml", "# by hand\\n");
  return { handle() {} };
} };`,
  );
  await writeFile(join(running.folder, "package.json"), '{"dependencies": {"editor": "*"}}');
  const put = [{ kind: "Pipeline", name: "extra", filters: [{ name: "e", kind: "Editor" }] }, doorWith("evil")];
  await assert.rejects(apply(running, { put }), { code: "CONFIG_CONFLICT" });
  assert.equal(await running.text(), `${all}# by hand\n`);
  assert.equal(running.gateway.spec?.pipelines.length, 1);
  await running.connect("evil");
  assert.equal(client.connected, true);
  assert.deepEqual(
    (await readdir(running.folder)).filter((name) => name.endsWith(".tmp")),
    [],
  );
});

test("rollback writes the old text back and runs it, as a new version; the history is bounded", async (t) => {
  const running = await start(t, { "sluice.yaml": `${all}---\nkind: Gateway\nhistory: 4\n` });
  const before = await running.text();
  const { config } = running.gateway.host;
  await apply(running, { put: [doorWith("one")] });
  await apply(running, { put: [doorWith("two"), { kind: "Pipeline", name: "extra", filters: [] }] });
  const dry = await config.rollback(1, { by: "api:ops", dryRun: true });
  assert.deepEqual([dry.version, changes(dry.plan)], [3, ["change door/control", "drop extra"]]);
  const { version, plan } = await config.rollback(1, { by: "api:ops" });
  assert.deepEqual([version, changes(plan)], [4, ["change door/control", "drop extra"]]);
  assert.equal(await running.text(), before);
  await running.connect("two");
  const [latest] = config.history();
  assert.deepEqual(
    [latest?.version, latest?.by, latest?.changed],
    [4, "api:ops", ["change ConnectControl door/control (bannedClients)", "drop Pipeline extra"]],
  );
  await apply(running, { put: [doorWith("three")] });
  assert.deepEqual(
    config.history().map((each) => each.version),
    [5, 4, 3, 2],
  );
  await assert.rejects(config.rollback(1, { by: "api" }), { code: "CONFIG_NOT_FOUND", message: /5, 4, 3, 2/ });
});

test("rollback in a folder brings back files that went and removes those that came", async (t) => {
  const running = await start(t, {
    "a.yaml": `${proxy}---\n${door}`,
    "b.yaml": admin,
    "c.yaml": "kind: Pipeline\nname: c\nfilters: []\n",
  });
  await apply(running, { put: [{ kind: "Pipeline", name: "d", filters: [] }], remove: [{ name: "c" }] });
  assert.deepEqual((await readdir(running.folder)).toSorted(), ["a.yaml", "b.yaml", "d.yaml"]);
  await running.gateway.host.config.rollback(1, { by: "api" });
  assert.deepEqual((await readdir(running.folder)).toSorted(), ["a.yaml", "b.yaml", "c.yaml"]);
  assert.deepEqual(running.gateway.spec?.pipelines.map(({ name }) => name).toSorted(), ["c", "door"]);
});

test("who watches the files sees a change from inside, and finds nothing to do", async (t) => {
  const running = await start(t);
  const reloaded: (Plan | undefined)[] = [];
  const watcher = watchInputs({
    onChange: () => void running.reloader.reload("file").then(({ plan }) => reloaded.push(plan)),
    quietMs: 20,
    pollMs: 50,
  });
  t.after(() => watcher.close());
  await watcher.follow(running.inputs, Date.now());
  await apply(running, { put: [doorWith("evil")] });
  await eventually(() => reloaded.length > 0, true);
  assert.equal(reloaded[0]?.isEmpty, true);
  assert.equal(running.gateway.host.config.version(), 2);
});

test("changes from inside and reloads at once: each in its turn, and the files say what runs", async (t) => {
  const running = await start(t);
  const client = await running.connect();
  const work = Array.from({ length: 12 }, (_, n) =>
    n % 3 === 2
      ? running.reloader.reload("signal")
      : apply(running, { put: [doorWith(`c${n}`), { kind: "Pipeline", name: `p${n}`, filters: [] }] }),
  );
  await Promise.all(work);
  assert.equal(running.gateway.spec?.pipelines.length, 1 + 8);
  const { plan } = await running.reloader.reload("file");
  assert.equal(plan?.isEmpty, true);
  await assert.rejects(running.connect("c10"));
  assert.equal(client.connected, true);
});
