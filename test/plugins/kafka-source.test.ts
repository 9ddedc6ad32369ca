/** KafkaSource between a real Kafka and real MQTT clients. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";
import { after, test, type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createTestHost } from "@sluice/testkit";
import { CompressionTypes } from "kafkajs";
import { connect, type IClientOptions, type IPublishPacket, type MqttClient } from "mqtt";
import type { ConfigDocument, Host, Service } from "../../kernel/plugin.ts";
import kind from "../../plugins/kafka/source.ts";
import { validateSource, type SourceConfig } from "../../plugins/kafka/source-config.ts";
import { acceptCodecs } from "../../plugins/kafka/client.ts";
import { eventually } from "../helpers/eventually.ts";
import { findFreePort } from "../helpers/free-port.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";
import { startKafka, type Kafka } from "../helpers/kafka.ts";
import { openSourceBroker, sourceConfig, type SourceBroker } from "../helpers/kafka-source.ts";
import { connectRaw } from "../helpers/raw-client.ts";

const found = await startKafka();
/** One that makes no topics, to be killed and stopped: started where a test wants it. */
let ours: Promise<{ own: Kafka; broker: SourceBroker }> | undefined;
const opened = found && (await openSourceBroker(found.brokers));
const options = { skip: found ? false : "no Kafka", timeout: 60_000 };
after(async () => {
  await opened?.close();
  const { own, broker } = (await ours) ?? {};
  await broker?.close();
  await own?.stop();
  await found?.stop();
});

function kafka(): Kafka & { readonly records: SourceBroker } {
  assert.ok(found && opened);
  return { ...found, records: opened };
}

function openOwn(): Promise<{ own: Kafka; broker: SourceBroker }> {
  return (ours ??= (async () => {
    const own = await startKafka({ config: { "auto.create.topics.enable": "false" } });
    assert.ok(own);
    return { own, broker: await openSourceBroker(own.brokers) };
  })());
}

interface Running {
  readonly gateway: TestGateway;
  readonly topic: string;
  readonly group: string;
  config(source: Record<string, unknown>): string;
}

async function run(t: TestContext, source: Record<string, unknown> = {}, partitions = 1): Promise<Running> {
  const topic = `source-${randomUUID()}`;
  const group = `group-${randomUUID()}`;
  await kafka().createTopic(topic, partitions);
  const config: Running["config"] = (changed) =>
    sourceConfig(kafka().brokers, { topics: [topic], group, ...source, ...changed });
  const gateway = await startTestGateway(config({}));
  t.after(() => gateway.stop());
  return { gateway, topic, group, config };
}

interface Device {
  readonly client: MqttClient;
  readonly got: IPublishPacket[];
  readonly texts: () => string[];
}

async function connectDevice(
  t: TestContext,
  gateway: TestGateway,
  o: IClientOptions & { filter?: string } = {},
): Promise<Device> {
  const { filter = "#", ...rest } = o;
  const client = connect(gateway.url(), { reconnectPeriod: 0, protocolVersion: 5, ...rest });
  t.after(() => client.end(true));
  const got: IPublishPacket[] = [];
  // Before it is connected: a session may bring messages at once.
  client.on("message", (_topic, _payload, packet) => void got.push(packet));
  await new Promise((resolve) => client.once("connect", resolve));
  if (filter !== "") await client.subscribeAsync(filter, { qos: 1, rap: true });
  return { client, got, texts: () => got.map(({ topic, payload }) => `${topic} ${payload.toString()}`) };
}

async function readSchema(file: string): Promise<{ properties: Record<string, object> }> {
  const text = await readFile(new URL(`../../plugins/kafka/${file}`, import.meta.url), "utf8");
  return JSON.parse(text) as { properties: Record<string, object> };
}

/** The kernel's own, which is no dependency of the tests. */
const { Ajv2020 } = createRequire(new URL("../../kernel/package.json", import.meta.url))("ajv/dist/2020.js") as {
  Ajv2020: new (options: object) => { compile(schema: object): ((value: unknown) => boolean) & { errors?: unknown } };
};

/** Options with the schema's defaults. */
async function defaults(config: Record<string, unknown>): Promise<SourceConfig> {
  const schema = await readSchema("source.schema.json");
  const filled = { group: "g", proxy: "p", mqtt: { topic: "t" }, ...config };
  const check = new Ajv2020({ strict: false, useDefaults: true }).compile(schema);
  assert.ok(check(filled), JSON.stringify(check.errors));
  return filled as never;
}

async function sourceMaker(config: Record<string, unknown>, host: Host): Promise<Service> {
  return kind.create(await defaults(config), host);
}

const healthOf = ({ host }: TestGateway["gateway"]) => host.health().find(({ name }) => name === "source");

async function connected({ gateway }: TestGateway): Promise<void> {
  await eventually(() => healthOf(gateway)?.ok, true, 30_000);
}

/** What `/readyz` says: its status, with `?strict` too, and what is wrong with the source. */
async function readinessOf({ api }: TestGateway): Promise<{ status: number; strict: number; detail: string }> {
  const answer = await fetch(`${api}/readyz`);
  const { unhealthy } = (await answer.json()) as { unhealthy: { name: string; detail: string }[] };
  const { status: strict } = await fetch(`${api}/readyz?strict`);
  const { detail = "" } = unhealthy.find(({ name }) => name === "source") ?? {};
  return { status: answer.status, strict, detail };
}

const offsetsOf = ({ group, topic }: Running) => kafka().records.committed(group, topic);

test(
  "a record becomes a message: topic by its key, the value as it is, MQTT 5 properties by its headers",
  options,
  async (t) => {
    const properties = {
      contentType: "{{ headers.type }}",
      messageExpiry: "{{ headers.ttl }}",
      responseTopic: "re/{{ key }}",
    };
    const mqtt = { topic: "devices/{{ key }}/commands", userProperties: "headers", properties };
    const running = await run(t, { mqtt });
    const device = await connectDevice(t, running.gateway);
    const binary = Buffer.from([0, 255, 128]);
    await kafka().records.produce(running.topic, [
      { key: "d1", value: "on", headers: { type: "text/plain", ttl: "60", site: ["a", "b"] } },
      { key: "d2", value: binary },
    ]);
    await eventually(() => device.got.length, 2, 20_000);
    const [first, second] = device.got;
    assert.deepEqual(
      [first?.topic, first?.payload.toString(), first?.qos, first?.retain],
      ["devices/d1/commands", "on", 1, false],
    );
    const { contentType, responseTopic, userProperties, messageExpiryInterval = 0 } = first?.properties ?? {};
    assert.deepEqual([contentType, responseTopic], ["text/plain", "re/d1"]);
    assert.deepEqual({ ...userProperties }, { type: "text/plain", ttl: "60", site: ["a", "b"] });
    assert.ok(messageExpiryInterval > 50 && messageExpiryInterval <= 60);
    assert.deepEqual([second?.topic, second?.payload], ["devices/d2/commands", binary]);
    await eventually(() => offsetsOf(running), { 0: 2 });
    assert.equal(await running.gateway.metric("sluice_kafka_source_records_total", { outcome: "published" }), 2);
  },
);

test(
  "templates take JSON fields for topic and QoS, clientID names the one client, whatever it subscribes to",
  options,
  async (t) => {
    const running = await run(t, {
      mqtt: {
        topic: "to/{{ value.device.id }}",
        clientID: "{{ value.device.id }}",
        qos: "{{ value.qos | default: 1 }}",
      },
    });
    const one = await connectDevice(t, running.gateway, { clientId: "one", filter: "" });
    const other = await connectDevice(t, running.gateway, { clientId: "other", filter: "#" });
    await kafka().records.produce(running.topic, [
      { value: JSON.stringify({ device: { id: "one" }, qos: 2 }) },
      { value: JSON.stringify({ device: { id: "nobody" } }) },
      { value: JSON.stringify({ device: { id: "one" } }) },
    ]);
    // At QoS 2 a message is handed on with its PUBREL: after the other.
    await eventually(
      () => one.got.map(({ topic, qos }) => `${topic} ${qos}`).toSorted(),
      ["to/one 1", "to/one 2"],
      20_000,
    );
    await eventually(() => offsetsOf(running), { 0: 3 });
    assert.deepEqual(other.got, []);
    assert.equal(await running.gateway.metric("sluice_kafka_source_records_total", { outcome: "nobody" }), 1);
  },
);

test("retain keeps the last value for later subscribers, and a null value clears it", options, async (t) => {
  const running = await run(t, { mqtt: { topic: "state/{{ key }}", retain: true } });
  await kafka().records.produce(running.topic, [
    { key: "a", value: "1" },
    { key: "b", value: "2" },
    { key: "a", value: null },
  ]);
  await eventually(() => offsetsOf(running), { 0: 3 }, 20_000);
  const late = await connectDevice(t, running.gateway);
  await eventually(() => late.texts(), ["state/b 2"]);
  // Whoever is there learns of the deletion: an empty message.
  await kafka().records.produce(running.topic, [{ key: "b", value: null }]);
  await eventually(() => late.texts(), ["state/b 2", "state/b "]);
});

test("records of any codec and of none, with and without key, are read", options, async (t) => {
  const running = await run(t, { mqtt: { topic: "all/{{ key | default: 'none' }}" } });
  const device = await connectDevice(t, running.gateway);
  acceptCodecs();
  for (const compression of [
    CompressionTypes.None,
    CompressionTypes.GZIP,
    CompressionTypes.Snappy,
    CompressionTypes.LZ4,
    CompressionTypes.ZSTD,
  ]) {
    await kafka().records.produce(running.topic, [{ value: `codec ${compression}` }], compression);
  }
  const expected = [0, 1, 2, 3, 4].map((each) => `all/none codec ${each}`);
  await eventually(() => device.texts(), expected, 20_000);
});

test(
  "a record that can't be mapped goes to the dead-letter topic with the reason in its headers, and on",
  options,
  async (t) => {
    const deadLetter = `dead-${randomUUID()}`;
    await kafka().createTopic(deadLetter);
    const running = await run(t, {
      deadLetter,
      maxPayloadBytes: 100,
      mqtt: {
        topic: "{% if key == 'json' %}d/{{ value.id }}{% else %}d/{{ key }}{% endif %}",
        qos: "{{ headers.qos | default: 1 }}",
        userProperties: "headers",
      },
    });
    const device = await connectDevice(t, running.gateway);
    await kafka().records.produce(running.topic, [
      { key: "good", value: "1" },
      { value: "no key" },
      { key: "json", value: "{" },
      { key: "json", value: "{}" },
      { key: "+", value: "wildcard" },
      { key: "large", value: "x".repeat(101) },
      { key: "qos", value: "x", headers: { qos: "3" } },
      { key: "zero", value: "x", headers: { bad: "\u0000" } },
      { key: "gone", value: "x", headers: { from: "me" } },
      { key: "last", value: "2" },
    ]);
    await eventually(() => device.texts(), ["d/good 1", "d/gone x", "d/last 2"], 20_000);
    await eventually(() => offsetsOf(running), { 0: 10 });
    const records = await kafka().consume(deadLetter, { count: 7 });
    const expected = ["template", "invalidJson", "template", "illegalTopic", "tooLarge", "qos", "properties"];
    // Those that the proxy refuses are known a little later than those that have no message at all.
    const inOrder = records.toSorted((a, b) => Number(a.headers["errorOffset"]) - Number(b.headers["errorOffset"]));
    assert.deepEqual(
      inOrder.map(({ headers }) => [headers["error"], headers["errorOffset"]]),
      expected.map((reason, at) => [reason, String(at + 1)]),
    );
    assert.deepEqual(
      [
        inOrder[3]?.key,
        inOrder[3]?.value.toString(),
        inOrder[3]?.headers["errorTopic"],
        inOrder[3]?.headers["errorPartition"],
        inOrder[3]?.headers["errorService"],
      ],
      ["+", "wildcard", running.topic, "0", "source"],
    );
    assert.match(inOrder[3]?.headers["errorDetail"] ?? "", /topic is not valid/);
    assert.equal(await running.gateway.metric("sluice_kafka_source_unmapped_records_total", { reason: "template" }), 2);
    assert.equal(await running.gateway.metric("sluice_kafka_source_records_total", { outcome: "deadLettered" }), 7);
  },
);

test(
  "while the dead-letter topic is missing nothing is skipped: the partition waits, and health says for what",
  options,
  async (t) => {
    const deadLetter = `dead-${randomUUID()}`;
    const { own, broker } = await openOwn();
    await own.createTopic("in", 1);
    const gateway = await startTestGateway(sourceConfig(own.brokers, { topics: ["in"], group: "g", deadLetter }));
    t.after(() => gateway.stop());
    const device = await connectDevice(t, gateway);
    await broker.produce("in", [{ value: "no key" }, { key: "good", value: "1" }]);
    await eventually(
      () => healthOf(gateway.gateway)?.detail?.includes(`the dead-letter topic ${deadLetter} can't be written`),
      true,
      20_000,
    );
    assert.deepEqual(await broker.committed("g", "in"), { 0: 0 });
    await own.createTopic(deadLetter, 1);
    await eventually(() => broker.committed("g", "in"), { 0: 2 }, 20_000);
    assert.deepEqual(device.texts(), ["good 1"]);
    assert.equal((await own.consume(deadLetter, { count: 1 })).length, 1);
    await connected(gateway);
  },
);

test("without a dead-letter topic: skip counts, logs the offset and goes on", options, async (t) => {
  const running = await run(t);
  const device = await connectDevice(t, running.gateway);
  await kafka().records.produce(running.topic, [
    { value: "no key" },
    { value: "nor here" },
    { key: "good", value: "1" },
  ]);
  await eventually(() => device.texts(), ["good 1"], 20_000);
  await eventually(() => offsetsOf(running), { 0: 3 });
  assert.equal(await running.gateway.metric("sluice_kafka_source_records_total", { outcome: "skipped" }), 2);
  const lines = running.gateway.logs.filter(({ reason }) => reason === "template");
  assert.deepEqual(
    lines.map(({ topic, partition, offset }) => [topic, partition, offset]),
    [[running.topic, 0, "0"]],
  );
});

test("onUnmapped: stop holds the partition, not the others, until the config maps the record", options, async (t) => {
  const running = await run(t, { onUnmapped: "stop" }, 2);
  const { gateway, topic } = running;
  const device = await connectDevice(t, gateway);
  await kafka().records.produce(topic, [
    { partition: 0, key: "a", value: "1" },
    { partition: 0, value: "no key" },
    { partition: 0, key: "a", value: "2" },
    { partition: 1, key: "b", value: "3" },
  ]);
  await eventually(() => offsetsOf(running), { 0: 1, 1: 1 }, 20_000);
  await eventually(() => /partition 0 of .* waits at 1/.test(healthOf(gateway.gateway)?.detail ?? ""), true);
  const { problems } = await gateway.reload(running.config({ mqtt: { topic: "{{ key | default: 'nokey' }}" } }));
  assert.deepEqual(problems, []);
  await eventually(() => offsetsOf(running), { 0: 3, 1: 1 }, 20_000);
  // What was under way behind the record that held is handed on again: at least once.
  const texts = device.texts();
  for (const each of ["a 1", "nokey no key", "a 2", "b 3"]) assert.ok(texts.includes(each), each);
  assert.ok(texts.indexOf("nokey no key") < texts.lastIndexOf("a 2"));
  await connected(gateway);
});

test(
  "from: latest begins behind what is there, and its place is committed at once: a stop skips nothing",
  options,
  async (t) => {
    const topic = `latest-${randomUUID()}`;
    await kafka().createTopic(topic, 2);
    await kafka().records.produce(topic, [{ partition: 0, key: "a", value: "old" }]);
    const group = `g-${randomUUID()}`;
    const config = sourceConfig(kafka().brokers, { topics: [topic], group, from: "latest" });
    const first = await startTestGateway(config);
    await connected(first);
    assert.deepEqual(await kafka().records.committed(group, topic), { 0: 1, 1: 0 });
    await first.stop();
    assert.equal(await kafka().records.members(group), 0);
    await kafka().records.produce(topic, [
      { partition: 0, key: "a", value: "new" },
      { partition: 1, key: "b", value: "newer" },
    ]);
    const second = await startTestGateway(config.replace('"port":0', `"port":${await findFreePort()}`));
    t.after(() => second.stop());
    // Retained or not, nobody was there: what counts is that the group has gone over both.
    await eventually(() => kafka().records.committed(group, topic), { 0: 2, 1: 1 }, 20_000);
    assert.equal(await second.metric("sluice_kafka_source_records_total"), 2);
  },
);

test(
  "an expression takes in a topic that is made later, from its first record, and none of Kafka's own",
  options,
  async (t) => {
    const prefix = `site-${randomUUID()}`;
    const group = `g-${randomUUID()}`;
    await kafka().createTopic(`${prefix}-1`);
    const config = sourceConfig(kafka().brokers, {
      topics: [`/^${prefix}-|__/`],
      group,
      from: "latest",
      mqtt: { topic: "{{ topic }}" },
    });
    const gateway = await startTestGateway(config);
    t.after(() => gateway.stop());
    await connected(gateway);
    const device = await connectDevice(t, gateway);
    await kafka().createTopic(`${prefix}-2`, 1);
    await kafka().records.produce(`${prefix}-2`, [{ value: "early" }]);
    await eventually(() => device.texts(), [`${prefix}-2 early`], 30_000);
  },
);

test(
  "a topic that does not exist is reported and waited for, the others are read, and none is created",
  options,
  async (t) => {
    const topic = `later-${randomUUID()}`;
    const running = await run(t);
    const { gateway } = running;
    await gateway.reload(running.config({ topics: [running.topic, topic] }));
    const device = await connectDevice(t, gateway);
    await kafka().records.produce(running.topic, [{ key: "here", value: "1" }]);
    await eventually(() => device.texts(), ["here 1"], 20_000);
    assert.match(healthOf(gateway.gateway)?.detail ?? "", new RegExp(`^failing: .*no topic ${topic}`));
    assert.ok(!(await kafka().listTopics()).includes(topic));
    await kafka().createTopic(topic, 1);
    await kafka().records.produce(topic, [{ key: "there", value: "2" }]);
    await eventually(() => device.texts(), ["here 1", "there 2"], 20_000);
    await connected(gateway);
  },
);

test(
  "reload: an unchanged source is kept, a changed one hands on without a loss or a repetition, a bad one changes nothing",
  options,
  async (t) => {
    const running = await run(t);
    const { gateway, topic } = running;
    const assignments = () => gateway.metric("sluice_kafka_source_assignments_total");
    const device = await connectDevice(t, gateway);
    await kafka().records.produce(topic, [{ key: "a", value: "1" }]);
    await eventually(() => device.texts(), ["a 1"], 20_000);
    await gateway.reload(`${running.config({})}\n---\n{"kind":"Pipeline","name":"p","filters":[]}`);
    assert.equal(await assignments(), 1);
    const bad = await gateway.reload(running.config({ mqtt: { topic: "{{ key" } }));
    assert.match(JSON.stringify(bad.problems), /> mqtt\.topic".*template can't be read/);
    assert.equal(await assignments(), 1);
    await gateway.reload(running.config({ mqtt: { topic: "v2/{{ key }}" } }));
    await kafka().records.produce(topic, [{ key: "a", value: "2" }]);
    await eventually(() => device.texts(), ["a 1", "v2/a 2"], 20_000);
    await eventually(() => offsetsOf(running), { 0: 2 });
    assert.equal(await kafka().records.members(running.group), 1);
  },
);

test(
  "a change that fails elsewhere leaves the source as it was, and the one that would have replaced it reads nothing",
  options,
  async (t) => {
    const running = await run(t);
    const { gateway, topic } = running;
    await connected(gateway);
    const other = {
      kind: "KafkaSource",
      name: "another",
      backend: kafka().brokers,
      group: running.group,
      topics: [topic],
      proxy: "mqttproxy",
      mqtt: { topic: "wrong" },
    };
    const failing = { kind: "AdminAPI", name: "taken", port: gateway.port(), host: "127.0.0.1" };
    const config = [running.config({ mqtt: { topic: "wrong" } }), JSON.stringify(other), JSON.stringify(failing)].join(
      "\n---\n",
    );
    const { problems } = await gateway.reload(config);
    assert.notDeepEqual(problems, []);
    const device = await connectDevice(t, gateway);
    await kafka().records.produce(topic, [{ key: "right", value: "1" }]);
    await eventually(() => device.texts(), ["right 1"], 20_000);
    assert.equal(await kafka().records.members(running.group), 1);
  },
);

test(
  "QUEUE_FULL is tried again and never skipped: the partition waits until the client has made room",
  options,
  async (t) => {
    const topic = `full-${randomUUID()}`;
    const group = `g-${randomUUID()}`;
    await kafka().createTopic(topic, 1);
    const config = sourceConfig(kafka().brokers, { topics: [topic], group }).replace(
      '"brokerMode":true',
      '"brokerMode":true,"queue":{"maxMessages":10,"onFull":"fault"}',
    );
    const gateway = await startTestGateway(config);
    t.after(() => gateway.stop());
    const persistent = { clientId: "away", clean: false, properties: { sessionExpiryInterval: 3600 } };
    const first = await connectDevice(t, gateway, persistent);
    await first.client.endAsync();
    const values = Array.from({ length: 30 }, (_, at) => String(at));
    await kafka().records.produce(
      topic,
      values.map((value) => ({ key: "k", value })),
    );
    await eventually(() => /queue of away/.test(healthOf(gateway.gateway)?.detail ?? ""), true, 20_000);
    await eventually(() => kafka().records.committed(group, topic), { 0: 10 }, 20_000);
    assert.ok((await gateway.metric("sluice_kafka_source_retries_total", { code: "QUEUE_FULL" })) > 0);
    assert.equal(await gateway.metric("sluice_kafka_source_lag_records"), 20);
    const back = await connectDevice(t, gateway, { ...persistent, filter: "" });
    await eventually(
      () => back.texts(),
      values.map((value) => `k ${value}`),
      20_000,
    );
    await eventually(() => kafka().records.committed(group, topic), { 0: 30 });
    await connected(gateway);
  },
);

test("a proxy that is not there yet: records wait for the config that brings it", options, async (t) => {
  const running = await run(t, { proxy: "second" });
  const { gateway } = running;
  await kafka().records.produce(running.topic, [{ key: "k", value: "1" }]);
  await eventually(() => /no proxy is named second/.test(healthOf(gateway.gateway)?.detail ?? ""), true, 20_000);
  const second = { kind: "MQTTProxy", name: "second", host: "127.0.0.1", port: 0, brokerMode: true };
  await gateway.reload(`${running.config({})}\n---\n${JSON.stringify(second)}`);
  await eventually(() => offsetsOf(running), { 0: 1 }, 20_000);
});

test("commit: acknowledged waits for the PUBACK of the client that is connected", options, async (t) => {
  const running = await run(t, { commit: "acknowledged", acknowledgeTimeoutMs: 60_000 });
  const client = await connectRaw(running.gateway.port(), "slow");
  t.after(() => client.destroy());
  await client.subscribe("#", 1);
  await kafka().records.produce(running.topic, [
    { key: "k", value: "1" },
    { key: "k", value: "2" },
  ]);
  const [one, two] = await client.expectMany("publish", 2);
  // The second alone does not move the offset past the first.
  client.send({ cmd: "puback", messageId: two?.messageId ?? 0 });
  await eventually(() => running.gateway.metric("sluice_kafka_source_records_total"), 1);
  await eventually(() => running.gateway.metric("sluice_kafka_source_inflight_records"), 1);
  assert.deepEqual(await offsetsOf(running), { 0: 0 });
  client.send({ cmd: "puback", messageId: one?.messageId ?? 0 });
  await eventually(() => offsetsOf(running), { 0: 2 });
});

test(
  "two gateways in a group share the partitions; when one leaves the other takes over what it had, and nothing is lost",
  options,
  async (t) => {
    const running = await run(t, {}, 4);
    const second = await startTestGateway(running.config({}));
    let stopped: Promise<void> | undefined;
    t.after(() => (stopped ??= second.stop()));
    const devices = [await connectDevice(t, running.gateway), await connectDevice(t, second)];
    const partitions = (gateway: TestGateway) => gateway.metric("sluice_kafka_source_partitions");
    await eventually(async () => [await partitions(running.gateway), await partitions(second)], [2, 2], 30_000);
    let count = 0;
    const produce = async (rounds: number): Promise<void> => {
      for (let round = 0; round < rounds; round++) {
        const messages = Array.from({ length: 40 }, () => ({
          partition: count % 4,
          key: `p${count % 4}`,
          value: String(count++),
        }));
        await kafka().records.produce(running.topic, messages);
      }
    };
    await produce(10);
    stopped = second.stop();
    await produce(10);
    await stopped;
    await produce(10);
    const seen = () => new Set(devices.flatMap(({ got }) => got.map(({ payload }) => Number(payload.toString()))));
    await eventually(() => seen().size, count, 30_000);
    assert.equal(await partitions(running.gateway), 4);
    // A source that stops commits what is done: nothing comes twice.
    assert.equal(
      devices.reduce((sum, { got }) => sum + got.length, 0),
      count,
    );
    await eventually(async () => Object.values(await offsetsOf(running)).reduce((sum, each) => sum + each, 0), count);
  },
);

test(
  "a broker that is killed and comes back, and one that hangs: health tells, nothing is lost",
  options,
  async (t) => {
    const { own, broker } = await openOwn();
    await own.createTopic("outage", 1);
    const gateway = await startTestGateway(
      sourceConfig(own.brokers, { topics: ["outage"], group: "outage", requestTimeoutMs: 1500 }),
    );
    t.after(() => gateway.stop());
    const device = await connectDevice(t, gateway);
    const failing = () =>
      eventually(() => healthOf(gateway.gateway)?.detail?.startsWith("failing: Kafka"), true, 30_000);
    const had = (expected: number) => eventually(() => new Set(device.texts()).size, expected, 30_000);
    await broker.produce("outage", [{ key: "k", value: "1" }]);
    await had(1);
    const isReady = { status: 200, strict: 200, detail: "" };
    assert.deepEqual(await readinessOf(gateway), isReady);
    await own.kill();
    await failing();
    // Devices are served whatever becomes of Kafka: it is for those who ask with `?strict`.
    const { detail, ...statuses } = await readinessOf(gateway);
    assert.deepEqual(statuses, { status: 200, strict: 503 });
    assert.match(detail, /^failing: Kafka at 127\.0\.0\.1:\d+: .* \(for \d+ s\)$/);
    await own.restart();
    await broker.produce("outage", [{ key: "k", value: "2" }]);
    await had(2);
    await connected(gateway);
    assert.deepEqual(await readinessOf(gateway), isReady);
    own.pause();
    await failing();
    own.resume();
    await broker.produce("outage", [{ key: "k", value: "3" }]);
    await had(3);
    await connected(gateway);
    const lines = gateway.logs.filter(({ msg, level }) => level === 40 && String(msg).startsWith("KafkaSource"));
    assert.ok(lines.length < 12, `${lines.length} lines for two outages`);
  },
);

test(
  "nothing is read before the listeners are ready, nor by a source whose config is not the one that runs",
  options,
  async (t) => {
    const topic = `ready-${randomUUID()}`;
    const group = `g-${randomUUID()}`;
    await kafka().createTopic(topic, 1);
    await kafka().records.produce(topic, [{ key: "k", value: "1" }]);
    const ready = Promise.withResolvers<void>();
    const documents: ConfigDocument[] = [];
    const published: string[] = [];
    const { host, close } = createTestHost({ name: "source" });
    t.after(close);
    const {
      kind: _kind,
      name: _name,
      ...config
    } = JSON.parse(sourceConfig(kafka().brokers, { topics: [topic], group }).split("\n---\n")[1] ?? "") as Record<
      string,
      unknown
    >;
    const service = await sourceMaker(config, {
      ...host,
      ready: ready.promise,
      config: { ...host.config, documents: () => documents },
      publish: async (_proxy, message) => {
        published.push(message.topic);
        return { matched: 1, connected: 1, durable: true };
      },
    });
    t.after(() => service.stop?.());
    await service.start?.();
    documents.push({ kind: "KafkaSource", name: "source" });
    await sleep(1500);
    assert.equal(await kafka().records.members(group), 0);
    documents.length = 0;
    ready.resolve();
    await sleep(1500);
    assert.equal(await kafka().records.members(group), 0);
    documents.push({ kind: "KafkaSource", name: "source" });
    await eventually(() => published, ["k"], 20_000);
  },
);

test("how a cluster is reached is said to KafkaSource as it is to KafkaMQTT", async () => {
  const [sink, source] = await Promise.all(["schema.json", "source.schema.json"].map(readSchema));
  for (const option of ["backend", "ssl", "sasl", "requestTimeoutMs", "connectionTimeoutMs"]) {
    assert.deepEqual(source?.properties[option], sink?.properties[option], option);
  }
});

test("what a schema can't say is told with its place", async () => {
  const problems = validateSource({
    ...(await defaults({ topics: ["a b", "/(/", "/^dead/"], deadLetter: "dead-1", backend: ["nowhere"] })),
  });
  assert.deepEqual(
    problems.map(({ field, message }) => `${field.join(".")}: ${message.slice(0, 30)}`),
    [
      'backend.0: "nowhere" is not host:port: wr',
      'topics.0: "a b" is no name of a Kafka to',
      "topics.1: the expression can't be read: ",
      "deadLetter: dead-1 is one of the topics th",
    ],
  );
});
