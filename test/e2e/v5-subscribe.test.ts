/** MQTT 5: SUBSCRIBE and UNSUBSCRIBE, their options, and what subscribers get. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { ISubscribePacket, IPublishPacket, Packet } from "mqtt-packet";
import { startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, type RawClient } from "../helpers/raw-client.ts";

type Subscription = ISubscribePacket["subscriptions"][number];

function connect(port: number, clientId: string): Promise<RawClient> {
  return connectRaw(port, clientId, {}, { protocolVersion: 5 });
}

async function subscribe(client: RawClient, subscriptions: Subscription[], subscriptionIdentifier?: number) {
  client.send({
    cmd: "subscribe",
    messageId: 9,
    subscriptions,
    ...(subscriptionIdentifier !== undefined && { properties: { subscriptionIdentifier } }),
  });
  const { messageId, granted } = await client.expect("suback");
  assert.equal(messageId, 9, "[MQTT-3.8.4-2]");
  return granted;
}

function publish(topic: string, payload: string, more: Partial<IPublishPacket> = {}): Packet {
  return { cmd: "publish", topic, payload, qos: 0, dup: false, retain: false, ...more };
}

/** Payloads and RETAIN flags that have come. */
async function flush(client: RawClient): Promise<string[]> {
  const packets = await client.flush();
  return packets.map((each) =>
    each.cmd === "publish" ? `${String(each.payload)}${each.retain ? " R" : ""}` : each.cmd,
  );
}

test("[MQTT-3.8.4-1] [MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.8.4-7] [MQTT-3.9.3-1] [MQTT-3.9.3-2] one code for each topic filter, in order", async (t) => {
  const { port, probes } = await startProbedGateway(t, { maxQos: 1 }, { Subscribe: {} });
  probes.Subscribe.handle = (ctx) => {
    assert.ok(ctx.type === "Subscribe");
    for (const each of ctx.packet.subscriptions) {
      if (each.topicFilter === "secret") each.refused = true;
      if (each.topicFilter === "quota") each.refused = "quotaExceeded";
      if (each.topicFilter === "lower") each.qos = 0;
    }
  };
  const client = await connect(port(), "c");
  const topics = ["zero", "two", "bad#", "secret", "quota", "lower", "$share//a", "$share/g/a"];
  assert.deepEqual(
    await subscribe(
      client,
      topics.map((topic) => ({ topic, qos: topic === "zero" ? 0 : 2 })),
    ),
    [0, 1, 0x8f, 0x87, 0x97, 0, 0x8f, 1],
  );
  probes.Subscribe.handle = (ctx) => ctx.reject("topicFilterInvalid");
  assert.deepEqual(await subscribe(client, [{ topic: "a", qos: 0 }]), [0x8f]);
  probes.Subscribe.handle = () => {
    throw new Error("away");
  };
  assert.deepEqual(await subscribe(client, [{ topic: "a", qos: 0 }]), [0x83], "not a verdict on the client");
});

test("the Subscribe pipeline sees the options", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Subscribe: {} });
  const client = await connect(port(), "c");
  await subscribe(client, [{ topic: "a", qos: 1, nl: true, rap: true, rh: 2 }]);
  const ctx = probes.Subscribe.seen[0];
  assert.ok(ctx?.type === "Subscribe");
  assert.deepEqual(ctx.packet.subscriptions, [
    { topicFilter: "a", qos: 1, noLocal: true, retainAsPublished: true, retainHandling: 2, refused: false },
  ]);
});

test("[MQTT-3.10.4-1] [MQTT-3.10.4-2] [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-3.10.4-6] [MQTT-3.11.3-1] [MQTT-3.11.3-2] UNSUBACK says which were there", async (t) => {
  const { port, probes } = await startProbedGateway(t, { brokerMode: true }, { Unsubscribe: {} });
  const client = await connect(port(), "c");
  await client.subscribe("a", 0);
  await client.subscribe("b/+", 0);
  async function unsubscribe(...unsubscriptions: string[]): Promise<unknown> {
    client.send({ cmd: "unsubscribe", messageId: 10, unsubscriptions });
    const unsuback = await client.expect("unsuback");
    assert.equal(unsuback.messageId, 10);
    return (unsuback as { granted?: unknown }).granted;
  }
  probes.Unsubscribe.handle = (ctx) => ctx.reject("notAuthorized");
  assert.deepEqual(await unsubscribe("a"), [0x87]);
  client.send(publish("a", "kept"));
  assert.deepEqual(await flush(client), ["kept"]);
  probes.Unsubscribe.handle = () => undefined;
  assert.deepEqual(await unsubscribe("a", "never", "b/c", "b/+"), [0, 0x11, 0x11, 0]);
  client.send(publish("a", "x"), publish("b/c", "x"));
  assert.deepEqual(await flush(client), []);
});

test("[MQTT-3.8.3-3] No Local: a client does not get its own messages; [MQTT-3.8.3-4] not on a shared subscription", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const client = await connect(port(), "c");
  const other = await connect(port(), "other");
  await subscribe(client, [{ topic: "a", qos: 0, nl: true }]);
  await subscribe(client, [{ topic: "b", qos: 0, nl: false }]);
  client.send(publish("a", "own"), publish("b", "own b"));
  assert.deepEqual(await flush(client), ["own b"]);
  other.send(publish("a", "theirs"));
  assert.equal((await client.expect("publish")).payload.toString(), "theirs");
  client.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "$share/g/a", qos: 0, nl: true }] });
  assert.equal((await client.expectLast("disconnect")).reasonCode, 0x82);
});

test("[MQTT-3.3.1-12] [MQTT-3.3.1-13] retain as published", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const [plain, asPublished] = [await connect(port(), "a"), await connect(port(), "b")];
  await subscribe(plain, [{ topic: "t", qos: 0 }]);
  await subscribe(asPublished, [{ topic: "t", qos: 0, rap: true }]);
  const publisher = await connect(port(), "pub");
  publisher.send(publish("t", "1", { retain: true }), publish("t", "2"));
  await publisher.flush();
  assert.deepEqual(await flush(plain), ["1", "2"]);
  assert.deepEqual(await flush(asPublished), ["1 R", "2"]);
});

test("[MQTT-3.3.1-5] [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11] [MQTT-3.8.4-4] retain handling: at each SUBSCRIBE, at a new one, never", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const publisher = await connect(port(), "pub");
  publisher.send(publish("t", "old", { retain: true }), publish("t", "kept", { retain: true }));
  await publisher.flush();
  for (const [rh, first, second] of [
    [0, ["kept R"], ["kept R"]],
    [1, ["kept R"], []],
    [2, [], []],
  ] as const) {
    const client = await connect(port(), "c");
    await subscribe(client, [{ topic: "t", qos: 0, rh }]);
    assert.deepEqual(await flush(client), first);
    await subscribe(client, [{ topic: "t", qos: 0, rh }]);
    assert.deepEqual(await flush(client), second);
  }
});

test("[MQTT-3.3.1-6] [MQTT-3.3.1-7] [MQTT-3.3.1-8] an empty retained message clears, and is delivered as any other", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const client = await connect(port(), "c");
  client.send(publish("t", "kept", { retain: true }), publish("t", "not retained"));
  await client.flush();
  await subscribe(client, [{ topic: "t", qos: 0 }]);
  assert.deepEqual(await flush(client), ["kept R"]);
  client.send(publish("t", "", { retain: true }));
  assert.deepEqual(await flush(client), [""]);
  await subscribe(client, [{ topic: "t", qos: 0 }]);
  assert.deepEqual(await flush(client), []);
});

test("[MQTT-3.3.4-2] [MQTT-3.3.4-3] [MQTT-3.3.4-4] overlapping subscriptions: one message at the highest QoS with all identifiers", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const client = await connect(port(), "c");
  await subscribe(client, [{ topic: "a/b", qos: 0 }], 1);
  await subscribe(client, [{ topic: "a/+", qos: 2 }], 268_435_455);
  await subscribe(client, [{ topic: "#", qos: 1 }]);
  const other = await connect(port(), "other");
  await subscribe(other, [{ topic: "a/b", qos: 0 }], 77);
  const publisher = await connect(port(), "pub");
  publisher.send(publish("a/b", "x", { qos: 2, messageId: 1 }));
  const got = await client.expect("publish");
  assert.equal(got.qos, 2);
  assert.deepEqual(
    [got.properties?.subscriptionIdentifier ?? []].flat().toSorted((a, b) => a - b),
    [1, 268_435_455],
  );
  assert.equal((await other.expect("publish")).properties?.subscriptionIdentifier, 77);
  assert.deepEqual(await flush(client), []);
  publisher.send(publish("z", "y"));
  assert.equal((await client.expect("publish")).properties, undefined);
});

test("[MQTT-3.8.4-3] the same topic filter again replaces options and identifier", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const client = await connect(port(), "c");
  await subscribe(client, [{ topic: "t", qos: 2 }], 1);
  await subscribe(client, [{ topic: "t", qos: 0 }], 2);
  client.send(publish("t", "x", { qos: 0 }));
  const got = await client.expect("publish");
  assert.deepEqual([got.qos, got.properties?.subscriptionIdentifier], [0, 2]);
});

test("a retained message brings the identifier of the subscription it comes by", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const client = await connect(port(), "c");
  client.send(publish("t", "kept", { retain: true }));
  await client.flush();
  await subscribe(client, [{ topic: "t", qos: 0 }], 5);
  assert.equal((await client.expect("publish")).properties?.subscriptionIdentifier, 5);
});

test("[MQTT-4.8.2-1] [MQTT-4.8.2-3] a shared subscription: each message to one member, at the QoS granted to it", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const members = await Promise.all(["a", "b"].map((id) => connect(port(), id)));
  for (const member of members) await subscribe(member, [{ topic: "$share/g/t", qos: 0 }]);
  const publisher = await connect(port(), "pub");
  for (let n = 0; n < 10; n++) await publisher.publish("t", String(n));
  const got = await Promise.all(members.map(flush));
  assert.deepEqual(
    got
      .flat()
      .map(Number)
      .toSorted((a, b) => a - b),
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
  );
  assert.ok(
    got.every((each) => each.length === 5),
    "in turn",
  );
});

test("[MQTT-4.8.2-6] what a member refuses is sent to no other", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const members = await Promise.all(["a", "b"].map((id) => connect(port(), id)));
  for (const member of members) await subscribe(member, [{ topic: "$share/g/t", qos: 1 }]);
  const publisher = await connect(port(), "pub");
  await publisher.publish("t", "unwanted");
  const got = await Promise.all(members.map((member) => member.flush()));
  const chosen = got.findIndex((packets) => packets.length === 1);
  const [delivery] = got[chosen] ?? [];
  members[chosen]?.send({ cmd: "puback", messageId: delivery?.messageId ?? 0, reasonCode: 0x83 });
  await members[chosen]?.flush();
  await members[chosen]?.disconnect();
  assert.deepEqual(await flush(members[1 - chosen] as RawClient), []);
});

test("[MQTT-3.10.4-3] UNSUBSCRIBE leaves what has been sent: it comes again on the next connection", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const options = { clean: false, properties: { sessionExpiryInterval: 100 } };
  const client = await connectRaw(port(), "c", options, { protocolVersion: 5 });
  await client.subscribe("t", 1);
  const publisher = await connect(port(), "pub");
  await publisher.publish("t", "begun");
  await client.expect("publish");
  client.send({ cmd: "unsubscribe", messageId: 1, unsubscriptions: ["t"] });
  await client.expect("unsuback");
  await publisher.publish("t", "too late");
  client.destroy();
  await client.closed;
  const back = await connectRaw(port(), "c", options, { protocolVersion: 5 });
  assert.deepEqual(await flush(back), ["begun"]);
});
