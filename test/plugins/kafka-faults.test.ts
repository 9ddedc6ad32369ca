/** KafkaMQTT behind a network that hangs, breaks and lies: each fault has its outcome, its counter and its end. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import { startFaultProxy, type FaultMode, type FaultProxy } from "../faults/fault-proxy.ts";
import { eventually } from "../helpers/eventually.ts";
import { buildKafka, numbersOf, publish, upTo, type BuiltKafka } from "../helpers/kafka-filter.ts";
import { startKafka, type Kafka } from "../helpers/kafka.ts";

let proxy: FaultProxy | undefined;
const found = await startKafka({
  async secondListener(port) {
    proxy = await startFaultProxy(port);
    return proxy.port;
  },
  config: { "connections.max.idle.ms": "1500" },
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

function faults(): FaultProxy {
  assert.ok(proxy);
  return proxy;
}

async function createTopic(partitions = 2): Promise<string> {
  const topic = `t-${randomUUID()}`;
  await kafka().createTopic(topic, partitions);
  return topic;
}

const impatient = { requestTimeoutMs: 400, connectionTimeoutMs: 400 };
const build = (topic: string, config: object = {}): Promise<BuiltKafka> =>
  buildKafka({ backend: kafka().second, topic: { default: topic }, ...impatient, ...config });

/** Numbers from `from` on, 10 at a time, as long as `keepOn` says; resolves with their results. */
async function publishWhile(built: BuiltKafka, from: number, keepOn: () => boolean | Promise<boolean>) {
  const results: Promise<unknown>[] = [];
  while (await keepOn()) {
    for (let n = 0; n < 10; n++) results.push(publish(built, String(from + results.length)));
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return results;
}

const cases: { mode: FaultMode; delayMs?: number; reason: string; health: RegExp }[] = [
  { mode: "hang", reason: "unavailable", health: /^failing: .*(timed out|timeout|Timeout)/i },
  { mode: "mute", reason: "unavailable", health: /^failing: / },
  { mode: "halfOpen", reason: "unavailable", health: /^failing: / },
  { mode: "refuse", reason: "unavailable", health: /^failing: / },
];
for (const { mode, reason, health } of cases) {
  test(`${mode}: nothing is acknowledged, and afterwards everything is there once and in order`, options, async () => {
    const topic = await createTopic();
    await using built = await build(topic);
    assert.equal(await publish(built, "0"), undefined);
    let ackedMeanwhile = 0;
    faults().set(mode);
    const first = publish(built, "1").finally(() => ackedMeanwhile++);
    const more = await publishWhile(built, 2, async () => (await built.errors(reason)) < 2);
    assert.equal(ackedMeanwhile, 0);
    assert.match(built.filter.health?.().detail ?? "", health);
    assert.equal(built.filter.health?.().ok, false);
    faults().set("pass");
    const results = await Promise.all([first, ...more]);
    assert.ok(results.every((result) => result === undefined));
    const records = await kafka().consume(topic);
    assert.deepEqual(numbersOf(records), upTo(results.length + 1));
    assert.equal(built.filter.health?.().ok, true);
    const warnings = built.host.logs.filter(({ level }) => level === "warn");
    assert.ok(
      warnings.length <= 2,
      `a line for each kind of trouble: ${warnings.map((line) => line.message).join("; ")}`,
    );
    assert.ok(warnings.some(({ fields }) => Array.isArray(fields["brokers"])));
  });
}

test("rule 9: an answer that is lost doubles what was stored, unless the producer is idempotent", options, async () => {
  for (const idempotent of [true, false]) {
    const topic = await createTopic(1);
    await using built = await build(topic, { idempotent });
    assert.equal(await publish(built, "0"), undefined);
    faults().set("mute");
    const second = publish(built, "1");
    await eventually(async () => (await built.errors("unavailable")) > 0, true);
    faults().set("pass");
    assert.equal(await second, undefined);
    const numbers = numbersOf(await kafka().consume(topic));
    if (idempotent) assert.deepEqual(numbers, [0, 1]);
    else assert.deepEqual([...new Set(numbers)], [0, 1]);
    assert.equal(numbers.length > 2, !idempotent, `${numbers.length} records`);
  }
});

test("connections that are cut again and again lose, double and reorder nothing", options, async () => {
  const topic = await createTopic();
  await using built = await build(topic);
  let rounds = 0;
  const before = faults().connections;
  const results = await publishWhile(built, 0, () => {
    if (++rounds % 10 === 0) faults().cut();
    return rounds < 100;
  });
  assert.ok((await Promise.all(results)).every((result) => result === undefined));
  assert.deepEqual(numbersOf(await kafka().consume(topic)), upTo(results.length));
  assert.ok(faults().connections > before + 5, `${faults().connections - before} connections`);
});

test("a slow network is no fault", options, async () => {
  const topic = await createTopic();
  await using built = await build(topic, { requestTimeoutMs: 2000 });
  faults().set("delay", 50);
  const results = await Promise.all(upTo(20).map((number) => publish(built, String(number))));
  faults().set("pass");
  assert.ok(results.every((result) => result === undefined));
  assert.equal(await built.host.metricValue("sluice_kafka_errors_total"), undefined);
});

test("a connection that the broker closes as idle is no fault, and health does not flap", options, async () => {
  const topic = await createTopic();
  await using built = await build(topic);
  let wasUnwell = 0;
  const watch = setInterval(() => {
    if (built.filter.health?.().ok !== true) wasUnwell++;
  }, 20);
  assert.equal(await publish(built, "0"), undefined);
  wasUnwell = 0;
  const before = faults().connections;
  await new Promise((resolve) => setTimeout(resolve, 4000));
  assert.equal(await publish(built, "1"), undefined);
  clearInterval(watch);
  assert.ok(faults().connections > before, "the broker had closed the connection");
  assert.equal(wasUnwell, 0);
  assert.deepEqual(numbersOf(await kafka().consume(topic)), [0, 1]);
  assert.equal(built.host.logs.filter(({ level }) => level === "warn").length, 0);
});

test("a topic that comes back with fewer partitions is written again", options, async () => {
  const topic = await createTopic(4);
  await using built = await build(topic, { topic: { default: topic, create: "never" } });
  const clients = upTo(20).map((number) => `client-${number}`);
  const all = (payload: string) => Promise.all(clients.map((clientId) => publish(built, payload, { clientId })));
  assert.ok((await all("0")).every((result) => result === undefined));
  await kafka().deleteTopic(topic);
  const waiting = all("1");
  await eventually(async () => (await built.errors("unknownTopic")) > 0, true);
  await kafka().createTopic(topic, 1);
  assert.ok((await waiting).every((result) => result === undefined));
  assert.ok((await all("2")).every((result) => result === undefined));
  const records = await kafka().consume(topic);
  for (const clientId of clients) {
    assert.deepEqual(numbersOf(records.filter(({ key }) => key === clientId)), [1, 2], clientId);
  }
});
