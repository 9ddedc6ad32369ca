/** Writing to a journal in groups, and what becomes of a journal that fails. The journal is a Map, to inject faults. */
import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import { test } from "node:test";
import { createJournalWriter } from "../../kernel/journal.ts";
import { createMemoryStore } from "../../kernel/memory-store.ts";
import type { Journal, JournalEntry, Message } from "../../kernel/plugin.ts";
import type { ProxyStore, Store } from "../../kernel/store.ts";
import { eventually } from "../helpers/eventually.ts";
import { createTestHost } from "../helpers/host.ts";
import { connect } from "../helpers/store-contract.ts";

interface FaultyJournal extends Journal {
  readonly contents: Map<string, Buffer>;
  readonly batches: (readonly JournalEntry[])[];
  failWith: Error | undefined;
  /** Where set, writes wait for it. */
  gate: Promise<void> | undefined;
}

function createJournal(): FaultyJournal {
  const contents = new Map<string, Buffer>();
  const journal: FaultyJournal = {
    durability: "fsync",
    contents,
    batches: [],
    failWith: undefined,
    gate: undefined,
    async *read() {
      yield await Promise.resolve([...contents].map(([key, value]) => ({ key, value })));
    },
    async write(changes) {
      await journal.gate;
      if (journal.failWith) throw journal.failWith;
      journal.batches.push(changes);
      for (const { key, value } of changes) {
        if (value === undefined) contents.delete(key);
        else contents.set(key, value);
      }
    },
  };
  return journal;
}

function createWriter(journal: Journal) {
  const { host, metricValue } = createTestHost();
  const writer = createJournalWriter(journal, host);
  return { writer, metricValue };
}

const bytes = (text: string) => (): Buffer => Buffer.from(text);

test("what comes while a batch is written goes together with the next one", async () => {
  const journal = createJournal();
  const { writer } = createWriter(journal);
  const gate = Promise.withResolvers<void>();
  journal.gate = gate.promise;
  writer.put("a", bytes("1"), true);
  const first = writer.commit();
  await turn();
  await turn();
  for (let n = 0; n < 100; n++) writer.put(`k${n}`, bytes("x"), true);
  writer.put("a", bytes("2"), false);
  const second = writer.commit();
  gate.resolve();
  await first;
  await second;
  assert.deepEqual(
    journal.batches.map(({ length }) => length),
    [1, 101],
  );
  assert.equal(journal.contents.get("a")?.toString(), "2");
  assert.equal(writer.commit(), undefined, "nothing waits");
});

test("what is taken back before it was written is not written, and whoever waited for it goes on", async () => {
  const journal = createJournal();
  const { writer } = createWriter(journal);
  const gate = Promise.withResolvers<void>();
  journal.gate = gate.promise;
  writer.put("first", bytes("1"), true);
  await turn();
  await turn();
  writer.put("brief", bytes("2"), true);
  const waiting = writer.commit();
  writer.delete("brief");
  gate.resolve();
  await waiting;
  assert.deepEqual(
    journal.batches.map((batch) => batch.map(({ key }) => key)),
    [["first"]],
  );
  writer.put("there", bytes("3"), false);
  await writer.commit();
  writer.delete("there");
  await writer.commit();
  assert.deepEqual([...journal.contents.keys()], ["first"]);
});

test("a batch that fails is told to whoever waits, kept, and written when it can be, with what is newer", async () => {
  const journal = createJournal();
  const { writer, metricValue } = createWriter(journal);
  journal.failWith = new Error("no space left");
  writer.put("a", bytes("old"), true);
  writer.put("b", bytes("old"), true);
  await assert.rejects(writer.commit() ?? Promise.resolve(), { code: "STORE_FAILED", message: /no space left/ });
  assert.equal(writer.failure, "no space left");
  assert.equal(await metricValue("sluice_store_failures_total"), 1);
  writer.put("a", bytes("new"), false);
  writer.delete("b");
  journal.failWith = undefined;
  await writer.commit();
  assert.equal(writer.failure, undefined);
  assert.deepEqual(
    [...journal.contents].map(([key, value]) => [key, value.toString()]),
    [["a", "new"]],
  );
});

test("close writes what is left, and takes nothing more; a journal that fails does not hold it up", async () => {
  const journal = createJournal();
  const { writer } = createWriter(journal);
  writer.put("a", bytes("1"), true);
  await writer.close();
  assert.equal(writer.commit(), undefined);
  writer.put("b", bytes("1"), true);
  await assert.rejects(writer.commit() ?? Promise.resolve(), { code: "STORE_FAILED" });
  assert.deepEqual([...journal.contents.keys()], ["a"]);

  const broken = createJournal();
  broken.failWith = new Error("gone");
  const other = createWriter(broken);
  other.writer.put("a", bytes("1"), true);
  const waiting = other.writer.commit();
  await other.writer.close();
  await assert.rejects(waiting ?? Promise.resolve(), { code: "STORE_FAILED" });
});

async function startStore(
  journal: Journal,
): Promise<{ whole: Store; store: ProxyStore; dropped: Record<string, number> }> {
  const { host } = createTestHost();
  const dropped: Record<string, number> = {};
  const whole = createMemoryStore({
    node: { id: "n", incarnation: "1" },
    journal,
    log: host.log,
    metrics: host.metrics,
    now: Date.now,
  });
  await whole.start();
  const store = whole.open("p", {
    queue: { maxMessages: 1000, maxBytes: 1 << 24, maxTotalBytes: 1 << 26, onFull: "dropOldest" },
    retained: { maxMessages: 10, maxBytes: 1 << 20 },
    topicCacheSize: 10,
    onDropped: (reason, count) => void (dropped[reason] = (dropped[reason] ?? 0) + count),
    now: Date.now,
  });
  return { whole, store, dropped };
}

function message(payload: string, qos: 0 | 1 | 2 = 1): Message {
  return { topic: "t", payload: Buffer.from(payload), qos, retain: false };
}

test("a journal that fails: no message that needs it is accepted, others are; none comes twice when it works again", async () => {
  const journal = createJournal();
  const { whole, store, dropped } = await startStore(journal);
  const lasting = await connect(store, "lasting", { credit: 1, filters: [["t", 2]] });
  const clean = await connect(store, "clean", { clean: true, filters: [["t", 1]] });
  const away = await connect(store, "away", { filters: [["t", 2]] });
  await away.handle.close();
  await store.publish(message("first"));
  assert.deepEqual(lasting.payloads(), ["first"]);

  journal.failWith = new Error("no space left");
  await assert.rejects(async () => await store.publish(message("failed", 2), { from: "clean" }), {
    code: "STORE_FAILED",
  });
  assert.deepEqual(whole.health().durable, false);
  assert.match(whole.health().reasons.join(), /no space left/);
  await assert.rejects(async () => await store.publish(message("refused")), { code: "STORE_FAILED" });
  await store.publish(message("qos 0", 0));
  await assert.rejects(async () => await lasting.handle.inbound.add(1), { code: "STORE_FAILED" });

  journal.failWith = undefined;
  await eventually(() => whole.health().durable, true);
  await store.publish(message("failed", 2), { from: "clean" });
  lasting.handle.settle(lasting.last());
  for (let n = 0; n < 5; n++) {
    await turn();
    lasting.settleAll();
  }
  assert.deepEqual(lasting.payloads(), ["first", "qos 0", "failed"]);
  const back = await connect(store, "away");
  await eventually(() => back.payloads(), ["first", "failed"]);
  assert.deepEqual(clean.payloads().filter((payload) => payload === "first").length, 1);
  assert.equal(dropped.fault, 2, "what was withdrawn is counted, once a session");
  await whole.stop();
});

test("a CONNECT that can't forget the session before it is refused, and its client does not count as here", async () => {
  const journal = createJournal();
  const { whole, store } = await startStore(journal);
  await (await connect(store, "s", { filters: [["t", 1]] })).handle.close();
  journal.failWith = new Error("no space left");
  await assert.rejects(connect(store, "s", { cleanStart: true }), { code: "STORE_FAILED" });
  assert.deepEqual(
    (await store.query()).map(({ connected }) => connected),
    [false],
  );
  journal.failWith = undefined;
  await eventually(() => whole.health().durable, true);
  await whole.stop();
});

test("QoS 2 is not sent before it is written; QoS 1 is, and its publisher waits", async () => {
  const journal = createJournal();
  const { whole, store } = await startStore(journal);
  const sub = await connect(store, "s", { filters: [["t", 2]] });
  const gate = Promise.withResolvers<void>();
  journal.gate = gate.promise;
  let acked = false;
  const one = Promise.resolve(store.publish(message("one", 1))).then(() => (acked = true));
  assert.deepEqual(sub.payloads(), ["one"]);
  const two = store.publish(message("two", 2), { from: "s", inbound: { handle: sub.handle, packetId: 7 } });
  await turn();
  await turn();
  assert.equal(sub.handle.inbound.has(7), false, "a repeat must not be answered before it is written");
  assert.deepEqual(sub.payloads(), ["one"]);
  assert.equal(acked, false);
  gate.resolve();
  await one;
  await two;
  assert.deepEqual(sub.payloads(), ["one", "two"]);
  assert.equal(sub.handle.inbound.has(7), true);
  const written = [...journal.contents].filter(([key]) => key.includes("\0q\0")).map(([, value]) => value.toString());
  assert.ok(
    written.every((record) => (JSON.parse(record) as { packetId: number }).packetId > 0),
    written.join(),
  );
  await whole.stop();
});

test("a message that its subscriber settles at once is never written", async () => {
  const journal = createJournal();
  const { whole, store } = await startStore(journal);
  const { handle } = await connect(store, "s", { filters: [["t", 1]] });
  const before = journal.batches.length;
  handle.attach((delivery) => {
    queueMicrotask(() => handle.settle(delivery));
    return true;
  }, 100);
  for (let n = 0; n < 10; n++) await store.publish(message(String(n)));
  assert.equal(journal.batches.length, before);
  await whole.stop();
});

test("a journal in a format of another version is refused, and so is a record that can't be read", async () => {
  const journal = createJournal();
  journal.contents.set("format", Buffer.from("99"));
  journal.contents.set("p\0s\0c", Buffer.from("{}"));
  await assert.rejects(startStore(journal), { code: "STORE_FAILED", message: /format 99.*reads format 1/ });
  journal.contents.set("format", Buffer.from("1"));
  journal.contents.set("p\0m\x001", Buffer.from("nonsense"));
  await assert.rejects(startStore(journal), { code: "STORE_FAILED", message: /can't be read, of p \(m\)/ });
});

test("records that belong to nothing are removed at the start", async () => {
  const journal = createJournal();
  const { whole, store } = await startStore(journal);
  const sub = await connect(store, "s", { filters: [["t", 1]] });
  await sub.handle.close();
  await store.publish(message("x"));
  await whole.stop();
  for (const key of journal.contents.keys()) if (key.includes("\0s\0")) journal.contents.delete(key);
  const again = await startStore(journal);
  await again.whole.stop();
  assert.deepEqual([...journal.contents.keys()], ["format"]);
});
