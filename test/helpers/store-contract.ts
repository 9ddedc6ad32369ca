/**
 * What every session store must do, whoever makes it: one test a promise. Call it with a way to make a store; it registers
 * its tests with node:test.
 */
import assert from "node:assert/strict";
import { setImmediate as turn, setTimeout } from "node:timers/promises";
import { afterEach, test } from "node:test";
import type { Message, MessageProperties, QoS, SubscriptionOptions } from "../../kernel/plugin.ts";
import type {
  Delivery,
  ProxyStore,
  QueueLimits,
  Receipt,
  SessionHandle,
  Store,
  StoreOptions,
} from "../../kernel/store.ts";
import { eventually } from "./eventually.ts";

/** A started store that holds nothing. The suite stops it; what it leaves behind is the factory's to remove. */
export type StoreFactory = () => Promise<Store>;

type Got = { topic: string; qos: QoS; again: boolean; delivery: Delivery };

function message(topic: string, qos: QoS = 1, payload = "x", more: Partial<Message> = {}): Message {
  return { topic, payload: Buffer.from(payload), qos, retain: false, ...more };
}

const plain: SubscriptionOptions = {
  qos: 1,
  noLocal: false,
  retainAsPublished: false,
  retainHandling: 0,
  identifier: 0,
};

const never = 0xffff_ffff;

/** A connection's side: takes what is delivered, with the window and the room that the test gives it. */
export async function connect(
  store: ProxyStore,
  clientId: string,
  o: {
    /** As 3.1.1's flag: starts anew and leaves nothing. */
    clean?: boolean;
    expirySec?: number;
    cleanStart?: boolean;
    credit?: number;
    filters?: [string, QoS | Partial<SubscriptionOptions>][];
  } = {},
) {
  const got: Got[] = [];
  const state = { room: true, lost: "" };
  const handle: SessionHandle = await store.acquire({
    clientId,
    cleanStart: o.cleanStart ?? o.clean ?? false,
    expirySec: o.expirySec ?? (o.clean ? 0 : never),
    info: { username: undefined, address: "127.0.0.1" },
    onLost: (why) => void (state.lost = why),
  });
  for (const [filter, options] of o.filters ?? []) {
    const { isNew } = await handle.subscribe(filter, {
      ...plain,
      ...(typeof options === "number" ? { qos: options } : options),
    });
    assert.equal(isNew, !handle.present);
  }
  handle.attach((delivery, again) => {
    if (!state.room) return false;
    assert.equal(delivery.packetId > 0, delivery.qos > 0, "a packet id above QoS 0");
    got.push({ topic: delivery.message.topic, qos: delivery.qos, again, delivery });
    return true;
  }, o.credit ?? 100);
  return {
    handle,
    got,
    state,
    topics: () => got.map(({ topic }) => topic),
    payloads: () => got.map(({ delivery }) => delivery.message.payload.toString()),
    last: () => (got.at(-1) as Got).delivery,
    settleAll() {
      for (const { delivery } of got) handle.settle(delivery);
    },
  };
}

/**
 * @param o.ahead deliveries that the store hands a connection's side before it knows whether they were taken
 * @param o.keeps what absent and slow clients wait for is in: queues of their own, which have bounds and are counted; or a
 *   log that all sessions read, in which a node knows of an absent session only what is written down of it
 */
export function storeContract(
  make: StoreFactory,
  { ahead = 0, keeps = "queues" }: { ahead?: number; keeps?: "queues" | "log" } = {},
): void {
  const inLog = keeps === "log";
  /** One that keeps a log has other nodes, which were not asked, and does not look through sessions of absent clients. */
  const uncounted = inLog ? { uncounted: ["absent", "otherNodes"] } : {};
  /** Where nobody knows who is absent, and whom a message waits for. */
  const ofAbsent = (count: number): number => (inLog ? 0 : count);
  const queuesTest = (name: string, run: () => Promise<void>): void => {
    if (!inLog) void test(name, run);
  };
  const queueLimits: QueueLimits = {
    maxMessages: 100_000,
    maxBytes: 1 << 26,
    maxTotalBytes: 1 << 30,
    onFull: "dropOldest",
  };

  /** One proxy of a new store; `tick` moves its clock on, which no timer follows. */
  async function open(
    queue: Partial<QueueLimits> = {},
    more: Partial<StoreOptions> = {},
  ): Promise<{ store: ProxyStore; dropped: Record<string, number>; tick: (ms: number) => void; whole: Store }> {
    const dropped: Record<string, number> = {};
    let skipped = 0;
    const whole = await make();
    stores.push(whole);
    const store = whole.open("p", {
      queue: { ...queueLimits, ...queue },
      retained: { maxMessages: 1000, maxBytes: 1 << 24 },
      topicCacheSize: 100,
      onDropped: (reason, count) => void (dropped[reason] = (dropped[reason] ?? 0) + count),
      now: () => Date.now() + skipped,
      ...more,
    });
    return { store, dropped, tick: (ms) => void (skipped += ms), whole };
  }
  const stores: Store[] = [];
  afterEach(async () => {
    for (const store of stores.splice(0)) await store.stop();
  });

  test("delivers to matching sessions at min(publish, subscription), once for overlapping filters at the highest", async () => {
    const { store } = await open();
    const low = await connect(store, "low", { filters: [["a/#", 0]] });
    const both = await connect(store, "both", {
      filters: [
        ["a/+", 0],
        ["a/b", 1],
      ],
    });
    assert.deepEqual(await store.publish(message("a/b", 1)), { matched: 2, connected: 2, durable: true, ...uncounted });
    assert.deepEqual(await store.publish(message("z", 1)), { matched: 0, connected: 0, durable: true, ...uncounted });
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
    const { store } = await open();
    const sub = await connect(store, "s", { credit: 2, filters: [["t/+", 1]] });
    for (let n = 0; n < 5; n++) await store.publish(message(`t/${n}`));
    assert.deepEqual(sub.topics(), ["t/0", "t/1"]);
    sub.handle.settle(delivered(sub, 0));
    sub.handle.settle(delivered(sub, 0));
    await eventually(() => sub.topics(), ["t/0", "t/1", "t/2"]);
    await store.query();
    assert.deepEqual(sub.topics(), ["t/0", "t/1", "t/2"], "a second PUBACK of the same message gives no credit");
  });

  test("A09: a persistent session keeps QoS 1 while its client is away, and what was in flight comes first, again", async () => {
    const { store, dropped } = await open();
    const first = await connect(store, "s", { credit: 2, filters: [["t/+", 1]] });
    assert.equal(first.handle.present, false);
    for (let n = 0; n < 3; n++) await store.publish(message(`t/${n}`));
    const ids = first.got.map(({ delivery }) => delivery.packetId);
    await first.handle.close();
    assert.deepEqual(await store.publish(message("t/3")), {
      matched: ofAbsent(1),
      connected: 0,
      durable: true,
      ...uncounted,
    });
    await store.publish(message("t/4", 0));
    assert.deepEqual(dropped, inLog ? {} : { qos0_offline: 1 });
    const second = await connect(store, "s");
    assert.equal(second.handle.present, true);
    await eventually(() => second.topics(), ["t/0", "t/1", "t/2", "t/3"]);
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
    const { store } = await open();
    const clean = await connect(store, "c", { clean: true, filters: [["t", 1]] });
    await clean.handle.close();
    await counts(store, { sessions: 0, subscriptions: 0 });
    const kept = await connect(store, "p", { filters: [["t", 1]] });
    await kept.handle.close();
    assert.deepEqual(await sessionsOf(store), { p: ["t"] });
    const wiped = await connect(store, "p", { clean: true });
    assert.equal(wiped.handle.present, false);
    assert.deepEqual(await sessionsOf(store), { p: [] });
    await counts(store, { sessions: 1, subscriptions: 0 });
  });

  test("takeover: the old connection hears it, and its late calls do nothing to the new one (L10)", async () => {
    const { store } = await open();
    const old = await connect(store, "c", { filters: [["t", 1]] });
    await store.publish(message("t"));
    const fresh = await connect(store, "c");
    assert.equal(old.state.lost, "takenOver");
    assert.equal(fresh.handle.present, true);
    old.handle.settle(delivered(old, 0));
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
    const { store } = await open();
    const sub = await connect(store, "c", { filters: [["t", 1]] });
    assert.equal(await store.remove("c"), true);
    assert.equal(sub.state.lost, "removed");
    assert.equal(await store.remove("c"), false);
    await counts(store, { sessions: 0, subscriptions: 0 });
  });

  test("sessions of two proxies never meet (L34)", async () => {
    const { whole } = await open();
    const options: StoreOptions = {
      queue: queueLimits,
      retained: { maxMessages: 10, maxBytes: 1e6 },
      topicCacheSize: 10,
      onDropped() {},
      now: () => 0,
    };
    const [a, b] = [whole.open("a", options), whole.open("b", options)];
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

  queuesTest("an absent session over its bound loses the oldest, counted", async () => {
    const { store, dropped } = await open({ maxMessages: 3 });
    const sub = await connect(store, "s", { filters: [["t/+", 1]] });
    await sub.handle.close();
    for (let n = 0; n < 5; n++) await store.publish(message(`t/${n}`));
    assert.deepEqual(dropped, { queue_full: 2 });
    const back = await connect(store, "s");
    await eventually(() => back.topics(), ["t/2", "t/3", "t/4"]);
  });

  queuesTest("onFull: fault refuses the message for every session rather than lose one", async () => {
    const { store, dropped } = await open({ maxMessages: 2, onFull: "fault" });
    const away = await connect(store, "away", { filters: [["t/+", 1]] });
    await away.handle.close();
    const here = await connect(store, "here", { filters: [["t/+", 1]] });
    for (let n = 0; n < 2; n++) {
      await store.publish(message(`t/${n}`));
      here.handle.settle(delivered(here, n));
    }
    await assert.rejects(async () => await store.publish(message("t/2")), { code: "QUEUE_FULL" });
    assert.deepEqual(here.topics(), ["t/0", "t/1"]);
    assert.deepEqual(dropped, {});
  });

  queuesTest("a crowded connected subscriber slows its publishers down and loses nothing", async () => {
    const { store, dropped } = await open({ maxMessages: 10 });
    const sub = await connect(store, "slow", { credit: 1, filters: [["t/+", 1]] });
    let done = 0;
    const publishes = Array.from({ length: 30 }, async (_, n) => {
      await store.publish(message(`t/${n}`), { from: "publisher" });
      done++;
    });
    await eventually(() => done >= 8, true);
    await setTimeout(50);
    assert.ok(done < 12, `${done} were taken before the back-pressure`);
    for (let n = 0; n < 30; n++) {
      while (sub.got.length <= n) await turn();
      sub.handle.settle(delivered(sub, n));
    }
    await Promise.all(publishes);
    assert.equal(new Set(sub.topics()).size, 30);
    assert.deepEqual(dropped, {});
  });

  test("a slow connected subscriber gets everything in order", async () => {
    const { store, dropped } = await open({ maxMessages: 10 });
    const sub = await connect(store, "slow", { credit: 1, filters: [["t/+", 1]] });
    const sent = Array.from({ length: 100 }, (_, n) => `t/${n}`);
    const publishing = (async () => {
      for (const topic of sent) await store.publish(message(topic), { from: "publisher" });
    })();
    for (let n = 0; n < 100; n++) {
      while (sub.got.length <= n) await turn();
      sub.handle.settle(delivered(sub, n));
    }
    await publishing;
    assert.deepEqual(sub.topics().toSorted(), sent.toSorted());
    assert.deepEqual(dropped, {});
  });

  queuesTest(
    "one that settles nothing for 5 s counts as absent: its publishers go on, its oldest messages go",
    async () => {
      const { store, dropped, tick } = await open({ maxMessages: 10 });
      await connect(store, "dead", { credit: 1, filters: [["t/+", 1]] });
      for (let n = 0; n < 9; n++) await store.publish(message(`t/${n}`));
      tick(6000);
      for (let n = 9; n < 15; n++) await store.publish(message(`t/${n}`));
      assert.deepEqual(dropped, { queue_full: 5 });
    },
  );

  queuesTest("a client that publishes to itself never waits for itself", async () => {
    const { store } = await open({ maxMessages: 10 });
    await connect(store, "self", { credit: 1, filters: [["t", 1]] });
    for (let n = 0; n < 10; n++) await store.publish(message("t"), { from: "self" });
    await assert.rejects(async () => await store.publish(message("t"), { from: "self" }), { code: "QUEUE_FULL" });
  });

  test("QoS 0 waits for a busy connection up to a bound, then is dropped and counted; QoS 1 is kept", async () => {
    const { store, dropped } = await open();
    const sub = await connect(store, "s", { filters: [["t", 1]] });
    sub.state.room = false;
    for (let n = 0; n < 1010 + ahead; n++) await store.publish(message("t", 0));
    await store.publish(message("t", 1));
    assert.deepEqual(dropped, { qos0_busy: 10 });
    sub.state.room = true;
    sub.handle.resume();
    await eventually(() => sub.got.length, 1001 + ahead);
    assert.equal(sub.got.at(-1)?.qos, 1);
  });

  test("a queue of 100,000 messages is drained in linear time and gives its bytes back", async () => {
    const { store } = await open();
    const sub = await connect(store, "s", { filters: [["t", 1]] });
    await sub.handle.close();
    for (let n = 0; n < 100_000; n += 1000) {
      await Promise.all(
        Array.from({ length: 1000 }, async (_, more) => await store.publish(message("t", 1, String(n + more)))),
      );
    }
    const back = await connect(store, "s", { credit: 10 });
    for (let n = 0; n < 100_000; n++) {
      while (back.got.length <= n) await turn();
      const delivery = delivered(back, n);
      assert.equal(delivery.message.payload.toString(), String(n));
      back.handle.settle(delivery);
    }
    const [info] = await store.query();
    assert.deepEqual([info?.queued, info?.inflight], [0, 0]);
  });

  test("one delivery for overlapping subscriptions, with the identifiers of all that match [MQTT-3.3.4-4]", async () => {
    const { store } = await open();
    const sub = await connect(store, "s", {
      filters: [
        ["a/+", { qos: 0, identifier: 7 }],
        ["a/b", { qos: 1, identifier: 9 }],
        ["#", { qos: 0 }],
        ["z", { identifier: 3 }],
      ],
    });
    await store.publish(message("a/b"));
    assert.equal(sub.got.length, 1);
    assert.equal(sub.last().qos, 1);
    assert.deepEqual(new Set(sub.last().identifiers), new Set([7, 9]));
    await store.publish(message("q"));
    assert.deepEqual(sub.last().identifiers, []);
  });

  test("noLocal: the publisher gets its own message only by its other subscriptions [MQTT-3.8.3-3]", async () => {
    const { store } = await open();
    const self = await connect(store, "self", {
      filters: [
        ["a/#", { noLocal: true, qos: 1, identifier: 1 }],
        ["a/b", { qos: 0, identifier: 2 }],
      ],
    });
    assert.deepEqual(await store.publish(message("a/c"), { from: "self" }), {
      matched: 0,
      connected: 0,
      durable: true,
      ...uncounted,
    });
    await store.publish(message("a/b"), { from: "self" });
    assert.deepEqual([self.got.length, self.last().qos, self.last().identifiers], [1, 0, [2]]);
    await store.publish(message("a/b"), { from: "other" });
    assert.deepEqual([self.got.length, self.last().qos], [2, 1]);
  });

  test("RETAIN is cleared on delivery, unless retain as published is asked for [MQTT-3.3.1-12] [MQTT-3.3.1-13]", async () => {
    const { store } = await open();
    const cleared = await connect(store, "cleared", { filters: [["t", 1]] });
    const kept = await connect(store, "kept", { filters: [["t", { retainAsPublished: true }]] });
    await store.publish(message("t", 1, "x", { retain: true }));
    assert.deepEqual([cleared.last().retain, kept.last().retain], [false, true]);
    await store.publish(message("t"));
    assert.deepEqual([cleared.last().retain, kept.last().retain], [false, false]);
  });

  test("QoS 2: PUBREC moves a delivery on, a new connection gets it again as released, PUBCOMP settles it", async () => {
    const { store } = await open();
    const sub = await connect(store, "s", { credit: 1, filters: [["t", 2]] });
    await store.publish(message("t", 2, "a"));
    await store.publish(message("t", 2, "b"));
    await eventually(() => sub.payloads(), ["a"]);
    const { packetId } = sub.last();
    await sub.handle.release(sub.last());
    assert.deepEqual(sub.payloads(), ["a"], "PUBREC gives no credit back");
    await sub.handle.close();
    const back = await connect(store, "s", { credit: 1 });
    await eventually(
      () => back.got.map(({ again, delivery }) => [again, delivery.released, delivery.packetId]),
      [[true, true, packetId]],
    );
    back.handle.settle(back.last());
    await eventually(() => back.payloads(), ["a", "b"]);
    assert.equal(back.last().released, false);
  });

  test("packet ids of deliveries in flight are distinct, also after a new connection [MQTT-2.2.1-4]", async () => {
    const { store } = await open();
    const first = await connect(store, "s", { credit: 3, filters: [["t", 1]] });
    for (let n = 0; n < 6; n++) await store.publish(message("t", 1, String(n)));
    first.handle.settle(delivered(first, 1));
    await first.handle.close();
    const second = await connect(store, "s", { credit: 6 });
    await eventually(() => second.got.length, 5);
    const ids = second.got.map(({ delivery }) => delivery.packetId);
    assert.equal(new Set(ids).size, 5);
    assert.deepEqual(second.payloads(), ["0", "2", "3", "4", "5"]);
  });

  test("the ids of QoS 2 messages from the client outlive its connection, and end with the session", async () => {
    const { store } = await open();
    const first = await connect(store, "s");
    await first.handle.inbound.add(5);
    await store.publish(message("nobody", 2), { from: "s", inbound: { handle: first.handle, packetId: 6 } });
    await first.handle.close();
    const second = await connect(store, "s");
    assert.deepEqual(
      [4, 5, 6].map((id) => second.handle.inbound.has(id)),
      [false, true, true],
    );
    await second.handle.inbound.delete(5);
    assert.equal(second.handle.inbound.has(5), false);
    await second.handle.close();
    const third = await connect(store, "s", { cleanStart: true });
    assert.equal(third.handle.inbound.has(6), false);
    // What was under way when its session ended means nothing in the next.
    await store.publish(message("nobody", 2), { from: "s", inbound: { handle: second.handle, packetId: 8 } });
    await second.handle.inbound.add(9);
    assert.deepEqual(
      [8, 9].map((id) => third.handle.inbound.has(id)),
      [false, false],
    );
  });

  test("publishTo: to one session, whatever it has subscribed to", async () => {
    const { store } = await open();
    const sub = await connect(store, "s");
    await connect(store, "other", { filters: [["#", 1]] });
    assert.deepEqual(await store.publishTo("s", message("cmd", 1)), { matched: 1, connected: 1, durable: true });
    assert.deepEqual(sub.topics(), ["cmd"]);
    await sub.handle.close();
    assert.deepEqual(await store.publishTo("s", message("cmd2", 1)), { matched: 1, connected: 0, durable: true });
    assert.deepEqual(await store.publishTo("nobody", message("cmd", 1)), { matched: 0, connected: 0, durable: true });
    const back = await connect(store, "s");
    await eventually(() => back.topics(), ["cmd", "cmd2"]);
  });

  test("receipts: what became of a message for each session, once", async () => {
    const { store } = await open({ maxMessages: 5 });
    const told: [string, Receipt][] = [];
    const waiting: string[] = [];
    const receipts = (clientId: string, outcome: Receipt): void => {
      if (outcome === "waiting") waiting.push(clientId);
      else told.push([clientId, outcome]);
    };
    const here = await connect(store, "here", { filters: [["t", 1]] });
    const qos0 = await connect(store, "qos0", { filters: [["t", 0]] });
    const away = await connect(store, "away", { filters: [["t", 1]] });
    const leaving = await connect(store, "leaving", { filters: [["t", 1]] });
    const clean = await connect(store, "clean", { clean: true, filters: [["t", 1]] });
    await away.handle.close();
    await store.publish(message("t"), { receipts });
    const absent: [string, Receipt][] = inLog ? [] : [["away", "queued"]];
    assert.deepEqual(waiting.toSorted(), [...absent.map(([id]) => id), "clean", "here", "leaving", "qos0"]);
    assert.deepEqual(sorted(told), [...absent, ["qos0", "delivered"]]);
    here.handle.settle(here.last());
    await leaving.handle.close();
    await clean.handle.close();
    assert.deepEqual(sorted(told.slice(absent.length + 1)), [
      ["clean", "refused"],
      ["here", "delivered"],
      ["leaving", "queued"],
    ]);
    assert.equal(qos0.got.length, 1);
    const back = await connect(store, "leaving");
    await eventually(() => back.got.length, 1);
    back.settleAll();
    assert.equal(told.length, absent.length + 4, "each once");
  });

  test("a session ends when its expiry is over, with what it held; before that it is resumed [MQTT-3.1.2-23]", async () => {
    const { store, dropped } = await open();
    const brief = await connect(store, "brief", { expirySec: 1, filters: [["t", 1]] });
    const long = await connect(store, "long", { expirySec: 100, filters: [["t", 1]] });
    const closedAt = Date.now();
    await brief.handle.close();
    await long.handle.close();
    const [info] = await store.query();
    assert.ok(
      info?.expiresAt !== undefined && info.expiresAt >= closedAt + 1000 && info.expiresAt <= Date.now() + 1000,
    );
    assert.equal((await store.publish(message("t"))).matched, ofAbsent(2));
    await eventually(async () => (await store.query()).map(({ clientId }) => clientId), ["long"]);
    assert.ok(Date.now() >= closedAt + 1000, "not before its time");
    assert.deepEqual(dropped, inLog ? {} : { session_ended: 1 });
    assert.equal((await connect(store, "brief")).handle.present, false);
    const back = await connect(store, "long", { expirySec: 100 });
    assert.equal(back.handle.present, true);
    assert.equal((await store.query()).find(({ clientId }) => clientId === "long")?.expiresAt, undefined);
  });

  test("DISCONNECT may bring a new expiry: 0 ends the session at once [MQTT-3.14.2-2]", async () => {
    const { store } = await open();
    const sub = await connect(store, "s", { expirySec: 100, filters: [["t", 1]] });
    await sub.handle.close(0);
    await counts(store, { sessions: 0, subscriptions: 0 });
  });

  test("a message that has waited for longer than its expiry is not delivered, and counted [MQTT-3.3.2-5]", async () => {
    const { store, dropped, tick } = await open();
    const sub = await connect(store, "s", { filters: [["t/+", 1]] });
    await sub.handle.close();
    await store.publish(message("t/1", 1, "x", { properties: { messageExpiry: 10 } }));
    await store.publish(message("t/2", 1, "x", { properties: { messageExpiry: 60 } }));
    await store.publish(message("t/3"));
    tick(20_000);
    const back = await connect(store, "s");
    await eventually(() => back.topics(), ["t/2", "t/3"]);
    assert.deepEqual(dropped, { expired: 1 });
  });

  queuesTest("maxTotalBytes bounds all sessions together: beyond it QoS 1 is a fault, QoS 0 is dropped", async () => {
    const { store, dropped } = await open({ maxTotalBytes: 10_000 });
    const subs = await Promise.all(["a", "b"].map((id) => connect(store, id, { credit: 1, filters: [["t", 1]] })));
    for (let n = 0; n < 4; n++) await store.publish(message("t", 1, "x".repeat(2000)));
    await assert.rejects(async () => await store.publish(message("t", 1, "x".repeat(2000))), { code: "QUEUE_FULL" });
    await store.publish(message("t", 0, "x".repeat(2000)));
    assert.deepEqual(dropped, { store_full: 2 });
    assert.deepEqual(
      subs.map(({ got }) => got.length),
      [1, 1],
    );
    for (const sub of subs) {
      for (let n = 0; n < 4; n++) {
        await eventually(() => sub.got.length, n + 1);
        sub.handle.settle(delivered(sub, n));
      }
    }
    await counts(store, { queued: 0, queuedBytes: 0 });
    await store.publish(message("t", 1, "x".repeat(2000)));
  });

  test("retained: the last message of each topic, for those who subscribe later, with RETAIN set [MQTT-3.3.1-8]", async () => {
    const { store } = await open();
    for (const topic of ["a", "a/b", "a/b/c", "b", "$SYS/x", "a//c"]) {
      await store.publish(message(topic, 1, "old", { retain: true }));
      await store.publish(message(topic, 1, `new ${topic}`, { retain: true }));
    }
    const expected: [string, string[]][] = [
      ["#", ["a", "a//c", "a/b", "a/b/c", "b"]],
      ["a/#", ["a", "a//c", "a/b", "a/b/c"]],
      ["+", ["a", "b"]],
      ["a/+", ["a/b"]],
      ["a/+/c", ["a//c", "a/b/c"]],
      ["a//c", ["a//c"]],
      ["$SYS/#", ["$SYS/x"]],
      ["+/x", []],
      ["c/#", []],
    ];
    const sub = await connect(store, "s");
    for (const [filter, topics] of expected) {
      const { isNew } = await sub.handle.subscribe(filter, plain);
      await sub.handle.deliverRetained(filter, isNew);
      assert.deepEqual(sub.topics().toSorted(), topics, filter);
      assert.deepEqual(sub.payloads().toSorted(), topics.map((topic) => `new ${topic}`).toSorted());
      assert.ok(sub.got.every(({ delivery }) => delivery.retain));
      sub.settleAll();
      sub.got.length = 0;
      await sub.handle.unsubscribe(filter);
    }
    await counts(store, { retained: 6 });
  });

  test("retained: an empty payload clears it; live subscribers get it as any message [MQTT-3.3.1-6]", async () => {
    const { store } = await open();
    const live = await connect(store, "live", { filters: [["a/#", 1]] });
    await store.publish(message("a/b", 1, "x", { retain: true }));
    await store.publish(message("a/b", 1, "", { retain: true }));
    assert.deepEqual(live.payloads(), ["x", ""]);
    await counts(store, { retained: 0, retainedBytes: 0 });
    const late = await connect(store, "late", { filters: [["a/b", 1]] });
    await late.handle.deliverRetained("a/b", true);
    assert.deepEqual(late.got, []);
  });

  test("retained: the subscription's QoS, identifier, noLocal and retain handling are kept to", async () => {
    const { store } = await open();
    await store.publish(message("t", 1, "x", { retain: true }), { from: "s" });
    const sub = await connect(store, "s");
    const ask = async (filter: string, options: Partial<SubscriptionOptions>): Promise<Delivery[]> => {
      sub.got.length = 0;
      const { isNew } = await sub.handle.subscribe(filter, { ...plain, ...options });
      await sub.handle.deliverRetained(filter, isNew);
      return sub.got.map(({ delivery }) => delivery);
    };
    const [first] = await ask("t", { qos: 0, identifier: 5 });
    assert.deepEqual([first?.qos, first?.identifiers], [0, [5]]);
    assert.equal((await ask("t", { retainHandling: 0 })).length, 1, "0: at each SUBSCRIBE");
    assert.equal((await ask("t", { retainHandling: 1 })).length, 0, "1: not again");
    assert.equal((await ask("+", { retainHandling: 1 })).length, 1, "1: a new one");
    assert.equal((await ask("#", { retainHandling: 2 })).length, 0, "2: never");
    assert.equal((await ask("t", { noLocal: true })).length, 0, "its own");
    assert.equal((await ask("$share/g/t", {})).length, 0, "none for a shared subscription");
  });

  queuesTest(
    "retained: bounded in number and bytes; beyond that a message is delivered, not retained, and counted",
    async () => {
      const { store, dropped } = await open({}, { retained: { maxMessages: 2, maxBytes: 2000 } });
      const live = await connect(store, "live", { filters: [["#", 0]] });
      for (const topic of ["a", "b", "c"]) await store.publish(message(topic, 0, "x", { retain: true }));
      assert.deepEqual(dropped, { retained_full: 1 });
      await store.publish(message("a", 0, "y".repeat(2000), { retain: true }));
      assert.deepEqual(dropped, { retained_full: 2 });
      assert.equal(live.got.length, 4);
      const late = await connect(store, "late", { filters: [["#", 1]] });
      await late.handle.deliverRetained("#", true);
      assert.deepEqual(late.topics().toSorted(), ["a", "b"]);
      assert.deepEqual(late.payloads(), ["x", "x"]);
    },
  );

  test("retained: one that has expired is not delivered, and makes room", async () => {
    const { store } = await open();
    await store.publish(message("t", 1, "x", { retain: true, properties: { messageExpiry: 1 } }));
    await store.publish(message("u", 1, "x", { retain: true, properties: { messageExpiry: 3600 } }));
    if (inLog) await setTimeout(1100);
    else await eventually(() => store.counts.retained, 1);
    const late = await connect(store, "late", { filters: [["#", 1]] });
    await late.handle.deliverRetained("#", true);
    assert.deepEqual(late.topics(), ["u"]);
  });

  test("retained: many matches wait for the client instead of overflowing its queue", async () => {
    const { store, dropped } = await open({ maxMessages: 20 });
    for (let n = 0; n < 200; n++) await store.publish(message(`t/${n}`, 1, "x", { retain: true }));
    const sub = await connect(store, "s", { credit: 5, filters: [["t/+", 1]] });
    const done = Promise.resolve(sub.handle.deliverRetained("t/+", true));
    for (let n = 0; n < 200; n++) {
      while (sub.got.length <= n) await turn();
      sub.handle.settle(delivered(sub, n));
    }
    await done;
    assert.equal(new Set(sub.topics()).size, 200);
    assert.deepEqual(dropped, {});
  });

  test("shared: each message goes to one member of each group, and to those who subscribed alone", async () => {
    const { store } = await open();
    const members = await Promise.all(
      ["a", "b", "c"].map((id) => connect(store, id, { filters: [["$share/g/t/#", 1]] })),
    );
    const other = await connect(store, "other", { filters: [["$share/h/t/+", 1]] });
    const alone = await connect(store, "alone", { filters: [["t/1", 1]] });
    for (let n = 0; n < 30; n++) assert.equal((await store.publish(message("t/1"))).matched, 3);
    assert.deepEqual(
      members.map(({ got }) => got.length),
      [10, 10, 10],
      "equals take turns",
    );
    assert.deepEqual([other.got.length, alone.got.length], [30, 30]);
  });

  test("shared: the least loaded member is chosen, an absent one only where nobody is connected", async () => {
    const { store } = await open();
    const slow = await connect(store, "slow", { credit: 1, filters: [["$share/g/t", 1]] });
    const fast = await connect(store, "fast", { filters: [["$share/g/t", 1]] });
    for (let n = 0; n < 20; n++) {
      await store.publish(message("t"));
      fast.settleAll();
    }
    assert.ok(slow.got.length <= 1 && fast.got.length >= 19, `slow ${slow.got.length}, fast ${fast.got.length}`);
    slow.settleAll();
    await fast.handle.close();
    for (let n = 0; n < 5; n++) {
      await store.publish(message("t"));
      slow.settleAll();
    }
    assert.equal((await store.query()).find(({ clientId }) => clientId === "fast")?.queued, 0);
    await slow.handle.close();
    const last = message("t", 1, "last");
    assert.deepEqual(await store.publish(last), { matched: ofAbsent(1), connected: 0, durable: true, ...uncounted });
    const back = [await connect(store, "slow"), await connect(store, "fast")];
    await eventually(() => back.flatMap((each) => each.payloads()).filter((each) => each === "last").length, 1);
  });

  test("shared: what a member leaves unsettled goes to another; a QoS 2 delivery that began stays [MQTT-4.8.2-4]", async () => {
    const { store, dropped } = await open();
    const leaver = await connect(store, "leaver", { credit: 2, filters: [["$share/g/t", 2]] });
    await store.publish(message("t", 2, "began"));
    await store.publish(message("t", 1, "sent"));
    await store.publish(message("t", 1, "waits"));
    await eventually(() => leaver.got.length, 2);
    const stayer = await connect(store, "stayer", { filters: [["$share/g/t", 1]] });
    await leaver.handle.close();
    await eventually(() => stayer.payloads(), ["sent", "waits"]);
    stayer.settleAll();
    const back = await connect(store, "leaver");
    await eventually(() => back.payloads(), ["began"]);
    await store.publish(message("t", 1, "x"));
    await back.handle.close(0);
    await eventually(() => stayer.payloads().at(-1), "x");
    // Its session has ended: nobody else may get what had begun [MQTT-4.8.2-5].
    assert.deepEqual(dropped, { session_ended: 1 });
  });

  test("shared: a member that unsubscribes gets no more, and the last one's group is gone", async () => {
    const { store } = await open();
    const a = await connect(store, "a", { filters: [["$share/g/t", 1]] });
    const b = await connect(store, "b", { filters: [["$share/g/t", 1]] });
    await counts(store, { subscriptions: 2 });
    assert.equal(await a.handle.unsubscribe("$share/g/t"), true);
    assert.equal(await a.handle.unsubscribe("$share/g/t"), false);
    for (let n = 0; n < 4; n++) await store.publish(message("t"));
    assert.deepEqual([a.got.length, b.got.length], [0, 4]);
    await b.handle.unsubscribe("$share/g/t");
    await counts(store, { subscriptions: 0 });
    assert.equal((await store.publish(message("t"))).matched, 0);
  });

  queuesTest("a proxy that is opened again has the sessions that it had", async () => {
    const { store, whole } = await open();
    const sub = await connect(store, "s", { filters: [["t", 1]] });
    await sub.handle.close();
    let dropped = 0;
    const again = whole.open("p", {
      queue: { ...queueLimits, maxMessages: 1 },
      retained: { maxMessages: 1, maxBytes: 1000 },
      topicCacheSize: 1,
      onDropped: () => void dropped++,
      now: Date.now,
    });
    await again.publish(message("t"));
    await again.publish(message("t"));
    assert.equal(dropped, 1, "under the new limits");
  });

  test("a store that is stopped takes nothing", async () => {
    const { store, whole } = await open();
    await whole.stop();
    assert.equal(whole.health().durable, false);
    await assert.rejects(async () => await store.publish(message("t")), { code: "STORE_CLOSED" });
  });
}

/** A place that outlives its store: each call starts a store there, once the one before it has stopped or died. */
export type StorePlace = () => Promise<Store>;

/** What a store that outlives its process must do besides. @param make a new, empty place */
export function lastingStoreContract(make: () => Promise<StorePlace>): void {
  const running: Store[] = [];
  afterEach(async () => {
    for (const store of running.splice(0)) await store.stop();
  });

  const options: StoreOptions = {
    queue: { maxMessages: 100_000, maxBytes: 1 << 26, maxTotalBytes: 1 << 30, onFull: "dropOldest" },
    retained: { maxMessages: 1000, maxBytes: 1 << 24 },
    topicCacheSize: 100,
    onDropped() {},
    now: () => Date.now(),
  };

  /** `restart` stops the store and starts another in its place. */
  async function open(): Promise<{ store: () => ProxyStore; restart: () => Promise<ProxyStore> }> {
    const place = await make();
    let whole = await place();
    running.push(whole);
    let store = whole.open("p", options);
    return {
      store: () => store,
      async restart() {
        await whole.stop();
        whole = await place();
        running.push(whole);
        store = whole.open("p", options);
        return store;
      },
    };
  }

  test("a restart keeps persistent sessions with their subscriptions and options, and no clean one", async () => {
    const { store, restart } = await open();
    const lasting = await connect(store(), "lasting", {
      filters: [
        ["a/+", { qos: 2, noLocal: true, retainAsPublished: true, retainHandling: 1, identifier: 9 }],
        ["b", 1],
        ["c", 1],
        ["$share/g/d", 1],
      ],
    });
    await lasting.handle.unsubscribe("c");
    await connect(store(), "clean", { clean: true, filters: [["b", 1]] });
    const removed = await connect(store(), "removed", { filters: [["b", 1]] });
    await removed.handle.close();
    await store().remove("removed");
    const wiped = await connect(store(), "wiped", { filters: [["b", 1]] });
    await wiped.handle.close();
    await connect(store(), "wiped", { cleanStart: true });
    await restart();
    assert.deepEqual(
      (await store().query()).map(({ clientId, connected, clean }) => ({ clientId, connected, clean })),
      [
        { clientId: "lasting", connected: false, clean: false },
        { clientId: "wiped", connected: false, clean: false },
      ],
    );
    assert.equal((await store().publish(message("b"))).matched, 1);
    assert.equal((await store().publish(message("c"))).matched, 0);
    assert.equal((await store().publish(message("d"))).matched, 1);
    const back = await connect(store(), "lasting");
    assert.equal(back.handle.present, true);
    assert.deepEqual(back.handle.subscriptions.get("a/+"), {
      qos: 2,
      noLocal: true,
      retainAsPublished: true,
      retainHandling: 1,
      identifier: 9,
    });
    assert.deepEqual([...back.handle.subscriptions.keys()].toSorted(), ["$share/g/d", "a/+", "b"]);
    assert.deepEqual(back.topics(), ["b", "d"]);
  });

  test("a restart keeps what was queued, in order and whole, and nothing that was settled", async () => {
    const { store, restart } = await open();
    const sub = await connect(store(), "s", { credit: 1, filters: [["t/#", { qos: 2, identifier: 4 }]] });
    await store().publish(message("t/settled"));
    sub.handle.settle(sub.last());
    await sub.handle.close();
    const properties: MessageProperties = {
      payloadFormat: 1,
      messageExpiry: 1000,
      contentType: "text/plain",
      responseTopic: "answers",
      correlationData: Buffer.from([0, 255, 1]),
      userProperties: [
        ["a", "1"],
        ["a", "2"],
      ],
    };
    await store().publish(message("t/1", 1, "\u0000\u{1f600}", { retain: true, properties }), { from: "pub" });
    for (let n = 2; n < 500; n++) await store().publish(message(`t/${n}`, n % 2 === 0 ? 2 : 1, String(n)));
    await store().publish(message("t/qos0", 0));
    await restart();
    const back = await connect(store(), "s", { credit: 1000 });
    await eventually(() => back.got.length, 499);
    assert.deepEqual(
      back.topics(),
      Array.from({ length: 499 }, (_, n) => `t/${n + 1}`),
    );
    const [first, second] = back.got;
    assert.deepEqual({ ...first?.delivery.message.properties }, properties);
    assert.equal(first?.delivery.message.payload.toString(), "\u0000\u{1f600}");
    assert.equal(first?.delivery.message.from, "pub");
    assert.ok((first?.delivery.message.expiresAt ?? 0) > Date.now());
    assert.deepEqual([second?.qos, second?.delivery.identifiers, second?.again], [2, [4], false]);
    back.settleAll();
    await restart();
    const again = await connect(store(), "s");
    assert.deepEqual(again.got, []);
    assert.deepEqual(
      [store().counts.queued, store().counts.queuedBytes - store().counts.retainedBytes],
      [0, 0],
      "nothing is left behind",
    );
  });

  test("a restart sends what was in flight again, under its packet id, in the state that it was in", async () => {
    const { store, restart } = await open();
    const sub = await connect(store(), "s", { credit: 4, filters: [["t", 2]] });
    await store().publish(message("t", 1, "qos 1"));
    await store().publish(message("t", 2, "sent"));
    await store().publish(message("t", 2, "released"));
    await store().publish(message("t", 2, "completed"));
    await store().publish(message("t", 2, "waits"));
    await eventually(() => sub.got.length, 4);
    const ids = sub.got.map(({ delivery }) => delivery.packetId);
    await sub.handle.release(delivered(sub, 2));
    await sub.handle.release(delivered(sub, 3));
    sub.handle.settle(delivered(sub, 3));
    await eventually(() => sub.got.length, 5);
    await restart();
    const back = await connect(store(), "s", { credit: 10 });
    await eventually(() => back.got.length, 4);
    assert.deepEqual(
      back.got.map(({ again, delivery }) => [
        delivery.message.payload.toString(),
        again,
        delivery.packetId,
        delivery.released,
      ]),
      [
        ["qos 1", true, ids[0], false],
        ["sent", true, ids[1], false],
        ["released", true, ids[2], true],
        ["waits", true, sub.last().packetId, false],
      ],
    );
    await store().publish(message("t", 2, "new"));
    await eventually(() => back.got.length, 5);
    assert.equal(new Set(back.got.map(({ delivery }) => delivery.packetId)).size, 5, "no id twice");
  });

  test("a restart keeps the ids of QoS 2 messages from clients, and forgets those that were deleted", async () => {
    const { store, restart } = await open();
    const client = await connect(store(), "c");
    const sub = await connect(store(), "s", { filters: [["t", 2]] });
    await client.handle.inbound.add(1);
    await client.handle.inbound.add(2);
    await store().publish(message("t", 2), { from: "c", inbound: { handle: client.handle, packetId: 3 } });
    await store().publish(message("nobody", 2), { from: "c", inbound: { handle: client.handle, packetId: 4 } });
    await client.handle.inbound.delete(2);
    await eventually(() => sub.got.length, 1);
    await restart();
    const back = await connect(store(), "c");
    assert.deepEqual(
      [1, 2, 3, 4].filter((id) => back.handle.inbound.has(id)),
      [1, 3, 4],
    );
  });

  test("a restart keeps retained messages, the latest of each topic, and none that was cleared", async () => {
    const { store, restart } = await open();
    await store().publish(message("a", 1, "old", { retain: true }));
    await store().publish(message("a", 0, "new", { retain: true }));
    await store().publish(message("b", 1, "x", { retain: true }));
    await store().publish(message("b", 1, "", { retain: true }));
    await store().publish(message("c", 2, "x", { retain: true, properties: { contentType: "y" } }));
    await restart();
    await counts(store(), { retained: 2 });
    const sub = await connect(store(), "s", { filters: [["#", 2]] });
    await sub.handle.deliverRetained("#", true);
    await eventually(() => sub.got.length, 2);
    assert.deepEqual(
      sub.got.map(({ topic, qos, delivery }) => `${topic} ${qos} ${delivery.message.payload.toString()}`).toSorted(),
      ["a 0 new", "c 2 x"],
    );
    await store().publish(message("c", 1, "", { retain: true }));
    await restart();
    await counts(store(), { retained: 1 });
  });

  test("a session goes on expiring while the store is down; a client that was connected starts to when it is up", async () => {
    const { store, restart } = await open();
    const away = await connect(store(), "away", { expirySec: 1, filters: [["t", 1]] });
    await connect(store(), "here", { expirySec: 100, filters: [["t", 1]] });
    const connectedAt = (await store().query()).find(({ clientId }) => clientId === "here")?.connectedAt;
    await away.handle.close();
    await store().publish(message("t"));
    await restart();
    await eventually(async () => (await store().query()).map(({ clientId }) => clientId), ["here"]);
    const [info] = await store().query();
    assert.ok((info?.expiresAt ?? 0) > Date.now() + 90_000);
    assert.equal(info?.connectedAt, connectedAt);
    await restart();
    assert.deepEqual(
      (await store().query()).map(({ clientId, queued, inflight }) => [clientId, queued + inflight]),
      [["here", 1]],
    );
  });

  test("sessions of one name on two proxies stay apart over a restart", async () => {
    const place = await make();
    const first = await place();
    running.push(first);
    for (const proxy of ["a", "b"]) {
      const sub = await connect(first.open(proxy, options), "same", { filters: [[`only/${proxy}`, 1]] });
      await sub.handle.close();
    }
    await first.stop();
    const second = await place();
    running.push(second);
    const kept = await second.open("b", options).query();
    assert.deepEqual(
      kept.map(({ subscriptions }) => subscriptions),
      [[{ topicFilter: "only/b", qos: 1 }]],
    );
  });
}

/** The topic filters of each client's session. */
async function sessionsOf(store: ProxyStore): Promise<Record<string, string[]>> {
  const found = await store.query();
  return Object.fromEntries(
    found.map(({ clientId, subscriptions }) => [clientId, subscriptions.map(({ topicFilter }) => topicFilter)]),
  );
}

/** A store that asks others for them may be told a little later. */
async function counts(store: ProxyStore, expected: Partial<ProxyStore["counts"]>): Promise<void> {
  await eventually(() => {
    const { counts: now } = store;
    return Object.fromEntries(Object.entries(now).filter(([name]) => name in expected));
  }, expected);
}

function sorted(told: readonly [string, Receipt][]): [string, Receipt][] {
  return told.toSorted(([a], [b]) => a.localeCompare(b));
}

function delivered({ got }: { got: readonly Got[] }, at: number): Delivery {
  const there = got[at];
  assert.ok(there, `nothing was delivered as number ${at}`);
  return there.delivery;
}
