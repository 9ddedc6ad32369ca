/** KafkaMQTT and a cluster of two brokers: one of them goes away, or both are told to answer late. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { eventually } from "../helpers/eventually.ts";
import { buildKafka, numbersOf, publish, upTo } from "../helpers/kafka-filter.ts";
import { startKafka, type Kafka } from "../helpers/kafka.ts";

const found = await startKafka({ nodes: 2 });
const options = { skip: found ? false : "no Kafka", timeout: 90_000 };
after(() => found?.stop());

function kafka(): Kafka {
  assert.ok(found);
  return found;
}

const patient = { requestTimeoutMs: 1000, connectionTimeoutMs: 500, deliveryTimeoutMs: 60_000 };

test("one partition without a leader holds up its own records, and nobody else's", options, async () => {
  const topic = `t-${randomUUID()}`;
  const other = `t-${randomUUID()}`;
  await kafka().createAssignedTopic(topic, [[1], [2]]);
  const third = `t-${randomUUID()}`;
  await kafka().createAssignedTopic(other, [[1]]);
  await kafka().createAssignedTopic(third, [[1]]);
  const config = { backend: kafka().brokers, topic: { default: other }, mqtt: { topicKey: "topic" }, ...patient };
  await using built = await buildKafka(config);
  const clients = upTo(12).map((number) => `client-${number}`);
  const all = (payload: string) =>
    clients.map((clientId) => ({ clientId, sent: publish(built, payload, { clientId, data: { topic } }) }));
  await Promise.all([...all("0").map(({ sent }) => sent), publish(built, "0", { data: { topic: other } })]);
  const firstRecords = await kafka().consume(topic);
  const away = new Set(firstRecords.filter(({ partition }) => partition === 1).map(({ key }) => key));
  assert.ok(away.size > 0 && away.size < clients.length);

  await kafka().secondNode.kill();
  const settled = new Set<string>();
  const waiting: Promise<unknown>[] = [];
  for (let payload = 1; payload <= 20; payload++) {
    for (const { clientId, sent } of all(String(payload))) {
      waiting.push(sent.then((result) => settled.add(result === undefined ? `${clientId} ${payload}` : "fault")));
    }
    waiting.push(publish(built, String(payload), { data: { topic: other } }));
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const here = clients.filter((clientId) => !away.has(clientId));
  const expected = here.flatMap((clientId) =>
    upTo(21)
      .slice(1)
      .map((payload) => `${clientId} ${payload}`),
  );
  await eventually(() => [...settled].toSorted(), expected.toSorted(), 30_000);
  const isolated = await built.host.metricValue("sluice_kafka_partitions_isolated_total");
  assert.ok(isolated !== undefined && isolated >= 1);
  // A partition is no outage: the next record that Kafka takes says so.
  await eventually(async () => {
    await publish(built, "once more", { data: { topic: third } });
    return built.filter.health?.().ok;
  }, true);

  await kafka().secondNode.restart();
  await Promise.all(waiting);
  assert.equal(settled.has("fault"), false);
  const records = await kafka().consume(topic);
  for (const clientId of clients) {
    assert.deepEqual(numbersOf(records.filter(({ key }) => key === clientId)), upTo(21), clientId);
  }
  assert.deepEqual(numbersOf(await kafka().consume(other)), upTo(21));
});

test(
  "ack: buffered: more records for a partition without a leader than may be under way hold up no other topic",
  options,
  async (t) => {
    const [topic, other] = [`t-${randomUUID()}`, `t-${randomUUID()}`];
    await kafka().createAssignedTopic(topic, [[1], [2]]);
    await kafka().createAssignedTopic(other, [[1]]);
    const folder = mkdtempSync(join(tmpdir(), "sluice-partition-"));
    t.after(() => rmSync(folder, { recursive: true, force: true }));
    await using built = await buildKafka({
      backend: kafka().brokers,
      topic: { default: other },
      mqtt: { topicKey: "topic" },
      ...patient,
      ack: "buffered",
      buffer: { dir: join(folder, "buffer"), fsync: "never" },
    });
    const send = async (to: string, from: number, until: number, clientId: string) => {
      for (let at = from; at < until; at += 1000) {
        const numbers = upTo(Math.min(1000, until - at)).map((number) => String(at + number));
        const results = numbers.map((payload) => publish(built, payload, { clientId, data: { topic: to } }));
        assert.ok((await Promise.all(results)).every((result) => result === undefined));
      }
    };
    const left = () => built.host.metricValue("sluice_kafka_buffer_records");
    const clients = upTo(12).map((number) => `client-${number}`);
    for (const clientId of clients) await send(topic, 0, 1, clientId);
    await send(other, 0, 1, "other");
    await eventually(left, 0, 20_000);
    const away = (await kafka().consume(topic)).find(({ partition }) => partition === 1)?.key;
    assert.ok(away !== undefined);

    await kafka().secondNode.kill();
    await send(topic, 1, 25_000, away);
    await send(other, 1, 1000, "other");
    const ofOther = async () => [...(await kafka().endOffsets(other)).values()][0];
    await eventually(ofOther, 1000, 40_000);
    await send(topic, 25_000, 25_100, away);
    await send(other, 1000, 1100, "other");
    await eventually(ofOther, 1100, 20_000);
    assert.equal(await left(), 25_099);

    await kafka().secondNode.restart();
    await eventually(left, 0, 60_000);
    const numbers = numbersOf((await kafka().consume(topic)).filter(({ key }) => key === away));
    // A batch that was under way when its topic was set apart may be there twice, but nothing is before its turn.
    assert.deepEqual([...new Set(numbers)], upTo(25_100));
    assert.ok(numbers.length <= 25_100 + 1000, `${numbers.length} records`);
    assert.deepEqual(numbersOf(await kafka().consume(other)), upTo(1100));
  },
);

test("a leader that moves costs nothing but time", options, async () => {
  const topic = `t-${randomUUID()}`;
  await kafka().createAssignedTopic(topic, [
    [2, 1],
    [2, 1],
  ]);
  await using built = await buildKafka({
    backend: kafka().brokers,
    topic: { default: topic },
    ...patient,
    inFlight: 2,
  });
  let next = 0;
  let isOver = false;
  const results: Promise<unknown>[] = [];
  const load = (async () => {
    while (!isOver) {
      for (const clientId of ["a", "b", "c", "d"]) results.push(publish(built, String(next), { clientId }));
      next++;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  })();
  await new Promise((resolve) => setTimeout(resolve, 300));
  await kafka().secondNode.kill();
  const ackedBy = (await built.host.metricValue("sluice_kafka_records_acked_total")) ?? 0;
  await eventually(
    async () => ((await built.host.metricValue("sluice_kafka_records_acked_total")) ?? 0) > ackedBy + 400,
    true,
    40_000,
  );
  await kafka().secondNode.restart();
  await new Promise((resolve) => setTimeout(resolve, 1000));
  isOver = true;
  await load;
  assert.ok((await Promise.all(results)).every((result) => result === undefined));
  const records = await kafka().consume(topic);
  for (const clientId of ["a", "b", "c", "d"]) {
    assert.deepEqual([...new Set(numbersOf(records.filter(({ key }) => key === clientId)))], upTo(next), clientId);
  }
});

test("a quota makes Kafka answer late, and that is all", options, async () => {
  const topic = `t-${randomUUID()}`;
  await kafka().createTopic(topic, 1);
  const clientId = `throttled-${randomUUID()}`;
  const quota = ["--alter", "--add-config", "producer_byte_rate=8000", "--entity-type", "clients", "--entity-name"];
  await kafka().tool("kafka.admin.ConfigCommand", [...quota, clientId]);
  await using built = await buildKafka({
    backend: kafka().brokers,
    topic: { default: topic },
    clientId,
    maxBatchBytes: 20_000,
  });
  const startedAt = performance.now();
  const payload = (number: number) => String(number).padStart(1000, "0");
  const results = await Promise.all(upTo(100).map((number) => publish(built, payload(number))));
  const seconds = (performance.now() - startedAt) / 1000;
  assert.ok(results.every((result) => result === undefined));
  assert.ok(seconds > 1, `${seconds} s for 100 kB at 8 kB a second`);
  assert.deepEqual(numbersOf(await kafka().consume(topic)), upTo(100));
  assert.equal(await built.host.metricValue("sluice_kafka_errors_total"), undefined);
});
