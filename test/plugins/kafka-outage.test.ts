/** KafkaMQTT while its Kafka is killed, hangs, or was never there: what was acknowledged is in the topic afterwards. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Filter } from "../../kernel/plugin.ts";
import kind from "../../plugins/kafka/index.ts";
import { createPublishContext, createFilterMaker, createTestHost } from "@sluice/testkit";
import { startKafka, type Kafka, type KafkaRecord } from "../helpers/kafka.ts";

const maker = createFilterMaker(kind, new URL("../../plugins/kafka/schema.json", import.meta.url));
const found = await startKafka({ own: true });
const options = { skip: found ? false : "no Kafka", timeout: 120_000 };
after(() => found?.stop());

function broker(): Kafka {
  assert.ok(found);
  return found;
}

async function build(config: object) {
  const host = createTestHost({ name: "publish/kafka" });
  const filter = await maker.build({ backend: broker().brokers, ...config }, host.host);
  return {
    filter,
    host,
    async [Symbol.asyncDispose]() {
      await filter.close?.();
      host.close();
    },
  };
}

/** Resolves with whether Kafka acknowledged it. */
async function publish(filter: Filter, payload: string, clientId = "c"): Promise<boolean> {
  try {
    return (await filter.handle(createPublishContext({ payload, clientId }))) === undefined;
  } catch {
    return false;
  }
}

function numbersOf(records: readonly KafkaRecord[]): number[] {
  return records.map((record) => Number(String(record.value)));
}

/** In ascending order, each once. */
function assertOnceInOrder(numbers: readonly number[], what: string): void {
  for (let index = 1; index < numbers.length; index++) {
    assert.ok((numbers[index] ?? 0) > (numbers[index - 1] ?? 0), `${what}: ${numbers[index - 1]}, ${numbers[index]}`);
  }
}

test("A36: a filter is built while Kafka is away, and delivers when it comes", options, async () => {
  const topic = `t-${randomUUID()}`;
  await broker().createTopic(topic);
  await broker().kill();
  await using built = await build({ topic: { default: topic } });
  const first = publish(built.filter, "1");
  const second = publish(built.filter, "2");
  while (!built.host.logs.some((line) => line.level === "warn")) await sleep(20);
  assert.equal(built.filter.health?.().ok, false);
  await broker().restart();
  assert.deepEqual(await Promise.all([first, second]), [true, true]);
  assert.equal(built.filter.health?.().ok, true);
  assert.deepEqual(numbersOf(await broker().consume(topic)), [1, 2]);
  const lines = built.host.logs.filter((line) => line.level === "warn" || line.level === "info");
  assert.ok(lines.length <= 4, `an outage takes few lines: ${lines.map((line) => line.message).join("; ")}`);
});

test("killed for seconds under load: every acknowledged record is there, in order", options, async (t) => {
  const topic = `t-${randomUUID()}`;
  await broker().createTopic(topic, 4);
  await using built = await build({ topic: { default: topic }, deliveryTimeoutMs: 60_000 });
  const clients = Array.from({ length: 20 }, (_, index) => `client-${index}`);
  const acked = new Set<number>();
  let sent = 0;
  const stopping = new AbortController();
  // Each client has 15 records under way, as a device with a window has.
  const load = clients.flatMap((clientId) =>
    Array.from({ length: 15 }, async () => {
      while (!stopping.signal.aborted) {
        const number = sent++;
        if (await publish(built.filter, String(number), clientId)) acked.add(number);
        await sleep(5);
      }
    }),
  );
  await sleep(500);
  const before = acked.size;
  await broker().kill();
  await sleep(3000);
  const during = acked.size;
  await broker().restart();
  const returnedAt = performance.now();
  while (acked.size === during) await sleep(5);
  const recoveryMs = Math.round(performance.now() - returnedAt);
  await sleep(500);
  stopping.abort();
  await Promise.all(load);

  assert.ok(before > 0 && acked.size > during, `${before} acknowledged before, ${acked.size} in the end`);
  assert.equal(acked.size, sent, "waiting records outlive the outage");
  assert.ok(recoveryMs < 2000, `${recoveryMs} ms to recover`);
  const records = await broker().consume(topic);
  const stored = new Set(numbersOf(records));
  const lost = [...acked].filter((number) => !stored.has(number));
  assert.deepEqual(lost, []);
  for (const clientId of clients) {
    const own = numbersOf(records.filter((record) => record.key === clientId));
    assertOnceInOrder(own, clientId);
  }
  t.diagnostic(`${sent} sent, ${acked.size} acknowledged, ${records.length} stored, recovered in ${recoveryMs} ms`);
});

test("a broker that hangs: the frozen batch is sent again, and stored once", options, async () => {
  const topic = `t-${randomUUID()}`;
  await broker().createTopic(topic, 2);
  await using built = await build({ topic: { default: topic }, requestTimeoutMs: 400 });
  assert.equal(await publish(built.filter, "0"), true);
  broker().pause();
  const sends: Promise<boolean>[] = [];
  for (let number = 1; number <= 100; number++) {
    sends.push(publish(built.filter, String(number)));
    // Several batches: the first is under way while the others queue.
    if (number % 10 === 0) await sleep(20);
  }
  while (((await built.host.metricValue("sluice_kafka_errors_total")) ?? 0) < 2) await sleep(20);
  broker().resume();
  assert.ok((await Promise.all(sends)).every(Boolean));
  // What the broker found in its sockets when it woke, it knew the second time.
  assert.deepEqual(numbersOf(await broker().consume(topic)), [...Array.from({ length: 101 }).keys()]);
});

test("records given up after they were sent do not make later ones pass for duplicates", options, async () => {
  const topic = `t-${randomUUID()}`;
  await broker().createTopic(topic, 1);
  await using built = await build({ topic: { default: topic }, requestTimeoutMs: 300, deliveryTimeoutMs: 900 });
  assert.equal(await publish(built.filter, "0"), true);
  broker().pause();
  // The broker will find these in its socket when it wakes, long after they were refused.
  assert.deepEqual(await Promise.all([publish(built.filter, "1"), publish(built.filter, "2")]), [false, false]);
  const next = [publish(built.filter, "3"), publish(built.filter, "4")];
  broker().resume();
  assert.deepEqual(await Promise.all(next), [true, true]);
  const stored = new Set(numbersOf(await broker().consume(topic)));
  for (const number of [0, 3, 4]) assert.ok(stored.has(number), `record ${number} was acknowledged`);
  assert.equal(await built.host.metricValue("sluice_kafka_records_failed_total", { reason: "expired" }), 2);
});
