/** KafkaMQTT against a real Kafka, whose records are read back. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createServer, Socket } from "node:net";
import { after, before, test } from "node:test";
import type { Filter, FilterContext, FilterResult } from "../../kernel/plugin.ts";
import kind from "../../plugins/kafka/index.ts";
import {
  createConnectContext,
  createPublishContext,
  createFilterMaker,
  createTestHost,
  type TestHost,
} from "@sluice/testkit";
import { startKafka, type Kafka } from "../helpers/kafka.ts";

const maker = createFilterMaker(kind, new URL("../../plugins/kafka/schema.json", import.meta.url));
const found = await startKafka();
const options = { skip: found ? false : "no Kafka", timeout: 60_000 };
let kafka: Kafka;

before(() => {
  if (found) kafka = found;
});
after(() => found?.stop());

interface Built {
  readonly filter: Filter;
  readonly host: TestHost;
  [Symbol.asyncDispose](): Promise<void>;
}

async function build(config: object, brokers = kafka.brokers): Promise<Built> {
  const host = createTestHost({ name: "publish/kafka" });
  const filter = await maker.build({ backend: brokers, ...config }, host.host);
  return {
    filter,
    host,
    async [Symbol.asyncDispose]() {
      await filter.close?.();
      host.close();
    },
  };
}

async function createTopic(partitions = 4, config: Record<string, string> = {}): Promise<string> {
  const topic = `t-${randomUUID()}`;
  await kafka.createTopic(topic, partitions, config);
  return topic;
}

/** A synchronous throw becomes a rejection, as in the pipeline. */
async function handle(filter: Filter, ctx: FilterContext): Promise<FilterResult> {
  return filter.handle(ctx);
}

async function waitFor(what: string, check: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 20_000;
  while (!(await check())) {
    assert.ok(Date.now() < deadline, `waited in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A port where nothing listens. */
async function deadPort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  assert.ok(address !== null && typeof address === "object");
  return address.port;
}

test("A36: a PUBLISH goes to topic.default with three headers, the client id as key", options, async () => {
  const topic = await createTopic();
  await using built = await build({ topic: { default: topic } });
  const payload = Buffer.from([0, 255, 128, 10]);
  const ctx = createPublishContext({ topic: "a/b/c", payload, clientId: "test", username: "user123" });
  const from = Date.now();
  assert.equal(await handle(built.filter, ctx), undefined);
  const to = Date.now();
  const [record, ...more] = await kafka.consume(topic);
  assert.equal(more.length, 0);
  assert.ok(record && record.timestamp >= from && record.timestamp <= to, "the time when the packet came");
  assert.deepEqual(record.value, payload);
  assert.equal(record.key, "test");
  assert.deepEqual(record.headers, { clientID: "test", username: "user123", mqttTopic: "a/b/c" });
  assert.equal(await built.host.metricValue("sluice_kafka_records_acked_total"), 1);
  assert.equal(await built.host.metricValue("sluice_kafka_queue_records"), 0);
  assert.deepEqual(built.filter.health?.().ok, true);
});

test("A36: topic, headers and payload come from the mqtt keys; mapped headers win", options, async () => {
  const topic = await createTopic();
  const mqtt = { topicKey: "kafka-topic", headerKey: "kafka-headers", payloadKey: "body" };
  await using built = await build({ topic: { default: "never-used" }, mqtt });
  const data = new Map<string, unknown>([
    ["kafka-topic", topic],
    ["kafka-headers", JSON.parse('{"device":"phone","clientID":"mapped","__proto__":"x"}')],
    ["body", new Uint8Array([1, 2, 3])],
  ]);
  assert.equal(await handle(built.filter, createPublishContext({ data })), undefined);
  const connect = createConnectContext({ clientId: "c9", username: "u9", data });
  assert.equal(await handle(built.filter, connect), undefined);

  const [publish, other] = await kafka.consume(topic);
  const records = new Map([publish, other].map((record) => [record?.key, record]));
  // An anonymous client has no `username`.
  const expected = new Map(Object.entries({ clientID: "mapped", mqttTopic: "a/b/c", device: "phone" }));
  expected.set("__proto__", "x");
  assert.deepEqual(new Map(Object.entries(records.get("client-1")?.headers ?? {})), expected);
  assert.deepEqual(records.get("client-1")?.value, Buffer.from([1, 2, 3]));
  assert.equal(records.get("c9")?.headers["username"], "u9");
  assert.equal(records.get("c9")?.headers["mqttTopic"], undefined);
});

test("what can't become a record is a result, and harms no other record", options, async () => {
  const topic = await createTopic();
  const mqtt = { topicKey: "topic", headerKey: "headers" };
  await using built = await build({ topic: { default: "never-used" }, mqtt });
  const good = { topic, headers: { a: "b" } };
  const cases: [Record<string, unknown>, string | undefined][] = [
    [good, undefined],
    [{ headers: {} }, "getDataFailed"],
    [{ topic: 7, headers: {} }, "getDataFailed"],
    [{ topic: "", headers: {} }, "getDataFailed"],
    [{ topic }, "getDataFailed"],
    [{ topic, headers: "text" }, "getDataFailed"],
    [{ topic, headers: { username: undefined } }, "getDataFailed"],
    [{ topic, headers: { username: null } }, "getDataFailed"],
    [{ topic, headers: { level: 3 } }, "getDataFailed"],
    [{ topic: "a/b/c", headers: {} }, "illegalTopic"],
    [{ topic: "..", headers: {} }, "illegalTopic"],
    [{ topic: "x".repeat(250), headers: {} }, "illegalTopic"],
    [{ topic: "größe", headers: {} }, "illegalTopic"],
    [good, undefined],
  ];
  const results = cases.map(([data]) => handle(built.filter, createPublishContext({ data })));
  assert.deepEqual(
    await Promise.all(results),
    cases.map(([, result]) => result),
  );
  // A packet without a payload needs payloadKey.
  assert.equal(await handle(built.filter, createConnectContext({ data: good })), "getDataFailed");
  assert.equal((await kafka.consume(topic)).length, 2);
  const failed = "sluice_kafka_records_failed_total";
  assert.equal(await built.host.metricValue(failed, { reason: "getDataFailed" }), 9);
  assert.equal(await built.host.metricValue(failed, { reason: "illegalTopic" }), 4);
  for (const result of ["getDataFailed", "illegalTopic", "recordTooLarge"]) assert.ok(kind.results.includes(result));
  assert.equal(kind.discards, undefined, "an unhandled result must be a fault: nothing is acked and lost");
});

test("each client's records keep their order, in large batches over several partitions", options, async () => {
  const topic = await createTopic();
  await using built = await build({ topic: { default: topic } });
  const clients = Array.from({ length: 25 }, (_, index) => `client-${index}`);
  const total = 6000;
  const acks: number[] = [];
  await Promise.all(
    Array.from({ length: total }, async (_, number) => {
      const clientId = clients[number % clients.length] ?? "";
      await handle(built.filter, createPublishContext({ clientId, payload: String(number) }));
      acks.push(number);
    }),
  );
  assert.deepEqual(
    acks,
    acks.toSorted((a, b) => a - b),
    "acknowledged in the order they came",
  );
  const records = await kafka.consume(topic, { count: total });
  assert.ok(new Set(records.map((record) => record.partition)).size > 1);
  for (const clientId of clients) {
    const own = records.filter((record) => record.key === clientId);
    const numbers = own.map((record) => Number(String(record.value)));
    assert.equal(new Set(own.map((record) => record.partition)).size, 1);
    assert.deepEqual(
      numbers,
      numbers.toSorted((a, b) => a - b),
      clientId,
    );
    assert.equal(numbers.length, total / clients.length);
  }
  const batches = (await built.host.metricValue("sluice_kafka_batch_records_count")) ?? 0;
  assert.ok(batches >= total / 1000 && batches < total / 100, `${batches} batches`);
});

test("the record key follows the option", options, async () => {
  for (const [key, expected] of [
    ["topic", "a/b/c"],
    ["username", "bob"],
    ["none", undefined],
  ] as const) {
    const topic = await createTopic();
    await using built = await build({ topic: { default: topic }, key });
    const sends = Array.from({ length: 40 }, () => handle(built.filter, createPublishContext({ username: "bob" })));
    await Promise.all(sends);
    const records = await kafka.consume(topic);
    assert.deepEqual([...new Set(records.map((record) => record.key))], [expected]);
    assert.equal(new Set(records.map((record) => record.partition)).size, key === "none" ? 4 : 1);
  }
});

test("a record too large is a result; the good ones around it are stored once each", options, async () => {
  for (const idempotent of [true, false]) {
    const topic = await createTopic();
    await using built = await build({ topic: { default: topic }, idempotent });
    const results = Array.from({ length: 50 }, (_, number) => {
      const payload = number === 20 ? Buffer.alloc(1_200_000) : String(number);
      return handle(built.filter, createPublishContext({ payload, clientId: `c${number % 7}` }));
    });
    const expected = Array.from({ length: 50 }, (_, number) => (number === 20 ? "recordTooLarge" : undefined));
    assert.deepEqual(await Promise.all(results), expected);
    const values = (await kafka.consume(topic)).map((record) => Number(String(record.value))).toSorted((a, b) => a - b);
    assert.deepEqual(
      values,
      [...Array.from({ length: 50 }).keys()].filter((number) => number !== 20),
    );
  }
});

test("where a topic's limit is below ours, batches are divided until they fit", options, async () => {
  const topic = await createTopic(3, { "max.message.bytes": "20000" });
  await using built = await build({ topic: { default: topic } });
  const large = new Set([100, 399]);
  const results = Array.from({ length: 400 }, (_, number) => {
    const payload = `${number}:${"x".repeat(large.has(number) ? 25_000 : 500)}`;
    return handle(built.filter, createPublishContext({ payload, clientId: `c${number % 9}` }));
  });
  const settled = await Promise.all(results);
  for (const [number, result] of settled.entries()) {
    assert.equal(result, large.has(number) ? "recordTooLarge" : undefined, `record ${number}`);
  }
  const records = await kafka.consume(topic);
  // Once each: parts that were stored with the first attempt are recognized by the broker when they come again.
  const numbers = records.map((record) => Number.parseInt(String(record.value), 10)).toSorted((a, b) => a - b);
  assert.deepEqual(
    numbers,
    [...Array.from({ length: 400 }).keys()].filter((number) => !large.has(number)),
  );
  for (let client = 0; client < 9; client++) {
    const own = records.filter((record) => record.key === `c${client}`);
    const order = own.map((record) => Number.parseInt(String(record.value), 10));
    assert.deepEqual(
      order,
      order.toSorted((a, b) => a - b),
    );
  }
});

for (const acks of ["all", "leader"]) {
  test(`what one partition refuses makes another store nothing twice, acks ${acks}`, options, async () => {
    const topic = await createTopic(2, { "max.message.bytes": "20000" });
    await using built = await build({ topic: { default: topic }, acks, partition: "{{ levels[0] }}" });
    // All before the first send, so that they are one batch.
    const results = Array.from({ length: 40 }, (_, number) => {
      const payload = `${number}:${"x".repeat(number === 21 ? 25_000 : 50)}`;
      return handle(built.filter, createPublishContext({ topic: `${number % 2}/t`, payload, clientId: "c" }));
    });
    for (const [number, result] of (await Promise.all(results)).entries()) {
      assert.equal(result, number === 21 ? "recordTooLarge" : undefined, `record ${number}`);
    }
    const sends = await built.host.metricValue("sluice_kafka_errors_total", { reason: "tooLarge" });
    assert.ok(sends !== undefined && sends > 0);
    const numbers = (await kafka.consume(topic)).map(({ value }) => Number.parseInt(String(value), 10));
    assert.deepEqual(
      numbers.toSorted((a, b) => a - b),
      [...Array.from({ length: 40 }).keys()].filter((number) => number !== 21),
    );
  });
}

test("a deleted topic holds up no other, and is written again when it is back", options, async () => {
  const [lost, kept] = [await createTopic(), await createTopic()];
  await using built = await build({ topic: { default: kept, create: "never" }, mqtt: { topicKey: "topic" } });
  const publish = (topic: string, payload: string) =>
    handle(built.filter, createPublishContext({ payload, data: { topic } }));
  await Promise.all([publish(lost, "1"), publish(kept, "1")]);
  await kafka.deleteTopic(lost);

  let waiting = true;
  const late = publish(lost, "2").finally(() => {
    waiting = false;
  });
  // Each of these failed for good with one plain kafkajs producer.
  for (let number = 2; number <= 30; number++) {
    await publish(kept, String(number));
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.equal(waiting, true);
  assert.equal((await kafka.consume(kept)).length, 30);
  await kafka.createTopic(lost, 1);
  assert.equal(await late, undefined);
  assert.deepEqual(
    (await kafka.consume(lost)).map((record) => String(record.value)),
    ["2"],
  );
  const renewals = await built.host.metricValue("sluice_kafka_producer_renewals_total");
  assert.ok(renewals === 1 || renewals === 2, `${renewals} renewals`);
  assert.ok(built.host.logs.filter((line) => line.level === "warn").length <= 2, "the log is not flooded");
});

test("topic.create: the broker, this filter or nobody", options, async () => {
  const publish = (built: Built) => handle(built.filter, createPublishContext());
  const byBroker = `t-${randomUUID()}`;
  await using leaving = await build({ topic: { default: byBroker } });
  await publish(leaving);
  assert.equal((await kafka.consume(byBroker)).length, 1);

  const byUs = `t-${randomUUID()}`;
  await using creating = await build({ topic: { default: byUs, create: { partitions: 3 } } });
  await publish(creating);
  assert.equal((await kafka.endOffsets(byUs)).size, 3);

  const byNobody = `t-${randomUUID()}`;
  const never = { topic: { default: byNobody, create: "never" }, deliveryTimeoutMs: 400 };
  await using refusing = await build(never);
  await assert.rejects(publish(refusing), new RegExp(`topic ${byNobody} within 400 ms \\(last: .*topic-partition`));
  assert.ok(!(await kafka.listTopics()).includes(byNobody));
  assert.equal(await refusing.host.metricValue("sluice_kafka_records_failed_total", { reason: "expired" }), 1);
});

test("rule 12: an idle producer rests, warns of nothing, and its sockets send at once", options, async (t) => {
  const topic = await createTopic(1);
  const sent = t.mock.method(Socket.prototype, "setNoDelay");
  const warnings: Error[] = [];
  const warned = (warning: Error) => void warnings.push(warning);
  process.on("warning", warned);
  t.after(() => process.removeListener("warning", warned));
  await using built = await build({ topic: { default: topic } });
  await Promise.all(Array.from({ length: 10 }, () => handle(built.filter, createPublishContext())));
  assert.ok(sent.mock.calls.some(({ arguments: [noDelay] }) => noDelay === true));
  const timers = t.mock.method(globalThis, "setTimeout");
  await new Promise((resolve) => setImmediate(resolve));
  const idleFrom = timers.mock.callCount();
  const until = performance.now() + 500;
  while (performance.now() < until) await new Promise((resolve) => setImmediate(resolve));
  // A plain kafkajs makes one a millisecond.
  assert.ok(timers.mock.callCount() - idleFrom < 20, `${timers.mock.callCount() - idleFrom} timers in half a second`);
  assert.deepEqual(warnings, []);
});

test("acks: leader and none", options, async () => {
  for (const acks of ["leader", "none", 1, 0, -1]) {
    const topic = await createTopic(1);
    await using built = await build({ topic: { default: topic }, acks });
    await Promise.all(Array.from({ length: 10 }, () => handle(built.filter, createPublishContext())));
    assert.equal((await kafka.consume(topic, { count: 10 })).length, 10);
  }
});

test(
  "without Kafka the queue is bounded, records expire, and close rejects the rest",
  { timeout: 20_000 },
  async () => {
    const brokers = [`127.0.0.1:${await deadPort()}`];
    const config = { topic: { default: "t" }, maxQueuedRecords: 3, maxQueuedBytes: 2048, deliveryTimeoutMs: 600 };
    const built = await build(config, brokers);
    const publish = (payload: string | Buffer) => handle(built.filter, createPublishContext({ payload }));
    assert.equal(await publish(Buffer.alloc(4000)), "recordTooLarge");

    const first = assert.rejects(publish("1"), /within 600 ms \(last: can't connect/);
    const large = assert.rejects(publish(Buffer.alloc(1500)), /within 600 ms/);
    await assert.rejects(publish(Buffer.alloc(1000)), /queue is full/);
    const third = assert.rejects(publish("3"), /within 600 ms/);
    await assert.rejects(publish("4"), /queue is full/);
    assert.equal(await built.host.metricValue("sluice_kafka_queue_records"), 3);
    assert.equal(await built.host.metricValue("sluice_kafka_connected"), 0);
    await Promise.all([first, large, third]);
    assert.equal(await built.host.metricValue("sluice_kafka_queue_records"), 0);
    assert.equal(await built.host.metricValue("sluice_kafka_queue_bytes"), 0);
    const failed = "sluice_kafka_records_failed_total";
    assert.equal(await built.host.metricValue(failed, { reason: "queueFull" }), 2);
    assert.equal(await built.host.metricValue(failed, { reason: "expired" }), 3);

    await waitFor("health says why", () => /ECONNREFUSED/.test(built.filter.health?.().detail ?? ""));
    assert.equal(built.filter.health?.().ok, false);
    assert.equal(built.host.logs.filter((line) => line.level === "warn").length, 1, "one line for an outage");
    await built[Symbol.asyncDispose]();
    await assert.rejects(publish("5"), /closed/);
  },
);

test("close waits for what is under way and rejects what Kafka never took", { timeout: 20_000 }, async () => {
  if (found) {
    const topic = await createTopic();
    const built = await build({ topic: { default: topic } });
    const sends = Array.from({ length: 500 }, () => handle(built.filter, createPublishContext()));
    await built[Symbol.asyncDispose]();
    await Promise.all(sends);
    assert.equal((await kafka.consume(topic)).length, 500);
  }
  const unconnected = await build({ topic: { default: "t" } }, [`127.0.0.1:${await deadPort()}`]);
  const rejected = assert.rejects(handle(unconnected.filter, createPublishContext()), /closed before Kafka/);
  await unconnected[Symbol.asyncDispose]();
  await rejected;
});

test("options are judged before anything starts", () => {
  const good = { backend: ["a:9092"], topic: { default: "t" } };
  assert.deepEqual(maker.problems(good), {});
  assert.deepEqual(maker.problems({ ...good, backend: ["a:9092, b:9092", "c.example:9092"] }), {});
  assert.match(maker.problems({ ...good, backend: ["a:9092,a:9092"] })["backend.0"] ?? "", /listed twice/);
  assert.match(maker.problems({ ...good, backend: ["kafka"] })["backend.0"] ?? "", /host:port/);
  assert.match(maker.problems({ ...good, backend: ["[::1]:9092"] })["backend.0"] ?? "", /IPv6/);
  assert.match(maker.problems({ ...good, acks: "leader", idempotent: true })["idempotent"] ?? "", /acks: all/);
  for (const bad of [{ topic: { default: "a/b" } }, { topic: { default: ".." } }, { backend: [] }, { acks: 2 }]) {
    assert.equal(Object.keys(maker.problems({ ...good, ...bad })).length > 0, true, JSON.stringify(bad));
  }
});
