/** SUBSCRIBE, and messages on their way to subscribers: QoS, order, packet ids, resends, windows. */
import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { connectAsync } from "mqtt";
import { publishes, startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, publishPacket } from "../helpers/raw-client.ts";

const numbers = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1);

test("A03, L21, L26: SUBACK has one code for each topic filter, UNSUBSCRIBE is always answered", async (t) => {
  const { port } = await startProbedGateway(t);
  const client = await connectRaw(port(), "a03");
  const topics: [string, 0 | 1 | 2][] = [
    ["zero", 0],
    ["one/+", 1],
    ["two/#", 2],
    ["bad#", 1],
    ["a/#/b", 0],
    ["#", 1],
  ];
  client.send({ cmd: "subscribe", messageId: 9, subscriptions: topics.map(([topic, qos]) => ({ topic, qos })) });
  const suback = await client.expect("suback");
  assert.equal(suback.messageId, 9);
  assert.deepEqual(suback.granted, [0, 1, 2, 0x80, 0x80, 1]);
  client.send({ cmd: "unsubscribe", messageId: 10, unsubscriptions: ["never/subscribed", "zero"] });
  assert.equal((await client.expect("unsuback")).messageId, 10);
});

test("a filter may refuse a subscription, alone or with all others, and lower its QoS", async (t) => {
  const { port, probes } = await startProbedGateway(t, { brokerMode: true }, { Subscribe: {} });
  probes.Subscribe.handle = (ctx) => {
    assert.ok(ctx.type === "Subscribe");
    for (const subscription of ctx.packet.subscriptions) {
      if (subscription.topicFilter === "secret") subscription.refused = true;
      if (subscription.topicFilter === "lower") subscription.qos = 0;
      if (subscription.topicFilter === "none") ctx.reject("notAuthorized");
      if (subscription.topicFilter === "broken") throw new Error("out of order");
    }
  };
  const client = await connectRaw(port(), "c");
  async function granted(...topics: string[]): Promise<unknown> {
    client.send({ cmd: "subscribe", messageId: 1, subscriptions: topics.map((topic) => ({ topic, qos: 1 })) });
    return (await client.expect("suback")).granted;
  }
  assert.deepEqual(await granted("secret", "lower", "open"), [0x80, 0, 1]);
  assert.deepEqual(await granted("none", "other"), [0x80, 0x80]);
  assert.deepEqual(await granted("broken"), [0x80]);
  const publisher = await connectRaw(port(), "p");
  for (const topic of ["secret", "none", "other", "lower", "open"]) await publisher.publish(topic, topic);
  const delivered = await client.flush();
  assert.deepEqual(
    delivered.map((packet) => packet.cmd === "publish" && [packet.topic, packet.qos]),
    [
      ["lower", 0],
      ["open", 1],
    ],
  );
});

test("without brokerMode published messages go through the pipeline only", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
  const client = await connectRaw(port(), "c");
  await client.subscribe("#");
  await client.publish("a/b", "x");
  assert.deepEqual(await client.flush(), []);
  assert.equal(probes.Publish.seen.length, 1);
});

test("brokerMode: the publisher too gets its message, as the pipeline left it, without retain", async (t) => {
  const { port, probes } = await startProbedGateway(t, { brokerMode: true }, { Publish: {} });
  probes.Publish.handle = (ctx) => {
    assert.ok(ctx.type === "Publish");
    const { packet } = ctx;
    if (packet.topic === "drop") ctx.drop();
    if (packet.topic === "reject") ctx.reject("notAuthorized");
    if (packet.topic === "verdict") return "verdict";
    if (packet.topic !== "change") return undefined;
    packet.topic = "changed/topic";
    packet.payload = Buffer.concat([packet.payload, Buffer.from([0, 255])]);
    packet.qos = 0;
    return undefined;
  };
  const client = await connectRaw(port(), "c");
  await client.subscribe("#", 1);
  const sent = ["drop", "reject", "verdict", "change", "keep"];
  for (const [index, topic] of sent.entries()) {
    client.send({ cmd: "publish", topic, payload: "x", qos: 1, messageId: index + 1, dup: false, retain: true });
  }
  const got = await client.flush();
  assert.deepEqual(
    got.filter(({ cmd }) => cmd === "puback").map(({ messageId }) => messageId),
    [1, 2, 3, 4, 5],
  );
  const delivered = got.filter((packet) => packet.cmd === "publish");
  assert.deepEqual(
    delivered.map(({ topic, payload, qos, retain, dup }) => ({ topic, payload, qos, retain, dup })),
    [
      { topic: "changed/topic", payload: Buffer.from([0x78, 0, 255]), qos: 0, retain: false, dup: false },
      { topic: "keep", payload: Buffer.from("x"), qos: 1, retain: false, dup: false },
    ],
  );
});

test("L29: # and + do not match topics that begin with $", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const [all, one, own] = await Promise.all(
    ["#", "+/x", "$SYS/#"].map(async (topic) => {
      const client = await connectRaw(port(), topic);
      await client.subscribe(topic);
      return client;
    }),
  );
  const publisher = await connectRaw(port(), "p");
  await publisher.publish("$SYS/x", "hidden");
  await publisher.publish("a/x", "shown");
  const payloads = async (client = all) =>
    (await client!.flush()).map((packet) => packet.cmd === "publish" && String(packet.payload));
  assert.deepEqual(await payloads(all), ["shown"]);
  assert.deepEqual(await payloads(one), ["shown"]);
  assert.deepEqual(await payloads(own), ["hidden"]);
});

test("L22: a delivery has the lower of the two QoS", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const publisher = await connectRaw(port(), "p");
  for (const subscribed of [0, 1] as const) {
    const client = await connectRaw(port(), `s${subscribed}`);
    assert.equal(await client.subscribe("a/b", subscribed), subscribed);
    publisher.send(publishPacket("a/b", "0"));
    await publisher.publish("a/b", "1");
    const got = await client.expectMany("publish", 2);
    assert.deepEqual(
      got.map(({ payload, qos }) => [String(payload), qos]),
      [
        ["0", 0],
        ["1", subscribed],
      ],
    );
    // The new QoS replaces the old one [MQTT-3.8.4-3].
    assert.equal(await client.subscribe("a/b", subscribed === 0 ? 1 : 0), subscribed === 0 ? 1 : 0);
    await publisher.publish("a/b", "again");
    assert.equal((await client.expect("publish")).qos, 1 - subscribed);
  }
});

test("L23: overlapping topic filters give one delivery, at the highest QoS", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const client = await connectRaw(port(), "s");
  for (const [topic, qos] of [
    ["x/+", 0],
    ["x/a", 1],
    ["#", 0],
    ["x/#", 0],
  ] as const)
    await client.subscribe(topic, qos);
  const publisher = await connectRaw(port(), "p");
  for (const n of numbers(30)) await publisher.publish("x/a", String(n));
  const got = await client.flush();
  assert.deepEqual(
    got.map((packet) => packet.cmd === "publish" && [Number(packet.payload), packet.qos]),
    numbers(30).map((n) => [n, 1]),
  );
});

test("L32: what is subscribed and unsubscribed later counts for topics that were published before", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const client = await connectRaw(port(), "s");
  const publisher = await connectRaw(port(), "p");
  async function delivered(topic: string): Promise<boolean> {
    await publisher.publish(topic, topic);
    return (await client.flush()).length === 1;
  }
  await client.subscribe("other");
  assert.equal(await delivered("par"), false);
  await client.subscribe("par/#", 0);
  assert.equal(await delivered("par"), true);
  await client.subscribe("ov/a", 0);
  await client.subscribe("ov/+", 0);
  assert.equal(await delivered("ov/a"), true);
  client.send({ cmd: "unsubscribe", messageId: 5, unsubscriptions: ["ov/a"] });
  await client.expect("unsuback");
  assert.equal(await delivered("ov/a"), true);
  client.send({ cmd: "unsubscribe", messageId: 6, unsubscriptions: ["ov/+"] });
  await client.expect("unsuback");
  assert.equal(await delivered("ov/a"), false);
});

test("A28: two clients exchange 20 messages each way, in order", async (t) => {
  const { url } = await startProbedGateway(t, { brokerMode: true });
  const got: Record<string, string[]> = { a: [], b: [] };
  const all = Promise.withResolvers<void>();
  const [a, b] = await Promise.all(
    ["a", "b"].map(async (id) => {
      const client = await connectAsync(url(), { clientId: id, reconnectPeriod: 0 });
      client.on("message", (_, payload) => {
        got[id]?.push(String(payload));
        if (Object.values(got).every(({ length }) => length === 20)) all.resolve();
      });
      await client.subscribeAsync(`to/${id}`, { qos: 1 });
      return client;
    }),
  );
  await Promise.all(
    numbers(20).flatMap((n) => [
      a!.publishAsync("to/b", String(n), { qos: 1 }),
      b!.publishAsync("to/a", String(n), { qos: 1 }),
    ]),
  );
  await all.promise;
  await Promise.all([a!.endAsync(), b!.endAsync()]);
  assert.deepEqual(got, { a: numbers(20).map(String), b: numbers(20).map(String) });
});

test("A08: 10 clients send 40 messages up and get 40 from the HTTP endpoint, both in order, none twice", async (t) => {
  const { url, api, probes } = await startProbedGateway(t, {}, { Publish: {} });
  const ids = numbers(10).map((n) => `a08-${n}`);
  await Promise.all(
    ids.map(async (id) => {
      const got: number[] = [];
      const all = Promise.withResolvers<void>();
      const client = await connectAsync(url(), { clientId: id, reconnectPeriod: 0 });
      client.on("message", (_, payload) => {
        got.push(Number(payload));
        if (got.length === 40) all.resolve();
      });
      await client.subscribeAsync(id, { qos: 1 });
      for (const n of numbers(40)) {
        const body = JSON.stringify({ topic: id, qos: 1, payload: String(n) });
        const path = `${api}/apis/v1/mqttproxy/mqttproxy/topics/publish`;
        const [response] = await Promise.all([
          fetch(path, { method: "POST", body }),
          client.publishAsync(`up/${id}`, String(n), { qos: 1 }),
        ]);
        assert.equal(response.status, 200);
        await response.text();
      }
      await all.promise;
      await client.endAsync();
      assert.deepEqual(got, numbers(40));
    }),
  );
  for (const id of ids) {
    const own = publishes(probes.Publish).filter(({ client }) => client.id === id);
    assert.deepEqual(
      own.map(({ packet }) => Number(packet.payload)),
      numbers(40),
    );
  }
});

test("L25: 2,000 messages of both QoS reach a subscriber in order", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true, maxInflight: 65_535 });
  const client = await connectRaw(port(), "s");
  await client.subscribe("a/#");
  const publisher = await connectRaw(port(), "p");
  publisher.send(...numbers(2000).map((n) => publishPacket(`a/${n % 7}`, String(n), n % 3 === 0 ? undefined : n)));
  await publisher.expectMany("puback", 1334);
  const got = await client.expectMany("publish", 2000);
  assert.deepEqual(
    got.map(({ payload }) => Number(payload)),
    numbers(2000),
  );
});

test("a subscriber gets no more than maxInflight messages unacknowledged, and one more for each PUBACK", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true, maxInflight: 10 });
  const client = await connectRaw(port(), "s");
  await client.subscribe("a/b");
  const publisher = await connectRaw(port(), "p");
  for (const n of numbers(30)) await publisher.publish("a/b", String(n));
  const first = await client.expectMany("publish", 10);
  assert.deepEqual(await client.flush(), []);
  // In whatever order; an id that is not in flight gives nothing.
  client.send({ cmd: "puback", messageId: 60_000 });
  assert.deepEqual(await client.flush(), []);
  client.send({ cmd: "puback", messageId: first[7]!.messageId! }, { cmd: "puback", messageId: first[7]!.messageId! });
  const next = await client.flush();
  assert.deepEqual(
    next.map((packet) => packet.cmd === "publish" && Number(packet.payload)),
    [11],
  );
});

test("A30, L24: what is not acknowledged is sent again each retryInterval, with DUP and the same packet id", async (t) => {
  const { port, metric } = await startProbedGateway(t, { brokerMode: true, retryInterval: 1 });
  const client = await connectRaw(port(), "s");
  await client.subscribe("a/b");
  const publisher = await connectRaw(port(), "p");
  for (const n of numbers(3)) await publisher.publish("a/b", String(n));
  const first = await client.expectMany("publish", 3);
  assert.ok(first.every(({ dup }) => !dup));
  client.send({ cmd: "puback", messageId: first[1]!.messageId! });
  const from = performance.now();
  for (let round = 0; round < 2; round++) {
    const again = await client.expectMany("publish", 2);
    assert.deepEqual(
      again.map(({ messageId, payload, dup }) => [messageId, String(payload), dup]),
      [first[0]!, first[2]!].map(({ messageId, payload }) => [messageId, String(payload), true]),
    );
  }
  const took = performance.now() - from;
  assert.ok(took > 1500 && took < 4000, `two rounds took ${took} ms`);
  for (const { messageId } of first) client.send({ cmd: "puback", messageId: messageId! });
  assert.deepEqual(await client.flush(), []);
  assert.equal(await metric("sluice_messages_resent_total"), 4);
});

test("L24: packet ids are 1 to 65535 and none in flight is used again, over 70,000 messages", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true, maxInWork: 5000 });
  const client = await connectRaw(port(), "s");
  await client.subscribe("a");
  const publisher = await connectRaw(port(), "p");
  const total = 70_000;
  const kept = new Set<number>();
  const faults: string[] = [];
  let count = 0;
  const done = Promise.withResolvers<void>();
  const ack = Buffer.from([0x40, 2, 0, 0]);
  client.onPacket = (packet) => {
    if (packet.cmd !== "publish") return;
    const { messageId = 0, payload } = packet;
    count++;
    if (Number(payload) !== count) faults.push(`message ${String(payload)} came as number ${count}`);
    if (!(messageId >= 1 && messageId <= 65_535)) faults.push(`packet id ${messageId}`);
    if (kept.has(messageId)) faults.push(`packet id ${messageId} is in flight already`);
    // Every thousandth message stays unacknowledged.
    if (count % 1000 === 1) {
      kept.add(messageId);
    } else {
      const frame = Buffer.from(ack);
      frame.writeUInt16BE(messageId, 2);
      client.send(frame);
    }
    if (count === total || faults.length > 0) done.resolve();
  };
  publisher.onPacket = () => undefined;
  for (let sent = 0; sent < total;) {
    const batch: Buffer[] = [];
    for (let n = 0; n < 1000; n++) {
      const payload = String(++sent);
      const head = Buffer.from([0x32, 5 + payload.length, 0, 1, 0x61, 0, 0]);
      head.writeUInt16BE((sent % 65_535) + 1, 5);
      batch.push(head, Buffer.from(payload));
    }
    if (!publisher.socket.write(Buffer.concat(batch))) {
      await new Promise((resolve) => publisher.socket.once("drain", resolve));
    }
  }
  await done.promise;
  assert.deepEqual(faults, []);
  assert.equal(kept.size, 70);
});

suite("L28: the will", { concurrency: true }, () => {
  const will = { topic: "will/topic", payload: "gone", qos: 1, retain: false } as const;

  /** Ways in which a connection ends without a DISCONNECT. */
  const ends: Record<
    string,
    (o: { client: Awaited<ReturnType<typeof connectRaw>>; port: number; api: string }) => unknown
  > = {
    "a lost connection": ({ client }) => client.destroy(),
    "a half-closed connection": ({ client }) => client.socket.end(),
    "malformed bytes": ({ client }) => client.send(Buffer.from([0xff, 0xff])),
    "a second CONNECT": ({ client }) => client.send({ cmd: "connect", clientId: "again", clean: true }),
    "no packet within keep alive": () => undefined,
    "a takeover": ({ port }) => connectRaw(port, "dying"),
    "a filter that disconnects": ({ client }) => client.send(publishPacket("disconnect", "x")),
    "a removed session": ({ api }) =>
      fetch(`${api}/apis/v2/mqttproxy/mqttproxy/sessions`, {
        method: "DELETE",
        body: JSON.stringify({ sessions: [{ sessionID: "dying" }] }),
      }),
  };
  for (const [name, end] of Object.entries(ends)) {
    test(`goes through the pipeline and to subscribers after ${name}`, async (t) => {
      const { port, api, probes } = await startProbedGateway(t, { brokerMode: true }, { Publish: {} });
      probes.Publish.handle = (ctx) => {
        if (ctx.type === "Publish" && ctx.packet.topic === "disconnect") ctx.disconnect("banned");
      };
      const watcher = await connectRaw(port(), "watcher");
      await watcher.subscribe("will/#");
      const client = await connectRaw(port(), "dying", { will, keepalive: name.includes("keep alive") ? 1 : 0 });
      await end({ client, port: port(), api });
      const { topic, payload, qos } = await watcher.expect("publish");
      assert.deepEqual([topic, String(payload), qos], ["will/topic", "gone", 1]);
      const wills = publishes(probes.Publish).filter(({ origin }) => origin === "will");
      assert.deepEqual(
        wills.map(({ packet, client: { id } }) => [packet.topic, String(packet.payload), packet.packetId, id]),
        [["will/topic", "gone", undefined, "dying"]],
      );
      await client.closed;
      assert.deepEqual(await watcher.flush(), []);
    });
  }

  test("is discarded by DISCONNECT, by a refused CONNECT, and when the gateway stops", async (t) => {
    const { port, probes, gateway } = await startProbedGateway(t, { brokerMode: true }, { Publish: {}, Connect: {} });
    probes.Connect.handle = ({ client }) => (client.id === "refused" ? "verdict" : undefined);
    const watcher = await connectRaw(port(), "watcher");
    await watcher.subscribe("#");
    const leaving = await connectRaw(port(), "leaving", { will });
    await leaving.disconnect();
    await assert.rejects(connectRaw(port(), "refused", { will }), /CONNACK 5/);
    const staying = await connectRaw(port(), "staying", { will });
    assert.deepEqual(await watcher.flush(), []);
    await gateway.stop();
    await staying.expectClose();
    await watcher.expectClose();
    assert.deepEqual(probes.Publish.seen, []);
  });

  test("is not delivered where a filter drops it", async (t) => {
    const { port, probes } = await startProbedGateway(t, { brokerMode: true }, { Publish: {}, Disconnect: {} });
    probes.Publish.handle = (ctx) => ctx.drop();
    const watcher = await connectRaw(port(), "watcher");
    await watcher.subscribe("#");
    (await connectRaw(port(), "dying", { will })).destroy();
    await probes.Publish.entered(1);
    await probes.Disconnect.entered(1);
    assert.deepEqual(await watcher.flush(), []);
  });
});
