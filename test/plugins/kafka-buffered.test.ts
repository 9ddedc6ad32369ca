/** KafkaMQTT with `ack: buffered`: devices do not notice that Kafka is away, and Kafka gets everything in order when it is back. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { startFaultProxy, type FaultProxy } from "../faults/fault-proxy.ts";
import { createPublishContext } from "@sluice/testkit";
import { eventually } from "../helpers/eventually.ts";
import { createTestHost } from "@sluice/testkit";
import { buildKafka, kafkaMaker, numbersOf, publish, upTo, type BuiltKafka } from "../helpers/kafka-filter.ts";
import { startKafka, type Kafka } from "../helpers/kafka.ts";

let proxy: FaultProxy | undefined;
const found = await startKafka({
  async secondListener(port) {
    proxy = await startFaultProxy(port);
    return proxy.port;
  },
});
const options = { skip: found ? false : "no Kafka", timeout: 60_000 };
after(async () => {
  await found?.stop();
  await proxy?.close();
});

function kafka(): Kafka {
  assert.ok(found);
  return found;
}

/** While Kafka is away for the filter, tests still reach it. */
function setKafka(state: "away" | "hangs" | "there"): void {
  proxy?.set(({ away: "refuse", hangs: "hang", there: "pass" } as const)[state]);
}

async function prepare(t: TestContext, partitions = 4) {
  const topic = `t-${randomUUID()}`;
  await kafka().createTopic(topic, partitions);
  const folder = mkdtempSync(join(tmpdir(), "sluice-buffered-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  t.after(() => setKafka("there"));
  const config = (buffer: object = {}, more: object = {}) => ({
    backend: kafka().second,
    topic: { default: topic },
    ack: "buffered",
    buffer: { dir: join(folder, "buffer"), ...buffer },
    requestTimeoutMs: 500,
    connectionTimeoutMs: 500,
    ...more,
  });
  return { topic, folder, config };
}

const left = ({ host }: BuiltKafka) => host.metricValue("sluice_kafka_buffer_records");
const drained = (built: BuiltKafka) => eventually(() => left(built), 0, 20_000);

for (const state of ["away", "hangs"] as const) {
  test(`Kafka ${state}: everything is acknowledged, and sent in order when it is back`, options, async (t) => {
    const { topic, config } = await prepare(t);
    await using built = await buildKafka(config());
    const clients = upTo(10).map((number) => `client-${number}`);
    const round = async (from: number, to: number) => {
      for (let number = from; number < to; number++) {
        const results = clients.map((clientId) => publish(built, String(number), { clientId }));
        assert.ok((await Promise.all(results)).every((result) => result === undefined));
      }
    };
    await round(0, 50);
    await drained(built);
    assert.match(built.filter.health?.().detail ?? "", /^connected: /);
    setKafka(state);
    await round(50, 400);
    await eventually(() => /^buffering \(\d+ records, \d+ s\): /.test(built.filter.health?.().detail ?? ""), true);
    assert.equal(built.filter.health?.().ok, true, "devices are served");
    assert.equal(await left(built), 3500);
    setKafka("there");
    await round(400, 450);
    await drained(built);
    const records = await kafka().consume(topic);
    for (const clientId of clients) {
      assert.deepEqual(numbersOf(records.filter(({ key }) => key === clientId)), upTo(450), clientId);
    }
    assert.match(built.filter.health?.().detail ?? "", /^connected: /);
    assert.equal(await built.host.metricValue("sluice_kafka_records_acked_total"), 4500);
  });
}

test("what is in the buffer when the gateway stops is sent by the next one", options, async (t) => {
  const { topic, config } = await prepare(t);
  setKafka("away");
  const first = await buildKafka(config());
  for (const number of upTo(300)) assert.equal(await publish(first, String(number)), undefined);
  await first[Symbol.asyncDispose]();
  setKafka("there");
  await using second = await buildKafka(config());
  assert.equal(await publish(second, "300"), undefined);
  await drained(second);
  const [record, ...more] = await kafka().consume(topic);
  assert.deepEqual(record?.headers, { clientID: "c", mqttTopic: "a/b/c" });
  assert.deepEqual(numbersOf([record, ...more]), upTo(301));
});

test("a changed filter takes the buffer over, in order", options, async (t) => {
  const { topic, config } = await prepare(t, 1);
  const gateway = createTestHost({ name: "publish/kafka" });
  const hostOf = (name: string) => Object.create(gateway.host, { name: { value: name } }) as typeof gateway.host;
  const old = await kafkaMaker.build(config(), gateway.host);
  const send = async (filter: typeof old, from: number, to: number) => {
    for (let n = from; n < to; n++)
      assert.equal(await filter.handle(createPublishContext({ payload: String(n) })), undefined);
  };
  await send(old, 0, 50);
  setKafka("away");
  await send(old, 50, 100);
  const changed = await kafkaMaker.build(
    config({ maxBytes: 2_000_000 }, { maxBatchBytes: 2000 }),
    hostOf("publish/kafka"),
  );
  await assert.rejects(
    kafkaMaker.build(config(), hostOf("other/kafka")),
    /in use by the filter publish\/kafka: give each filter its own/,
  );
  await send(changed, 100, 150);
  const closing = old.close?.();
  setKafka("there");
  await closing;
  await send(changed, 150, 200);
  await eventually(() => gateway.metricValue("sluice_kafka_buffer_records", { filter: "publish/kafka" }), 0);
  // What the old one had under way when it closed may be there twice, which at least once allows.
  const numbers = numbersOf(await kafka().consume(topic));
  assert.deepEqual([...new Set(numbers)], upTo(200));
  await changed.close?.();
  gateway.close();
});

test("what Kafka never takes is set aside, named and counted, and holds up nothing", options, async (t) => {
  const { topic, folder, config } = await prepare(t);
  await using built = await buildKafka(config());
  const large = Buffer.alloc(1_200_000, "x");
  for (const payload of ["0", large, "1"]) assert.equal(await publish(built, payload), undefined);
  await drained(built);
  assert.deepEqual(numbersOf(await kafka().consume(topic)), [0, 1]);
  assert.equal(
    await built.host.metricValue("sluice_kafka_buffer_records_refused_total", { reason: "recordTooLarge" }),
    1,
  );
  const [line = "", ...rest] = readFileSync(join(folder, "buffer", "refused.ndjson"), "utf8").split("\n");
  assert.deepEqual(rest, [""]);
  const record = JSON.parse(line) as Record<string, unknown>;
  assert.deepEqual(
    { ...record, value: Buffer.from(String(record["value"]), "base64").equals(large), timestamp: 0 },
    {
      reason: "recordTooLarge",
      topic,
      key: "c",
      headers: { clientID: "c", mqttTopic: "a/b/c" },
      value: true,
      encoding: "base64",
      timestamp: 0,
    },
  );
});

test("a topic that is missing holds up no other, and gets its records in order when it comes", options, async (t) => {
  const { topic, config } = await prepare(t, 1);
  const missing = `missing-${randomUUID()}`;
  const more = { topic: { default: topic, create: "never" }, mqtt: { topicKey: "topic" } };
  const send = async (built: BuiltKafka, to: string, from: number, until: number) => {
    for (let at = from; at < until; at += 500) {
      const numbers = upTo(Math.min(500, until - at)).map((number) => at + number);
      const results = numbers.map((number) => publish(built, String(number), { data: { topic: to } }));
      assert.ok((await Promise.all(results)).every((result) => result === undefined));
    }
  };
  const first = await buildKafka(config({}, more));
  // More than may be under way.
  await send(first, missing, 0, 25_000);
  await send(first, topic, 0, 1000);
  await eventually(() => first.host.metricValue("sluice_kafka_records_acked_total"), 1000, 30_000);
  assert.equal(await left(first), 25_000);
  await send(first, missing, 25_000, 25_500);
  await send(first, topic, 1000, 1500);
  await eventually(() => first.host.metricValue("sluice_kafka_records_acked_total"), 1500, 30_000);
  await first[Symbol.asyncDispose]();

  await using second = await buildKafka(config({}, more));
  assert.equal(await left(second), 25_500, "the next start has them");
  await send(second, missing, 25_500, 26_000);
  await kafka().createTopic(missing, 1);
  await drained(second);
  await send(second, missing, 26_000, 26_100);
  await drained(second);
  assert.deepEqual(numbersOf(await kafka().consume(missing)), upTo(26_100));
  assert.deepEqual(numbersOf(await kafka().consume(topic)), upTo(1500));
});

test("maxAge: what is too old is dropped and counted", options, async (t) => {
  const { topic, config } = await prepare(t);
  setKafka("away");
  await using built = await buildKafka(config({ maxAge: 1 }));
  for (const number of upTo(20)) await publish(built, String(number));
  await eventually(() => built.host.metricValue("sluice_kafka_buffer_records_lost_total", { reason: "expired" }), 20);
  setKafka("there");
  assert.equal(await publish(built, "20"), undefined);
  await drained(built);
  assert.deepEqual(numbersOf(await kafka().consume(topic)), [20]);
});

test("a full buffer is a fault that health tells, and ends with the outage", options, async (t) => {
  const { topic, config } = await prepare(t, 1);
  setKafka("away");
  await using built = await buildKafka(config({ maxBytes: 100_000 }));
  const payload = (number: number) => String(number).padStart(1000, "0");
  let kept = 0;
  while ((await publish(built, payload(kept))) === undefined) kept++;
  assert.ok(kept > 50 && kept < 100, `${kept} kept`);
  assert.match(built.filter.health?.().detail ?? "", /^failing: the buffer is full/);
  assert.equal(built.filter.health?.().ok, false);
  assert.ok(((await built.host.metricValue("sluice_kafka_records_failed_total", { reason: "unbuffered" })) ?? 0) >= 1);
  setKafka("there");
  await drained(built);
  for (let number = kept; number < kept + 50; number++) assert.equal(await publish(built, payload(number)), undefined);
  await drained(built);
  assert.deepEqual(numbersOf(await kafka().consume(topic)), upTo(kept + 50));
  assert.match(built.filter.health?.().detail ?? "", /^connected: /);
});
