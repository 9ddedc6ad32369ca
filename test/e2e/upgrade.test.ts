/** Plugins installed and upgraded while the gateway runs: new code runs at once, what did not change is not imported again. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test, type TestContext } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import mqtt, { type MqttClient } from "mqtt";
import rootManifest from "../../package.json" with { type: "json" };
import { createClone } from "../helpers/clone.ts";
import { eventually } from "../helpers/eventually.ts";
import { startTestGateway } from "../helpers/gateway.ts";
import { bin } from "../helpers/gateway-under-test.ts";
import { longTest } from "../helpers/long-test.ts";
import { type LogLine, spawnGateway, type SpawnedGateway } from "../helpers/spawned-gateway.ts";
import { run } from "../helpers/published.ts";
import { npm, writeStamp, writeStampDependency } from "../helpers/stamp-package.ts";

/** Tarballs, made once. */
let shop: string;

before(async () => {
  shop = await realpath(await mkdtemp(join(tmpdir(), "sluice-shop-")));
  const stamp = join(shop, "stamp");
  for (const version of ["1.0.0", "1.1.0"]) {
    await writeStampDependency(join(shop, "stamp-dep"), version);
    await npm(shop, "pack", "./stamp-dep");
    await writeStamp(stamp, version, { dependency: version });
    await npm(shop, "pack", "./stamp");
  }
  await writeStamp(stamp, "1.2.0", { dependency: "1.1.0", prelude: "throw new Error('not today');" });
  await npm(shop, "pack", "./stamp");
});
after(() => rm(shop, { recursive: true, force: true }));

const tarballs = (...names: readonly string[]): string[] => names.map((name) => join(shop, `${name}.tgz`));

/** @param kinds of the filters of the Publish pipeline */
function config(kinds: readonly string[], gateway = ""): string {
  return `kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
brokerMode: true
rules: [{ when: { packetType: Publish }, pipeline: publish }]
---
kind: AdminAPI
name: admin-api
port: 0
---
kind: Pipeline
name: publish
filters:
${kinds.map((kind) => `  - { name: ${kind.toLowerCase()}, kind: ${kind}${kind === "ConnectControl" ? ", bannedTopics: [never]" : ""} }`).join("\n")}
${gateway}`;
}

interface Running {
  readonly folder: string;
  readonly file: string;
  readonly gateway: SpawnedGateway;
  /** What a message becomes. */
  readonly stamped: () => Promise<string>;
  /** Does it, and returns the end of the reload that it leads to. */
  readonly changedBy: (change: () => Promise<unknown>) => Promise<LogLine>;
}

/** A gateway in an npm project of its own, and a client that must stay connected to the end of the test. */
async function start(t: TestContext, yaml: string, installed: readonly string[] = []): Promise<Running> {
  const folder = await realpath(await mkdtemp(join(tmpdir(), "sluice-upgrade-")));
  await writeFile(join(folder, "package.json"), JSON.stringify({ name: "site", private: true }));
  if (installed.length > 0) await npm(folder, "install", ...installed);
  const file = join(folder, "sluice.yaml");
  await writeFile(file, yaml);
  const gateway = await spawnGateway(file);
  const client = await mqtt.connectAsync(`mqtt://127.0.0.1:${gateway.port}`, { reconnectPeriod: 0 });
  await client.subscribeAsync("t", { qos: 1 });
  let closed = 0;
  client.on("close", () => closed++);
  t.after(async () => {
    const closedBefore = closed;
    await client.endAsync(true);
    const code = await gateway.stop();
    await rm(folder, { recursive: true });
    assert.equal(closedBefore, 0, "the client was disconnected");
    assert.equal(code, 0);
  });
  return {
    folder,
    file,
    gateway,
    stamped: () => stampedBy(client),
    async changedBy(change) {
      const from = gateway.logs.length;
      await change();
      return gateway.reloaded(from);
    },
  };
}

async function stampedBy(client: MqttClient): Promise<string> {
  const got = new Promise<string>((resolve) => client.once("message", (_topic, payload) => resolve(String(payload))));
  await client.publishAsync("t", "x", { qos: 1 });
  return got;
}

test("a plugin that is installed while the gateway runs is used as soon as the config names it", async (t) => {
  const { folder, file, gateway, stamped, changedBy } = await start(t, config(["ConnectControl"]));
  assert.equal(await stamped(), "x");
  await npm(folder, "install", ...tarballs("stamp-1.0.0", "stamp-dep-1.0.0"));
  const from = gateway.logs.length;
  await writeFile(file, config(["ConnectControl", "Stamp"]));
  const line = await gateway.logged(({ msg }) => msg === "The config has changed", from);
  assert.deepEqual(line["changed"], ["build Stamp publish/stamp", "change Pipeline publish (filters, flow)"]);
  assert.equal(await stamped(), "1.0.0 1.0.0 dep-1.0.0 1 1");

  // And the other way round: the config is first, and what it names comes then.
  const missing = await changedBy(() => writeFile(file, config(["ConnectControl", "Stamp", "Later"])));
  assert.equal(missing.msg, "The config was not changed");
  await mkdir(join(shop, "later"), { recursive: true });
  await writeStamp(join(shop, "later"), "1.0.0");
  for (const name of ["package.json", "index.js"]) {
    const path = join(shop, "later", name);
    const text = await readFile(path, "utf8");
    await writeFile(
      path,
      text
        .replace('"stamp"', '"later"')
        .replace('"Stamp"', '"Later"')
        .replace("Buffer.from(", "Buffer.from('later ' + "),
    );
  }
  await npm(shop, "pack", "./later");
  const built = gateway.logged(({ msg }) => msg === "The config has changed", gateway.logs.length);
  await npm(folder, "install", ...tarballs("later-1.0.0"));
  assert.deepEqual((await built)["changed"], ["build Later publish/later", "change Pipeline publish (filters, flow)"]);
  assert.match(await stamped(), /^later 1\.0\.0/);
});

test("npm install of another version in place: new code throughout, state adopted; back again imports nothing", async (t) => {
  const { folder, file, gateway, stamped, changedBy } = await start(
    t,
    config(["Stamp"]),
    tarballs("stamp-1.0.0", "stamp-dep-1.0.0"),
  );
  assert.equal(await stamped(), "1.0.0 1.0.0 dep-1.0.0 1 1");
  assert.equal(await gateway.metric("sluice_plugin_stale_modules"), 0);

  // What did not change is not imported again, whatever else changes.
  await changedBy(() => writeFile(file, config(["ConnectControl", "Stamp"])));
  await changedBy(() => writeFile(file, config(["Stamp"])));
  assert.equal(await stamped(), "1.0.0 1.0.0 dep-1.0.0 2 1");

  const upgraded = (what: string): Promise<LogLine> =>
    gateway.logged((line) => line.msg === "The config has changed" && JSON.stringify(line["changed"]).includes(what));
  await npm(folder, "install", ...tarballs("stamp-1.1.0", "stamp-dep-1.1.0"));
  const line = await upgraded("1.0.0 -> 1.1.0");
  assert.deepEqual(line["changed"], ["change Stamp publish/stamp (upgrade stamp 1.0.0 -> 1.1.0)"]);
  assert.equal(await stamped(), "1.1.0 1.1.0 dep-1.1.0 3 2");
  assert.equal(await gateway.metric("sluice_plugin_stale_modules"), 1);

  await npm(folder, "install", ...tarballs("stamp-1.0.0", "stamp-dep-1.0.0"));
  await upgraded("1.1.0 -> 1.0.0");
  assert.equal(await stamped(), "1.0.0 1.0.0 dep-1.0.0 4 2", "the first version is in memory still");
  assert.equal(await gateway.metric("sluice_plugin_stale_modules"), 1);
});

test("an upgrade that can't be imported leaves the running version alone; one that can follows", async (t) => {
  const { folder, gateway, stamped, changedBy } = await start(
    t,
    config(["Stamp"]),
    tarballs("stamp-1.0.0", "stamp-dep-1.0.0"),
  );
  const failed = await changedBy(() => npm(folder, "install", ...tarballs("stamp-1.2.0", "stamp-dep-1.1.0")));
  assert.equal(failed.msg, "The config was not changed");
  const problem = gateway.logs.findLast(({ where }) => where !== undefined);
  assert.match(String(problem?.["where"]), /sluice\.yaml:15:\d+ > publish > stamp > kind$/);
  assert.match(String(problem?.msg), /not today/);
  assert.equal(await stamped(), "1.0.0 1.0.0 dep-1.0.0 1 1");
  const line = await changedBy(() => npm(folder, "install", ...tarballs("stamp-1.1.0")));
  assert.deepEqual(
    [line.msg, line["changed"]],
    ["The config has changed", ["change Stamp publish/stamp (upgrade stamp 1.0.0 -> 1.1.0)"]],
  );
  assert.equal(await stamped(), "1.1.0 1.1.0 dep-1.1.0 2 2");
});

longTest("pnpm, whose versions lie in folders of their own, is noticed as well", async (t) => {
  // Without a dependency, which pnpm would look for in a registry.
  const shelf = join(shop, "plain");
  const pnpm = async (folder: string, version: string): Promise<void> => {
    await writeStamp(join(shelf, "stamp"), version);
    await npm(shelf, "pack", "./stamp");
    const tarball = join(shelf, `stamp-${version}.tgz`);
    await run("npx", ["--yes", rootManifest.packageManager, "add", "--offline", tarball], folder);
  };
  const { folder, file, stamped, changedBy } = await start(t, config(["ConnectControl"]));
  await changedBy(() => pnpm(folder, "1.0.0"));
  await changedBy(() => writeFile(file, config(["Stamp"])));
  assert.equal(await stamped(), "1.0.0 1.0.0 none 1 1");
  const line = await changedBy(() => pnpm(folder, "1.1.0"));
  assert.deepEqual(line["changed"], ["change Stamp publish/stamp (upgrade stamp 1.0.0 -> 1.1.0)"]);
  assert.equal(await stamped(), "1.1.0 1.1.0 none 2 2");
});

test("sluice plugin add puts another version beside the running one, which is used at once", async (t) => {
  const { folder, file, gateway, stamped } = await start(t, config(["ConnectControl"]));
  const shelf = join(shop, "added");
  const add = async (version: string): Promise<void> => {
    await writeStamp(join(shelf, "stamp"), version);
    await npm(shelf, "pack", "./stamp");
    await run("node", [bin, "plugin", "add", join(shelf, `stamp-${version}.tgz`)], folder);
  };
  const changed = (what: string): Promise<LogLine> =>
    gateway.logged((line) => line.msg === "The config has changed" && JSON.stringify(line["changed"]).includes(what));
  await add("1.0.0");
  await writeFile(file, config(["Stamp"]));
  await changed("build Stamp");
  assert.equal(await stamped(), "1.0.0 1.0.0 none 1 1");
  await add("1.1.0");
  await changed("change Stamp publish/stamp (upgrade stamp 1.0.0 -> 1.1.0)");
  assert.equal(await stamped(), "1.1.0 1.1.0 none 2 2");
  assert.equal(await gateway.metric("sluice_plugin_stale_modules"), 1);
});

test("code that failed for a reason outside of it is run again", async (t) => {
  const folder = await realpath(await mkdtemp(join(tmpdir(), "sluice-upgrade-")));
  t.after(() => rm(folder, { recursive: true }));
  const prelude = `import { existsSync } from "node:fs"; if (!existsSync("${folder}/licence")) throw new Error("no licence");`;
  await writeStamp(join(folder, "plugins/stamp"), "1.0.0", { prelude });
  const gateway = await startTestGateway(config(["ConnectControl"]), { folder });
  t.after(() => gateway.stop());
  const yaml = config(["Stamp"], "---\nkind: Gateway\nplugins: { dirs: [plugins] }\n");
  for (let n = 0; n < 2; n++) {
    const { problems } = await gateway.reload(yaml);
    assert.match(String(problems[0]?.message), /no licence/);
  }
  await writeFile(join(folder, "licence"), "");
  assert.deepEqual((await gateway.reload(yaml)).problems, []);
});

test("a dependency that is upgraded alone runs too; what is no code is no change", async (t) => {
  const folder = await realpath(await mkdtemp(join(tmpdir(), "sluice-upgrade-")));
  t.after(() => rm(folder, { recursive: true }));
  const stamp = join(folder, "plugins/stamp");
  await writeStamp(stamp, "1.0.0", { dependency: "^1.0.0" });
  await writeStampDependency(join(stamp, "node_modules/stamp-dep"), "1.0.0");
  const yaml = config(["Stamp"], "---\nkind: Gateway\nplugins: { dirs: [plugins] }\n");
  const gateway = await startTestGateway(yaml, { folder });
  const client = await mqtt.connectAsync(gateway.url(), { reconnectPeriod: 0 });
  t.after(async () => {
    await client.endAsync(true);
    await gateway.stop();
  });
  await client.subscribeAsync("t", { qos: 1 });
  assert.match(await stampedBy(client), /^1\.0\.0 1\.0\.0 dep-1\.0\.0 1 /);
  await writeFile(join(stamp, "notes.txt"), "nothing");
  assert.equal((await gateway.reload(yaml)).plan?.isEmpty, true);
  await writeStampDependency(join(stamp, "node_modules/stamp-dep"), "1.1.0");
  const { plan } = await gateway.reload(yaml);
  assert.deepEqual(plan?.items.find(({ kind }) => kind === "Stamp")?.notes, ["new code of stamp 1.0.0"]);
  assert.match(await stampedBy(client), /^1\.0\.0 1\.0\.0 dep-1\.1\.0 2 /);
});

test("versions in folders of their own: the other folder is an upgrade", async (t) => {
  const yaml = (version: string): string =>
    config(["Stamp"], `---\nkind: Gateway\nplugins: { dirs: [".sluice/plugins/stamp@${version}/node_modules"] }\n`);
  const folder = await realpath(await mkdtemp(join(tmpdir(), "sluice-upgrade-")));
  t.after(() => rm(folder, { recursive: true }));
  for (const version of ["1.0.0", "1.1.0"])
    await writeStamp(join(folder, `.sluice/plugins/stamp@${version}/node_modules/stamp`), version);
  const gateway = await startTestGateway(yaml("1.0.0"), { folder });
  const client = await mqtt.connectAsync(gateway.url(), { reconnectPeriod: 0 });
  t.after(async () => {
    await client.endAsync(true);
    await gateway.stop();
  });
  await client.subscribeAsync("t", { qos: 1 });
  assert.match(await stampedBy(client), /^1\.0\.0 1\.0\.0 none 1 /);
  const changed = async (version: string) =>
    (await gateway.reload(yaml(version))).plan?.items.filter(({ action }) => action !== "keep");
  const item = { kind: "Stamp", name: "publish/stamp", action: "change", fields: [] };
  assert.deepEqual(
    (await changed("1.1.0"))?.filter(({ kind }) => kind !== "Gateway"),
    [{ ...item, notes: ["upgrade stamp 1.0.0 -> 1.1.0"] }],
  );
  assert.match(await stampedBy(client), /^1\.1\.0 1\.1\.0 none 2 /);
  assert.equal(await gateway.metric("sluice_plugin_stale_modules"), 1);
  await changed("1.0.0");
  assert.match(await stampedBy(client), /^1\.0\.0 1\.0\.0 none 3 /);
  assert.equal(await gateway.metric("sluice_plugin_stale_modules"), 1);
});

test("a service is upgraded with its socket, and calls in flight get their answer", async (t) => {
  const clone = await createClone();
  t.after(() => clone.remove());
  const folder = join(clone.folder, "site");
  await mkdir(folder);
  const dirs = `---\nkind: Gateway\nplugins: { dirs: [${join(clone.folder, "plugins")}] }\n`;
  const gateway = await startTestGateway(config(["ConnectControl"], dirs), { folder });
  t.after(() => gateway.stop());
  const { api } = gateway;
  const manifest = join(clone.folder, "plugins/admin-api/package.json");
  const route = join(clone.folder, "plugins/admin-api/health-route.ts");
  const body = new TransformStream<string, Uint8Array>({
    transform: (text, controller) => controller.enqueue(Buffer.from(text)),
  });
  const writer = body.writable.getWriter();
  const slow = fetch(`${api}/apis/v2/mqttproxy/mqttproxy/topics/publish`, {
    method: "POST",
    body: body.readable,
    duplex: "half",
  });
  await writer.write('{"topic":"t",');
  await writeFile(manifest, (await readFile(manifest, "utf8")).replace('"version": "0.1.0"', '"version": "0.2.0"'));
  await writeFile(route, (await readFile(route, "utf8")).replace('"/healthz"', '"/upgraded"'));
  assert.equal((await fetch(`${api}/healthz`)).status, 200);
  const { plan, problems } = await gateway.reload(config(["ConnectControl"], dirs));
  assert.deepEqual(problems, []);
  assert.deepEqual(
    plan?.items.filter(({ action }) => action !== "keep").map(({ kind, notes }) => [kind, notes]),
    [["AdminAPI", ["upgrade @sluice/admin-api 0.1.0 -> 0.2.0"]]],
  );
  await writer.write('"payload":"x","qos":1}');
  await writer.close();
  assert.equal((await slow).status, 200);
  assert.equal((await fetch(`${api}/upgraded`)).status, 200, "the new code at the old address");
  assert.equal((await fetch(`${api}/healthz`)).status, 404);
});

test("other code of the store waits for a restart, and keeps nothing else waiting", async (t) => {
  const clone = await createClone();
  t.after(() => clone.remove());
  const folder = join(clone.folder, "site");
  await mkdir(folder);
  const yaml = (banned: string): string =>
    `${config(["ConnectControl"]).replace("never", banned)}---
kind: Gateway
plugins: { dirs: [${join(clone.folder, "plugins")}] }
---
kind: LevelStore
name: sessions
dir: data
`;
  const gateway = await startTestGateway(yaml("a"), { folder });
  t.after(() => gateway.stop());
  const manifest = join(clone.folder, "plugins/level-store/package.json");
  await writeFile(manifest, (await readFile(manifest, "utf8")).replace('"version": "0.1.0"', '"version": "0.2.0"'));
  const { plan, problems } = await gateway.reload(yaml("b"));
  assert.deepEqual(problems, []);
  const changed = plan?.items.filter(({ action }) => action !== "keep");
  assert.deepEqual(
    changed?.map(({ kind, notes }) => [kind, notes]),
    [
      ["LevelStore", ["upgrade @sluice/level-store 0.1.0 -> 0.2.0", "after a restart"]],
      ["ConnectControl", []],
    ],
  );
});

longTest("50 upgrades leave nothing of the old instances behind", async (t) => {
  const folder = await realpath(await mkdtemp(join(tmpdir(), "sluice-upgrade-")));
  t.after(() => rm(folder, { recursive: true }));
  const stamp = join(folder, "plugins/stamp");
  const more = "ballast: Array.from({ length: 100_000 }, (_, n) => `${n}`),";
  await writeStamp(stamp, "1.0.0", { more });
  const yaml = config(["Stamp"], "---\nkind: Gateway\nplugins: { dirs: [plugins] }\ndrain: { timeout: 0 }\n");
  const gateway = await startTestGateway(yaml, { folder });
  t.after(() => gateway.stop());
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const heap = async (): Promise<number> => {
    (gateway.logs as unknown[]).length = 0;
    for (let n = 0; n < 3; n++) {
      await new Promise((resolve) => setImmediate(resolve));
      collect();
    }
    return process.memoryUsage().heapUsed;
  };
  const upgrade = async (n: number): Promise<void> => {
    await writeStamp(stamp, `1.0.${n}`, { more });
    const { plan } = await gateway.reload(yaml);
    assert.deepEqual(plan?.items.find(({ kind }) => kind === "Stamp")?.notes, [
      `upgrade stamp 1.0.${n - 1} -> 1.0.${n}`,
    ]);
  };
  for (let n = 1; n <= 5; n++) await upgrade(n);
  const heapBefore = await heap();
  for (let n = 6; n <= 55; n++) await upgrade(n);
  assert.equal(await gateway.metric("sluice_plugin_stale_modules"), 55);
  const advice = gateway.logs.filter(({ msg }) => String(msg).includes("restart the gateway"));
  assert.deepEqual(
    advice.map(({ stale }) => stale),
    [20],
  );
  await eventually(async () => (await heap()) - heapBefore < 8 * 2 ** 20, true);
  const grown = ((await heap()) - heapBefore) / 50;
  t.diagnostic(`the heap has grown by ${Math.round(grown / 1024)} KiB an upgrade`);
});
