/** A change of a proxy's listeners touches those that it changes. */
import assert from "node:assert/strict";
import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import mqtt, { type MqttClient } from "mqtt";
import type { Plan } from "../../kernel/plugin.ts";
import { eventually } from "../helpers/eventually.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { openRawClient } from "../helpers/raw-client.ts";
import { openWebSocket } from "../helpers/web-socket.ts";

const host = "127.0.0.1";

interface ListenerOptions {
  readonly name: string;
  readonly [option: string]: unknown;
}

const yaml = (listeners: readonly ListenerOptions[], more: object = {}): string =>
  toYaml([
    {
      kind: "MQTTProxy",
      name: "mqttproxy",
      listeners: listeners.map((each) => ("socket" in each ? each : { host, port: 0, ...each })),
      ...more,
    },
  ]);

async function start(t: TestContext, ...listeners: readonly ListenerOptions[]): Promise<TestGateway> {
  const gateway = await startTestGateway(yaml(listeners));
  t.after(() => gateway.stop());
  return gateway;
}

interface Watched {
  readonly client: MqttClient;
  /** Whether its connection has ended. */
  isClosed: boolean;
}

async function connect(t: TestContext, url: string): Promise<Watched> {
  const client = await mqtt.connectAsync(url, { reconnectPeriod: 0 });
  const watched: Watched = { client, isClosed: false };
  client.on("close", () => (watched.isClosed = true));
  t.after(() => client.endAsync(true));
  return watched;
}

const mqttUrl = (gateway: TestGateway, listener: string): string => `mqtt://${host}:${gateway.listenerPort(listener)}`;
const webUrl = (gateway: TestGateway, listener: string): string =>
  `ws://${host}:${gateway.listenerPort(listener)}/mqtt`;

const proxyItem = (
  plan: Plan | undefined,
): { action?: string; fields?: readonly string[]; notes?: readonly string[] } => {
  const { action, fields, notes } = plan?.items.find(({ kind }) => kind === "MQTTProxy") ?? {};
  return { ...(action && { action }), ...(fields && { fields }), ...(notes && { notes }) };
};

test("one is added, one is removed with its connections, and the others are not touched", async (t) => {
  const gateway = await start(t, { name: "one" }, { name: "two", protocol: "ws" });
  const one = await connect(t, mqttUrl(gateway, "one"));
  const two = await connect(t, webUrl(gateway, "two"));
  const [onePort, twoPort] = [gateway.listenerPort("one"), gateway.listenerPort("two")];
  const added = await gateway.reload(yaml([{ name: "three" }, { name: "one" }, { name: "two", protocol: "ws" }]));
  assert.deepEqual(proxyItem(added.plan), { action: "change", fields: ["listeners.three"], notes: [] });
  const three = await connect(t, mqttUrl(gateway, "three"));
  assert.deepEqual([gateway.listenerPort("one"), gateway.listenerPort("two")], [onePort, twoPort]);

  const removed = await gateway.reload(yaml([{ name: "three" }, { name: "one" }]));
  assert.deepEqual(proxyItem(removed.plan), {
    action: "change",
    fields: ["listeners.two"],
    notes: ["listeners.two is closed with its connections"],
  });
  await eventually(() => two.isClosed, true);
  await assert.rejects(connect(t, `mqtt://${host}:${twoPort}`), /ECONNREFUSED/);
  for (const { client } of [one, three]) await client.publishAsync("t", "x", { qos: 1 });
  assert.deepEqual([one.isClosed, three.isClosed, gateway.listenerPort("one")], [false, false, onePort]);
});

test("a new address: the connections of the old one stay, until its listener is removed", async (t) => {
  const gateway = await start(t, { name: "one" }, { name: "two" });
  const [one, two] = [await connect(t, mqttUrl(gateway, "one")), await connect(t, mqttUrl(gateway, "two"))];
  const before = gateway.listenerPort("one");
  const moved = await gateway.reload(yaml([{ name: "one", host: "127.0.0.2" }, { name: "two" }]));
  assert.deepEqual(proxyItem(moved.plan), {
    action: "change",
    fields: ["listeners.one"],
    notes: ["listeners.one binds its new address; connections of the old one stay"],
  });
  await assert.rejects(connect(t, `mqtt://${host}:${before}`), /ECONNREFUSED/);
  const later = await connect(t, `mqtt://127.0.0.2:${gateway.listenerPort("one")}`);
  await one.client.publishAsync("t", "x", { qos: 1 });
  await gateway.reload(yaml([{ name: "two" }]));
  await eventually(() => [one.isClosed, later.isClosed], [true, true]);
  await two.client.publishAsync("t", "x", { qos: 1 });
});

test("an address under another name, or as the proxy's own port, is the same listener: nobody is closed", async (t) => {
  const gateway = await start(t, { name: "one" });
  const port = gateway.listenerPort("one");
  const fixed = await gateway.reload(yaml([{ name: "one", port }]));
  assert.deepEqual(fixed.problems, []);
  const client = await connect(t, mqttUrl(gateway, "one"));
  const renamed = await gateway.reload(yaml([{ name: "another", port }]));
  assert.deepEqual(proxyItem(renamed.plan), {
    action: "change",
    fields: ["listeners.another", "listeners.one"],
    notes: [],
  });
  assert.equal((await gateway.reload(yaml([], { host, port }))).problems.length, 0);
  assert.equal(gateway.port(), port);
  await client.client.publishAsync("t", "x", { qos: 1 });
  assert.equal(client.isClosed, false);
});

test("protocol, path and PROXY header change for new connections, on the same address", async (t) => {
  const gateway = await start(t, { name: "one" });
  const port = gateway.listenerPort("one");
  const plain = await connect(t, mqttUrl(gateway, "one"));
  const change = await gateway.reload(yaml([{ name: "one", protocol: "ws", path: "/a" }]));
  assert.deepEqual(proxyItem(change.plan).notes, ["for new connections: listeners.one"]);
  assert.equal(gateway.listenerPort("one"), port);
  const web = await connect(t, `ws://${host}:${port}/a`);
  await gateway.reload(yaml([{ name: "one", protocol: "ws", path: "/b" }]));
  const refused = await openWebSocket(port, { protocols: "mqtt", path: "/a" });
  assert.equal(refused.status, 404);
  await connect(t, `ws://${host}:${port}/b`);
  await gateway.reload(yaml([{ name: "one", proxyProtocol: true }]));
  const raw = await openRawClient(port);
  raw.send(Buffer.from("PROXY UNKNOWN\r\n"));
  await raw.connect();
  raw.destroy();
  for (const { client } of [plain, web]) await client.publishAsync("t", "x", { qos: 1 });
});

test("a unix socket: its permissions change where it stands; it moves between proxies; a failed change leaves it", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sluice-unix-"));
  t.after(() => rm(folder, { recursive: true }));
  const socket = join(folder, "mqtt.sock");
  const identity = async (): Promise<[number, number]> => {
    const { ino, mode } = await stat(socket);
    return [ino, mode & 0o777];
  };
  const gateway = await start(t, { name: "one", socket });
  const [inode, mode] = await identity();
  assert.equal(mode, 0o600);
  const { client } = await connect(t, `mqtt+unix://${socket}`);
  await gateway.reload(yaml([{ name: "one", socket, mode: "0660" }]));
  assert.deepEqual(await identity(), [inode, 0o660]);
  const failed = await gateway.reload(
    yaml([
      { name: "one", socket, mode: "0666" },
      { name: "two", socket: join(folder, "none/x.sock") },
    ]),
  );
  assert.match(failed.problems[0]?.message ?? "", /its folder must exist/);
  assert.deepEqual(await identity(), [inode, 0o660]);
  await client.publishAsync("t", "x", { qos: 1 });
  const closed = new Promise<void>((resolve) => client.once("close", () => resolve()));
  await gateway.reload(
    toYaml([{ kind: "MQTTProxy", name: "heir", listeners: [{ name: "one", socket, mode: "0660" }] }]),
  );
  await closed;
  assert.deepEqual(await identity(), [inode, 0o660]);
  const heir = await connect(t, `mqtt+unix://${socket}`);
  assert.equal((await gateway.gateway.host.proxies.get("heir")?.sessions.query())?.length, 1);
  await heir.client.endAsync();
});

test("what is on its way to MQTT when its listener goes: it gets there, or is closed with the gateway's stop", async (t) => {
  const gateway = await start(t, { name: "one", protocol: "ws" }, { name: "two" });
  const halfway = await openRawClient(gateway.listenerPort("one"));
  halfway.send(Buffer.from("GET /mqtt HTTP/1.1\r\n"));
  // It is the gateway's once this was answered.
  await connect(t, mqttUrl(gateway, "two"));
  const { problems } = await gateway.reload(yaml([{ name: "two" }]));
  assert.deepEqual(problems, []);
  assert.equal(halfway.isClosed, false);
  await gateway.stop();
  await halfway.closed;
});
