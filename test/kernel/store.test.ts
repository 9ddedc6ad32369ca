import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import { test } from "node:test";
import type { Message, QoS } from "../../kernel/plugin.ts";
import type { Delivery, QueueLimits } from "../../kernel/session.ts";
import { createMemoryStore, type ProxyStore, type SessionHandle } from "../../kernel/store.ts";

function message(topic: string, qos: QoS = 1, payload = "x"): Message {
  return { topic, payload: Buffer.from(payload), qos, retain: false };
}

function open(queue: Partial<QueueLimits> = {}): {
  store: ProxyStore;
  dropped: Record<string, number>;
  tick: (ms: number) => void;
} {
  const dropped: Record<string, number> = {};
  let now = 1_000_000;
  const store = createMemoryStore({ id: "n", incarnation: "1" }).open("p", {
    queue: { maxMessages: 100_000, maxBytes: 1 << 26, onFull: "dropOldest", ...queue },
    topicCacheSize: 100,
    onDropped: (reason, count) => void (dropped[reason] = (dropped[reason] ?? 0) + count),
    now: () => now,
  });
  return { store, dropped, tick: (ms) => void (now += ms) };
}

/** A connection's side: takes what is delivered, with the window and the room that the test gives it. */
async function connect(
  store: ProxyStore,
  clientId: string,
  o: { clean?: boolean; credit?: number; filters?: [string, QoS][] } = {},
) {
  const got: { topic: string; qos: QoS; again: boolean; delivery: Delivery }[] = [];
  const state = { room: true, lost: "" };
  const handle: SessionHandle = await store.acquire({
    clientId,
    clean: o.clean ?? false,
    info: { username: undefined, address: "127.0.0.1" },
    onLost: (why) => void (state.lost = why),
  });
  for (const [filter, qos] of o.filters ?? []) await handle.subscribe(filter, qos);
  let nextId = 1;
  handle.attach((delivery, again) => {
    if (!state.room) return false;
    if (delivery.qos > 0 && delivery.packetId === 0) delivery.packetId = nextId++;
    got.push({ topic: delivery.message.topic, qos: delivery.qos, again, delivery });
    return true;
  }, o.credit ?? 100);
  return { handle, got, state, topics: () => got.map(({ topic }) => topic) };
}

test("delivers to matching sessions at min(publish, subscription), once for overlapping filters at the highest", async () => {
  const { store } = open();
  const low = await connect(store, "low", { filters: [["a/#", 0]] });
  const both = await connect(store, "both", {
    filters: [
      ["a/+", 0],
      ["a/b", 1],
    ],
  });
  assert.deepEqual(await store.publish(message("a/b", 1)), { matched: 2, connected: 2, durable: true });
  assert.deepEqual(await store.publish(message("z", 1)), { matched: 0, connected: 0, durable: true });
  assert.deepEqual(
    low.got.map(({ qos }) => qos),
    [0],
  );
  assert.deepEqual(
    both.got.map(({ qos }) => qos),
    [1],
  );
});

test("the window: no more QoS 1 in flight than credit, the next on settle, all in order", async () => {
  const { store } = open();
  const sub = await connect(store, "s", { credit: 2, filters: [["t/+", 1]] });
  for (let n = 0; n < 5; n++) await store.publish(message(`t/${n}`));
  assert.deepEqual(sub.topics(), ["t/0", "t/1"]);
  sub.handle.settle((sub.got[0] as { delivery: Delivery }).delivery);
  sub.handle.settle((sub.got[0] as { delivery: Delivery }).delivery);
  assert.deepEqual(sub.topics(), ["t/0", "t/1", "t/2"], "a second PUBACK of the same message gives no credit");
});

test("A09: a persistent session keeps QoS 1 while its client is away, and what was in flight comes first, again", async () => {
  const { store, dropped } = open();
  const first = await connect(store, "s", { credit: 2, filters: [["t/+", 1]] });
  assert.equal(first.handle.present, false);
  for (let n = 0; n < 3; n++) await store.publish(message(`t/${n}`));
  const ids = first.got.map(({ delivery }) => delivery.packetId);
  await first.handle.close();
  assert.deepEqual(await store.publish(message("t/3")), { matched: 1, connected: 0, durable: true });
  await store.publish(message("t/4", 0));
  assert.deepEqual(dropped, { qos0_offline: 1 });
  const second = await connect(store, "s");
  assert.equal(second.handle.present, true);
  assert.deepEqual(second.topics(), ["t/0", "t/1", "t/2", "t/3"]);
  assert.deepEqual(
    second.got.map(({ again }) => again),
    [true, true, false, false],
  );
  assert.deepEqual(
    second.got.slice(0, 2).map(({ delivery }) => delivery.packetId),
    ids,
    "the original packet ids [MQTT-4.4.0-1]",
  );
});

test("a clean session leaves nothing, and a clean connect wipes a persistent one", async () => {
  const { store } = open();
  const clean = await connect(store, "c", { clean: true, filters: [["t", 1]] });
  await clean.handle.close();
  assert.deepEqual(store.counts, { sessions: 0, subscriptions: 0 });
  const kept = await connect(store, "p", { filters: [["t", 1]] });
  await kept.handle.close();
  assert.deepEqual(store.counts, { sessions: 1, subscriptions: 1 });
  const wiped = await connect(store, "p", { clean: true });
  assert.equal(wiped.handle.present, false);
  assert.deepEqual(store.counts, { sessions: 1, subscriptions: 0 });
});

test("takeover: the old connection hears it, and its late calls do nothing to the new one (L10)", async () => {
  const { store } = open();
  const old = await connect(store, "c", { filters: [["t", 1]] });
  await store.publish(message("t"));
  const fresh = await connect(store, "c");
  assert.equal(old.state.lost, "takenOver");
  assert.equal(fresh.handle.present, true);
  old.handle.settle((old.got[0] as { delivery: Delivery }).delivery);
  await old.handle.unsubscribe("t");
  await old.handle.close();
  await store.publish(message("t"));
  assert.deepEqual(
    fresh.got.map(({ again }) => again),
    [true, false],
  );
  assert.deepEqual(
    (await store.query()).map(({ clientId, connected, inflight }) => ({ clientId, connected, inflight })),
    [{ clientId: "c", connected: true, inflight: 2 }],
  );
});

test("A33: remove: the connection hears it, the session is gone", async () => {
  const { store } = open();
  const sub = await connect(store, "c", { filters: [["t", 1]] });
  assert.equal(await store.remove("c"), true);
  assert.equal(sub.state.lost, "removed");
  assert.equal(await store.remove("c"), false);
  assert.deepEqual(store.counts, { sessions: 0, subscriptions: 0 });
});

test("sessions of two proxies never meet (L34)", async () => {
  const store = createMemoryStore({ id: "n", incarnation: "1" });
  const options = {
    queue: { maxMessages: 10, maxBytes: 1e6, onFull: "dropOldest" as const },
    topicCacheSize: 10,
    onDropped() {},
    now: () => 0,
  };
  const [a, b] = [store.open("a", options), store.open("b", options)];
  const sub = await connect(a, "same", { filters: [["t", 1]] });
  const other = await connect(b, "same");
  assert.equal(other.handle.present, false);
  assert.equal(sub.state.lost, "");
  assert.equal((await b.publish(message("t"))).matched, 0);
  assert.deepEqual(
    (await b.query()).map(({ subscriptions }) => subscriptions),
    [[]],
  );
});

test("an absent session over its bound loses the oldest, counted", async () => {
  const { store, dropped } = open({ maxMessages: 3 });
  const sub = await connect(store, "s", { filters: [["t/+", 1]] });
  await sub.handle.close();
  for (let n = 0; n < 5; n++) await store.publish(message(`t/${n}`));
  assert.deepEqual(dropped, { queue_full: 2 });
  assert.deepEqual((await connect(store, "s")).topics(), ["t/2", "t/3", "t/4"]);
});

test("onFull: fault refuses the message for every session rather than lose one", async () => {
  const { store, dropped } = open({ maxMessages: 2, onFull: "fault" });
  const away = await connect(store, "away", { filters: [["t/+", 1]] });
  await away.handle.close();
  const here = await connect(store, "here", { filters: [["t/+", 1]] });
  for (let n = 0; n < 2; n++) {
    await store.publish(message(`t/${n}`));
    here.handle.settle((here.got[n] as { delivery: Delivery }).delivery);
  }
  await assert.rejects(async () => await store.publish(message("t/2")), { code: "QUEUE_FULL" });
  assert.deepEqual(here.topics(), ["t/0", "t/1"]);
  assert.deepEqual(dropped, {});
});

test("a crowded connected subscriber slows its publishers down and loses nothing", async () => {
  const { store, dropped } = open({ maxMessages: 10 });
  const sub = await connect(store, "slow", { credit: 1, filters: [["t/+", 1]] });
  let done = 0;
  const publishes = Array.from({ length: 30 }, async (_, n) => {
    await store.publish(message(`t/${n}`), { from: "publisher" });
    done++;
  });
  await turn();
  assert.ok(done >= 8 && done < 12, `${done} were taken before the back-pressure`);
  for (let n = 0; n < 30; n++) {
    while (sub.got.length <= n) await turn();
    sub.handle.settle((sub.got[n] as { delivery: Delivery }).delivery);
  }
  await Promise.all(publishes);
  assert.equal(new Set(sub.topics()).size, 30);
  assert.deepEqual(dropped, {});
});

test("one that settles nothing for 5 s counts as absent: its publishers go on, its oldest messages go", async () => {
  const { store, dropped, tick } = open({ maxMessages: 10 });
  await connect(store, "dead", { credit: 1, filters: [["t/+", 1]] });
  for (let n = 0; n < 9; n++) await store.publish(message(`t/${n}`));
  tick(6000);
  for (let n = 9; n < 15; n++) await store.publish(message(`t/${n}`));
  assert.deepEqual(dropped, { queue_full: 5 });
});

test("a client that publishes to itself never waits for itself", async () => {
  const { store } = open({ maxMessages: 10 });
  await connect(store, "self", { credit: 1, filters: [["t", 1]] });
  for (let n = 0; n < 10; n++) await store.publish(message("t"), { from: "self" });
  await assert.rejects(async () => await store.publish(message("t"), { from: "self" }), { code: "QUEUE_FULL" });
});

test("QoS 0 waits for a busy connection up to a bound, then is dropped and counted; QoS 1 is kept", async () => {
  const { store, dropped } = open();
  const sub = await connect(store, "s", { filters: [["t", 1]] });
  sub.state.room = false;
  for (let n = 0; n < 1010; n++) await store.publish(message("t", 0));
  await store.publish(message("t", 1));
  assert.deepEqual(dropped, { qos0_busy: 10 });
  sub.state.room = true;
  sub.handle.resume();
  assert.equal(sub.got.length, 1001);
  assert.equal(sub.got.at(-1)?.qos, 1);
});

test("a queue of 100,000 messages is drained in linear time and gives its bytes back", async () => {
  const { store } = open();
  const sub = await connect(store, "s", { filters: [["t", 1]] });
  await sub.handle.close();
  for (let n = 0; n < 100_000; n++) await store.publish(message("t", 1, String(n)));
  const back = await connect(store, "s", { credit: 10 });
  for (let n = 0; n < 100_000; n++) {
    const { delivery } = back.got[n] as { delivery: Delivery };
    assert.equal(delivery.message.payload.toString(), String(n));
    back.handle.settle(delivery);
  }
  const [info] = await store.query();
  assert.deepEqual([info?.queued, info?.inflight], [0, 0]);
});
