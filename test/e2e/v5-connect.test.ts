/** MQTT 5: CONNECT, CONNACK, sessions and DISCONNECT, by the specification's statements. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { IConnackPacket, Packet } from "mqtt-packet";
import type { ConnectContext } from "../../kernel/plugin.ts";
import { bytesOf, field, packet } from "../fixtures/malformed-packets.ts";
import { connectV5, none, properties as props } from "../fixtures/malformed-v5.ts";
import { eventually } from "../helpers/eventually.ts";
import { startProbedGateway, toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw, openRawClient, type RawClient } from "../helpers/raw-client.ts";

const v5 = { protocolVersion: 5 } as const;

type Properties = NonNullable<Extract<Packet, { cmd: "connect" }>["properties"]>;

function connect(port: number, clientId: string, properties: Properties = {}, more = {}): Promise<RawClient> {
  return connectRaw(port, clientId, { properties, ...more }, v5);
}

/** The CONNACK to this CONNECT. */
async function connack(
  port: number,
  clientId: string,
  properties: Properties = {},
  more = {},
): Promise<IConnackPacket> {
  const client = await openRawClient(port, v5);
  client.send({ cmd: "connect", clientId, clean: true, protocolVersion: 5, properties, ...more });
  const answer = await client.expect("connack");
  if (answer.reasonCode !== 0) await client.expectClose();
  return answer;
}

test("[MQTT-3.1.4-5] CONNACK 0 tells what is not taken for granted, and nothing else", async (t) => {
  const { port } = await startProbedGateway(t, { maxInWork: 500, maxPacketBytes: 5000, topicAliasMaximum: 7 });
  const answer = await connack(port(), "c");
  assert.deepEqual([answer.reasonCode, answer.sessionPresent], [0, false]);
  assert.deepEqual(answer.properties, { receiveMaximum: 500, maximumPacketSize: 5000, topicAliasMaximum: 7 });
});

test("[MQTT-3.2.2-16] [MQTT-3.1.3-6] [MQTT-3.1.3-7] a client without an id is told the one it is given", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {} });
  const ids = [];
  for (const flags of [0x02, 0x00]) {
    const client = await openRawClient(port(), v5);
    client.send(connectV5(flags, none, field("")));
    const { reasonCode, properties } = await client.expect("connack");
    assert.equal(reasonCode, 0);
    ids.push(properties?.assignedClientIdentifier);
  }
  assert.deepEqual(
    probes.Connect.seen.map(({ client }) => client.id),
    ids,
  );
  assert.equal(new Set(ids).size, 2);
  assert.equal((await connack(port(), "mine")).properties?.assignedClientIdentifier, undefined);
});

test("[MQTT-3.2.2-21] [MQTT-3.2.2-22] maxKeepAlive is told where the client wants none or a longer one", async (t) => {
  const { port } = await startProbedGateway(t, { maxKeepAlive: 1 });
  const answers = [];
  for (const keepalive of [0, 1, 60]) {
    answers.push((await connack(port(), "c", {}, { keepalive })).properties?.serverKeepAlive);
  }
  assert.deepEqual(answers, [1, undefined, 1]);
  const silent = await connect(port(), "silent", {}, { keepalive: 0 });
  assert.equal((await silent.expectLast("disconnect")).reasonCode, 0x8d, "[MQTT-3.1.2-22]");
});

test("[MQTT-3.1.2-23] [MQTT-4.1.0-2] a session lasts as long as was asked for, and no longer than maxSessionExpiry", async (t) => {
  const { port } = await startProbedGateway(t, { maxSessionExpiry: 100 });
  async function present(id: string): Promise<boolean> {
    return (await connack(port(), id, {}, { clean: false })).sessionPresent;
  }
  for (const [id, sessionExpiryInterval, told, kept] of [
    ["none", undefined, undefined, false],
    ["zero", 0, undefined, false],
    ["some", 50, undefined, true],
    ["long", 101, 100, true],
    ["ever", 0xffff_ffff, 100, true],
  ] as const) {
    const client = await openRawClient(port(), v5);
    const properties = sessionExpiryInterval === undefined ? {} : { sessionExpiryInterval };
    const { properties: granted } = await client.connect({ clientId: id, properties });
    assert.equal(granted?.sessionExpiryInterval, told, id);
    await client.disconnect();
    assert.equal(await present(id), kept, id);
  }
});

test("[MQTT-4.1.0-2] a session ends when its expiry has passed", async (t) => {
  const { port, gateway } = await startProbedGateway(t);
  const client = await connect(port(), "brief", { sessionExpiryInterval: 1 });
  await client.disconnect();
  const sessions = () => gateway.host.proxies.get("mqttproxy")?.sessions.query();
  assert.equal((await sessions())?.length, 1);
  await eventually(async () => (await sessions())?.length, 0);
});

test("DISCONNECT may change the session expiry, but not give a session one that has none", async (t) => {
  const { port } = await startProbedGateway(t);
  const ending = await connect(port(), "ending", { sessionExpiryInterval: 100 });
  ending.send({ cmd: "disconnect", reasonCode: 0, properties: { sessionExpiryInterval: 0 } });
  await ending.expectClose();
  assert.equal((await connack(port(), "ending", {}, { clean: false })).sessionPresent, false);

  const staying = await connect(port(), "staying", { sessionExpiryInterval: 1 });
  staying.send({ cmd: "disconnect", reasonCode: 0, properties: { sessionExpiryInterval: 100 } });
  await staying.expectClose();
  assert.equal((await connack(port(), "staying", {}, { clean: false })).sessionPresent, true);

  const none5 = await connect(port(), "none");
  none5.send({ cmd: "disconnect", reasonCode: 0, properties: { sessionExpiryInterval: 100 } });
  assert.equal((await none5.expectLast("disconnect")).reasonCode, 0x82);
});

test("[MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.1.2-6] [MQTT-3.2.2-2] [MQTT-3.2.2-3] clean start and session present", async (t) => {
  const { port } = await startProbedGateway(t);
  const properties = { sessionExpiryInterval: 100 };
  async function present(clean: boolean): Promise<boolean> {
    const client = await openRawClient(port(), v5);
    const { sessionPresent } = await client.connect({ clientId: "c", clean, properties });
    await client.disconnect();
    return sessionPresent;
  }
  assert.deepEqual(
    [await present(false), await present(false), await present(true), await present(false)],
    [false, true, false, true],
  );
});

test("[MQTT-3.1.4-3] a takeover: DISCONNECT 0x8E for the older connection", async (t) => {
  const { port } = await startProbedGateway(t);
  const older = await connect(port(), "same");
  const newer = await connect(port(), "same");
  assert.equal((await older.expectLast("disconnect")).reasonCode, 0x8e);
  assert.deepEqual(await newer.flush(), []);
});

test("a removed session: DISCONNECT 0x98", async (t) => {
  const { port, gateway } = await startProbedGateway(t);
  const client = await connect(port(), "gone");
  await gateway.host.proxies.get("mqttproxy")?.sessions.remove("gone");
  assert.equal((await client.expectLast("disconnect")).reasonCode, 0x98);
});

test("a stop: DISCONNECT 0x8B, or 0x9C and where to go with drain.serverReference; no word to 3.1.1", async (t) => {
  const proxies = [
    { kind: "MQTTProxy", name: "mqttproxy", host: "127.0.0.1", port: 0 },
    { kind: "MQTTProxy", name: "other", host: "127.0.0.1", port: 0 },
  ];
  const gateway = await startProbedGateway(t, {}, {}, [proxies[1] as object]);
  const { port } = gateway;
  const [plain, old] = [await connect(port("other"), "a"), await connectRaw(port("other"), "b")];
  const [named] = [await connect(port(), "c")];
  assert.deepEqual((await gateway.reload(toYaml([proxies[0] as object]))).problems, []);
  assert.equal((await plain.expectLast("disconnect")).reasonCode, 0x8b);
  await old.expectClose();
  const drain = { kind: "Gateway", name: "g", drain: { serverReference: "other.example.com:1883" } };
  const last = { kind: "MQTTProxy", name: "last", host: "127.0.0.1", port: 0 };
  assert.deepEqual((await gateway.reload(toYaml([drain, last]))).problems, []);
  const { reasonCode, properties } = await named.expectLast("disconnect");
  assert.deepEqual([reasonCode, properties], [0x9c, { serverReference: "other.example.com:1883" }]);
});

test("[MQTT-3.2.2-8] a filter's reason and its words reach the client in the CONNACK", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {} });
  for (const [reason, expected] of [
    ["notAuthorized", 0x87],
    ["banned", 0x8a],
    ["badUserNameOrPassword", 0x86],
    ["serverBusy", 0x89],
    ["connectionRateExceeded", 0x9f],
    ["useAnotherServer", 0x9c],
    // No code of a CONNACK: the general one.
    ["sessionTakenOver", 0x80],
  ] as const) {
    probes.Connect.handle = (ctx) => ctx.reject(reason, "because");
    const answer = await connack(port(), "c");
    assert.deepEqual([answer.reasonCode, answer.sessionPresent], [expected, false], reason);
    assert.deepEqual(answer.properties, { reasonString: "because" });
  }
  probes.Connect.handle = () => {
    throw new Error("the database is away");
  };
  const answer = await connack(port(), "c");
  assert.deepEqual([answer.reasonCode, answer.properties], [0x88, undefined], "errors are not for clients");
});

test("disconnect(reason) after the CONNACK: DISCONNECT with the reason", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: {}, Subscribe: {} });
  probes.Publish.handle = (ctx) => ctx.disconnect("messageRateTooHigh", "slower");
  probes.Subscribe.handle = (ctx) => ctx.disconnect("quotaExceeded");
  const publisher = await connect(port(), "a");
  publisher.send({ cmd: "publish", topic: "a", payload: "x", qos: 1, messageId: 1, dup: false, retain: false });
  const { reasonCode, properties } = await publisher.expectLast("disconnect");
  assert.deepEqual([reasonCode, properties], [0x96, { reasonString: "slower" }]);
  const subscriber = await connect(port(), "b");
  subscriber.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "a", qos: 0 }] });
  assert.equal((await subscriber.expectLast("disconnect")).reasonCode, 0x97);
});

test("the Connect pipeline sees the properties, of the will too", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {} });
  await connect(
    port(),
    "c",
    { sessionExpiryInterval: 5, userProperties: { a: "b" } },
    {
      will: { topic: "w", payload: "x", qos: 0, retain: false, properties: { willDelayInterval: 3, contentType: "t" } },
    },
  );
  const { packet: seen, client, auth } = probes.Connect.seen[0] as ConnectContext;
  assert.equal(client.protocolVersion, 5);
  assert.equal(auth, undefined);
  assert.equal(seen.properties?.sessionExpiry, 5);
  assert.deepEqual(seen.properties?.userProperties, [["a", "b"]]);
  assert.equal(seen.will?.delaySec, 3);
  assert.equal(seen.will?.properties?.contentType, "t");
});

test("[MQTT-3.1.4-1] a CONNECT that is not valid: CONNACK 0x81 or 0x82, then the end [MQTT-3.2.2-7]", async (t) => {
  const { port } = await startProbedGateway(t);
  for (const [bytes, expected] of [
    [connectV5(0x03, none, field("c")), 0x81],
    [connectV5(0x02, none, field(bytesOf(0xff))), 0x81],
    [connectV5(0x02, props(bytesOf(33, 0, 0)), field("c")), 0x82],
  ] as const) {
    const client = await openRawClient(port(), v5);
    client.send(bytes);
    assert.equal((await client.expectLast("connack")).reasonCode, expected);
  }
});

test("[MQTT-4.13.1-1] [MQTT-3.14.1-1] afterwards a malformed packet: DISCONNECT 0x81 or 0x82, then the end", async (t) => {
  const { port } = await startProbedGateway(t);
  for (const [name, bytes, expected] of [
    ["reserved flags", bytesOf(0xe1, 0), 0x81],
    ["bad UTF-8", packet(0x30, field(bytesOf(0xff)), none), 0x81],
    ["QoS 3", packet(0x36, field("a"), bytesOf(0, 1), none), 0x81],
    ["a property twice", packet(0x30, field("a"), props(bytesOf(1, 1, 1, 1))), 0x82],
    ["a second CONNECT", connectV5(0x02, none, field("c")), 0x82],
    ["SUBSCRIBE without a topic filter", packet(0x82, bytesOf(0, 1), none), 0x82],
    ["a subscription identifier from a client", packet(0x30, field("a"), props(bytesOf(11, 1))), 0x81],
  ] as const) {
    const client = await connect(port(), "c");
    client.send(bytes);
    assert.equal((await client.expectLast("disconnect")).reasonCode, expected, name);
  }
});

test("[MQTT-3.2.2-15] a packet over the maximum packet size: DISCONNECT 0x95", async (t) => {
  const { port } = await startProbedGateway(t, { maxPacketBytes: 200 });
  const client = await connect(port(), "c");
  client.send({ cmd: "publish", topic: "a", payload: Buffer.alloc(200), qos: 0, dup: false, retain: false });
  const { reasonCode, properties } = await client.expectLast("disconnect");
  assert.equal(reasonCode, 0x95);
  assert.match(String(properties?.reasonString), /maxPacketBytes/);
});

test("[MQTT-3.14.2-3] [MQTT-3.2.2-19] words that go beyond the client's maximum packet size are left out", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {}, Publish: {} });
  const text = "x".repeat(200);
  probes.Publish.handle = (ctx) => ctx.disconnect("quotaExceeded", text);
  const client = await connect(port(), "c", { maximumPacketSize: 60 });
  client.send({ cmd: "publish", topic: "a", payload: "", qos: 0, dup: false, retain: false });
  const { reasonCode, properties } = await client.expectLast("disconnect");
  assert.deepEqual([reasonCode, properties], [0x97, undefined]);
  probes.Connect.handle = (ctx) => ctx.reject("banned", text);
  const answer = await connack(port(), "c", { maximumPacketSize: 60 });
  assert.deepEqual([answer.reasonCode, answer.properties], [0x8a, undefined]);
});

test("[MQTT-3.2.2-12] [MQTT-3.2.2-13] a will that could not be published as it is: CONNACK 0x9B, 0x9A", async (t) => {
  const { port } = await startProbedGateway(t, {
    brokerMode: true,
    maxQos: 0,
    retained: { maxMessages: 0, maxBytes: 1024 },
  });
  const will = { topic: "w", payload: "x", qos: 0, retain: false };
  const answer = await connack(port(), "c", {}, { will });
  assert.equal(answer.reasonCode, 0);
  assert.deepEqual([answer.properties?.maximumQoS, answer.properties?.retainAvailable], [0, false]);
  assert.equal((await connack(port(), "c", {}, { will: { ...will, qos: 1 } })).reasonCode, 0x9b);
  assert.equal((await connack(port(), "c", {}, { will: { ...will, retain: true } })).reasonCode, 0x9a);
});

test("[MQTT-3.1.2-28] response information, where it is asked for", async (t) => {
  const { port } = await startProbedGateway(t, { responseInformation: "answers/" });
  const told = await connack(port(), "c", { requestResponseInformation: true });
  assert.equal(told.properties?.responseInformation, "answers/");
  const silent = await connack(port(), "c", { requestResponseInformation: false });
  assert.equal(silent.properties?.responseInformation, undefined);
});

test("the Disconnect pipeline sees what the client's DISCONNECT said", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Disconnect: {} });
  const client = await connect(port(), "c");
  client.send({ cmd: "disconnect", reasonCode: 0x93, properties: { userProperties: { a: "b" } } });
  await client.expectClose();
  await probes.Disconnect.entered(1);
  assert.deepEqual(probes.Disconnect.seen[0]?.packet, {
    graceful: true,
    reasonCode: 0x93,
    userProperties: [["a", "b"]],
  });
});

test("[MQTT-3.12.4-1] PINGREQ is answered", async (t) => {
  const { port } = await startProbedGateway(t);
  const client = await connect(port(), "c");
  client.send({ cmd: "pingreq" });
  await client.expect("pingresp");
});
