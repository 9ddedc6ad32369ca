/** MQTT 5: PUBLISH from clients and to them, with acks, properties, aliases and flow control. */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { test } from "node:test";
import type { IPublishPacket, Packet } from "mqtt-packet";
import type { PublishContext } from "../../kernel/plugin.ts";
import { bytesOf, field, packet } from "../fixtures/malformed-packets.ts";
import { properties as props } from "../fixtures/malformed-v5.ts";
import { publishes, startProbedGateway } from "../helpers/probed-gateway.ts";
import { createRandom } from "../helpers/random.ts";
import { connectRaw, type RawClient } from "../helpers/raw-client.ts";

type Properties = NonNullable<Extract<Packet, { cmd: "connect" }>["properties"]>;

function connect(port: number, clientId: string, properties: Properties = {}, more = {}): Promise<RawClient> {
  return connectRaw(port, clientId, { properties, ...more }, { protocolVersion: 5 });
}

function publish(topic: string, payload: string | Buffer, more: Partial<IPublishPacket> = {}): Packet {
  return { cmd: "publish", topic, payload, qos: 0, dup: false, retain: false, ...more };
}

/** The reason code and string of the ack to a PUBLISH at QoS 1 and 2. */
async function acks(client: RawClient, more: Partial<IPublishPacket> = {}, topic = "a/b"): Promise<unknown[]> {
  const answers = [];
  for (const [qos, cmd] of [
    [1, "puback"],
    [2, "pubrec"],
  ] as const) {
    client.send(publish(topic, "x", { qos, messageId: qos, ...more }));
    const { reasonCode, properties } = await client.expect(cmd);
    answers.push(properties ? [reasonCode, properties.reasonString] : reasonCode);
    if (qos === 2 && (reasonCode ?? 0) < 0x80) {
      client.send({ cmd: "pubrel", messageId: 2 });
      await client.expect("pubcomp");
    }
  }
  return answers;
}

test("[MQTT-3.4.2-1] [MQTT-3.5.2-1] a filter's reason reaches the client in PUBACK and PUBREC", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
  const client = await connect(port(), "c");
  assert.deepEqual(await acks(client), [0, 0]);
  for (const [reason, code] of [
    ["notAuthorized", 0x87],
    ["topicNameInvalid", 0x90],
    ["quotaExceeded", 0x97],
    ["payloadFormatInvalid", 0x99],
    ["unspecifiedError", 0x80],
    ["implementationSpecificError", 0x83],
    // Of other packets: the nearest.
    ["banned", 0x87],
    ["serverBusy", 0x97],
    ["sessionTakenOver", 0x80],
  ] as const) {
    probes.Publish.handle = (ctx) => ctx.reject(reason);
    assert.deepEqual(await acks(client), [code, code], reason);
  }
  probes.Publish.handle = (ctx) => ctx.drop();
  assert.deepEqual(await acks(client), [0, 0], "a policy discards what the client need not know of");
});

test("[MQTT-3.1.2-29] the words go along unless the client wants none, or they don't fit [MQTT-3.4.2-2] [MQTT-3.5.2-2]", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
  probes.Publish.handle = (ctx) => ctx.reject("notAuthorized", "this topic is not yours");
  const told = [0x87, "this topic is not yours"];
  assert.deepEqual(await acks(await connect(port(), "a")), [told, told]);
  assert.deepEqual(await acks(await connect(port(), "b", { requestProblemInformation: false })), [0x87, 0x87]);
  assert.deepEqual(await acks(await connect(port(), "c", { maximumPacketSize: 20 })), [0x87, 0x87]);
});

test("a fault: no ack, then DISCONNECT 0x83; with v5FaultAck an ack with 0x83 instead, but never to 3.1.1", async (t) => {
  for (const v5FaultAck of ["none", "reasonCode"]) {
    const { port, probes } = await startProbedGateway(t, { v5FaultAck, faultGrace: 0 }, { Publish: {} });
    probes.Publish.handle = () => {
      throw new Error("Kafka is away");
    };
    const client = await connect(port(), "c");
    if (v5FaultAck === "none") {
      client.send(publish("a", "x", { qos: 1, messageId: 1 }));
      assert.equal((await client.expectLast("disconnect")).reasonCode, 0x83);
    } else {
      assert.deepEqual(await acks(client), [0x83, 0x83]);
    }
    const old = await connectRaw(port(), "old");
    old.send(publish("a", "x", { qos: 1, messageId: 1 }));
    await old.expectClose();
  }
});

test("0x10 where nobody has subscribed, in brokerMode", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const client = await connect(port(), "c");
  assert.deepEqual(await acks(client), [0x10, 0x10]);
  await client.subscribe("a/b", 0);
  client.send(publish("a/b", "x", { qos: 1, messageId: 1 }));
  const both = [await client.expect("publish"), await client.expect("puback")];
  assert.equal((both[1] as { reasonCode?: number }).reasonCode, 0);
});

test("[MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.2-20] properties pass unaltered, user properties in order", async (t) => {
  const { port, probes } = await startProbedGateway(t, { brokerMode: true }, { Publish: {} });
  const subscriber = await connect(port(), "sub");
  await subscriber.subscribe("t", 0);
  const old = await connectRaw(port(), "old");
  await old.subscribe("t", 0);
  const publisher = await connect(port(), "pub");
  const its = props(
    bytesOf(1, 1),
    bytesOf(3),
    field("text/plain"),
    bytesOf(8),
    field("answer"),
    bytesOf(9),
    field(bytesOf(0, 255)),
    ...["b", "a", "b"].map((name, n) => Buffer.concat([bytesOf(38), field(name), field(String(n))])),
  );
  const whole = packet(0x30, field("t"), its, Buffer.from("x"));
  const chunks: Buffer[] = [];
  subscriber.socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  publisher.send(whole);
  await subscriber.expect("publish");
  assert.deepEqual(Buffer.concat(chunks), whole);
  assert.deepEqual((await old.expect("publish")).properties, undefined, "3.1.1 gets none");
  const { packet: seen } = probes.Publish.seen[0] as PublishContext;
  assert.deepEqual(seen.properties, {
    payloadFormat: 1,
    messageExpiry: undefined,
    contentType: "text/plain",
    responseTopic: "answer",
    correlationData: bytesOf(0, 255),
    userProperties: [
      ["b", "0"],
      ["a", "1"],
      ["b", "2"],
    ],
  });
});

test("a filter may replace the properties", async (t) => {
  const { port, probes } = await startProbedGateway(t, { brokerMode: true }, { Publish: {} });
  probes.Publish.handle = (ctx) => {
    assert.ok(ctx.type === "Publish");
    ctx.packet.properties = { ...ctx.packet.properties, contentType: "application/json" };
  };
  const subscriber = await connect(port(), "sub");
  await subscriber.subscribe("t", 0);
  const old = await connectRaw(port(), "old");
  old.send(publish("t", "x"));
  assert.deepEqual((await subscriber.expect("publish")).properties, { contentType: "application/json" });
});

test("properties of a filter that can't be sent are its fault, and nobody else's", async (t) => {
  const { port, probes } = await startProbedGateway(t, { brokerMode: true, faultGrace: 0 }, { Publish: {} });
  const subscriber = await connect(port(), "sub");
  await subscriber.subscribe("t", 1);
  const wrong: unknown[] = [
    { payloadFormat: 2 },
    { messageExpiry: -1 },
    { contentType: 7 },
    { contentType: "\uD800" },
    { contentType: "x".repeat(65_536) },
    { responseTopic: "a/#" },
    { correlationData: "text" },
    { userProperties: { a: "b" } },
    { userProperties: [["a"]] },
    { userProperties: [["a", "\0"]] },
  ];
  for (const properties of wrong) {
    probes.Publish.handle = (ctx) => {
      if (ctx.type === "Publish" && ctx.client.id === "bad") ctx.packet.properties = properties as object;
    };
    const bad = await connect(port(), "bad");
    bad.send(publish("t", "x", { qos: 1, messageId: 1 }));
    assert.equal((await bad.expectLast("disconnect")).reasonCode, 0x83, JSON.stringify(properties).slice(0, 50));
  }
  const good = await connect(port(), "good");
  await good.publish("t", "fine");
  assert.equal((await subscriber.expect("publish")).payload.toString(), "fine");
  assert.deepEqual(await subscriber.flush(), []);
});

test("[MQTT-3.3.2-5] [MQTT-3.3.2-6] the message expiry is passed on less the wait, and ends the message", async (t) => {
  const { port, metric } = await startProbedGateway(t, { brokerMode: true });
  const absent = await connect(port(), "sub", { sessionExpiryInterval: 100 });
  await absent.subscribe("t", 1);
  await absent.disconnect();
  const publisher = await connect(port(), "pub");
  for (const [messageId, messageExpiryInterval] of [
    [1, 1],
    [2, 100],
  ] as const) {
    publisher.send(publish("t", String(messageId), { qos: 1, messageId, properties: { messageExpiryInterval } }));
    await publisher.expect("puback");
  }
  await sleep(1200);
  const back = await connect(port(), "sub", { sessionExpiryInterval: 100 }, { clean: false });
  const delivered = await back.expect("publish");
  assert.equal(delivered.payload.toString(), "2");
  const left = delivered.properties?.messageExpiryInterval ?? 0;
  assert.ok(left === 98 || left === 99, `${left} s left`);
  assert.deepEqual(await back.flush(), []);
  assert.equal(await metric("sluice_messages_dropped_total", { reason: "expired" }), 1);
});

test("checkPayloadFormat: what is not UTF-8 though it says so gets 0x99, and no pipeline", async (t) => {
  const { port, probes } = await startProbedGateway(t, { checkPayloadFormat: true }, { Publish: {} });
  const client = await connect(port(), "c", { requestProblemInformation: false });
  const properties = { payloadFormatIndicator: true };
  assert.deepEqual(await acks(client, { properties, payload: bytesOf(0xff) }), [0x99, 0x99]);
  assert.deepEqual(await acks(client, { payload: bytesOf(0xff) }), [0, 0]);
  assert.deepEqual(await acks(client, { properties, payload: "fine" }), [0, 0]);
  assert.equal(probes.Publish.seen.length, 4);
});

test("[MQTT-3.3.2-12] topic aliases from the client, up to the maximum it was told", async (t) => {
  const { port, probes } = await startProbedGateway(t, { topicAliasMaximum: 2 }, { Publish: {} });
  const client = await connect(port(), "c");
  const topicAlias = (alias: number) => ({ properties: { topicAlias: alias } });
  client.send(
    publish("first", "1", topicAlias(1)),
    publish("second", "2", topicAlias(2)),
    publish("", "3", topicAlias(1)),
    publish("", "4", topicAlias(2)),
    publish("new", "5", topicAlias(1)),
    publish("", "6", topicAlias(1)),
  );
  await client.flush();
  assert.deepEqual(
    publishes(probes.Publish).map(({ packet: seen }) => `${seen.topic} ${String(seen.payload)}`),
    ["first 1", "second 2", "first 3", "second 4", "new 5", "new 6"],
  );
  client.send(publish("third", "x", topicAlias(3)));
  assert.equal((await client.expectLast("disconnect")).reasonCode, 0x94, "[MQTT-3.3.2-9]");
});

test("[MQTT-3.3.2-7] [MQTT-3.3.2-8] aliases end with the connection; one without a topic is a protocol error, 0 is invalid", async (t) => {
  const { port } = await startProbedGateway(t);
  const first = await connect(port(), "c", { sessionExpiryInterval: 10 });
  first.send(publish("a", "x", { properties: { topicAlias: 1 } }));
  await first.flush();
  await first.disconnect();
  const second = await connect(port(), "c", { sessionExpiryInterval: 10 }, { clean: false });
  second.send(publish("", "x", { properties: { topicAlias: 1 } }));
  assert.equal((await second.expectLast("disconnect")).reasonCode, 0x82);
  const third = await connect(port(), "c");
  third.send(publish("a", "x", { properties: { topicAlias: 0 } }));
  assert.equal((await third.expectLast("disconnect")).reasonCode, 0x94);
  const none = await startProbedGateway(t, { topicAliasMaximum: 0 });
  const fourth = await connect(none.port(), "c");
  fourth.send(publish("a", "x", { properties: { topicAlias: 1 } }));
  assert.equal((await fourth.expectLast("disconnect")).reasonCode, 0x94);
});

test("[MQTT-3.1.2-26] [MQTT-3.1.2-27] [MQTT-3.3.2-11] topic aliases to the client, up to its maximum, none where it takes none", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const subscriber = await connect(port(), "sub", { topicAliasMaximum: 2 });
  const plain = await connect(port(), "plain");
  for (const client of [subscriber, plain]) await client.subscribe("#", 0);
  const publisher = await connect(port(), "pub");
  const topics = ["one", "two", "three", "one", "two", "three"];
  for (const topic of topics) publisher.send(publish(topic, "x"));
  const got = await subscriber.expectMany("publish", 6);
  assert.deepEqual(
    got.map(({ topic, properties }) => [topic, properties?.topicAlias]),
    [
      ["one", 1],
      ["two", 2],
      ["three", undefined],
      ["", 1],
      ["", 2],
      ["three", undefined],
    ],
  );
  assert.deepEqual(
    (await plain.expectMany("publish", 6)).map(({ topic, properties }) => [topic, properties]),
    topics.map((topic) => [topic, undefined]),
  );
});

test("a delivery that is sent again on a new connection has its topic, not the old connection's alias", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const properties = { topicAliasMaximum: 5, sessionExpiryInterval: 100 };
  const first = await connect(port(), "sub", properties);
  await first.subscribe("t", 1);
  const publisher = await connect(port(), "pub");
  await publisher.publish("t", "1");
  await publisher.publish("t", "2");
  assert.equal((await first.expectMany("publish", 2))[1]?.topic, "");
  first.destroy();
  await first.closed;
  const second = await connect(port(), "sub", properties, { clean: false });
  const again = await second.expectMany("publish", 2);
  assert.deepEqual(
    again.map(({ topic, dup }) => [topic, dup]),
    [
      ["t", true],
      ["t", true],
    ],
  );
});

test("[MQTT-3.1.2-24] [MQTT-3.1.2-25] a message over the client's maximum packet size is as good as delivered", async (t) => {
  const { port, metric } = await startProbedGateway(t, { brokerMode: true, maxInflight: 1 });
  const small = await connect(port(), "small", { maximumPacketSize: 60, sessionExpiryInterval: 100 });
  await small.subscribe("t", 1);
  const publisher = await connect(port(), "pub");
  for (const payload of ["before", "x".repeat(100), "after"]) await publisher.publish("t", payload);
  for (const expected of ["before", "after"]) {
    const got = await small.expect("publish");
    assert.equal(got.payload.toString(), expected);
    small.send({ cmd: "puback", messageId: got.messageId ?? 0 });
  }
  assert.equal(await metric("sluice_messages_dropped_total", { reason: "packetTooLarge" }), 1);
  await small.flush();
  await small.disconnect();
  const back = await connect(port(), "small", { sessionExpiryInterval: 100 }, { clean: false });
  assert.deepEqual(await back.flush(), []);
});

test("[MQTT-3.3.4-9] [MQTT-4.9.0-1] [MQTT-4.9.0-2] [MQTT-4.9.0-3] no more in flight than the client's receive maximum, QoS 0 and other packets go on", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const subscriber = await connect(port(), "sub", { receiveMaximum: 2 });
  await subscriber.subscribe("t", 2);
  await subscriber.subscribe("zero", 0);
  const publisher = await connect(port(), "pub");
  for (let n = 1; n <= 4; n++) await publisher.publish("t", String(n));
  const sent = await subscriber.flush();
  assert.deepEqual(
    sent.map((each) => (each.cmd === "publish" ? String(each.payload) : each.cmd)),
    ["1", "2"],
  );
  subscriber.send({ cmd: "puback", messageId: sent[0]?.messageId ?? 0 });
  assert.equal((await subscriber.expect("publish")).payload.toString(), "3");
  assert.deepEqual(await subscriber.flush(), []);
});

test("[MQTT-3.3.4-9] a resumed session is resent within the new connection's receive maximum", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const first = await connect(port(), "sub", { sessionExpiryInterval: 100 });
  await first.subscribe("t", 1);
  const publisher = await connect(port(), "pub");
  for (let n = 1; n <= 5; n++) await publisher.publish("t", String(n));
  await first.expectMany("publish", 5);
  first.destroy();
  await first.closed;
  const second = await connect(port(), "sub", { sessionExpiryInterval: 100, receiveMaximum: 2 }, { clean: false });
  for (let n = 1; n <= 5; n++) {
    const got = await second.expect("publish");
    assert.deepEqual([got.payload.toString(), got.dup], [String(n), true], "in their order");
    assert.ok(second.received.length <= 1, "two at a time");
    second.send({ cmd: "puback", messageId: got.messageId ?? 0 });
  }
  assert.deepEqual(await second.flush(), []);
});

test("[MQTT-3.3.4-7] a client that goes beyond the receive maximum: DISCONNECT 0x93", async (t) => {
  const { port, probes } = await startProbedGateway(t, { maxInWork: 3 }, { Publish: { concurrent: true } });
  const gate = Promise.withResolvers<void>();
  probes.Publish.handle = () => gate.promise;
  const client = await connect(port(), "c");
  client.send(...[1, 2].map((messageId) => publish("a", "x", { qos: 1, messageId })));
  await probes.Publish.entered(2);
  gate.resolve();
  await client.expectMany("puback", 2);
  // QoS 2 counts until the PUBCOMP.
  for (let messageId = 1; messageId <= 3; messageId++) {
    client.send(publish("a", "x", { qos: 2, messageId }));
    await client.expect("pubrec");
  }
  client.send({ cmd: "pubrel", messageId: 1 });
  await client.expect("pubcomp");
  client.send(publish("a", "x", { qos: 1, messageId: 4 }));
  await client.expect("puback");
  client.send(publish("a", "x", { qos: 2, messageId: 5 }));
  await client.expect("pubrec");
  client.send(publish("a", "x", { qos: 1, messageId: 6 }));
  assert.equal((await client.expectLast("disconnect")).reasonCode, 0x93);
});

test("[MQTT-3.2.2-11] [MQTT-3.2.2-14] what the CONNACK has said is not served: DISCONNECT 0x9B, 0x9A", async (t) => {
  const { port } = await startProbedGateway(t, {
    brokerMode: true,
    maxQos: 1,
    retained: { maxMessages: 0, maxBytes: 1024 },
  });
  const two = await connect(port(), "a");
  two.send(publish("a", "x", { qos: 2, messageId: 1 }));
  assert.equal((await two.expectLast("disconnect")).reasonCode, 0x9b);
  const retain = await connect(port(), "b");
  retain.send(publish("a", "x", { retain: true }));
  assert.equal((await retain.expectLast("disconnect")).reasonCode, 0x9a);
});

test("[MQTT-3.3.1-1] [MQTT-3.3.1-2] [MQTT-3.3.1-3] DUP of a delivery says whether the delivery is a repeat, whatever the publisher's said", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const subscriber = await connect(port(), "sub");
  await subscriber.subscribe("t", 1);
  const publisher = await connect(port(), "pub");
  publisher.send(publish("t", "x", { qos: 1, messageId: 1, dup: true }));
  assert.equal((await subscriber.expect("publish")).dup, false);
});

test("[MQTT-4.6.0-5] [MQTT-4.6.0-6] in order per publisher and topic, in each QoS", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const subscriber = await connect(port(), "sub");
  await subscriber.subscribe("t", 2);
  const publishers = await Promise.all(["p1", "p2"].map((id) => connect(port(), id)));
  const count = 200;
  for (let n = 1; n <= count; n++) {
    for (const [index, publisher] of publishers.entries()) {
      publisher.send(publish("t", `${index} ${n}`, { qos: 1, messageId: n }));
    }
  }
  const got = new Map<string, number[]>([
    ["0", []],
    ["1", []],
  ]);
  for (let n = 0; n < 2 * count; n++) {
    const { payload, messageId = 0 } = await subscriber.expect("publish");
    const [who = "", value] = payload.toString().split(" ");
    got.get(who)?.push(Number(value));
    subscriber.send({ cmd: "puback", messageId });
  }
  const expected = Array.from({ length: count }, (_, n) => n + 1);
  assert.deepEqual([...got.values()], [expected, expected]);
});

test("the kernel stays whole while random bytes of MQTT 5 come in, and nobody else is disturbed", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const witness = await connect(port(), "witness");
  await witness.subscribe("t", 0);
  const random = createRandom(55);
  for (let n = 0; n < 60; n++) {
    const noisy = await connect(port(), `noisy${n}`);
    const bytes = Buffer.alloc(200);
    for (let at = 0; at < bytes.length; at++) bytes[at] = random(256);
    noisy.send(bytes);
    noisy.socket.end();
  }
  witness.send(publish("t", "still here"));
  assert.equal((await witness.expect("publish")).payload.toString(), "still here");
});
