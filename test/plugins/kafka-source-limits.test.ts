/** What bounds a KafkaSource, with a real Kafka: the bytes that wait in it, and how long it waits for a client. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test, type TestContext } from "node:test";
import { eventually } from "../helpers/eventually.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";
import { startKafka } from "../helpers/kafka.ts";
import { openSourceBroker, sourceConfig } from "../helpers/kafka-source.ts";
import { connectRaw, type RawClient } from "../helpers/raw-client.ts";

const kafka = await startKafka();
const broker = kafka && (await openSourceBroker(kafka.brokers));
const options = { skip: kafka ? false : "no Kafka", timeout: 60_000 };
after(async () => {
  await broker?.close();
  await kafka?.stop();
});

interface Rig {
  readonly gateway: TestGateway;
  /** Subscribed to everything; acknowledges nothing by itself. */
  readonly client: RawClient;
  readonly produce: (partition: number, values: readonly string[]) => Promise<void>;
  /** Offset that the group has committed of each partition. */
  readonly committed: () => Promise<Record<number, number>>;
  readonly metric: (name: string) => Promise<number>;
}

async function run(t: TestContext, source: Record<string, unknown>, partitions = 1): Promise<Rig> {
  assert.ok(kafka && broker);
  const [topic, group] = [`source-${randomUUID()}`, `group-${randomUUID()}`];
  await kafka.createTopic(topic, partitions);
  const gateway = await startTestGateway(
    sourceConfig(kafka.brokers, { topics: [topic], group, commit: "acknowledged", ...source }),
  );
  t.after(() => gateway.stop());
  const client = await connectRaw(gateway.port(), "slow", { clean: false });
  t.after(() => client.destroy());
  await client.subscribe("#", 1);
  return {
    gateway,
    client,
    async produce(partition, values) {
      const messages = values.map((value) => ({ partition, key: `p${partition}`, value }));
      await broker.produce(topic, messages);
    },
    committed: () => broker.committed(group, topic),
    metric: (name) => gateway.metric(`sluice_kafka_source_${name}`),
  };
}

/** Takes and acknowledges as many, and returns their payloads without what pads them. */
async function take(client: RawClient, count: number): Promise<string[]> {
  const values: string[] = [];
  while (values.length < count) {
    const { topic, payload, messageId = 0 } = await client.expect("publish");
    client.send({ cmd: "puback", messageId });
    values.push(`${topic} ${payload.toString().replace(/\.+$/, "")}`);
  }
  return values;
}

const padded = (from: number, to: number, bytes: number) =>
  Array.from({ length: to - from }, (_, index) => `${from + index}`.padEnd(bytes, "."));

test("over maxQueuedBytes nothing more is fetched, of no partition, until there is room", options, async (t) => {
  const maxQueuedBytes = 100_000;
  // One at a time, so that all others wait in the source; and far fewer than would pause a partition by their number.
  const limits = { maxInFlight: 1, maxInFlightPerPartition: 1000, maxQueuedBytes, acknowledgeTimeoutMs: 60_000 };
  const { gateway, client, produce, committed, metric } = await run(t, limits, 2);
  const rounds = 20;
  await produce(0, padded(0, 20, 10_000));
  await eventually(() => metric("pauses_total"), 1, 20_000);
  const queued = await metric("queue_bytes");
  assert.ok(queued > maxQueuedBytes && queued < maxQueuedBytes * 2.5, `${queued} bytes`);

  // Far more than a source may hold: it stays in Kafka.
  for (let round = 1; round < rounds; round++) await produce(0, padded(20 * round, 20 * round + 20, 10_000));
  // Of the other partition what the fetch brings that was under way, which is a small one, and nothing behind it.
  await produce(1, padded(0, 1, 10));
  await eventually(() => metric("pauses_total"), 2, 20_000);
  await produce(1, padded(1, 20, 10_000));
  await eventually(() => metric("lag_records"), 20 * rounds + 20, 20_000);
  assert.equal((await metric("queue_records")) + (await metric("inflight_records")), 21);
  assert.ok((await metric("queue_bytes")) < queued + 1000);
  assert.equal(gateway.gateway.host.health().find(({ name }) => name === "source")?.ok, true, "nothing is wrong");

  const values = await take(client, 20 * rounds + 20);
  const expected = (partition: number, count: number) =>
    Array.from({ length: count }, (_, index) => `p${partition} ${index}`);
  assert.deepEqual(
    values.filter((value) => value.startsWith("p0")),
    expected(0, 20 * rounds),
  );
  assert.deepEqual(
    values.filter((value) => value.startsWith("p1")),
    expected(1, 20),
  );
  await eventually(committed, { 0: 20 * rounds, 1: 20 }, 20_000);
  assert.equal(await metric("queue_bytes"), 0);
});

test(
  "after acknowledgeTimeoutMs a record counts as done, and its message stays with the client",
  options,
  async (t) => {
    const { gateway, client, produce, committed, metric } = await run(t, { acknowledgeTimeoutMs: 800 });
    const startedAt = performance.now();
    await produce(0, ["1", "2"]);
    const [one] = await client.expectMany("publish", 2);
    client.send({ cmd: "puback", messageId: one?.messageId ?? 0 });
    await eventually(committed, { 0: 1 }, 20_000);
    assert.equal(await metric("unacknowledged_total"), 0);
    await eventually(committed, { 0: 2 }, 20_000);
    assert.ok(performance.now() - startedAt >= 800, "it was not committed earlier");
    assert.equal(await metric("unacknowledged_total"), 1);
    assert.equal(await metric("records_total"), 2);

    // It is the client's still: it comes again on the next connection.
    client.destroy();
    const again = await connectRaw(gateway.port(), "slow", { clean: false });
    t.after(() => again.destroy());
    assert.deepEqual(await take(again, 1), ["p0 2"]);
  },
);
