/**
 * CONNECT through the front door: who gets in, with which code, and who is closed without a word.
 *
 * Not here nor beside: A12, A13, A19 and A29, which are about several nodes; a gateway is one node for now.
 */
import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { connectAsync } from "mqtt";
import mqttPacket from "mqtt-packet";
import type { ConnectContext, FilterContext, FilterResult, Reason } from "../../kernel/plugin.ts";
import { bytesOf, field, malformedPackets, packet, validConnect } from "../fixtures/malformed-packets.ts";
import { startTestGateway } from "../helpers/gateway.ts";
import { probeDocument, startProbedGateway, toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw, openRawClient } from "../helpers/raw-client.ts";

const authDocuments = [
  probeDocument,
  {
    kind: "MQTTProxy",
    name: "mqttproxy",
    host: "127.0.0.1",
    port: 0,
    rules: [{ when: { packetType: "Connect" }, pipeline: "auth" }],
  },
  {
    kind: "Pipeline",
    name: "auth",
    protocol: "MQTT",
    flow: [{ filter: "auth" }],
    filters: [
      {
        name: "auth",
        kind: "MQTTClientAuth",
        salt: "salt",
        auth: [
          { username: "test", saltedSha256Pass: "1bc1a361f17092bc7af4b2f82bf9194ea9ee2ca49eb2e53e39f555bc1eeaed74" },
        ],
      },
    ],
  },
];

/** The CONNACK to this CONNECT; a refusal must be followed by the end of the connection. */
async function connackOf(port: number, connect: Omit<mqttPacket.IConnectPacket, "cmd">): Promise<number> {
  const client = await openRawClient(port);
  client.send({ cmd: "connect", ...connect });
  const { returnCode, sessionPresent } = await client.expect("connack");
  if (returnCode === 0) {
    await client.disconnect();
  } else {
    // [MQTT-3.2.2-4], [MQTT-3.2.2-5]
    assert.equal(sessionPresent, false);
    await client.expectClose();
  }
  return returnCode ?? -1;
}

test("A01: the right user connects, a wrong one is refused", async (t) => {
  const gateway = await startTestGateway(toYaml(authDocuments));
  t.after(() => gateway.stop());
  const client = await connectAsync(gateway.url(), { username: "test", password: "test", clientId: "a01" });
  await client.endAsync();
  const port = gateway.port();
  const username = "test";
  assert.equal(await connackOf(port, { clientId: "a01", username, password: Buffer.from("test") }), 0);
  assert.equal(await connackOf(port, { clientId: "a01", username, password: Buffer.from("wrong") }), 4);
  assert.equal(await connackOf(port, { clientId: "a01", username: "nobody", password: Buffer.from("test") }), 4);
  assert.equal(await connackOf(port, { clientId: "a01", username }), 4);
  assert.notEqual(await connackOf(port, { clientId: "a01" }), 0);
  assert.equal(await gateway.metric("sluice_connects_accepted_total"), 2);
});

test("A18, L30: bytes that are not allowed end the connection, with a legal CONNACK or none", async (t) => {
  const gateway = await startProbedGateway(t);
  const port = gateway.port();
  await Promise.all(
    malformedPackets.map(async ({ name, bytes, first, connack }) => {
      const client = await openRawClient(port);
      if (first === undefined) {
        client.send(validConnect);
        assert.equal((await client.expect("connack")).returnCode, 0, name);
      }
      client.send(bytes);
      if (connack !== undefined) assert.equal((await client.expect("connack")).returnCode, connack, name);
      await client.expectClose().catch((error: unknown) => assert.fail(`${name}: ${String(error)}`));
    }),
  );
  assert.ok(malformedPackets.length > 50);
  assert.equal(await gateway.metric("sluice_connections"), 0);
  // And the gateway is none the worse for it.
  await (await connectRaw(port, "after")).publish("a/b");
});

test("A17: packets that only a server sends end the connection", async (t) => {
  const { port } = await startProbedGateway(t);
  const packets: mqttPacket.Packet[] = [
    { cmd: "connack", returnCode: 0, sessionPresent: false },
    { cmd: "suback", messageId: 1, granted: [0] },
    { cmd: "unsuback", messageId: 1, granted: [] },
    { cmd: "pingresp" },
    { cmd: "connect", clientId: "again", clean: true },
  ];
  for (const forbidden of packets) {
    const client = await connectRaw(port(), "a17");
    assert.deepEqual(await client.flush(), []);
    client.send(forbidden);
    await client.expectClose();
  }
});

test("L19: a client of a version that is not served is told so, in the form of the nearest one", async (t) => {
  const { port } = await startProbedGateway(t);
  for (const [level, expected] of [
    [2, [0x20, 0, 1]],
    [6, [0x20, 0, 0x84]],
  ] as const) {
    const client = await openRawClient(port());
    const chunks: Buffer[] = [];
    client.socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    client.send(Buffer.from([0x10, 13, 0, 4, 0x4d, 0x51, 0x54, 0x54, level, 2, 0, 60, 0, 1, 0x63]));
    await client.closed;
    const connack = Buffer.concat(chunks);
    assert.deepEqual([connack[0], connack[2], connack[3]], expected);
  }
});

test("MQTT 3.1 is served", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
  const client = await connectRaw(port(), "old", {}, { protocolVersion: 3 });
  await client.publish("a/b", "hi");
  assert.equal(probes.Publish.seen[0]?.client.protocolVersion, 3);
  await client.disconnect();
});

test("L20: session-present says whether a session was resumed", async (t) => {
  const { port } = await startProbedGateway(t);
  async function present(clean: boolean): Promise<boolean> {
    const client = await openRawClient(port());
    const { sessionPresent } = await client.connect({ clientId: "l20", clean });
    await client.disconnect();
    return sessionPresent;
  }
  assert.equal(await present(true), false);
  assert.equal(await present(false), false, "a clean session leaves nothing to resume");
  assert.equal(await present(false), true);
  assert.equal(await present(true), false, "a clean session resumes nothing");
  assert.equal(await present(false), false, "and ends the one before");
});

test("L31: clients without an id get one of their own", async (t) => {
  const gateway = await startProbedGateway(t, { brokerMode: true });
  const clients = await Promise.all(Array.from({ length: 5 }, () => connectRaw(gateway.port(), "")));
  for (const client of clients) assert.equal(await client.subscribe("all"), 1);
  const publisher = await connectRaw(gateway.port(), "publisher");
  await publisher.publish("all", "hi");
  for (const client of clients) assert.equal(String((await client.expect("publish")).payload), "hi");
  const sessions = (await gateway.gateway.host.proxies.get("mqttproxy")?.sessions.query()) ?? [];
  assert.equal(new Set(sessions.map(({ clientId }) => clientId)).size, 6);

  // [MQTT-3.1.3-8]; no client library sends this.
  const nobody = await openRawClient(gateway.port());
  nobody.send(packet(0x10, field("MQTT"), bytesOf(4, 0, 0, 60), field("")));
  assert.equal((await nobody.expect("connack")).returnCode, 2);
  await nobody.expectClose();
});

test("A21: a rule that names no pipeline stops the start", async () => {
  const [gateway, proxy] = authDocuments;
  await assert.rejects(startTestGateway(toYaml([gateway!, proxy!])), /no Pipeline is named "auth"/);
});

test("A21: what a filter keeps for a client during CONNECT is there for its later packets", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {}, Publish: {} });
  probes.Connect.handle = ({ client }) => {
    client.data.set("probe/key", `of ${client.id}`);
  };
  const clients = await Promise.all(["one", "two"].map((id) => connectRaw(port(), id)));
  for (const client of clients) await client.publish("a/b");
  assert.deepEqual(
    probes.Publish.seen.map(({ client }) => client.data.get("probe/key")),
    ["of one", "of two"],
  );
});

/** What the Connect pipeline ends by -> the CONNACK that the client gets. */
const connectOutcomes: Record<
  string,
  { handle: (ctx: FilterContext) => FilterResult | Promise<FilterResult>; code: number }
> = {
  nothing: { handle: () => undefined, code: 0 },
  "drop()": { handle: (ctx) => ctx.drop(), code: 5 },
  ...Object.fromEntries(
    (
      [
        ["badUserNameOrPassword", 4],
        ["notAuthorized", 5],
        ["clientIdentifierNotValid", 2],
        ["serverBusy", 3],
        ["banned", 5],
      ] satisfies [Reason, number][]
    ).flatMap(([reason, code]) => [
      [`reject(${reason})`, { handle: (ctx: FilterContext) => ctx.reject(reason), code }],
      [`disconnect(${reason})`, { handle: (ctx: FilterContext) => ctx.disconnect(reason), code }],
    ]),
  ),
  "a verdict": { handle: () => "verdict", code: 5 },
  "a failure": { handle: () => "failure", code: 5 },
  "a throw": {
    handle() {
      throw new Error("out of order");
    },
    code: 3,
  },
  "a rejection": { handle: () => Promise.reject(new Error("out of order")), code: 3 },
  "a deadline": { handle: () => new Promise(() => undefined), code: 3 },
  "an undeclared result": { handle: () => "nonsense", code: 3 },
};

test("each outcome of the Connect pipeline has its CONNACK", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: { timeout: 0.2 } });
  probes.Connect.handle = (ctx) => connectOutcomes[ctx.client.id]?.handle(ctx);
  for (const [name, { code }] of Object.entries(connectOutcomes)) {
    assert.equal(await connackOf(port(), { clientId: name }), code, name);
  }
});

test("the Connect pipeline sees the whole CONNECT", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {} });
  await connectRaw(port(), "whole", {
    username: "user",
    password: Buffer.from([0, 255]),
    keepalive: 77,
    clean: false,
    will: { topic: "w/t", payload: "gone", qos: 1, retain: true },
  });
  const { packet: connect, client } = probes.Connect.seen[0] as ConnectContext;
  assert.deepEqual(connect, {
    clientId: "whole",
    username: "user",
    password: Buffer.from([0, 255]),
    keepalive: 77,
    clean: false,
    will: {
      topic: "w/t",
      payload: Buffer.from("gone"),
      qos: 1,
      retain: true,
      properties: undefined,
      delaySec: 0,
    },
    properties: undefined,
  });
  assert.equal(client.address, "127.0.0.1");
  assert.equal(client.username, "user");
});

test("packets sent behind CONNECT wait until it is accepted, and are lost where it is not", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {}, Publish: {} });
  const gate = Promise.withResolvers<void>();
  probes.Connect.handle = async (ctx) => {
    await gate.promise;
    if (ctx.client.id === "refused") ctx.reject("notAuthorized");
  };
  const clients = await Promise.all(
    ["accepted", "refused"].map(async (clientId) => {
      const client = await openRawClient(port());
      client.send(
        { cmd: "connect", clientId, clean: true },
        { cmd: "publish", topic: "a/b", payload: clientId, qos: 1, messageId: 7, dup: false, retain: false },
      );
      return client;
    }),
  );
  await probes.Connect.entered(2);
  assert.equal(probes.Publish.seen.length, 0);
  gate.resolve();
  const [accepted, refused] = clients;
  assert.equal((await accepted!.expect("connack")).returnCode, 0);
  assert.equal((await accepted!.expect("puback")).messageId, 7);
  assert.equal((await refused!.expect("connack")).returnCode, 5);
  await refused!.expectClose();
  assert.deepEqual(
    probes.Publish.seen.map(({ client }) => client.id),
    ["accepted"],
  );
});

test("A22, L33: beyond maxAllowedConnection clients are refused, but may take their own connection over", async (t) => {
  const { port, metric } = await startProbedGateway(t, { maxAllowedConnection: 10 });
  const ids = Array.from({ length: 10 }, (_, index) => `a22-${index}`);
  const clients = await Promise.all(ids.map((id) => connectRaw(port(), id)));
  for (let index = 10; index < 20; index++) assert.equal(await connackOf(port(), { clientId: `a22-${index}` }), 3);

  const again = await connectRaw(port(), "a22-0");
  await clients[0]!.expectClose();
  assert.deepEqual(await again.flush(), []);
  assert.equal(await metric("sluice_connections"), 10);

  await clients[1]!.disconnect();
  await connectRaw(port(), "a22-10");
  assert.equal(await connackOf(port(), { clientId: "a22-11" }), 3);
});

test("A23: beyond connectionLimit clients are refused", async (t) => {
  const { port } = await startProbedGateway(t, { connectionLimit: { requestRate: 5, timePeriod: 60 } });
  for (let index = 0; index < 5; index++) assert.equal(await connackOf(port(), { clientId: `a23-${index}` }), 0);
  assert.equal(await connackOf(port(), { clientId: "a23-6" }), 3);
});

test("A20: Subscribe, Unsubscribe and Disconnect pipelines run once for each", async (t) => {
  const { port, url, probes } = await startProbedGateway(
    t,
    {},
    { Connect: {}, Subscribe: {}, Unsubscribe: {}, Disconnect: {} },
  );
  probes.Connect.handle = ({ client }) => {
    client.data.set("probe/seen", client.id);
  };
  const ids = Array.from({ length: 20 }, (_, index) => `a20-${index}`);
  await Promise.all(
    ids.map(async (clientId) => {
      const client = await connectAsync(url(), { clientId, reconnectPeriod: 0 });
      await client.subscribeAsync(`sub/${clientId}`, { qos: 1 });
      await client.unsubscribeAsync(`sub/${clientId}`);
      await client.endAsync();
    }),
  );
  await probes.Disconnect.entered(20);
  for (const type of ["Subscribe", "Unsubscribe", "Disconnect"] as const) {
    const { seen } = probes[type];
    assert.deepEqual(seen.map(({ client }) => client.id).sort(), ids.toSorted(), type);
    assert.ok(seen.every(({ client }) => client.data.get("probe/seen") === client.id));
  }
  for (const ctx of probes.Subscribe.seen) {
    assert.ok(ctx.type === "Subscribe");
    const plain = { noLocal: false, retainAsPublished: false, retainHandling: 0 };
    const topicFilter = `sub/${ctx.client.id}`;
    assert.deepEqual(ctx.packet.subscriptions, [{ topicFilter, qos: 1, refused: false, ...plain }]);
  }
  for (const ctx of probes.Unsubscribe.seen) {
    assert.ok(ctx.type === "Unsubscribe");
    assert.deepEqual(ctx.packet.topicFilters, [`sub/${ctx.client.id}`]);
  }
  assert.ok(probes.Disconnect.seen.every((ctx) => ctx.type === "Disconnect" && ctx.packet.graceful));

  const lost = await connectRaw(port(), "lost");
  lost.destroy();
  await probes.Disconnect.entered(21);
  const last = probes.Disconnect.seen[20];
  assert.ok(last?.type === "Disconnect" && !last.packet.graceful);
});

suite("deadlines", { concurrency: true }, () => {
  test("a connection without CONNECT is closed after connectTimeout, also one that trickles", async (t) => {
    const { port, metric } = await startProbedGateway(t, { connectTimeout: 1 });
    const from = performance.now();
    const silent = await openRawClient(port());
    const trickling = await openRawClient(port());
    trickling.send(validConnect.subarray(0, 5));
    setTimeout(() => trickling.send(validConnect.subarray(5, 8)), 600);
    await Promise.all([silent.expectClose(4000), trickling.expectClose(4000)]);
    const took = performance.now() - from;
    assert.ok(took > 950, `closed after ${took} ms`);
    assert.equal(await metric("sluice_connections_closed_total", { reason: "connectTimeout" }), 2);
  });

  test("a client is closed after 1.5 times its keep alive without a packet", async (t) => {
    const { port, metric } = await startProbedGateway(t);
    const silent = await connectRaw(port(), "silent", { keepalive: 1 });
    const from = performance.now();
    const pinging = await connectRaw(port(), "pinging", { keepalive: 1 });
    const without = await connectRaw(port(), "without", { keepalive: 0 });
    const timer = setInterval(() => pinging.send({ cmd: "pingreq" }), 500);
    await silent.expectClose(5000);
    const took = performance.now() - from;
    assert.ok(took > 1400, `closed after ${took} ms`);
    await pinging.expectMany("pingresp", 5);
    clearInterval(timer);
    assert.equal(pinging.isClosed, false);
    assert.deepEqual(await without.flush(), []);
    assert.equal(await metric("sluice_connections_closed_total", { reason: "keepAliveTimeout" }), 1);
  });
});
