/** KafkaMQTT's options for what a record is made of and how it travels, read back from a real Kafka. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import { Partitioners, type PartitionerArgs } from "kafkajs";
import type { FilterContext, PublishContext } from "../../kernel/plugin.ts";
import { choosePartition, murmur2 } from "../../plugins/kafka/partitioner.ts";
import { createConnectContext, createPublishContext } from "@sluice/testkit";
import { createTestHost } from "@sluice/testkit";
import { buildKafka, kafkaMaker, numbersOf, publish, upTo, type BuiltKafka } from "../helpers/kafka-filter.ts";
import { startKafka, type Kafka } from "../helpers/kafka.ts";

const found = await startKafka();
const options = { skip: found ? false : "no Kafka", timeout: 60_000 };
after(() => found?.stop());

function kafka(): Kafka {
  assert.ok(found);
  return found;
}

async function createTopic(partitions = 4): Promise<string> {
  const topic = `t-${randomUUID()}`;
  await kafka().createTopic(topic, partitions);
  return topic;
}

const build = (topic: string, config: object = {}): Promise<BuiltKafka> =>
  buildKafka({ backend: kafka().brokers, topic: { default: topic }, ...config });

/** A synchronous throw becomes a rejection, as in the pipeline. */
const handle = async ({ filter }: BuiltKafka, ctx: FilterContext) => filter.handle(ctx);

/** As a client of MQTT 5 would have it. */
function withProperties(ctx: PublishContext, userProperties: unknown): PublishContext {
  Object.assign(ctx.packet, { properties: { userProperties } });
  return ctx;
}

test("key, topic, headers, partition and timestamp by templates", options, async () => {
  const topic = await createTopic();
  const [, id = ""] = /^t-(.*)$/.exec(topic) ?? [];
  await using built = await buildKafka({
    backend: kafka().brokers,
    topic: { default: "never-used", template: "t-{{ levels[1] }}" },
    key: "{{ payload.sensor.id | upcase }}",
    headers: {
      site: "{{ levels[0] }}",
      who: "{{ client.id }}/{{ client.username }}",
      fixed: "text",
      qos: "q{{ packet.qos }}",
      trace: "{{ properties.trace }}",
      missing: "{{ payload.no.such.thing }}",
      proto: "{{ payload.constructor.name }}{{ client.__proto__ }}",
    },
    partition: "{{ payload.shard }}",
    timestamp: "{{ payload.at }}",
  });
  const payload = JSON.stringify({ sensor: { id: "ab" }, shard: 3, at: "2026-11-25T10:00:00Z" });
  const ctx = createPublishContext({ topic: `plant/${id}/x`, payload, clientId: "dev", username: "bob" });
  assert.equal(await handle(built, withProperties(ctx, { trace: "t1" })), undefined);
  const plain = createPublishContext({ topic: `plant/${id}/x`, payload: "no JSON", clientId: "dev" });
  const from = Date.now();
  assert.equal(await handle(built, plain), undefined);
  const records = await kafka().consume(topic);
  const rich = records.find(({ key }) => key === "AB");
  assert.equal(rich?.partition, 3);
  assert.equal(rich.timestamp, Date.parse("2026-11-25T10:00:00Z"));
  assert.deepEqual(rich.headers, {
    clientID: "dev",
    username: "bob",
    mqttTopic: `plant/${id}/x`,
    site: "plant",
    who: "dev/bob",
    fixed: "text",
    qos: "q1",
    trace: "t1",
  });
  const bare = records.find((record) => record !== rich);
  assert.equal(bare?.key, undefined);
  assert.ok(bare && bare.timestamp >= from);

  for (const bad of ['{"shard":"first"}', '{"shard":-1}', '{"at":"yesterday"}']) {
    assert.equal(await handle(built, createPublishContext({ topic: `plant/${id}/x`, payload: bad })), "getDataFailed");
  }
  assert.equal(await handle(built, createPublishContext({ topic: "plant/a b/x" })), "illegalTopic");
});

test("templates that can't be read are told before anything starts", () => {
  const good = { backend: ["a:9092"], topic: { default: "t" } };
  const problems = (more: object) => kafkaMaker.problems({ ...good, ...more });
  assert.match(problems({ key: "{{ client.id" })["key"] ?? "", /can't be read: .*not closed/);
  assert.match(problems({ headers: { a: "{{ x | nofilter }}" } })["headers.a"] ?? "", /undefined filter: nofilter/);
  assert.match(
    problems({ topic: { default: "t", template: "{% include 'x' %" } })["topic.template"] ?? "",
    /can't be read/,
  );
  assert.ok("key" in problems({ key: "clientid" }));
  assert.match(problems({ ack: "buffered" })["ack"] ?? "", /needs a buffer/);
  assert.match(problems({ buffer: { dir: "x" } })["buffer"] ?? "", /only used with ack: buffered, not with ack: kafka/);
  assert.match(problems({ ack: "buffered", buffer: { dir: "x" }, acks: "none" })["acks"] ?? "", /all or leader/);
  assert.match(problems({ sasl: { mechanism: "plain", username: "u" } })["sasl"] ?? "", /plain needs password/);
  assert.match(problems({ sasl: { mechanism: "oauthbearer" } })["sasl"] ?? "", /either token, or tokenEndpoint/);
});

test("addHeaders: what is asked for, and a client can't pose as another", options, async () => {
  const topic = await createTopic();
  const documents = [
    { kind: "MQTTProxy", name: "front", rules: [{ when: { packetType: "Publish" }, pipeline: "publish" }] },
  ];
  const plain = createTestHost().host;
  const config = { ...plain.config, documents: () => documents };
  const host = createTestHost({ name: "publish/kafka", overrides: { config } });
  const addHeaders = ["qos", "retain", "dup", "packetId", "receivedAt", "proxy", "node", "messageId", "userProperties"];
  await using built = await buildKafka({ backend: kafka().brokers, topic: { default: topic }, addHeaders }, host);
  const send = (payload: string, id: number | undefined) => {
    const ctx = createPublishContext({ payload, clientId: "dev", qos: id === undefined ? 0 : 1 });
    Object.assign(ctx.packet, { packetId: id });
    const properties = [
      ["a", "1"],
      ["a", "2"],
      ["clientID", "someone else"],
    ];
    return handle(built, withProperties(ctx, properties));
  };
  for (const [payload, id] of [
    ["0", 7],
    ["0", 7],
    ["0", 8],
    ["1", 7],
    ["2", undefined],
    ["2", undefined],
  ] as const) {
    assert.equal(await send(payload, id), undefined);
  }
  const all = (await kafka().consume(topic)).map(({ headers }) => headers);
  const { receivedAt, node, messageId, ...rest } = all[0] ?? {};
  assert.deepEqual(rest, {
    clientID: "dev",
    mqttTopic: "a/b/c",
    a: "2",
    qos: "1",
    retain: "false",
    dup: "false",
    packetId: "7",
    proxy: "front",
  });
  assert.ok(Math.abs(Number(receivedAt) - Date.now()) < 60_000);
  assert.ok(node && messageId);
  const ids = all.map((headers) => headers["messageId"]);
  assert.equal(ids[0], ids[1], "the same packet, sent again");
  assert.equal(new Set(ids).size, 5);
  assert.equal(all[4]?.["packetId"], undefined);
});

test("compression: each codec's records are read back by a stock client", options, async () => {
  for (const compression of ["gzip", "snappy", "lz4", "zstd"]) {
    const topic = await createTopic();
    await using built = await build(topic, { compression });
    const payload = (number: number) => `${number}`.padStart(500, "0");
    const results = await Promise.all(upTo(300).map((number) => publish(built, payload(number))));
    assert.ok(
      results.every((result) => result === undefined),
      compression,
    );
    assert.deepEqual(numbersOf(await kafka().consume(topic)), upTo(300), compression);
  }
});

test("the partitioner is the Java client's", () => {
  // Of org.apache.kafka.common.utils.UtilsTest.
  const vectors: [string, number][] = [
    ["21", -973_932_308],
    ["foobar", -790_332_482],
    ["a-little-bit-long-string", -985_981_536],
    ["a-little-bit-longer-string", -1_486_304_829],
    ["lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971],
    ["abc", 479_470_107],
  ];
  for (const [text, hash] of vectors) assert.equal(murmur2(Buffer.from(text)), hash, text);

  // kafkajs has an implementation of its own.
  const theirs = Partitioners.DefaultPartitioner();
  const partitionMetadata = upTo(7).map((partitionId) => ({ partitionId, leader: 1 }));
  for (const key of ["", "a", "ab", "größe", "😀", ...upTo(300).map((number) => `device-${number * 7919}`)]) {
    const args = { topic: "t", partitionMetadata, message: { key, value: null } } as unknown as PartitionerArgs;
    assert.equal(choosePartition(key, partitionMetadata, 0), theirs(args), key);
  }
  // Without a key: in turn, among those that have a leader.
  const some = partitionMetadata.map((each) => ({ ...each, leader: each.partitionId % 3 === 0 ? 1 : -1 }));
  assert.deepEqual(
    upTo(6).map((round) => choosePartition(null, some, round)),
    [0, 3, 6, 0, 3, 6],
  );
});

test("inFlight and lingerMs keep each client's order", options, async () => {
  const topic = await createTopic(8);
  await using built = await build(topic, { inFlight: 4, lingerMs: 5 });
  const clients = upTo(20).map((number) => `client-${number}`);
  const sends: Promise<unknown>[] = [];
  for (const number of upTo(200)) {
    for (const clientId of clients) sends.push(publish(built, String(number), { clientId }));
    if (number % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.ok((await Promise.all(sends)).every((result) => result === undefined));
  const records = await kafka().consume(topic);
  for (const clientId of clients) {
    assert.deepEqual(numbersOf(records.filter(({ key }) => key === clientId)), upTo(200), clientId);
  }
});

test("filters with equal settings share a connection, and each counts its own", options, async () => {
  const [one, two] = [await createTopic(), await createTopic()];
  const gateway = createTestHost({ name: "publish/one" });
  const hostOf = (name: string) => Object.create(gateway.host, { name: { value: name } }) as typeof gateway.host;
  const config = { backend: kafka().brokers, requestTimeoutMs: 5000 };
  const logsOf = () => gateway.logs.filter(({ message }) => message === "Kafka: connected").length;
  const first = await kafkaMaker.build({ ...config, topic: { default: one } }, gateway.host);
  const second = await kafkaMaker.build({ ...config, topic: { default: two } }, hostOf("publish/two"));
  const other = await kafkaMaker.build({ ...config, topic: { default: two }, acks: "leader" }, hostOf("publish/three"));
  for (const filter of [first, second, second, other])
    assert.equal(await filter.handle(createPublishContext()), undefined);
  assert.equal(logsOf(), 2);
  const acked = "sluice_kafka_records_acked_total";
  assert.equal(await gateway.metricValue(acked, { filter: "publish/one" }), 1);
  assert.equal(await gateway.metricValue(acked, { filter: "publish/two" }), 2);
  // The one that opened it may go; the other one goes on.
  await first.close?.();
  assert.equal(await second.handle(createPublishContext()), undefined);
  assert.throws(() => first.handle(createPublishContext()), /closed/);
  await second.close?.();
  await other.close?.();
  const third = await kafkaMaker.build({ ...config, topic: { default: one } }, hostOf("publish/four"));
  assert.equal(await third.handle(createPublishContext()), undefined);
  assert.equal(logsOf(), 3, "the last one has closed it");
  await third.close?.();
  gateway.close();
});

test("a refused record says why to the filter behind jumpIf", options, async () => {
  const topic = await createTopic();
  const mqtt = { topicKey: "topic", headerKey: "headers" };
  await using built = await build(topic, { mqtt });
  const data = { topic, headers: { device: "phone" } };
  const large = createPublishContext({ data, payload: Buffer.alloc(1_200_000) });
  assert.equal(await handle(built, large), "recordTooLarge");
  const error = { error: "recordTooLarge", errorTopic: topic, errorFilter: "publish/kafka" };
  // Known once Kafka has answered: the pipeline goes on only then.
  assert.deepEqual(large.data.get("kafka-error"), { device: "phone", ...error });

  const illegal = createPublishContext({ data: { topic: "a/b", headers: {} } });
  assert.equal(await handle(built, illegal), "illegalTopic");
  const dead = await createTopic();
  await using letters = await build(dead, { mqtt: { headerKey: "kafka-error" } });
  assert.equal(await handle(letters, illegal), undefined);
  const [letter] = await kafka().consume(dead);
  assert.equal(letter?.headers["error"], "illegalTopic");
  assert.equal(letter.headers["errorTopic"], "a/b");
});

test("ack: received answers at once and delivers all the same", options, async () => {
  const topic = await createTopic();
  await using built = await build(topic, { ack: "received", maxQueuedRecords: 500 });
  const payload = Buffer.from("0");
  assert.equal(built.filter.handle(createPublishContext({ payload, clientId: "c" })), undefined, "no promise");
  // As the kernel's buffer is written over by what comes next.
  payload.fill("x");
  for (const number of upTo(300).slice(1)) await publish(built, String(number));
  const records = await kafka().consume(topic, { count: 300 });
  assert.deepEqual(numbersOf(records), upTo(300));
  const connect = createConnectContext({});
  assert.equal(built.filter.handle(connect), "getDataFailed");
});

test(
  "behind a packet that failed, those of the same connection fail too, so that none overtakes it",
  options,
  async () => {
    const topic = await createTopic(1);
    await using built = await build(topic, { maxQueuedRecords: 2 });
    const connection = createPublishContext({ clientId: "dev", payload: "0" });
    const next = (payload: string) =>
      Object.assign(createPublishContext({ clientId: "dev", payload }), { client: connection.client });
    const first = [handle(built, connection), handle(built, next("1"))];
    await assert.rejects(handle(built, next("2")), /queue is full/);
    await Promise.all(first);
    await assert.rejects(handle(built, next("3")), /earlier packet of the connection failed/);
    assert.equal(await publish(built, "2", { clientId: "dev" }), undefined, "a new connection");
    assert.deepEqual(numbersOf(await kafka().consume(topic)), [0, 1, 2]);
    assert.equal(await built.host.metricValue("sluice_kafka_records_failed_total", { reason: "behindFailed" }), 1);
  },
);
