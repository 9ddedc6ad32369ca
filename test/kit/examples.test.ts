/** The worked examples of docs/examples, as strangers' packages: installed from tarballs beside nothing but a kernel. */
import assert from "node:assert/strict";
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { cp, mkdir, mkdtemp, readdir, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { connectAsync, type MqttClient } from "mqtt";
import { eventually } from "../helpers/eventually.ts";
import { hasRedis, startRedis } from "../helpers/redis.ts";
import { takeAnyApiPort } from "../helpers/installation.ts";
import { gatewayPackage, startRegistry, type Registry } from "../helpers/registry.ts";

const run = promisify(execFile);
const examples = join(import.meta.dirname, "../../docs/examples");
const slow = { timeout: 600_000 };
const token = "a-token-for-tests-only";

let registry: Registry;
let home: string;
let gateway: string;
const npm = async (cwd: string, ...args: string[]): Promise<string> =>
  (await run("npm", args, { cwd, env: registry.env })).stdout;

before(async () => {
  registry = await startRegistry();
  home = await realpath(await mkdtemp(join(tmpdir(), "sluice-examples-")));
  for (const name of await readdir(examples)) await cp(join(examples, name), join(home, name), { recursive: true });
}, slow);
after(async () => {
  await registry.close();
  await rm(home, { recursive: true, force: true });
});

describe("each by itself", slow, () => {
  for (const name of ["json-field", "webhook", "redis-stream"]) {
    test(`${name}: its own tests pass, the contract's among them, and its types are right`, async () => {
      const folder = join(home, name);
      await npm(folder, "install");
      const tested = await npm(folder, "test");
      assert.match(tested, /^ℹ fail 0$/m);
      assert.match(tested, /100 reloads leave the heap flat/);
      const tsc = join(import.meta.dirname, "../../node_modules/.bin/tsc");
      const types = ["--typeRoots", join(import.meta.dirname, "../../node_modules/@types"), "--types", "node"];
      const options = ["--ignoreConfig", "--noEmit", "--allowJs", "--checkJs", "--strict", "--skipLibCheck"];
      await run(tsc, [...options, "--module", "nodenext", "--target", "es2024", ...types, "index.js"], { cwd: folder });
    });
  }
});

test("there is no example that is not tested", async () => {
  assert.deepEqual((await readdir(examples)).toSorted(), ["json-field", "redis-stream", "webhook"]);
});

interface Running {
  readonly mqtt: string;
  readonly hooks: string;
}

/** `sluice run` of the installed kernel; ends with the test. */
async function start(t: TestContext, config: string): Promise<Running> {
  await writeFile(join(gateway, "sluice.yaml"), config);
  const child: ChildProcess = spawn(join(gateway, "node_modules/.bin/sluice"), ["run"], {
    cwd: gateway,
    env: registry.env,
    stdio: ["ignore", "ignore", "pipe"],
  });
  t.after(async () => {
    if (child.exitCode !== null) return;
    const exited = once(child, "exit");
    child.kill("SIGTERM");
    await exited;
  });
  let banner = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => (banner += text));
  const find = (pattern: RegExp) => pattern.exec(banner)?.[0];
  await eventually(
    () => {
      assert.equal(child.exitCode, null, banner);
      return find(/\bmqtt:\S+/) !== undefined && find(/\bhttp:\S+/) !== undefined;
    },
    true,
    30_000,
  );
  return { mqtt: find(/\bmqtt:\S+/) ?? "", hooks: find(/\bhttp:\S+/) ?? "" };
}

const config = (redis: string) => `
kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
brokerMode: true
faultGrace: 1
rules: [{ when: { packetType: Publish }, pipeline: publish }]
---
kind: Pipeline
name: publish
timeout: 5
flow:
  - filter: check
    jumpIf: { notJson: odd, fieldMissing: odd, fieldInvalid: odd }
  - filter: readings
  - filter: END
  - filter: odd
filters:
  - { name: check, kind: JsonField, fields: [{ path: celsius, type: number }] }
  - { name: readings, kind: RedisStream, url: "${redis}", stream: readings }
  - { name: odd, kind: RedisStream, url: "${redis}", stream: odd }
---
kind: Webhook
name: webhook
port: 0
token: ${token}
hooks: [{ path: /alarm, topic: alarms/all }]
`;

describe("together in a gateway", slow, () => {
  before(async () => {
    gateway = join(home, "gateway");
    await mkdir(gateway);
    await writeFile(join(gateway, "package.json"), JSON.stringify({ name: "gateway", private: true }));
    const tarballs: string[] = [];
    for (const name of await readdir(examples)) {
      await npm(join(home, name), "pack", "--pack-destination", gateway);
      tarballs.push(`./sluice-example-${name}-1.0.0.tgz`);
    }
    await npm(gateway, "install", gatewayPackage, ...tarballs);
    await takeAnyApiPort(gateway);
  }, slow);

  /** What a stream holds: topic and payload of each entry. */
  async function entries(url: string, stream: string): Promise<[topic: string, payload: string][]> {
    const port = new URL(url).port;
    const { stdout } = await run("redis-cli", ["-p", port, "--json", "XRANGE", stream, "-", "+"]);
    return (JSON.parse(stdout) as [id: string, fields: string[]][]).map(([, fields]) => [
      fields[fields.indexOf("topic") + 1] ?? "",
      fields[fields.indexOf("payload") + 1] ?? "",
    ]);
  }

  async function connect(t: TestContext, url: string): Promise<MqttClient> {
    const client = await connectAsync(url, { clientId: "dev1", reconnectPeriod: 100 });
    t.after(() => client.endAsync(true));
    return client;
  }

  test("a reading goes to one stream, in order, and what is none to the other", async (t) => {
    if (!hasRedis(t)) return;
    const redis = await startRedis(t);
    const { mqtt } = await start(t, config(redis.url));
    const client = await connect(t, mqtt);
    await eventually(() => client.publishAsync("first", '{"celsius":0}', { qos: 1 }).then(() => true), true);
    const some = Array.from({ length: 50 }, (_, n) => n);
    await Promise.all(some.map((n) => client.publishAsync("a", `{"celsius":${n}}`, { qos: 1 })));
    for (const payload of ["warm", "{}", '{"celsius":"21"}']) await client.publishAsync("b", payload, { qos: 1 });
    const readings = await entries(redis.url, "readings");
    assert.deepEqual(
      readings.slice(-50),
      some.map((n) => ["a", `{"celsius":${n}}`]),
    );
    assert.deepEqual(await entries(redis.url, "odd"), [
      ["b", "warm"],
      ["b", "{}"],
      ["b", '{"celsius":"21"}'],
    ]);
  });

  test("without Redis there is no acknowledgement; once it is back the device's message arrives", async (t) => {
    if (!hasRedis(t)) return;
    const redis = await startRedis(t);
    const { mqtt } = await start(t, config(redis.url));
    const client = await connect(t, mqtt);
    await client.publishAsync("a", '{"celsius":1}', { qos: 1 });
    await redis.kill();
    let isAcknowledged = false;
    const disconnected = once(client as unknown as NodeJS.EventEmitter, "close");
    const published = client.publishAsync("a", '{"celsius":2}', { qos: 1 }).then(() => (isAcknowledged = true));
    // The connection ends instead, so that the device sends again.
    await disconnected;
    assert.equal(isAcknowledged, false);
    await redis.restart();
    await published;
    const readings = await entries(redis.url, "readings");
    assert.deepEqual(readings.at(-1), ["a", '{"celsius":2}']);
  });

  test("a hook reaches a subscriber", async (t) => {
    // Redis need not be there for the gateway to start.
    const { mqtt, hooks } = await start(t, config("redis://127.0.0.1:9"));
    const client = await connect(t, mqtt);
    const heard = new Promise<string>((resolve) =>
      client.once("message", (topic, payload) => resolve(`${topic} ${String(payload)}`)),
    );
    await client.subscribeAsync("alarms/#", { qos: 1 });
    const headers = { authorization: `Bearer ${token}` };
    const response = await fetch(`${hooks}/alarm`, { method: "POST", headers, body: "fire" });
    assert.deepEqual([response.status, await response.json()], [200, { matched: 1 }]);
    assert.equal(await heard, "alarms/all fire");
    assert.equal((await fetch(`${hooks}/alarm`, { method: "POST", body: "fire" })).status, 401);
  });
});
