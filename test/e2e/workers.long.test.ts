/** Workers for longer: killed, hung and changed under load, into Kafka and between clients. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import { createCrashPublisher, createCrashSubscriber } from "../helpers/crash-clients.ts";
import { eventually } from "../helpers/eventually.ts";
import { startKafka } from "../helpers/kafka.ts";
import { createRandom } from "../helpers/random.ts";
import { allRun, comeBack, isAlive, startWorkers, type WorkersGateway } from "../helpers/workers.ts";

const broker = (more: string): string => `kind: MQTTProxy\nname: mqttproxy\nport: 0\nbrokerMode: true\n${more}`;

async function pidOf(gateway: WorkersGateway, at: number): Promise<number> {
  return (await gateway.pids())[at] ?? 0;
}

test("a worker that hangs is ended and started again", async (t) => {
  const gateway = await startWorkers(t, broker(""));
  const other = await gateway.connect(0, "other");
  const from = gateway.process.logs.length;
  const pid = await pidOf(gateway, 1);
  process.kill(pid, "SIGSTOP");
  await eventually(async () => await isAlive(pid), false, 60_000);
  await gateway.process.logged(({ msg }) => msg === "A worker runs again", from);
  assert.equal(await gateway.metric("sluice_worker_restarts_total", { reason: "hung" }), 1);
  await allRun(gateway);
  assert.deepEqual(await other.flush(), []);
});

test("workers killed and the config changed again and again, under load: nothing acknowledged is lost or doubled", async (t) => {
  const random = createRandom(31);
  const gateway = await startWorkers(t, broker("retryInterval: 10"));
  const { port } = gateway.process;
  const publishers = [createCrashPublisher("p1", 1), createCrashPublisher("p2", 2), createCrashPublisher("p3", 2)];
  const subscribers = [createCrashSubscriber("s1", 1), createCrashSubscriber("s2", 2)];
  const all = [...publishers, ...subscribers];
  for (const each of [...subscribers, ...publishers]) await each.connect(port);
  for (let round = 1; round <= 8; round++) {
    const acked = publishers.map((each) => each.acked.size);
    await eventually(() => publishers.every((each, n) => each.acked.size > (acked[n] ?? 0) + 100), true, 30_000);
    await gateway.write(broker(`retryInterval: ${10 + round}`));
    const pid = await pidOf(gateway, random(2));
    // Before, in or after the change: whichever it is, all workers have the same config in the end.
    if (random(2) === 0) gateway.process.signal("SIGHUP");
    process.kill(pid, "SIGKILL");
    gateway.process.signal("SIGHUP");
    await eventually(async () => await isAlive(pid), false);
    for (const each of all) await comeBack(each, port);
    await allRun(gateway);
  }
  await Promise.all(publishers.map((each) => each.finish()));
  const published = publishers.flatMap((each) => [...each.acked]);
  for (const each of subscribers) {
    await eventually(() => published.filter((payload) => !each.got.has(payload)).length, 0, 30_000);
    assert.deepEqual(each.doubles, []);
    each.destroy();
  }
  for (const each of publishers) each.destroy();
});

test("a worker killed under QoS 1 load into Kafka: every record that was acknowledged is there", async (t) => {
  const kafka = await startKafka();
  if (!kafka) {
    t.skip("there is no Kafka");
    return;
  }
  t.after(() => kafka.stop());
  const topic = `workers-${randomUUID()}`;
  await kafka.createTopic(topic, 3);
  const rule = "rules: [{ when: { packetType: Publish }, pipeline: pub }]";
  const filter = `{ name: kafka, kind: KafkaMQTT, backend: ${JSON.stringify(kafka.brokers)}, topic: { default: ${topic} } }`;
  const gateway = await startWorkers(
    t,
    `kind: MQTTProxy\nname: mqttproxy\nport: 0\n${rule}\n---\nkind: Pipeline\nname: pub\nfilters: [${filter}]`,
  );
  const publishers = ["a", "b", "c", "d"].map((id) => createCrashPublisher(id, 1));
  for (const each of publishers) await each.connect(gateway.process.port);
  for (let round = 0; round < 3; round++) {
    const acked = publishers.map((each) => each.acked.size);
    await eventually(() => publishers.every((each, n) => each.acked.size > (acked[n] ?? 0) + 1000), true, 60_000);
    process.kill(await pidOf(gateway, round % 2), "SIGKILL");
    await allRun(gateway);
    for (const each of publishers) await comeBack(each, gateway.process.port);
  }
  await Promise.all(publishers.map((each) => each.finish()));
  const acked = publishers.flatMap((each) => [...each.acked]);
  const stored = new Set((await kafka.consume(topic)).map(({ value }) => value.toString()));
  assert.deepEqual(
    acked.filter((payload) => !stored.has(payload)),
    [],
  );
  for (const each of publishers) each.destroy();
});
