/** Sessions: what outlives a connection, takeover, and messages for clients that are away. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { connectAsync } from "mqtt";
import type { SessionInfo } from "../../kernel/plugin.ts";
import { eventually } from "../helpers/eventually.ts";
import type { TestGateway } from "../helpers/gateway.ts";
import { startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, openRawClient, publishPacket, type RawClient } from "../helpers/raw-client.ts";

const numbers = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1);

async function sessionsOf({ gateway }: TestGateway, proxy = "mqttproxy"): Promise<readonly SessionInfo[]> {
  return (await gateway.host.proxies.get(proxy)?.sessions.query()) ?? [];
}

/** Connects with clean session off; answers whether a session was resumed. */
async function resume(port: number, clientId: string): Promise<{ client: RawClient; present: boolean }> {
  const client = await openRawClient(port);
  const { sessionPresent } = await client.connect({ clientId, clean: false });
  return { client, present: sessionPresent };
}

/** What was delivered by now: payload, DUP and packet id; acknowledged where `ack`. */
async function deliveries(
  client: RawClient,
  ack = false,
): Promise<[payload: string, dup: boolean, packetId: number][]> {
  const packets = (await client.flush()).filter((packet) => packet.cmd === "publish");
  if (ack) for (const { messageId } of packets) if (messageId) client.send({ cmd: "puback", messageId });
  return packets.map(({ payload, dup, messageId }) => [String(payload), dup, messageId ?? 0]);
}

test("A04: a clean session ends with its connection, another stays and receives after it is resumed", async (t) => {
  const gateway = await startProbedGateway(t, { brokerMode: true });
  const port = gateway.port();
  const publisher = await connectRaw(port, "publisher");

  const clean = await connectRaw(port, "clean");
  await clean.subscribe("a/b");
  await eventually(async () => (await sessionsOf(gateway)).map(({ clientId }) => clientId), ["clean", "publisher"]);
  await clean.disconnect();
  await eventually(async () => (await sessionsOf(gateway)).map(({ clientId }) => clientId), ["publisher"]);
  assert.equal(await gateway.metric("sluice_subscriptions"), 0);

  const { client, present } = await resume(port, "kept");
  assert.equal(present, false);
  await client.subscribe("a/b");
  await client.disconnect();
  await eventually(async () => (await sessionsOf(gateway))[0]?.connected, false);
  const again = await resume(port, "kept");
  assert.equal(again.present, true);
  await publisher.publish("a/b", "hi");
  assert.equal(String((await again.client.expect("publish")).payload), "hi");
});

test("A06: SUBSCRIBE and UNSUBSCRIBE show in the session", async (t) => {
  const gateway = await startProbedGateway(t);
  const client = await connectRaw(gateway.port(), "a06", { username: "me" });
  await client.subscribe("b", 0);
  await client.subscribe("a/+", 1);
  const [session] = await sessionsOf(gateway);
  assert.deepEqual(session?.subscriptions, [
    { topicFilter: "b", qos: 0 },
    { topicFilter: "a/+", qos: 1 },
  ]);
  assert.deepEqual(
    [session.connected, session.clean, session.username, session.address],
    [true, true, "me", "127.0.0.1"],
  );
  client.send({ cmd: "unsubscribe", messageId: 3, unsubscriptions: ["b"] });
  await client.expect("unsuback");
  assert.deepEqual((await sessionsOf(gateway))[0]?.subscriptions, [{ topicFilter: "a/+", qos: 1 }]);
});

test("L13: QoS 1 messages wait for a client that is away, in order; QoS 0 messages do not", async (t) => {
  const { port, metric } = await startProbedGateway(t, { brokerMode: true });
  const { client } = await resume(port(), "l13");
  await client.subscribe("a/#");
  client.destroy();
  await eventually(() => metric("sluice_connections"), 0);
  const publisher = await connectRaw(port(), "publisher");
  for (const n of numbers(1000)) {
    publisher.send(publishPacket(`a/${n % 3}`, String(n), n));
    if (n % 100 === 0) publisher.send(publishPacket("a/0", "lost"));
  }
  await publisher.expectMany("puback", 1000);
  const { client: again, present } = await resume(port(), "l13");
  assert.equal(present, true);
  for (const n of numbers(1000)) {
    const { payload, dup, messageId } = await again.expect("publish");
    assert.deepEqual([String(payload), dup], [String(n), false]);
    again.send({ cmd: "puback", messageId: messageId! });
  }
  assert.deepEqual(await deliveries(again), []);
  assert.equal(await metric("sluice_messages_dropped_total", { reason: "qos0_offline" }), 10);
});

test("L13: what was in flight comes again first, with DUP and its packet id, then what is new", async (t) => {
  const { port, metric } = await startProbedGateway(t, { brokerMode: true, maxInflight: 5 });
  const { client } = await resume(port(), "l13");
  await client.subscribe("a");
  const publisher = await connectRaw(port(), "publisher");
  for (const n of numbers(8)) await publisher.publish("a", String(n));
  const first = await deliveries(client);
  assert.deepEqual(
    first.map(([payload, dup]) => [payload, dup]),
    numbers(5).map((n) => [String(n), false]),
  );
  // 2 is acknowledged, which lets 6 through.
  client.send({ cmd: "puback", messageId: first[1]![2] });
  const sixth = await deliveries(client);
  assert.deepEqual(
    sixth.map(([payload]) => payload),
    ["6"],
  );
  client.destroy();
  await eventually(() => metric("sluice_connections"), 1);
  await publisher.publish("a", "9");

  const ids = new Map([...first, ...sixth].map(([payload, , id]) => [payload, id]));
  for (let round = 0; round < 2; round++) {
    const { client: again } = await resume(port(), "l13");
    assert.deepEqual(
      await deliveries(again),
      ["1", "3", "4", "5", "6"].map((payload) => [payload, true, ids.get(payload)]),
    );
    again.destroy();
    await eventually(() => metric("sluice_connections"), 1);
  }
  const { client: last } = await resume(port(), "l13");
  const payloads: string[] = [];
  while (payloads.length < 8) payloads.push(...(await deliveries(last, true)).map(([payload]) => payload));
  assert.deepEqual(payloads, ["1", "3", "4", "5", "6", "7", "8", "9"]);
  assert.deepEqual(await deliveries(last), []);
});

test("a clean session drops what waited, and a session kept before it is gone", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const { client } = await resume(port(), "c");
  await client.subscribe("a");
  const publisher = await connectRaw(port(), "publisher");
  await publisher.publish("a", "1");
  await client.expect("publish");
  await client.disconnect();
  await publisher.publish("a", "2");
  const clean = await connectRaw(port(), "c", { clean: true });
  await publisher.publish("a", "3");
  assert.deepEqual(await deliveries(clean), []);
  await clean.disconnect();
  const { client: again, present } = await resume(port(), "c");
  assert.equal(present, false);
  await publisher.publish("a", "4");
  assert.deepEqual(await deliveries(again), []);
});

test("L14: a subscription is kept however soon its client leaves", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const publisher = await connectRaw(port(), "publisher");
  for (const n of numbers(10)) {
    const { client } = await resume(port(), `l14-${n}`);
    await client.subscribe("a/b");
    client.destroy();
  }
  await publisher.publish("a/b", "hi");
  for (const n of numbers(10)) {
    const { client, present } = await resume(port(), `l14-${n}`);
    assert.equal(present, true);
    assert.equal(String((await client.expect("publish")).payload), "hi");
  }
});

for (const clean of [true, false]) {
  test(`L10: a takeover with clean session ${clean ? "on" : "off"} closes the old connection and leaves the new one whole`, async (t) => {
    const gateway = await startProbedGateway(t, { brokerMode: true }, { Disconnect: {} });
    const port = gateway.port();
    const publisher = await connectRaw(port, "publisher");
    const old = await connectRaw(port, "c", { clean });
    await old.subscribe("a/b");
    const fresh = await openRawClient(port);
    const { sessionPresent } = await fresh.connect({ clientId: "c", clean });
    assert.equal(sessionPresent, !clean);
    await old.expectClose();
    await gateway.probes.Disconnect.entered(1);
    if (clean) await fresh.subscribe("a/b");
    await publisher.publish("a/b", "hi");
    assert.equal(String((await fresh.expect("publish")).payload), "hi");
    await fresh.publish("other", "from the new one");
    const [session, ...others] = (await sessionsOf(gateway)).filter(({ clientId }) => clientId === "c");
    assert.deepEqual(
      [session?.connected, session?.subscriptions, others],
      [true, [{ topicFilter: "a/b", qos: 1 }], []],
    );
    assert.equal(await gateway.metric("sluice_connections"), 2);
    assert.equal(await gateway.metric("sluice_connections_closed_total", { reason: "takenOver" }), 1);
  });
}

test("L10: what was in flight to the old connection comes again on the new one", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const { client: old } = await resume(port(), "c");
  await old.subscribe("a");
  const publisher = await connectRaw(port(), "publisher");
  for (const payload of ["1", "2"]) await publisher.publish("a", payload);
  const [first, second] = await deliveries(old);
  old.send({ cmd: "puback", messageId: first![2] });
  await old.flush();
  const { client: fresh } = await resume(port(), "c");
  await old.expectClose();
  await publisher.publish("a", "3");
  const [again, third] = await deliveries(fresh, true);
  assert.deepEqual(again, ["2", true, second![2]]);
  assert.deepEqual(third?.slice(0, 2), ["3", false]);
  assert.notEqual(third?.[2], second![2]);
});

test("L3: a storm of connections with one client id leaves one, and the gateway whole", async (t) => {
  const gateway = await startProbedGateway(t, { brokerMode: true }, { Connect: {} });
  // Some are authenticated at once, some later, so that they overtake each other.
  let connects = 0;
  gateway.probes.Connect.handle = () =>
    ++connects % 3 === 0 ? new Promise<void>((resolve) => setImmediate(resolve)) : undefined;
  const port = gateway.port();
  const clients: RawClient[] = [];
  for (let round = 0; round < 10; round++) {
    const opened = await Promise.all(numbers(20).map(() => openRawClient(port)));
    for (const [index, client] of opened.entries()) {
      client.send({ cmd: "connect", clientId: "storm", clean: index % 2 === 0 });
      if (index % 5 === 0) client.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "s", qos: 1 }] });
      if (index % 7 === 0) client.destroy();
    }
    clients.push(...opened);
  }
  await eventually(() => clients.filter(({ isClosed }) => !isClosed).length <= 1, true);
  const last = await connectRaw(port, "storm", { clean: true });
  await eventually(() => clients.filter(({ isClosed }) => !isClosed).length, 0);
  await last.subscribe("s");
  await (await connectRaw(port, "publisher")).publish("s", "still here");
  assert.equal(String((await last.expect("publish")).payload), "still here");
  assert.equal(await gateway.metric("sluice_connections"), 2);
  assert.equal(await gateway.metric("sluice_sessions"), 2);
  assert.equal(await gateway.metric("sluice_subscriptions"), 1);
});

test("L2: messages from the HTTP endpoint while their subscriber reconnects all arrive", async (t) => {
  const { port, url, api } = await startProbedGateway(t);
  const got = new Set<number>();
  const client = await connectAsync(url(), { clientId: "l2", clean: false, reconnectPeriod: 5 });
  client.on("message", (_, payload) => got.add(Number(payload)));
  await client.subscribeAsync("cmd", { qos: 1 });
  const publishing = new AbortController();
  const storm = (async () => {
    while (!publishing.signal.aborted) {
      client.stream.destroy();
      await new Promise((resolve) => client.once("connect", resolve));
    }
  })();
  for (const n of numbers(300)) {
    const body = JSON.stringify({ topic: "cmd", qos: 1, payload: String(n) });
    const response = await fetch(`${api}/apis/v2/mqttproxy/mqttproxy/topics/publish`, { method: "POST", body });
    assert.deepEqual([response.status, ((await response.json()) as { matched: number }).matched], [200, 1]);
  }
  publishing.abort();
  await storm;
  await eventually(() => got.size, 300);
  await client.endAsync();
  await (await connectRaw(port(), "after")).publish("a/b");
});

test("L34: the same client id on two proxies has two sessions that know nothing of each other", async (t) => {
  const other = { kind: "MQTTProxy", name: "other", host: "127.0.0.1", port: 0, brokerMode: true };
  const gateway = await startProbedGateway(t, { brokerMode: true }, {}, [other]);
  const here = await resume(gateway.port(), "same");
  await here.client.subscribe("a/b");
  const there = await resume(gateway.port("other"), "same");
  assert.equal(there.present, false);
  const publisher = await connectRaw(gateway.port("other"), "publisher");
  await publisher.publish("a/b", "there");
  assert.deepEqual(await deliveries(here.client), []);
  assert.deepEqual(await deliveries(there.client), []);
  assert.deepEqual((await sessionsOf(gateway, "other")).find(({ clientId }) => clientId === "same")?.subscriptions, []);
});
