/** `sluice dev`: what is saved in a plugin's folder runs a moment later, and what can't run changes nothing. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdir, mkdtemp, readdir, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { after, before, test, type TestContext } from "node:test";
import { setTimeout } from "node:timers/promises";
import { connectAsync, type MqttClient } from "mqtt";
import { createClone, type Clone } from "../helpers/clone.ts";
import { eventually } from "../helpers/eventually.ts";
import { findFreePort } from "../helpers/free-port.ts";

const bins = join(import.meta.dirname, "../../node_modules/.bin");
const patienceMs = 30_000;
let clone: Clone;
before(async () => {
  clone = await createClone();
});
after(() => clone.remove());

async function makePlugin(t: TestContext, files: Readonly<Record<string, string | object>>): Promise<string> {
  const folder = await realpath(await mkdtemp(join(tmpdir(), "sluice-dev-")));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const schema = {
    type: "object",
    additionalProperties: false,
    properties: { loud: { type: "boolean", default: false } },
  };
  const manifest = {
    name: "sluice-stamp",
    version: "1.0.0",
    type: "module",
    engines: { sluice: "^1.0.0" },
    sluice: { kinds: { Stamp: { family: "filter", entry: "./index.js", schema: "./schema.json" } } },
  };
  for (const [name, content] of Object.entries({ "package.json": manifest, "schema.json": schema, ...files })) {
    const text = typeof content === "string" ? content : JSON.stringify(content);
    await mkdir(join(folder, name, ".."), { recursive: true });
    await writeFile(join(folder, name), text);
  }
  return folder;
}

const filter = `import { word } from "./word.js";
export default {
  kind: "Stamp",
  packets: ["Publish"],
  results: [],
  create: ({ loud }) => ({
    handle(ctx) { ctx.packet.payload = Buffer.from(loud ? word.toUpperCase() : word); },
  }),
};
`;

interface Dev {
  readonly url: string;
  readonly output: () => string;
  /** SIGTERM; resolves with the exit code. */
  readonly stop: () => Promise<number | null>;
}

async function startDev(t: TestContext, folder: string, ...args: string[]): Promise<Dev> {
  const child = spawn(process.execPath, [join(clone.folder, "kernel/cli.ts"), "dev", "--plugin", folder, ...args], {
    cwd: folder,
    env: { ...process.env, PATH: [bins, process.env["PATH"]].join(delimiter), SLUICE_MQTT_PORT: "0" },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding("utf8").on("data", (text: string) => (output += text));
  const exited = once(child, "close").then(([code]) => code as number | null);
  t.after(() => child.kill("SIGKILL"));
  let url: string | undefined;
  await eventually(
    () => {
      assert.equal(child.exitCode, null, output);
      url = /\bmqtt:\/\/127\.0\.0\.1:\d+/.exec(output)?.[0];
      return url !== undefined;
    },
    true,
    patienceMs,
  );
  return {
    url: url!,
    output: () => output,
    stop() {
      child.kill("SIGTERM");
      return exited;
    },
  };
}

interface Device {
  readonly client: MqttClient;
  /** Publishes, and resolves with what a subscriber to all gets of it. */
  readonly say: () => Promise<string>;
}

async function connectDevice(t: TestContext, url: string): Promise<Device> {
  const client = await connectAsync(url, { reconnectPeriod: 0 });
  t.after(() => client.endAsync(true));
  await client.subscribeAsync("#", { qos: 1 });
  return {
    client,
    async say() {
      const heard = nextMessage(client);
      await client.publishAsync("a/b", "x", { qos: 1 });
      return heard;
    },
  };
}

const nextMessage = (client: MqttClient): Promise<string> =>
  new Promise((resolve) => client.once("message", (_topic, payload) => resolve(String(payload))));

const word = (text: string) => `export const word = ${JSON.stringify(text)};\n`;

test("a save, also of what the entry imports, runs at once over the same connection; a broken one changes nothing", async (t) => {
  const folder = await makePlugin(t, { "index.js": filter, "word.js": word("one") });
  const dev = await startDev(t, folder);
  const { client, say } = await connectDevice(t, dev.url);
  assert.equal(await say(), "one");

  await writeFile(join(folder, "word.js"), word("two"));
  await eventually(say, "two", patienceMs);

  const seen = dev.output().length;
  await writeFile(join(folder, "word.js"), "export const word = ;\n");
  await eventually(() => dev.output().slice(seen).includes("The config was not changed"), true, patienceMs);
  assert.match(dev.output().slice(seen), /PLUGIN_BROKEN/);
  assert.equal(await say(), "two");

  await writeFile(join(folder, "word.js"), word("three"));
  await eventually(say, "three", patienceMs);
  assert.ok(client.connected);
  // Nothing tells that no second reading comes: it would within two quiet spans of the watcher, of 250 ms each.
  await setTimeout(1000);
  assert.doesNotMatch(dev.output(), /The config has not changed/, "a save is loaded once");
  assert.equal(await dev.stop(), 0);
  assert.ok(!(await readdir(folder)).includes(".sluice"), "what it wrote is removed");
});

test("a package's build runs first; where it fails, the last good version goes on", async (t) => {
  const tsconfig = {
    compilerOptions: {
      strict: true,
      target: "es2024",
      module: "nodenext",
      rootDir: "src",
      outDir: "dist",
      noEmitOnError: true,
      types: [],
    },
    include: ["src"],
  };
  const source = (text: string) => `const word: string = ${text};\nexport { word };\n`;
  const folder = await makePlugin(t, {
    "package.json": {
      name: "sluice-stamp",
      version: "1.0.0",
      type: "module",
      scripts: { build: "mkdir -p dist && cp src/index.js dist/ && tsc" },
      engines: { sluice: "^1.0.0" },
      sluice: { kinds: { Stamp: { family: "filter", entry: "./dist/index.js", schema: "./schema.json" } } },
    },
    "tsconfig.json": tsconfig,
    "src/index.js": filter,
    "src/word.ts": source('"one"'),
  });
  const dev = await startDev(t, folder);
  const { say } = await connectDevice(t, dev.url);
  assert.equal(await say(), "one");

  const seen = dev.output().length;
  await writeFile(join(folder, "src/word.ts"), source("1"));
  await eventually(() => dev.output().slice(seen).includes("The config was not changed"), true, patienceMs);
  assert.match(dev.output().slice(seen), /npm run build failed.*src\/word\.ts.*not assignable/s);
  assert.equal(await say(), "one");

  await writeFile(join(folder, "src/word.ts"), source('"two"'));
  await eventually(say, "two", patienceMs);
});

test("the folder's own config is used, and one that -c names; a save of it changes options", async (t) => {
  const config = (loud: boolean) => `kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
brokerMode: true
rules: [{ when: { packetType: Publish }, pipeline: publish }]
---
kind: Pipeline
name: publish
filters: [{ name: stamp, kind: Stamp, loud: ${loud} }]
`;
  const folder = await makePlugin(t, {
    "index.js": filter,
    "word.js": word("one"),
    "sluice.yaml": config(true),
    "other/quiet.yaml": config(false),
  });
  const own = await startDev(t, folder);
  const { say } = await connectDevice(t, own.url);
  assert.equal(await say(), "ONE");
  await writeFile(join(folder, "sluice.yaml"), config(false));
  await eventually(say, "one", patienceMs);
  await own.stop();

  const named = await startDev(t, folder, "-c", "other/quiet.yaml");
  assert.equal(await (await connectDevice(t, named.url)).say(), "one");
});

test("the config that is made has each kind where it belongs, with the example options of its schema", async (t) => {
  const schema = {
    type: "object",
    additionalProperties: false,
    required: ["topic"],
    properties: { topic: { type: "string" } },
    examples: [{ topic: "hello" }],
  };
  const folder = await makePlugin(t, {
    "package.json": {
      name: "sluice-two",
      version: "1.0.0",
      type: "module",
      engines: { sluice: "^1.0.0" },
      sluice: {
        kinds: {
          Refuse: { family: "filter", entry: "./refuse.js", schema: "./schema.json" },
          Greet: { family: "service", entry: "./greet.js", schema: "./schema.json" },
        },
      },
    },
    "schema.json": schema,
    "refuse.js": `export default { kind: "Refuse", packets: ["Subscribe"], results: [], create: ({ topic }) => ({
  handle(ctx) { for (const each of ctx.packet.subscriptions) each.refused = each.topicFilter === topic + "/refused"; },
}) };`,
    "greet.js": `export default { kind: "Greet", create({ topic }, host) {
  let timer;
  return {
    start() { timer = setInterval(() => host.publish("mqttproxy", { topic, payload: Buffer.from("hi"), qos: 0, retain: false }), 50); },
    stop() { clearInterval(timer); },
  };
} };`,
  });
  const dev = await startDev(t, folder);
  const client = await connectAsync(dev.url, { reconnectPeriod: 0 });
  t.after(() => client.endAsync(true));
  await client.subscribeAsync("hello");
  assert.equal(await nextMessage(client), "hi");
  await assert.rejects(client.subscribeAsync("hello/refused"));
});

test("a service at a fixed port passes its socket on at a save", async (t) => {
  const folder = await makePlugin(t, {});
  await cp(join(import.meta.dirname, "../../docs/examples/webhook"), folder, { recursive: true });
  const port = await findFreePort();
  const token = "a-token-for-tests-only";
  const hook = { kind: "Webhook", name: "webhook", port, token, hooks: [{ path: "/alarm", topic: "alarms/all" }] };
  const proxy = { kind: "MQTTProxy", name: "mqttproxy", host: "127.0.0.1", port: 0, brokerMode: true };
  await writeFile(join(folder, "sluice.yaml"), `${JSON.stringify(proxy)}\n---\n${JSON.stringify(hook)}\n`);
  await startDev(t, folder);
  async function ask(): Promise<string> {
    const headers = { authorization: `Bearer ${token}` };
    const response = await fetch(`http://127.0.0.1:${port}/alarm`, { method: "POST", headers, body: "x" });
    return response.text();
  }
  assert.equal(await ask(), '{"matched":0}\n');
  const code = await readFile(join(folder, "index.js"), "utf8");
  await writeFile(join(folder, "index.js"), code.replace("{ matched })", "{ reached: matched })"));
  await eventually(ask, '{"reached":0}\n', patienceMs);
});

test("what can't be built at the start starts nothing; what a killed process left is removed", async (t) => {
  const folder = await makePlugin(t, {
    "package.json": { name: "sluice-stamp", version: "1.0.0", scripts: { build: "echo no compiler; exit 1" } },
    // No process has this number.
    ".sluice/dev-4194305/1/index.js": "",
  });
  const child = spawn(process.execPath, [join(clone.folder, "kernel/cli.ts"), "dev", "--plugin", folder]);
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const [code] = (await once(child, "close")) as [number];
  assert.equal(code, 1);
  assert.match(stderr, /npm run build failed\nno compiler/);
  assert.match(stderr, /1 problem: nothing was started/);
  assert.ok(!(await readdir(folder)).includes(".sluice"));
});

test("a folder without a package.json is named as wrong usage", async (t) => {
  const folder = await realpath(await mkdtemp(join(tmpdir(), "sluice-dev-")));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const child = spawn(process.execPath, [join(clone.folder, "kernel/cli.ts"), "dev", "--plugin", folder]);
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const [code] = (await once(child, "close")) as [number];
  assert.equal(code, 2);
  assert.match(stderr, /has no package\.json: name the plugin's folder/);
});
