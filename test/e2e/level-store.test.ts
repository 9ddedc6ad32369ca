/** A gateway with LevelStore: what a restart keeps, what a reload may not do, and what a full disk leads to. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { fileURLToPath } from "node:url";
import mqtt, { connectAsync } from "mqtt";
import { eventually } from "../helpers/eventually.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";
import { connectRaw, openRawClient } from "../helpers/raw-client.ts";

const proxy = `
kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
brokerMode: true
`;
const store = `
---
kind: LevelStore
name: sessions
dir: sessions
`;

async function makeFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-level-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** Stops with the test at the latest. */
async function start(t: TestContext, folder: string, yaml = proxy + store): Promise<TestGateway> {
  const gateway = await startTestGateway(yaml, { folder });
  t.after(() => gateway.stop());
  return gateway;
}

function healthOf({ gateway }: TestGateway, object: string) {
  return gateway.host.health().find(({ name }) => name === object);
}

test("a stop and a start keep sessions, queued and retained messages; clients of 3.1.1 and 5 find them", async (t) => {
  const folder = await makeFolder(t);
  const first = await start(t, folder);
  assert.match(healthOf(first, "sessions")?.detail ?? "", /sessions are kept in .*sessions$/);
  const subscriber = await connectRaw(first.port(), "old", { clean: false });
  await subscriber.subscribe("a/#");
  await subscriber.disconnect();
  const modern = await connectAsync(first.url(), {
    clientId: "modern",
    clean: false,
    protocolVersion: 5,
    properties: { sessionExpiryInterval: 1000 },
  });
  await modern.subscribeAsync("a/+", { qos: 2 });
  await modern.endAsync();
  const publisher = await connectAsync(first.url(), { clientId: "publisher", protocolVersion: 5 });
  await publisher.publishAsync("a/1", "kept", { qos: 1 });
  await publisher.publishAsync("a/2", "retained", { qos: 2, retain: true, properties: { contentType: "x" } });
  await publisher.endAsync();
  await first.stop();

  const second = await start(t, folder);
  assert.ok(second.logs.some(({ msg }) => msg === "Read the journal"));
  const old = await openRawClient(second.port());
  assert.equal((await old.connect({ clientId: "old", clean: false })).sessionPresent, true);
  const [one, two] = await old.expectMany("publish", 2);
  assert.deepEqual(
    [one, two].map((packet) => [packet?.topic, String(packet?.payload), packet?.qos]),
    [
      ["a/1", "kept", 1],
      ["a/2", "retained", 1],
    ],
  );
  const got: string[] = [];
  const client = mqtt.connect(second.url(), {
    clientId: "modern",
    clean: false,
    protocolVersion: 5,
    properties: { sessionExpiryInterval: 1000 },
  });
  client.on("message", (topic, payload, packet) => got.push(`${topic} ${payload.toString()} ${packet.qos}`));
  await eventually(() => got, ["a/1 kept 1", "a/2 retained 2"]);
  await client.endAsync();
  const late = await connectRaw(second.port(), "late");
  await late.subscribe("a/+");
  const retained = await late.expect("publish");
  assert.deepEqual([retained.topic, String(retained.payload), retained.retain], ["a/2", "retained", true]);
});

test("shared subscriptions and retained messages for clients of 3.1.1, without any LevelStore", async (t) => {
  const gateway = await start(t, await makeFolder(t), proxy);
  const workers = await Promise.all(["w1", "w2"].map((id) => connectRaw(gateway.port(), id)));
  for (const worker of workers) assert.equal(await worker.subscribe("$share/g/job/+"), 1);
  assert.equal(await (await connectRaw(gateway.port(), "wrong")).subscribe("$share/g"), 0x80);
  const publisher = await connectRaw(gateway.port(), "publisher");
  for (let n = 0; n < 10; n++) await publisher.publish(`job/${n}`);
  const [one, two] = await Promise.all(workers.map((worker) => worker.expectMany("publish", 5)));
  assert.equal(new Set([...(one ?? []), ...(two ?? [])].map(({ topic }) => topic)).size, 10);
  // What a worker has not acknowledged goes to the other when it leaves.
  workers[0]?.destroy();
  const again = await workers[1]?.expectMany("publish", 5);
  assert.deepEqual(again?.map(({ topic }) => topic).toSorted(), one?.map(({ topic }) => topic).toSorted());
});

test("HTTP publish with retain: kept for who subscribes later, over a restart, until an empty payload clears it", async (t) => {
  const folder = await makeFolder(t);
  const publish = async ({ api }: TestGateway, payload: string): Promise<unknown> => {
    const body = JSON.stringify({ topic: "news", qos: 1, payload, retain: true });
    return (await fetch(`${api}/apis/v2/mqttproxy/mqttproxy/topics/publish`, { method: "POST", body })).json();
  };
  const first = await start(t, folder);
  assert.deepEqual(await publish(first, "today"), { matched: 0, connected: 0 });
  await first.stop();
  const second = await start(t, folder);
  const reader = await connectRaw(second.port(), "reader");
  await reader.subscribe("news");
  const { payload, retain } = await reader.expect("publish");
  assert.deepEqual([String(payload), retain], ["today", true]);
  assert.deepEqual(await publish(second, ""), { matched: 1, connected: 1 });
  assert.equal((await reader.expect("publish")).retain, false);
  const late = await connectRaw(second.port(), "late");
  await late.subscribe("news");
  assert.deepEqual(await late.flush(), []);
});

test("a reload that adds, changes or removes the store is refused, and what runs goes on", async (t) => {
  const folder = await makeFolder(t);
  const gateway = await start(t, folder);
  const client = await connectRaw(gateway.port(), "c");
  for (const yaml of [
    `${proxy}${store}fsync: never\n`,
    proxy,
    `${proxy}${store.replace("name: sessions", "name: other")}`,
  ]) {
    const { plan, problems } = await gateway.reload(yaml);
    assert.equal(plan, undefined);
    assert.deepEqual(
      problems.map(({ code }) => code),
      ["RESTART_NEEDED"],
    );
    assert.match(problems[0]?.message ?? "", /\(LevelStore\) holds the sessions.*restart it/);
  }
  await client.flush();
  const { plan } = await gateway.reload(`${proxy}maxInflight: 10\n${store}`);
  assert.deepEqual(
    plan?.items.filter(({ action }) => action !== "keep").map(({ name }) => name),
    ["mqttproxy"],
  );
  await client.flush();
  await gateway.stop();

  const bare = await start(t, await makeFolder(t), proxy);
  assert.deepEqual(
    (await bare.reload(proxy + store)).problems.map(({ code }) => code),
    ["RESTART_NEEDED"],
  );
});

test("two stores are a problem of the config, named with its place", async (t) => {
  const folder = await makeFolder(t);
  const yaml = `${proxy}${store}${store.replace("name: sessions", "name: second")}`;
  await assert.rejects(startTestGateway(yaml, { folder }), /sessions \(LevelStore\) is the session store already/);
});

test("a folder that another gateway uses stops the start, and nothing is left open", async (t) => {
  const folder = await makeFolder(t);
  const first = await start(t, folder);
  const other = await makeFolder(t);
  const yaml = `${proxy}${store}`.replace("dir: sessions", `dir: ${join(folder, "sessions")}`);
  await assert.rejects(startTestGateway(yaml, { folder: other }), {
    code: "SERVICE_START_FAILED",
    message: /in use by another gateway/,
  });
  await first.stop();
  await (await start(t, other, yaml)).stop();
});

test("a full disk: no PUBACK where a persistent session is to get it, counted; all else goes on", async (t) => {
  const folder = await makeFolder(t);
  const config = join(folder, "sluice.yaml");
  await writeFile(config, `${proxy}${store}---\nkind: AdminAPI\nname: admin-api\nport: 0\n`);
  // A limit on the size of a file cuts a write as a full disk does, and needs no rights: 256 KiB.
  const bin = fileURLToPath(new URL("../../kernel/cli.ts", import.meta.url));
  const child = spawn("sh", ["-c", 'ulimit -f 512; exec "$0" "$@"', process.execPath, bin, "run", "-c", config], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  t.after(() => child.kill("SIGKILL"));
  let banner = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (banner += text));
  const find = (pattern: RegExp) => (): string | undefined => pattern.exec(banner)?.[1];
  await eventually(
    () => find(/mqtt:\/\/127\.0\.0\.1:(\d+)/)() !== undefined && banner.includes("http://"),
    true,
    20_000,
  );
  const port = Number(find(/mqtt:\/\/127\.0\.0\.1:(\d+)/)());
  const api = find(/(http:\/\/127\.0\.0\.1:\d+)/)() ?? "";

  const away = await connectRaw(port, "away", { clean: false });
  await away.subscribe("queue");
  await away.disconnect();
  const live = await connectRaw(port, "live");
  await live.subscribe("other");
  const publisher = await connectRaw(port, "publisher");
  let acked = 0;
  publisher.onPacket = ({ cmd }) => {
    if (cmd === "puback") acked++;
  };
  const payload = "x".repeat(10_000);
  for (let messageId = 1; messageId <= 100; messageId++) {
    publisher.send({ cmd: "publish", topic: "queue", payload, qos: 1, messageId, dup: false, retain: false });
  }
  const metric = async (name: string): Promise<number> => {
    const text = await (await fetch(`${api}/metrics`)).text();
    return Number(new RegExp(`^${name}(?:{.*})? (\\S+)$`, "m").exec(text)?.[1] ?? 0);
  };
  await eventually(async () => (await metric("sluice_store_failures_total")) > 0, true);
  await publisher.closed;
  assert.ok(acked < 100, `${acked} of 1 MB were acknowledged`);

  const other = await connectRaw(port, "other");
  await other.publish("other", "goes on");
  assert.equal(String((await live.expect("publish")).payload), "goes on");
  child.kill("SIGKILL");
  await once(child, "exit");

  const next = await start(t, folder);
  const back = await openRawClient(next.port());
  await back.connect({ clientId: "away", clean: false });
  const got = (await back.flush()).filter(({ cmd }) => cmd === "publish").length;
  assert.ok(got >= acked, `${got} of ${acked} acknowledged messages are there`);
});
