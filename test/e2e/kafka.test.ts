/** From a client's PUBLISH to the record in a real Kafka, with the documentation's configs and the one that is shipped. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { after, test, type TestContext } from "node:test";
import { connectAsync } from "mqtt";
import { parseAllDocuments } from "yaml";
import { eventually } from "../helpers/eventually.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";
import { startKafka, type Kafka } from "../helpers/kafka.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw, publishPacket } from "../helpers/raw-client.ts";

const found = await startKafka();
const options = { skip: found ? false : "no Kafka", timeout: 60_000 };
after(() => found?.stop());

function kafka(): Kafka {
  assert.ok(found);
  return found;
}

interface Document {
  kind: string;
  name: string;
  filters?: Record<string, unknown>[];
  [field: string]: unknown;
}

async function documentsOf(...paths: string[]): Promise<Document[]> {
  const texts = await Promise.all(paths.map((path) => readFile(new URL(`../../${path}`, import.meta.url), "utf8")));
  return texts.flatMap((text) => parseAllDocuments(text).map((document) => document.toJS() as Document));
}

/** The page's first config, without TLS (its certificates are placeholders), with our Kafka; or with other documents. */
async function startPage(t: TestContext, pipeline: Document | undefined, topic: string): Promise<TestGateway> {
  const [proxy, auth, publish] = await documentsOf("test/fixtures/doc-yaml/mqttproxy.yaml");
  assert.ok(proxy && auth && publish);
  Object.assign(proxy, { host: "127.0.0.1", port: 0, useTLS: false, certificate: [] });
  const used = pipeline ?? publish;
  for (const filter of used.filters ?? []) {
    if (filter["kind"] === "KafkaMQTT") Object.assign(filter, { backend: kafka().brokers, topic: { default: topic } });
  }
  const gateway = await startTestGateway(toYaml([proxy, auth, used]));
  t.after(() => gateway.stop());
  return gateway;
}

const credentials = { username: "test", password: "test", reconnectPeriod: 0 };

test("A36: the page's first config writes records with clientID, username and mqttTopic", options, async (t) => {
  const topic = `page-${randomUUID()}`;
  await kafka().createTopic(topic);
  const gateway = await startPage(t, undefined, topic);
  await assert.rejects(connectAsync(gateway.url(), { ...credentials, password: "wrong" }));
  const client = await connectAsync(gateway.url(), { ...credentials, clientId: "dev1" });
  await client.publishAsync("a/b/c", "text", { qos: 1 });
  const binary = Buffer.from([0, 255, 128]);
  await client.publishAsync("a/b/c", binary, { qos: 0 });
  await client.publishAsync("d", "", { qos: 1 });
  await client.endAsync();
  const records = await kafka().consume(topic, { count: 3 });
  assert.deepEqual(
    records.map(({ key, value, headers }) => ({ key, value, headers })),
    [
      ["a/b/c", Buffer.from("text")],
      ["a/b/c", binary],
      ["d", Buffer.alloc(0)],
    ].map(([mqttTopic, value]) => ({
      key: "dev1",
      value,
      headers: { clientID: "dev1", username: "test", mqttTopic },
    })),
  );
  assert.equal(new Set(records.map(({ partition }) => partition)).size, 1);
});

/** The page's three examples; its first needs the topicIndex that the page gets wrong. */
const examples = [
  {
    mqttTopic: "gateway/gate123/iphone/log",
    topic: "iot_phone",
    headers: { gateway: "gateway", gatewayID: "gate123", device: "iphone", status: "log" },
  },
  {
    mqttTopic: "direct/xiaomi/status",
    topic: "iot_phone",
    headers: { direct: "direct", device: "xiaomi", status: "status" },
  },
  { mqttTopic: "direct/tv/log", topic: "iot_other", headers: { direct: "direct", device: "tv", status: "log" } },
];

/** Publishes the examples with a payload of this run, and finds their records. */
async function publishExamples(gateway: TestGateway, expected: typeof examples): Promise<void> {
  const run = randomUUID();
  const clientId = `dev-${run}`;
  const client = await connectAsync(gateway.url(), { ...credentials, clientId });
  for (const { mqttTopic } of expected) await client.publishAsync(mqttTopic, `${run} ${mqttTopic}`, { qos: 1 });
  await client.endAsync();
  for (const { mqttTopic, topic, headers } of expected) {
    const record = (await kafka().consume(topic)).find(({ value }) => String(value) === `${run} ${mqttTopic}`);
    assert.deepEqual(
      [record?.key, record?.headers],
      [clientId, { clientID: clientId, username: "test", mqttTopic, ...headers }],
    );
  }
}

test(
  "the page's TopicMapper config, as printed: example 1 goes to iot_other, with the headers of the page",
  options,
  async (t) => {
    const [pipeline] = await documentsOf("test/fixtures/doc-yaml/topic-mapper.yaml");
    const gateway = await startPage(t, pipeline, `default-${randomUUID()}`);
    await publishExamples(
      gateway,
      examples.map((example, index) => (index === 0 ? { ...example, topic: "iot_other" } : example)),
    );
  },
);

test("the shipped config/sluice-kafka.yaml maps the page's three examples as the page says", options, async (t) => {
  const text = await readFile(new URL("../../config/sluice-kafka.yaml", import.meta.url), "utf8");
  const env = { KAFKA_BROKERS: kafka().brokers.join(","), SLUICE_MQTT_PORT: "0" };
  const gateway = await startTestGateway(text, { env });
  t.after(() => gateway.stop());
  await publishExamples(gateway, examples);
});

test("A05, L25: 30 clients publish 50 messages each; Kafka has each client's in order", options, async (t) => {
  const topic = `order-${randomUUID()}`;
  await kafka().createTopic(topic);
  const gateway = await startPage(t, undefined, topic);
  await Promise.all(
    Array.from({ length: 30 }, async (_, index) => {
      const client = await connectAsync(gateway.url(), { ...credentials, clientId: `c${index}` });
      await Promise.all(Array.from({ length: 50 }, (__, n) => client.publishAsync("a/b", String(n), { qos: 1 })));
      await client.endAsync();
    }),
  );
  const records = await kafka().consume(topic, { count: 1500 });
  for (let index = 0; index < 30; index++) {
    const own = records.filter(({ key }) => key === `c${index}`);
    assert.deepEqual(
      own.map(({ value }) => Number(value)),
      own.map((_, n) => n),
    );
    assert.equal(own.length, 50);
  }
});

test("L9: a record for a topic that Kafka does not allow is not acknowledged", options, async (t) => {
  const [pipeline] = await documentsOf("test/fixtures/doc-yaml/topic-mapper.yaml");
  assert.ok(pipeline);
  const mapper = pipeline.filters?.[0] as { policies: { route: { topic: string }[] }[] };
  for (const policy of mapper.policies) for (const route of policy.route) route.topic = "not allowed";
  const gateway = await startPage(t, pipeline, "unused");
  const client = await connectRaw(gateway.port(), "c", { username: "test", password: Buffer.from("test") });
  client.send(publishPacket("direct/tv/log", "x", 1));
  await eventually(() => gateway.metric("sluice_filter_packets_total", { outcome: "illegalTopic" }), 1);
  assert.deepEqual(await client.flush(), []);
});

test("a record that Kafka refuses goes behind jumpIf, with the reason, and its PUBACK comes", options, async (t) => {
  const [topic, dead] = [`jump-${randomUUID()}`, `dead-${randomUUID()}`];
  await kafka().createTopic(topic);
  await kafka().createTopic(dead);
  const sink = { kind: "KafkaMQTT", backend: kafka().brokers };
  const rules = [{ when: { packetType: "Publish" }, pipeline: "publish" }];
  const gateway = await startTestGateway(
    toYaml([
      { kind: "MQTTProxy", name: "mqttproxy", host: "127.0.0.1", port: 0, maxPacketBytes: 4_000_000, rules },
      {
        kind: "Pipeline",
        name: "publish",
        flow: [{ filter: "sink", jumpIf: { "": "END", recordTooLarge: "short" } }, { filter: "short" }],
        filters: [
          { name: "sink", ...sink, topic: { default: topic } },
          // Compressed, it is small enough.
          { name: "short", ...sink, topic: { default: dead }, mqtt: { headerKey: "kafka-error" }, compression: "gzip" },
        ],
      },
    ]),
  );
  t.after(() => gateway.stop());
  const client = await connectAsync(gateway.url(), { clientId: "dev", reconnectPeriod: 0 });
  for (const payload of ["before", "x".repeat(2_000_000), "after"]) await client.publishAsync("a", payload, { qos: 1 });
  await client.endAsync();
  assert.deepEqual(
    (await kafka().consume(topic)).map(({ value }) => String(value)),
    ["before", "after"],
  );
  const [letter] = await kafka().consume(dead);
  assert.equal(letter?.value.length, 2_000_000);
  const { error, errorTopic, errorFilter } = letter?.headers ?? {};
  assert.deepEqual(
    { error, errorTopic, errorFilter },
    { error: "recordTooLarge", errorTopic: topic, errorFilter: "publish/sink" },
  );
});

test("L6, L7: a gateway starts while Kafka is away, and acknowledges nothing meanwhile", options, async (t) => {
  const [, auth, publish] = await documentsOf("test/fixtures/doc-yaml/mqttproxy.yaml");
  // Nothing listens on port 1.
  const [sink] = publish?.filters ?? [];
  Object.assign(sink ?? {}, { backend: ["127.0.0.1:1"] });
  const gateway = await startTestGateway(
    toYaml([
      {
        kind: "MQTTProxy",
        name: "mqttproxy",
        host: "127.0.0.1",
        port: 0,
        faultGrace: 1,
        rules: [{ when: { packetType: "Publish" }, pipeline: publish?.name }],
      },
      auth!,
      { ...publish, timeout: 0.5 },
    ]),
  );
  t.after(() => gateway.stop());
  const client = await connectRaw(gateway.port(), "c");
  client.send(publishPacket("a/b", "x", 1));
  await client.expectClose();
  const health = gateway.gateway.host.health().find(({ name }) => name.startsWith("pipeline-mqtt-publish/"));
  assert.equal(health?.ok, false);
});
