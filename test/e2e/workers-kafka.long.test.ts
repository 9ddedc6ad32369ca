/** Workers and a Kafka that goes away: each has a disk buffer of its own, and a KafkaSource is one for all of them. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { createCrashPublisher } from "../helpers/crash-clients.ts";
import { eventually } from "../helpers/eventually.ts";
import { startKafka } from "../helpers/kafka.ts";
import { openSourceBroker, sourceConfig } from "../helpers/kafka-source.ts";
import type { RawClient } from "../helpers/raw-client.ts";
import { spawnGateway, type SpawnedGateway } from "../helpers/spawned-gateway.ts";
import { allRun, childrenOf, comeBack, startWorkers } from "../helpers/workers.ts";

const kafka = await startKafka({ own: true });
after(() => kafka?.stop());
const options = { skip: kafka ? false : "no Kafka", timeout: 120_000 };

interface Folder {
  readonly folder: string;
  readonly start: (workers: number) => Promise<SpawnedGateway>;
}

/** Starts the gateway of one folder, with as many workers as it is told. */
async function openFolder(t: TestContext, documents: string): Promise<Folder> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-workers-kafka-"));
  const running = new Set<SpawnedGateway>();
  t.after(async () => {
    for (const each of running) await each.stop();
    await rm(folder, { recursive: true, force: true });
  });
  return {
    folder,
    async start(workers: number): Promise<SpawnedGateway> {
      const config = join(folder, "sluice.yaml");
      const head = `kind: Gateway\nname: gateway\nworkers: ${workers}\ndrain: { timeout: 5, rate: 0 }`;
      await writeFile(config, [head, documents, "kind: AdminAPI\nname: admin-api\nport: 0"].join("\n---\n"));
      const gateway = await spawnGateway(config, ["--no-watch"]);
      running.add(gateway);
      return gateway;
    },
  };
}

test(
  "a disk buffer a worker: kill -9 of one and of all while Kafka is away, and what was acknowledged is sent; fewer workers only when it is",
  options,
  async (t) => {
    assert.ok(kafka);
    const topic = `buffered-${randomUUID()}`;
    await kafka.createTopic(topic);
    const { folder, start } = await openFolder(
      t,
      `kind: MQTTProxy
name: mqttproxy
port: 0
rules: [{ when: { packetType: Publish }, pipeline: pub }]
---
kind: Pipeline
name: pub
filters: [{ name: kafka, kind: KafkaMQTT, backend: ${JSON.stringify(kafka.brokers)}, topic: { default: ${topic} }, ack: buffered, buffer: { dir: buffer } }]`,
    );
    const publishers = ["a", "b", "c", "d"].map((id) => createCrashPublisher(id, 1, 10));
    const more = async (count: number): Promise<void> => {
      const acked = publishers.map((each) => each.acked.size);
      await eventually(() => publishers.every((each, n) => each.acked.size >= (acked[n] ?? 0) + count), true, 30_000);
    };
    let gateway = await start(2);
    await kafka.kill();
    for (const each of publishers) await each.connect(gateway.port);
    await more(50);
    const [victim] = await childrenOf(gateway.pid);
    process.kill(victim ?? 0, "SIGKILL");
    await gateway.logged(({ msg }) => msg === "A worker runs again");
    for (const each of publishers) if (each.isClosed()) await comeBack(each, gateway.port);
    await more(50);
    gateway.signal("SIGKILL");
    await gateway.stop();
    for (const each of publishers) each.destroy();
    const names = await readdir(join(folder, "buffer"));
    assert.ok(names.includes("worker-1"), names.join(", "));
    await assert.rejects(start(1), /worker-1 holds \d+ records that Kafka does not have.*start it with workers: 2/s);

    gateway = await start(2);
    for (const each of publishers) await each.connect(gateway.port);
    await more(20);
    await kafka.restart();
    await more(20);
    await Promise.all(publishers.map((each) => each.finish()));
    const acked = publishers.flatMap((each) => [...each.acked]);
    const missing = async (): Promise<number> => {
      const stored = new Set((await kafka.consume(topic)).map(({ value }) => value.toString()));
      return acked.filter((payload) => !stored.has(payload)).length;
    };
    await eventually(missing, 0, 30_000);
    for (const each of publishers) each.destroy();
    assert.equal(await gateway.stop(), 0);

    const alone = await start(1);
    const last = createCrashPublisher("last", 1, 10);
    await last.connect(alone.port);
    await last.finish();
    last.destroy();
    assert.equal(await alone.stop(), 0);
  },
);

test(
  "a KafkaSource is one member of its group, whose records reach the clients of all workers; one is killed, and nothing is lost or committed early",
  options,
  async (t) => {
    assert.ok(kafka);
    const [topic, group] = [`in-${randomUUID()}`, `g-${randomUUID()}`];
    await kafka.createTopic(topic, 2);
    const broker = await openSourceBroker(kafka.brokers);
    t.after(() => broker.close());
    const source = {
      topics: [topic],
      group,
      commit: "acknowledged",
      commitIntervalMs: 20,
      mqtt: { topic: "to/{{ key }}" },
    };
    const gateway = await startWorkers(t, sourceConfig(kafka.brokers, source));
    const got = new Map<string, Set<string>>();
    /** Acknowledges at once, or once `open`. */
    let isOpen = true;
    const held: (() => void)[] = [];
    async function connectDevice(worker: number, clientId: string): Promise<RawClient> {
      const device = await gateway.connect(worker, clientId, { clean: false });
      const seen = got.get(clientId) ?? new Set<string>();
      if (!got.has(clientId)) await device.subscribe("to/#", 1);
      got.set(clientId, seen);
      const take = (packet: (typeof device.received)[number]): void => {
        if (packet.cmd !== "publish") return;
        const acknowledge = (): void => {
          seen.add(packet.payload.toString());
          device.send({ cmd: "puback", messageId: packet.messageId ?? 0 });
        };
        if (isOpen) acknowledge();
        else held.push(acknowledge);
      };
      const early = [...device.received];
      device.onPacket = take;
      for (const packet of early) take(packet);
      return device;
    }
    const devices = [await connectDevice(0, "d0"), await connectDevice(1, "d1")];
    let count = 0;
    const produce = (): Promise<void> =>
      broker.produce(
        topic,
        Array.from({ length: 50 }, () => ({ partition: count % 2, key: "k", value: String(count++) })),
      );
    const committed = async (): Promise<number> =>
      Object.values(await broker.committed(group, topic)).reduce((sum, each) => sum + Math.max(0, each), 0);
    await produce();
    await eventually(() => [...got.values()].map(({ size }) => size), [50, 50], 30_000);
    await eventually(committed, 50);
    assert.equal(await broker.members(group), 1);

    isOpen = false;
    await produce();
    await eventually(() => held.length, 100);
    assert.equal(await committed(), 50, "of the second fifty none is acknowledged");
    gateway.kill(0);
    await devices[0]?.closed;
    await allRun(gateway);
    isOpen = true;
    for (const acknowledge of held.splice(0)) acknowledge();
    got.get("d0")?.forEach((value) => Number(value) >= 50 && got.get("d0")?.delete(value));
    const back = await connectDevice(1, "d0");
    await produce();
    await eventually(() => [...got.values()].map(({ size }) => size), [count, count], 30_000);
    await eventually(committed, count, 20_000);
    assert.equal(await broker.members(group), 1);
    for (const each of [back, devices[1]]) each?.destroy();
  },
);
