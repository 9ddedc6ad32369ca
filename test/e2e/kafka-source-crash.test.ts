/** kill -9 on the way from Kafka to a device, once at each moment (the long suite takes more seeds), and within a group. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { eventually } from "../helpers/eventually.ts";
import { startTestGateway } from "../helpers/gateway.ts";
import { openSourceBroker, sourceConfig } from "../helpers/kafka-source.ts";
import { connectRaw } from "../helpers/raw-client.ts";
import { spawnGateway } from "../helpers/spawned-gateway.ts";
import { startKafka } from "../helpers/kafka.ts";
import { assertSourceLostNothing, crashBroker, crashSource } from "../helpers/kafka-source-crash.ts";

const kafka = await startKafka(crashBroker);
const options = { skip: kafka ? false : "no Kafka", timeout: 120_000 };
after(() => kafka?.stop());

test(
  "KafkaSource, the device, its ack, the commit: the gateway killed between any two, and nothing is lost",
  options,
  async (t) => {
    assert.ok(kafka);
    const report = await crashSource(kafka, 4, 1);
    t.diagnostic(JSON.stringify(report));
    assertSourceLostNothing(report);
  },
);

test("a gateway of a group is killed: the other takes over what no client had acknowledged", options, async (t) => {
  assert.ok(kafka);
  const { brokers } = kafka;
  const broker = await openSourceBroker(brokers);
  t.after(() => broker.close());
  await kafka.createTopic("in", 4);
  // Sessions die with the process: what was acknowledged to it is with the device, and the rest must not be committed.
  const source = { topics: ["in"], group: "g", commit: "acknowledged", commitIntervalMs: 20, sessionTimeoutMs: 1000 };
  const config = sourceConfig(brokers, source);
  const stays = await startTestGateway(config);
  t.after(() => stays.stop());
  const folder = await mkdtemp(join(tmpdir(), "sluice-source-kill-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  await writeFile(join(folder, "sluice.yaml"), `${config}\n---\n{"kind":"AdminAPI","name":"admin-api","port":0}`);
  const dies = await spawnGateway(join(folder, "sluice.yaml"));
  t.after(() => dies.stop());
  const seen = new Set<string>();
  for (const [port, clientId] of [
    [stays.port(), "one"],
    [dies.port, "two"],
  ] as const) {
    const device = await connectRaw(port, clientId);
    t.after(() => device.destroy());
    await device.subscribe("#", 1);
    device.onPacket = (packet) => {
      if (packet.cmd !== "publish") return;
      seen.add(packet.payload.toString());
      device.send({ cmd: "puback", messageId: packet.messageId ?? 0 });
    };
  }
  const partitions = (gateway: { metric: (name: string) => Promise<number> }) =>
    gateway.metric("sluice_kafka_source_partitions");
  await eventually(async () => [await partitions(stays), await partitions(dies)], [2, 2], 30_000);
  let count = 0;
  const produce = (records: number): Promise<void> =>
    broker.produce(
      "in",
      Array.from({ length: records }, () => ({ partition: count % 4, key: "k", value: String(count++) })),
    );
  for (let round = 0; round < 10; round++) await produce(40);
  await eventually(() => seen.size > 150, true, 20_000);
  dies.signal("SIGKILL");
  for (let round = 0; round < 10; round++) await produce(40);
  await eventually(() => seen.size, count, 30_000);
  assert.equal(await stays.metric("sluice_kafka_source_records_total", { outcome: "skipped" }), 0);
  assert.equal(await partitions(stays), 4);
  await eventually(
    async () => Object.values(await broker.committed("g", "in")).reduce((sum, each) => sum + each, 0),
    count,
  );
});
