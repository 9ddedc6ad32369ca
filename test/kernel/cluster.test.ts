/** Several nodes over the engine in memory: sessions that move, owners that are fenced, messages that are not lost. */
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import type { Message, QoS } from "../../kernel/plugin.ts";
import type { Receipt } from "../../kernel/store.ts";
import { createTestCluster, type TestCluster, type TestNode } from "../helpers/cluster.ts";
import { eventually } from "../helpers/eventually.ts";
import { connect } from "../helpers/store-contract.ts";

const plain = { qos: 1, noLocal: false, retainAsPublished: false, retainHandling: 0, identifier: 0 } as const;

const clusters: TestCluster[] = [];
afterEach(async () => {
  for (const cluster of clusters.splice(0)) await cluster.stop();
});

function open(o: Parameters<typeof createTestCluster>[0] = {}): TestCluster {
  const cluster = createTestCluster(o);
  clusters.push(cluster);
  return cluster;
}

function message(topic: string, qos: QoS = 1, payload = "x", more: Partial<Message> = {}): Message {
  return { topic, payload: Buffer.from(payload), qos, retain: false, ...more };
}

async function two(o: Parameters<typeof createTestCluster>[0] = {}) {
  const cluster = open(o);
  return { cluster, a: await cluster.node("a"), b: await cluster.node("b") };
}

for (const qos of [0, 1, 2] as const) {
  test(`QoS ${qos}: what is published on one node reaches subscribers on all, once`, async () => {
    const { a, b } = await two();
    const here = await connect(a.proxy, "here", { filters: [["t/+", 2]] });
    const there = await connect(b.proxy, "there", { filters: [["t/+", 2]] });
    const clean = await connect(b.proxy, "clean", { clean: true, filters: [["t/1", 2]] });
    await connect(b.proxy, "other", { filters: [["u", 2]] });
    await a.proxy.publish(message("t/1", qos, "x", { properties: { contentType: "y", userProperties: [["k", "v"]] } }));
    for (const sub of [here, there, clean]) await eventually(() => sub.topics(), ["t/1"]);
    assert.equal(there.last().qos, qos);
    assert.deepEqual(there.last().message.properties, { contentType: "y", userProperties: [["k", "v"]] });
  });
}

test("what a client publishes keeps the order of each topic, and one topic does not wait for another", async () => {
  const { cluster, a } = await two({ shards: 4 });
  cluster.memory.faults.delayMs = 5;
  const ended: string[] = [];
  const publish = async (topic: string, payload: string, qos: QoS): Promise<void> => {
    await a.proxy.publish(message(topic, qos, payload), { from: "p" });
    ended.push(`${topic} ${payload}`);
  };
  const all = Array.from({ length: 20 }, (_, n) => publish("t/1", String(n), n % 2 === 0 ? 1 : 2));
  await Promise.all([...all, publish("t/2", "only", 1)]);
  const logged = cluster.memory.logOf("p").map(({ message: { topic, payload } }) => `${topic} ${payload.toString()}`);
  const expected = Array.from({ length: 20 }, (_, n) => `t/1 ${n}`);
  assert.deepEqual(
    logged.filter((each) => each !== "t/2 only"),
    expected,
  );
  assert.ok(ended.indexOf("t/2 only") < 10, "it did not wait for the twenty");
});

test("a session that moves finds its subscriptions, and what was published meanwhile, in order", async () => {
  const { a, b } = await two({ shards: 4 });
  const first = await connect(a.proxy, "s", { credit: 3, filters: [["t", { qos: 1, identifier: 7 }]] });
  for (let n = 0; n < 5; n++) await a.proxy.publish(message("t", 1, String(n)));
  await eventually(() => first.got.length, 3);
  first.handle.settle(first.got[0]!.delivery);
  await eventually(() => first.got.length, 4);
  await first.handle.close();
  await a.proxy.publish(message("t", 1, "5"));
  const second = await connect(b.proxy, "s");
  assert.equal(second.handle.present, true);
  assert.deepEqual([...second.handle.subscriptions.keys()], ["t"]);
  await eventually(() => second.payloads(), ["1", "2", "3", "4", "5"]);
  assert.deepEqual(
    second.got.map(({ again, delivery }) => [again, delivery.identifiers[0]]),
    [
      [true, 7],
      [true, 7],
      [true, 7],
      [false, 7],
      [false, 7],
    ],
  );
  assert.deepEqual(
    second.got.slice(0, 3).map(({ delivery }) => delivery.packetId),
    first.got.slice(1).map(({ delivery }) => delivery.packetId),
    "the original packet ids [MQTT-4.4.0-1]",
  );
});

test("takeover: the old node's connection hears it, tells what it has, and nothing comes twice or is lost", async () => {
  const { a, b } = await two();
  const old = await connect(a.proxy, "s", { filters: [["t", 1]] });
  for (let n = 0; n < 10; n++) await a.proxy.publish(message("t", 1, String(n)));
  for (const { delivery } of old.got.slice(0, 7)) old.handle.settle(delivery);
  const fresh = await connect(b.proxy, "s");
  assert.equal(old.state.lost, "takenOver");
  await b.proxy.publish(message("t", 1, "10"));
  await eventually(() => fresh.payloads(), ["7", "8", "9", "10"]);
  old.handle.settle(old.got[8]!.delivery);
  await old.handle.subscribe("u", plain);
  assert.deepEqual([...fresh.handle.subscriptions.keys()], ["t"], "late calls of the old one do nothing");
  assert.equal(await b.metric("sluice_cluster_takeovers_total"), 1);
});

test("an owner that has not heard of the next one is fenced: it can write nothing, and so hears it", async () => {
  const { cluster, a, b } = await two();
  const old = await connect(a.proxy, "s", { filters: [["t", 2]] });
  cluster.memory.faults.loseControl = 1;
  const fresh = await connect(b.proxy, "s");
  assert.equal(fresh.handle.present, true);
  assert.equal(old.state.lost, "");
  await assert.rejects(async () => await old.handle.subscribe("u", plain), { code: "STORE_FAILED" });
  assert.equal(old.state.lost, "takenOver");
  assert.equal(cluster.memory.fenced(), 1);
  assert.deepEqual([...fresh.handle.subscriptions.keys()], ["t"]);
  await a.proxy.publish(message("t", 1, "after"));
  await eventually(() => fresh.payloads(), ["after"]);
});

test("an owner that was cut off hears of the next one when it is back", async () => {
  const { a, b } = await two();
  const old = await connect(a.proxy, "s", { filters: [["t", 1]] });
  a.memory.cutOff();
  await connect(b.proxy, "s");
  assert.equal(old.state.lost, "");
  a.memory.rejoin();
  await eventually(() => old.state.lost, "takenOver");
});

test("an owner that was cut off delivers nothing more before the engine has said whose the session is", async () => {
  const { cluster, a, b } = await two();
  const moved = await connect(a.proxy, "moved", { credit: 100, filters: [["t", 1]] });
  const stayed = await connect(a.proxy, "stayed", { credit: 100, filters: [["t", 1]] });
  a.memory.cutOff();
  const fresh = await connect(b.proxy, "moved", { credit: 100 });
  for (let n = 0; n < 10; n++) await b.proxy.publish(message("t", 1, `away ${n}`));
  // The order in which answers come back is any.
  cluster.memory.faults.delayMs = 20;
  a.memory.rejoin();
  for (let n = 0; n < 10; n++) {
    await b.proxy.publish(message("t", 1, `back ${n}`));
    await b.proxy.publish(message("t", 0, `live ${n}`));
  }
  await eventually(() => moved.state.lost, "takenOver");
  assert.deepEqual(moved.payloads(), []);
  for (const each of [fresh, stayed]) {
    await eventually(() => each.payloads().filter((payload) => !payload.startsWith("live")).length, 20);
  }
  assert.equal(stayed.state.lost, "");
});

test("QoS 2 to a client: a new connection gets no PUBREL before the release is durable", async () => {
  const { a, b } = await two();
  const old = await connect(a.proxy, "s", { filters: [["t", 2]] });
  await b.proxy.publish(message("t", 2));
  await eventually(() => old.got.length, 1);
  a.memory.cutOff();
  Promise.resolve(old.handle.release(old.last())).catch(() => undefined);
  const fresh = await connect(a.proxy, "s");
  assert.deepEqual(fresh.got, []);
  a.memory.rejoin();
  await eventually(() => fresh.got.map(({ again, delivery }) => [again, delivery.released]), [[true, true]]);
});

test("a node whose engine answers without those who decide closes persistent clients after the grace, too", async () => {
  const { a } = await two();
  const lasting = await connect(a.proxy, "lasting", { filters: [["t", 1]] });
  const clean = await connect(a.proxy, "clean", { clean: true });
  a.memory.loseMajority();
  assert.equal(a.store.health().live, true);
  assert.equal(a.store.health().durable, false);
  await eventually(() => lasting.state.lost, "storeLost");
  assert.equal(clean.state.lost, "");
});

test("a node that can't reach the engine for longer than the grace closes the clients of persistent sessions", async () => {
  const { a, b } = await two();
  const lasting = await connect(a.proxy, "lasting", { filters: [["t", 1]] });
  const clean = await connect(a.proxy, "clean", { clean: true });
  a.memory.cutOff();
  assert.equal(a.store.health().durable, false);
  await eventually(() => lasting.state.lost, "storeLost");
  assert.equal(clean.state.lost, "");
  const fresh = await connect(b.proxy, "lasting");
  assert.equal(fresh.handle.present, true);
});

test("a killed node: its sessions go on elsewhere, with what was not acknowledged, as sent before", async () => {
  const { cluster, a, b } = await two({ checkpointMs: 100 });
  const old = await connect(a.proxy, "s", { credit: 100, filters: [["t", 1]] });
  for (let n = 0; n < 5; n++) await b.proxy.publish(message("t", 1, String(n)));
  await eventually(() => old.got.length, 5);
  a.kill();
  await eventually(() => cluster.memory.owned("p").includes(`\u0000node/${a.memory.engine.node.incarnation}`), true);
  await b.proxy.publish(message("t", 1, "5"));
  const fresh = await connect(b.proxy, "s");
  await b.proxy.publish(message("t", 1, "6"));
  await eventually(() => fresh.payloads(), ["0", "1", "2", "3", "4", "5", "6"]);
  assert.deepEqual(
    fresh.got.map(({ again }) => again),
    // What came after it was dead it can't have sent; of what came before, whoever knows is gone [MQTT-3.3.1-1].
    [true, true, true, true, true, false, false],
  );
});

test("QoS 2 to a client: a node that dies between the steps leaves each message to be finished once", async () => {
  const { a, b } = await two();
  const old = await connect(a.proxy, "s", { filters: [["t", 2]] });
  for (const payload of ["sent", "released", "completed"]) await b.proxy.publish(message("t", 2, payload));
  await eventually(() => old.got.length, 3);
  await old.handle.release(old.got[1]!.delivery);
  await old.handle.release(old.got[2]!.delivery);
  old.handle.settle(old.got[2]!.delivery);
  a.kill();
  await b.proxy.publish(message("t", 2, "new"));
  const fresh = await connect(b.proxy, "s");
  await eventually(() => fresh.got.length, 4);
  assert.deepEqual(
    fresh.got.map(({ again, delivery }) => [
      again,
      delivery.released ? "PUBREL" : delivery.message.payload.toString(),
      delivery.packetId ===
        old.got.find((each) => each.delivery.message.payload.equals(delivery.message.payload))?.delivery.packetId,
    ]),
    [
      [true, "PUBREL", true],
      // PUBCOMP came, and nobody had written it down: the client has the message, and gets another PUBREL.
      [true, "PUBREL", true],
      [true, "sent", true],
      [false, "new", false],
    ],
  );
});

test("QoS 2 from a client: what is published after its connection has ended is the same message when it is sent again", async () => {
  const { a, b } = await two();
  const sub = await connect(b.proxy, "sub", { filters: [["t", 2]] });
  const publish = async (node: typeof a, { handle }: { handle: typeof sub.handle }, packetId: number) =>
    await node.proxy.publish(message("t", 2, String(packetId)), { from: "c", inbound: { handle, packetId } });
  const client = await connect(a.proxy, "c");
  const running = publish(a, client, 1);
  await client.handle.close();
  await running;
  // It had been waiting for the one before it.
  await publish(a, client, 2);
  for (const node of [a, b]) {
    const again = await connect(node.proxy, "c");
    for (const packetId of [1, 2]) if (!again.handle.inbound.has(packetId)) await publish(node, again, packetId);
    assert.deepEqual([again.handle.inbound.has(1), again.handle.inbound.has(2)], [true, true]);
    await again.handle.close();
  }
  await b.proxy.publish(message("t", 2, "last"));
  await eventually(() => sub.payloads(), ["1", "2", "last"]);
});

test("QoS 2 from a client: sent again to another node it is the same message, and the id used anew is another", async () => {
  const { cluster, a, b } = await two();
  const sub = await connect(b.proxy, "sub", { filters: [["t", 2]] });
  const client = await connect(a.proxy, "c");
  cluster.memory.faults.loseAnswers = 1;
  cluster.memory.faults.timeoutMs = 10;
  const publish = async (node: typeof a, handle: typeof client.handle, payload: string) =>
    await node.proxy.publish(message("t", 2, payload), { from: "c", inbound: { handle, packetId: 1 } });
  await assert.rejects(publish(a, client.handle, "one"), { code: "STORE_FAILED" });
  cluster.memory.faults.loseAnswers = 0;
  a.kill();
  const again = await connect(b.proxy, "c");
  assert.equal(again.handle.inbound.has(1), false);
  await publish(b, again.handle, "one");
  assert.equal(again.handle.inbound.has(1), true);
  await again.handle.inbound.delete(1);
  await publish(b, again.handle, "two");
  await eventually(() => sub.payloads(), ["one", "two"]);
  const third = await cluster.node("c");
  const moved = await connect(third.proxy, "c");
  assert.equal(moved.handle.inbound.has(1), true);
});

test("a clean session is taken over by word alone, and ends the persistent one wherever that is", async () => {
  const { a, b } = await two();
  const lasting = await connect(a.proxy, "s", { filters: [["t", 1]] });
  const clean = await connect(b.proxy, "s", { clean: true });
  assert.equal(clean.handle.present, false);
  await eventually(() => lasting.state.lost, "takenOver");
  await eventually(async () => (await a.proxy.query()).map(({ clean: is }) => is), [true]);
  const other = await connect(a.proxy, "s", { clean: true });
  await eventually(() => clean.state.lost, "takenOver");
  assert.equal(other.state.lost, "");
  const back = await connect(b.proxy, "s");
  assert.equal(back.handle.present, false);
  await eventually(() => other.state.lost, "takenOver");
});

test("clean sessions don't wait for an engine that is away", async () => {
  const { a } = await two();
  a.memory.cutOff();
  const startedAt = performance.now();
  const sub = await connect(a.proxy, "s", { clean: true, filters: [["t", 0]] });
  await a.proxy.publish(message("t", 0));
  await sub.handle.inbound.add(1);
  assert.equal(sub.handle.inbound.has(1), true);
  await sub.handle.inbound.delete(1);
  assert.deepEqual(sub.topics(), ["t"]);
  await sub.handle.close();
  assert.ok(performance.now() - startedAt < 90, "less than one time-out of the engine");
  await assert.rejects(async () => await a.proxy.publish(message("t", 1)), { code: "STORE_FAILED" });
  await assert.rejects(async () => await connect(a.proxy, "lasting"), { code: "STORE_FAILED" });
});

test("a subscription made while the engine was away works when it is back", async () => {
  const { a, b } = await two();
  a.memory.cutOff();
  const sub = await connect(a.proxy, "s", { clean: true, filters: [["t", 1]] });
  a.memory.rejoin();
  await b.proxy.publish(message("t", 1, "live"));
  await eventually(() => sub.payloads(), ["live"]);
});

test("retained messages that can't be read come to a clean session once they can", async () => {
  const { a, b } = await two();
  await b.proxy.publish(message("t", 1, "kept", { retain: true }));
  a.memory.cutOff();
  const sub = await connect(a.proxy, "s", { clean: true, filters: [["t", 1]] });
  const delivered = sub.handle.deliverRetained("t", true);
  await assert.rejects(async () => await a.proxy.publish(message("t", 1)), { code: "STORE_FAILED" });
  a.memory.rejoin();
  await delivered;
  assert.deepEqual(sub.payloads(), ["kept"]);
});

test("a clean session joins a shared subscription while the engine is away, and gets its share when it is back", async () => {
  const { a, b } = await two();
  a.memory.cutOff();
  const startedAt = performance.now();
  const sub = await connect(a.proxy, "s", { clean: true, filters: [["$share/g/t", 1]] });
  assert.ok(performance.now() - startedAt < 2000);
  assert.equal(sub.state.lost, "");
  a.memory.rejoin();
  await eventually(async () => {
    await b.proxy.publish(message("t", 1, "x"));
    return sub.payloads().includes("x");
  }, true);
});

test("retained messages are everybody's, $SYS each node's own", async () => {
  const { a, b } = await two();
  await a.proxy.publish(message("t", 1, "kept", { retain: true }));
  await a.proxy.publish(message("$SYS/x", 0, "a's", { retain: true }));
  const sub = await connect(b.proxy, "s", {
    filters: [
      ["t", 1],
      ["$SYS/#", 1],
    ],
  });
  await sub.handle.deliverRetained("t", true);
  await sub.handle.deliverRetained("$SYS/#", true);
  assert.deepEqual(sub.payloads(), ["kept"]);
});

test("retained messages are bounded: beyond it a topic keeps what it has, may be replaced, cleared, and makes room", async () => {
  const cluster = open();
  const retained = { maxMessages: 2, maxBytes: 10_000 };
  const a = await cluster.node("a", { retained });
  const b = await cluster.node("b", { retained });
  const set = (node: TestNode, topic: string, payload: string, qos: QoS = 1) =>
    node.proxy.publish(message(topic, qos, payload, { retain: true }));
  const kept = async (): Promise<string[]> => {
    const reader = await connect(b.proxy, "reader", { clean: true });
    const { isNew } = await reader.handle.subscribe("r/#", plain);
    await reader.handle.deliverRetained("r/#", isNew);
    return reader.got
      .map(({ topic, delivery }) => `${topic} ${delivery.message.payload.toString().slice(0, 5)}`)
      .toSorted();
  };
  await set(a, "r/1", "one");
  await set(b, "r/2", "two", 0);
  for (const [node, qos] of [
    [a, 0],
    [b, 1],
    [a, 2],
  ] as const) {
    await set(node, `r/over/${qos}`, "over", qos);
  }
  assert.deepEqual(await kept(), ["r/1 one", "r/2 two"]);
  assert.deepEqual([a.dropped, b.dropped], [{ retained_full: 2 }, { retained_full: 1 }]);
  await set(b, "r/1", "again");
  await set(a, "r/2", "", 1);
  await set(a, "r/3", "three");
  assert.deepEqual(await kept(), ["r/1 again", "r/3 three"]);
  await set(a, "r/3", "x".repeat(10_000));
  assert.deepEqual(await kept(), ["r/1 again", "r/3 three"], "too many bytes");
  assert.equal(a.dropped["retained_full"], 3);
});

test("a retained message that was not acknowledged comes again on the next node", async () => {
  const { a, b } = await two();
  await a.proxy.publish(message("t", 1, "kept", { retain: true }));
  const first = await connect(a.proxy, "s", { filters: [["t", 1]] });
  await first.handle.deliverRetained("t", true);
  assert.deepEqual(first.payloads(), ["kept"]);
  await first.handle.close();
  const second = await connect(b.proxy, "s");
  await eventually(() => second.payloads(), ["kept"]);
  assert.equal(second.last().retain, true);
});

test("receipts come from all nodes", async () => {
  const { a, b } = await two();
  const told: Record<string, Receipt> = {};
  const here = await connect(a.proxy, "here", { filters: [["t", 1]] });
  const there = await connect(b.proxy, "there", { filters: [["t", 1]] });
  const leaving = await connect(b.proxy, "leaving", { filters: [["t", 1]] });
  const outcome = await a.proxy.publish(message("t"), { receipts: (id, what) => void (told[id] = what) });
  assert.deepEqual(outcome, { matched: 3, connected: 3, durable: true, uncounted: ["absent"] });
  assert.deepEqual(told, { here: "waiting", there: "waiting", leaving: "waiting" });
  await eventually(() => there.got.length + leaving.got.length, 2);
  here.settleAll();
  there.settleAll();
  await leaving.handle.close();
  await eventually(() => told, { here: "delivered", there: "delivered", leaving: "queued" });
});

test("receipts of a shared subscription: it is waited for by its name, until the member that has it says so", async () => {
  const { a, b } = await two();
  await connect(b.proxy, "m0", { filters: [["$share/g/t", 1]] });
  const told: [string, Receipt][] = [];
  const receipts = (id: string, what: Receipt): void => void told.push([id, what]);
  const outcome = await a.proxy.publish(message("t"), { receipts });
  assert.deepEqual(outcome, { matched: 1, connected: 1, durable: true, uncounted: ["absent"] });
  assert.deepEqual(told, [["$share/g/t", "waiting"]]);
  const first = await connect(b.proxy, "m0", { filters: [["$share/g/t", 1]] });
  await eventually(() => first.got.length, 1);
  first.settleAll();
  await eventually(
    () => told.slice(1),
    [
      ["m0", "waiting"],
      ["m0", "delivered"],
      ["$share/g/t", "passedOn"],
    ],
  );
});

test("matched: nobody is counted wrongly; who is not counted is named", async () => {
  const { cluster, a, b } = await two();
  const third = await cluster.node("c");
  await connect(a.proxy, "here", { filters: [["t", 1]] });
  await connect(b.proxy, "there", { filters: [["t/#", 1]] });
  await connect(b.proxy, "member", { filters: [["$share/g/t", 1]] });
  await connect(third.proxy, "elsewhere", { clean: true, filters: [["u", 0]] });
  const absent = await connect(b.proxy, "absent", { filters: [["t", 1]] });
  await absent.handle.close();
  const exceptAbsent = { durable: true, uncounted: ["absent"] };
  const publishes = ["t", "u", "v", "t"].map(async (topic) => a.proxy.publish(message(topic), { countAll: true }));
  assert.deepEqual(await Promise.all(publishes), [
    { matched: 3, connected: 3, ...exceptAbsent },
    { matched: 1, connected: 1, ...exceptAbsent },
    { matched: 0, connected: 0, ...exceptAbsent },
    { matched: 3, connected: 3, ...exceptAbsent },
  ]);
  const alone = { matched: 1, connected: 1, durable: true, uncounted: ["absent", "otherNodes"] };
  assert.deepEqual(await a.proxy.publish(message("t")), alone, "nobody was asked");
  cluster.memory.faults.loseControl = 1;
  assert.deepEqual(await a.proxy.publish(message("t"), { countAll: true }), alone, "nobody has answered");
  cluster.memory.faults.loseControl = 0;
  assert.deepEqual(await a.proxy.publish(message("t"), { countAll: true }), alone, "who is silent is left alone");
  assert.equal(await a.metric("sluice_cluster_uncounted_total"), 2);
  assert.deepEqual(await a.proxy.publishTo("stranger", message("t")), { matched: 0, connected: 0, durable: true });
});

test("publishTo finds the session on whatever node, clean or not, here or absent", async () => {
  const { a, b } = await two();
  const lasting = await connect(b.proxy, "lasting");
  const clean = await connect(b.proxy, "clean", { clean: true });
  const told: [string, Receipt][] = [];
  const receipts = (id: string, what: Receipt) => void told.push([id, what]);
  assert.deepEqual(await a.proxy.publishTo("lasting", message("c/1"), { receipts }), {
    matched: 1,
    connected: 1,
    durable: true,
  });
  assert.deepEqual(await a.proxy.publishTo("clean", message("c/2")), { matched: 1, connected: 1, durable: true });
  assert.deepEqual(await a.proxy.publishTo("nobody", message("c")), { matched: 0, connected: 0, durable: true });
  await eventually(() => [lasting.topics(), clean.topics()], [["c/1"], ["c/2"]]);
  lasting.settleAll();
  await eventually(
    () => told,
    [
      ["lasting", "waiting"],
      ["lasting", "delivered"],
    ],
  );
  await lasting.handle.close();
  assert.deepEqual(await a.proxy.publishTo("lasting", message("c/3")), { matched: 1, connected: 0, durable: true });
  const back = await connect(a.proxy, "lasting");
  await eventually(() => back.topics(), ["c/3"]);
});

test("sessions are listed and removed across nodes", async () => {
  const { a, b } = await two();
  const lasting = await connect(b.proxy, "lasting", { filters: [["t", 1]] });
  const clean = await connect(b.proxy, "clean", { clean: true });
  const away = await connect(b.proxy, "away", { filters: [["u", 1]] });
  await away.handle.close();
  assert.deepEqual(
    (await a.proxy.query()).map(({ clientId, connected, subscriptions }) => [
      clientId,
      connected,
      subscriptions.map(({ topicFilter }) => topicFilter),
    ]),
    [
      ["away", false, ["u"]],
      ["clean", true, []],
      ["lasting", true, ["t"]],
    ],
  );
  for (const clientId of ["away", "clean", "lasting"]) assert.equal(await a.proxy.remove(clientId), true, clientId);
  assert.deepEqual([lasting.state.lost, clean.state.lost], ["removed", "removed"]);
  assert.equal(await a.proxy.remove("lasting"), false);
  assert.deepEqual(await a.proxy.query(), []);
  assert.equal((await connect(b.proxy, "lasting")).handle.present, false);
});

test("hints that are lost: the order of a topic is kept, and nothing is missing", async () => {
  const { cluster, a, b } = await two({ shards: 2, auditMs: 100 });
  const sub = await connect(b.proxy, "s", { credit: 1000, filters: [["t/#", 1]] });
  cluster.memory.faults.loseLive = 0.3;
  cluster.memory.faults.repeatLive = 0.3;
  for (let n = 0; n < 300; n++) await a.proxy.publish(message(`t/${n % 3}`, 1, String(n)));
  await eventually(() => sub.got.length, 300);
  for (const topic of ["t/0", "t/1", "t/2"]) {
    const numbers = sub.got
      .filter((each) => each.topic === topic)
      .map(({ delivery }) => Number(delivery.message.payload));
    assert.deepEqual(
      numbers,
      numbers.toSorted((x, y) => x - y),
    );
  }
  assert.ok((await b.metric("sluice_cluster_hints_missed_total")) > 0);
});

test("what comes live while the log is read does not overtake what a replica that lags has not shown", async () => {
  const { cluster, a, b } = await two({ shards: 1 });
  const { faults } = cluster.memory;
  for (let n = 0; n < 20; n++) {
    const clientId = `s${n}`;
    const before = await connect(a.proxy, clientId, { filters: [[clientId, 1]] });
    await before.handle.close();
    await b.proxy.publish(message(clientId, 1, "first"));
    // Which of the two comes first, the live message or the page, is any.
    Object.assign(faults, { lag: 1, delayMs: 10 });
    const client = await connect(a.proxy, clientId);
    await b.proxy.publish(message(clientId, 1, "second"));
    Object.assign(faults, { lag: 0, delayMs: 0 });
    await eventually(() => client.payloads(), ["first", "second"]);
    client.settleAll();
    await client.handle.close();
  }
});

test("a message published before a subscription is not for it, also after the session has moved", async () => {
  const { a, b } = await two({ shards: 1 });
  const other = await connect(a.proxy, "other", { filters: [["t", 1]] });
  const sub = await connect(a.proxy, "s", { filters: [["u", 1]] });
  await b.proxy.publish(message("t", 1, "before"));
  await sub.handle.subscribe("t", plain);
  await b.proxy.publish(message("t", 1, "after"));
  await eventually(() => sub.payloads(), ["after"]);
  a.kill();
  const moved = await connect(b.proxy, "s");
  await eventually(() => moved.payloads(), ["after"]);
  assert.deepEqual(other.payloads(), ["before", "after"]);
});

test("1,000 racing connects end with one owner", async () => {
  const cluster = open();
  const nodes = [await cluster.node("a"), await cluster.node("b"), await cluster.node("c")];
  const clients = await Promise.allSettled(
    Array.from({ length: 1000 }, async (_, n) => await connect(nodes[n % 3]!.proxy, "s")),
  );
  const alive = () =>
    clients.flatMap((each) => (each.status === "fulfilled" && each.value.state.lost === "" ? [each.value] : []));
  await eventually(() => alive().length, 1);
  assert.deepEqual(
    (await nodes[0]!.proxy.query()).map(({ clientId, connected }) => [clientId, connected]),
    [["s", true]],
  );
});

test("a message that the log has lost by its age is counted, and the session goes on", async () => {
  const { cluster, a, b } = await two({ shards: 1 });
  const sub = await connect(a.proxy, "s", { filters: [["t", 1]] });
  await sub.handle.close();
  for (let n = 0; n < 4; n++) await a.proxy.publish(message("t", 1, String(n)));
  cluster.memory.trim("p", 0, 3);
  const back = await connect(b.proxy, "s");
  await eventually(() => back.payloads(), ["2", "3"]);
  assert.equal(await b.metric("sluice_cluster_log_gaps_total"), 1);
});

test("the wills of a node that dies are published by one of the others, once, save of clients that are back", async () => {
  const cluster = open();
  const published: string[] = [];
  const nodes = await Promise.all(
    ["a", "b", "c"].map((id) =>
      cluster.node(id, {
        onOrphanedWill: async ({ will, client }) =>
          void published.push(`${id}: ${client.id} ${client.username} ${will.payload.toString()}`),
      }),
    ),
  );
  const [a, b, c] = nodes as [TestNode, TestNode, TestNode];
  const join = async (node: TestNode, clientId: string, clean: boolean) =>
    await node.proxy.acquire({
      clientId,
      cleanStart: clean,
      expirySec: clean ? 0 : 0xffff_ffff,
      info: { username: "u", address: "" },
      onLost: () => undefined,
      will: {
        will: { topic: "w", payload: Buffer.from(`of ${clientId}`), qos: 1, retain: false, delaySec: 0 },
        client: { id: clientId, username: "u", address: "", protocolVersion: 4 },
      },
    });
  await join(c, "clean", true);
  await join(c, "lasting", false);
  const left = await join(c, "left", false);
  await left.close();
  left.willDone?.();
  for (const clientId of ["back", "moved"]) await join(c, clientId, false);
  await join(b, "moved", false);
  // One that hears nothing of it: its client is at another node when the first is found dead.
  cluster.memory.faults.loseControl = 1;
  await join(b, "back", true);
  cluster.memory.faults.loseControl = 0;
  c.kill();
  await eventually(() => published.toSorted(), ["a: clean u of clean", "a: lasting u of lasting"]);
  a.kill();
  assert.equal(published.length, 2);
});

test("the number of a client's connection grows from node to node", async () => {
  const { a, b } = await two();
  const numbers: (number | undefined)[] = [];
  for (const [node, clean] of [
    [a, false],
    [b, false],
    [a, true],
    [b, true],
    [a, false],
  ] as const) {
    numbers.push((await connect(node.proxy, "s", { clean })).handle.ordinal);
  }
  assert.equal(new Set(numbers).size, 5);
  assert.deepEqual(
    numbers,
    numbers.toSorted((x, y) => Number(x) - Number(y)),
  );
});

test("shared over nodes: each message goes to one member, whichever node it is connected to", async () => {
  const { a, b } = await two();
  const members = [
    await connect(a.proxy, "m0", { filters: [["$share/g/t/+", 1]] }),
    await connect(b.proxy, "m1", { filters: [["$share/g/t/+", 1]] }),
    await connect(b.proxy, "m2", { filters: [["$share/g/t/+", 1]] }),
  ];
  const settling = setInterval(() => {
    for (const member of members) member.settleAll();
  }, 5);
  for (let n = 0; n < 60; n++) await [a, b][n % 2]!.proxy.publish(message(`t/${n}`, n % 3 === 0 ? 0 : 1, String(n)));
  await eventually(() => members.reduce((sum, { got }) => sum + got.length, 0), 60);
  clearInterval(settling);
  assert.equal(new Set(members.flatMap((member) => member.payloads())).size, 60, "each to one");
  for (const { got } of members) assert.ok(got.length >= 10, `${got.length} of 60 went to one of three`);
});

test("shared over nodes: the owner dies, a member leaves, and what was not settled goes to others", async () => {
  const { cluster, a, b } = await two({ checkpointMs: 50 });
  const first = await connect(a.proxy, "m0", { filters: [["$share/g/t", 1]] });
  const second = await connect(b.proxy, "m1", { filters: [["$share/g/t", 1]] });
  for (let n = 0; n < 20; n++) await b.proxy.publish(message("t", 1, String(n)));
  await eventually(() => first.got.length + second.got.length, 20);
  const settled = new Set(second.payloads());
  second.settleAll();
  a.kill();
  await eventually(() => {
    second.settleAll();
    return new Set(second.payloads()).size;
  }, 20);
  const third = await cluster.node("c");
  const other = await connect(third.proxy, "m2", { filters: [["$share/g/t", 1]] });
  await second.handle.close();
  await third.proxy.publish(message("t", 1, "last"));
  await eventually(() => {
    other.settleAll();
    return other.payloads().at(-1);
  }, "last");
  assert.ok(settled.size > 0);
});

test("shared over nodes: while nobody is connected the log keeps what comes, for as long as somebody is absent", async () => {
  const { a, b } = await two();
  const member = await connect(a.proxy, "m", { filters: [["$share/g/t", 1]] });
  await member.handle.close();
  await b.proxy.publish(message("t", 1, "kept"));
  const back = await connect(b.proxy, "m");
  await eventually(() => back.payloads(), ["kept"]);
  back.settleAll();
  await back.handle.unsubscribe("$share/g/t");
  await b.proxy.publish(message("t", 1, "nobody's"));
  const later = await connect(a.proxy, "n", { filters: [["$share/g/t", 1]] });
  await b.proxy.publish(message("t", 1, "new"));
  await eventually(() => later.payloads(), ["new"]);
});
