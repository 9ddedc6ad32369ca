/** What AdminAPI says of KafkaMQTT, with a real Kafka: connected, buffering or failing, and no change without a cause. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test, type TestContext } from "node:test";
import kafkajs from "kafkajs";
import { eventually } from "../helpers/eventually.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";
import { startKafka, type Kafka } from "../helpers/kafka.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw, publishPacket } from "../helpers/raw-client.ts";

const modules = "org.apache.kafka.common.security";
/** Restricted: the user of the second listener may do what it was granted, and nothing else. */
const found = await startKafka({
  secondListener: (port) => port,
  config: {
    "connections.max.idle.ms": "1500",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECOND:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
    "sasl.enabled.mechanisms": "PLAIN",
    "listener.name.second.plain.sasl.jaas.config": `${modules}.plain.PlainLoginModule required user_gateway="s3cret";`,
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
  },
});
const options = { skip: found ? false : "no Kafka", timeout: 90_000 };
after(() => found?.stop());

function kafka(): Kafka {
  assert.ok(found);
  return found;
}

/** Two proxies, `direct` and `buffered`, each with a KafkaMQTT of that name. */
async function start(t: TestContext, kafkaOptions: object = {}): Promise<TestGateway> {
  const topic = `health-${randomUUID()}`;
  await kafka().createTopic(topic, 2);
  const common = { kind: "KafkaMQTT", backend: kafka().brokers, topic: { default: topic }, ...kafkaOptions };
  const impatient = { deliveryTimeoutMs: 800, requestTimeoutMs: 500, connectionTimeoutMs: 500 };
  const documents = (["direct", "buffered"] as const).flatMap((name) => [
    {
      kind: "MQTTProxy",
      name,
      host: "127.0.0.1",
      port: 0,
      rules: [{ when: { packetType: "Publish" }, pipeline: `to-${name}` }],
    },
    {
      kind: "Pipeline",
      name: `to-${name}`,
      filters: [
        {
          name,
          ...common,
          ...impatient,
          ...(name === "buffered" && { ack: "buffered", buffer: { dir: "buffer" } }),
        },
      ],
    },
  ]);
  const gateway = await startTestGateway(toYaml(documents));
  t.after(() => gateway.stop());
  return gateway;
}

interface Told {
  /** Of each filter: the first word of what it says, and the whole. */
  readonly words: Record<string, string | undefined>;
  readonly details: Record<string, string>;
  readonly unhealthy: readonly string[];
  /** HTTP status of `/readyz`, and with `?strict`. */
  readonly status: number;
  readonly strict: number;
}

async function ask({ api }: TestGateway): Promise<Told> {
  const answer = await fetch(`${api}/readyz?verbose`);
  const body = (await answer.json()) as {
    unhealthy: { name: string }[];
    health: { name: string; detail: string }[];
  };
  const filters = body.health.filter(({ name }) => name.startsWith("to-"));
  const details = Object.fromEntries(filters.map(({ name, detail }) => [name.split("/")[1] ?? "", detail]));
  const words: Record<string, string | undefined> = Object.fromEntries(
    Object.entries(details).map(([name, detail]) => [name, /^\w+/.exec(detail)?.[0]]),
  );
  const { status: strict } = await fetch(`${api}/readyz?strict`);
  return { words, details, unhealthy: body.unhealthy.map(({ name }) => name), status: answer.status, strict };
}

/** What the status of the pipeline's object says of its one filter. */
async function statusOf({ api }: TestGateway, name: string): Promise<string> {
  return await (await fetch(`${api}/apis/v2/status/objects/to-${name}`)).text();
}

/** Every different answer within `ms`, asked 20 times a second. */
async function watch(gateway: TestGateway, ms: number): Promise<string[]> {
  const seen = new Set<string>();
  for (const until = performance.now() + ms; performance.now() < until;) {
    const { words, status, strict } = await ask(gateway);
    seen.add(JSON.stringify([words, status, strict]));
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return [...seen];
}

const allWell = JSON.stringify([{ direct: "connected", buffered: "connected" }, 200, 200]);

async function publish(gateway: TestGateway, proxy: string, count: number): Promise<number> {
  const client = await connectRaw(gateway.port(proxy), `${proxy}-device`);
  for (let id = 1; id <= count; id++) client.send(publishPacket("a/b", String(id), id));
  const acks: unknown[] = [];
  client.onPacket = (packet) => void acks.push(packet);
  await Promise.race([eventually(() => acks.length, count, 3000).catch(() => undefined), client.closed]);
  client.destroy();
  return acks.length;
}

test(
  "connected, then failing or buffering with its records, then connected again with nobody publishing",
  options,
  async (t) => {
    const gateway = await start(t);
    await eventually(async () => (await ask(gateway)).words, { direct: "connected", buffered: "connected" }, 20_000);
    assert.equal(await publish(gateway, "direct", 1), 1);
    assert.equal(await publish(gateway, "buffered", 1), 1);
    // Longer than the broker keeps an idle connection.
    assert.deepEqual(await watch(gateway, 4000), [allWell]);

    await kafka().kill();
    assert.equal(await publish(gateway, "direct", 2), 0);
    assert.equal(await publish(gateway, "buffered", 3), 3);
    await eventually(async () => (await ask(gateway)).words, { direct: "failing", buffered: "buffering" }, 20_000);
    const told = await ask(gateway);
    assert.match(
      told.details["buffered"] ?? "",
      /^buffering \(3 records, \d+ s\): failing: Kafka at 127\.0\.0\.1:\d+: /,
    );
    assert.match(told.details["direct"] ?? "", /^failing: Kafka at 127\.0\.0\.1:\d+: .* \(for \d+ s\)$/);
    // It serves its devices, so it is no reason to say that anything is wrong.
    assert.deepEqual([told.unhealthy, told.status, told.strict], [["to-direct/direct"], 200, 503]);
    assert.match(await statusOf(gateway, "direct"), /failing: Kafka at/);
    assert.match(await statusOf(gateway, "buffered"), /buffering \(3 records/);

    await kafka().restart();
    await eventually(async () => (await ask(gateway)).words, { direct: "connected", buffered: "connected" }, 30_000);
    assert.deepEqual(await watch(gateway, 4000), [allWell]);
  },
);

test("where it may write one topic and nothing else, it is connected all the time", options, async (t) => {
  const sasl = { mechanism: "plain", username: "gateway", password: "s3cret" };
  const topic = `restricted-${randomUUID()}`;
  await kafka().createTopic(topic, 2);
  const admin = new kafkajs.Kafka({ brokers: kafka().brokers, logLevel: kafkajs.logLevel.NOTHING }).admin();
  await admin.connect();
  await admin.createAcls({
    acl: [
      {
        resourceType: kafkajs.AclResourceTypes.TOPIC,
        resourceName: topic,
        resourcePatternType: kafkajs.ResourcePatternTypes.LITERAL,
        principal: "User:gateway",
        host: "*",
        operation: kafkajs.AclOperationTypes.WRITE,
        permissionType: kafkajs.AclPermissionTypes.ALLOW,
      },
    ],
  });
  await admin.disconnect();
  const gateway = await start(t, { backend: kafka().second, topic: { default: topic, create: "never" }, sasl });
  await eventually(async () => (await ask(gateway)).words, { direct: "connected", buffered: "connected" }, 20_000);
  assert.equal(await publish(gateway, "direct", 1), 1);
  assert.equal(await publish(gateway, "buffered", 1), 1);
  assert.deepEqual(await watch(gateway, 4000), [allWell]);
  assert.equal(await publish(gateway, "direct", 1), 1);
  assert.deepEqual(await watch(gateway, 500), [allWell]);
  assert.equal(await gateway.metric("sluice_kafka_errors_total"), 0);
  assert.equal((await kafka().consume(topic)).length, 3);
});

test("two clusters in one pipeline: a PUBACK once both have it, and each says how it is", options, async (t) => {
  const other = kafka();
  const one = await startKafka();
  assert.ok(one);
  t.after(() => one.stop());
  const topic = `both-${randomUUID()}`;
  await one.createTopic(topic, 1);
  await other.createTopic(topic, 1);
  const filter = (name: string, backend: readonly string[]) => ({
    name,
    kind: "KafkaMQTT",
    backend,
    topic: { default: topic },
    deliveryTimeoutMs: 800,
    requestTimeoutMs: 500,
    connectionTimeoutMs: 500,
  });
  const gateway = await startTestGateway(
    toYaml([
      {
        kind: "MQTTProxy",
        name: "both",
        host: "127.0.0.1",
        port: 0,
        rules: [{ when: { packetType: "Publish" }, pipeline: "to-both" }],
      },
      {
        kind: "Pipeline",
        name: "to-both",
        filters: [filter("one", one.brokers), filter("other", other.brokers)],
      },
    ]),
  );
  t.after(() => gateway.stop());
  const valuesOf = async (cluster: Kafka) => (await cluster.consume(topic)).map(({ value }) => String(value));
  await eventually(async () => (await ask(gateway)).words, { one: "connected", other: "connected" }, 20_000);
  assert.equal(await publish(gateway, "both", 2), 2);
  assert.deepEqual(
    [await valuesOf(one), await valuesOf(other)],
    [
      ["1", "2"],
      ["1", "2"],
    ],
  );

  await other.kill();
  assert.equal(await publish(gateway, "both", 1), 0);
  await eventually(async () => (await ask(gateway)).words, { one: "connected", other: "failing" }, 20_000);
  assert.deepEqual((await ask(gateway)).unhealthy, ["to-both/other"]);
  await other.restart();
  await eventually(async () => (await ask(gateway)).words, { one: "connected", other: "connected" }, 30_000);
  assert.equal(await publish(gateway, "both", 1), 1);
  // The first of the two has it from each attempt, the second from the last.
  assert.deepEqual(
    [await valuesOf(one), await valuesOf(other)],
    [
      ["1", "2", "1", "1"],
      ["1", "2", "1"],
    ],
  );
});
