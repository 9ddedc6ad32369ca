/** Plugins that come, change and go beside a running gateway: taken up by itself, and no client is disconnected. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test, type TestContext } from "node:test";
import { promisify } from "node:util";
import mqtt from "mqtt";
import { nodeEnv, packPlugin, type Tarball } from "../helpers/plugin-packages.ts";
import { sluice } from "../helpers/sluice.ts";
import { spawnGateway, type LogLine, type SpawnedGateway } from "../helpers/spawned-gateway.ts";

const base = (filters: string): string => `kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
brokerMode: true
rules: [{ when: { packetType: Publish }, pipeline: publish }]
---
kind: Pipeline
name: publish
filters: [${filters}]
---
kind: AdminAPI
name: admin-api
port: 0
`;
const control = "{ name: control, kind: ConnectControl }";
const mark = "{ name: mark, kind: Mark }";

let home: string;
let mark1: Tarball;
let mark2: Tarball;
before(async () => {
  home = await realpath(await mkdtemp(join(tmpdir(), "sluice-plugin-reload-")));
  mark1 = await packPlugin(home, { name: "sluice-mark", version: "1.0.0" });
  mark2 = await packPlugin(home, { name: "sluice-mark", version: "1.1.0", mark: "newer" });
});
after(() => rm(home, { recursive: true }));

interface Setup {
  readonly folder: string;
  readonly gateway: SpawnedGateway;
  /** Publishes, and resolves with what comes back. */
  readonly echo: (text: string) => Promise<string>;
  readonly save: (filters: string) => Promise<void>;
  /** Does it, and returns what the reload that it leads to has said. */
  readonly reloadAfter: (change: () => Promise<unknown>) => Promise<LogLine>;
}

async function start(t: TestContext, filters: string): Promise<Setup> {
  const folder = await mkdtemp(join(home, "project-"));
  const file = join(folder, "sluice.yaml");
  await writeFile(file, base(filters));
  const gateway = await spawnGateway(file);
  const client = await mqtt.connectAsync(`mqtt://127.0.0.1:${gateway.port}`, { reconnectPeriod: 0 });
  let closed = 0;
  client.on("close", () => closed++);
  await client.subscribeAsync("echo", { qos: 1 });
  t.after(async () => {
    const closedBefore = closed;
    await client.endAsync(true);
    await gateway.stop();
    assert.equal(closedBefore, 0, "the client was disconnected");
  });
  return {
    folder,
    gateway,
    async echo(text) {
      const echoed = new Promise<string>((resolve) => client.once("message", (_, payload) => resolve(String(payload))));
      await client.publishAsync("echo", text, { qos: 1 });
      return await echoed;
    },
    save: (next) => writeFile(file, base(next)),
    async reloadAfter(change) {
      const from = gateway.logs.length;
      await change();
      return gateway.reloaded(from);
    },
  };
}

async function plugin(folder: string, ...args: string[]): Promise<void> {
  const { code, stderr } = await sluice(folder, ["plugin", ...args]);
  assert.deepEqual([code, stderr], [0, ""]);
}

describe("a running gateway", () => {
  test("has a plugin that is added: to be named, saved and used", async (t) => {
    const { folder, gateway, echo, save, reloadAfter } = await start(t, control);
    const noticed = await reloadAfter(() => plugin(folder, "add", mark1.path));
    assert.equal(noticed.msg, "The config has not changed");
    const kinds = await (await fetch(`${gateway.api}/apis/v2/metadata/objects/pipeline/filters`)).text();
    assert.match(kinds, /Mark/);
    assert.equal(await echo("hi"), "hi");
    const changed = await reloadAfter(() => save(`${control}, ${mark}`));
    assert.deepEqual(
      [changed.msg, changed["changed"]],
      ["The config has changed", ["build Mark publish/mark", "change Pipeline publish (filters, flow)"]],
    );
    assert.equal(await echo("hi"), "marked:hi");
  });

  test("whose config names a kind already takes it up when its plugin comes, without another save", async (t) => {
    const { folder, echo, save, reloadAfter } = await start(t, control);
    const failed = await reloadAfter(() => save(mark));
    assert.equal(failed.msg, "The config was not changed");
    assert.equal(await echo("hi"), "hi");
    const changed = await reloadAfter(() => plugin(folder, "add", mark1.path));
    assert.equal(changed.msg, "The config has changed");
    assert.equal(await echo("hi"), "marked:hi");
  });

  test("runs another version's code when that is added", async (t) => {
    const { folder, echo, save, reloadAfter } = await start(t, control);
    await reloadAfter(() => plugin(folder, "add", mark1.path));
    await reloadAfter(() => save(mark));
    assert.equal(await echo("hi"), "marked:hi");
    const changed = await reloadAfter(() => plugin(folder, "add", mark2.path));
    assert.equal(changed.msg, "The config has changed");
    assert.equal(await echo("hi"), "newer:hi");
  });

  test("goes on with what it runs where a plugin that it uses is removed all the same", async (t) => {
    const { folder, echo, save, reloadAfter } = await start(t, control);
    await reloadAfter(() => plugin(folder, "add", mark1.path));
    await reloadAfter(() => save(mark));
    const failed = await reloadAfter(() => plugin(folder, "remove", "--force", "sluice-mark"));
    assert.equal(failed.msg, "The config was not changed");
    assert.equal(await echo("hi"), "marked:hi");
  });

  test("also sees what npm installs into the config's own package.json", async (t) => {
    const { folder, gateway, echo, save, reloadAfter } = await start(t, control);
    await reloadAfter(() => save(mark));
    const from = gateway.logs.length;
    await writeFile(join(folder, "package.json"), '{ "private": true }');
    const args = ["install", "--no-audit", "--no-fund", "--offline", mark1.path];
    await promisify(execFile)("npm", args, { cwd: folder, env: nodeEnv });
    await gateway.logged(({ msg }) => msg === "The config has changed", from);
    assert.equal(await echo("hi"), "marked:hi");
  });
});
