/**
 * One long absence of Kafka with `ack: buffered`: devices publish numbers at a steady rate before it, in it, and after it
 * until the disk buffer has caught up. Do they notice, how much memory does it take, how fast does the buffer drain beside
 * what goes on arriving?
 */
import { randomUUID } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Kafka as KafkaJs, logLevel } from "kafkajs";
import { connectAsync, type MqttClient } from "mqtt";
import { eventually } from "../helpers/eventually.ts";
import type { Kafka } from "../helpers/kafka.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { spawnGateway, type SpawnedGateway } from "../helpers/spawned-gateway.ts";

export interface OutageOptions {
  readonly kafka: Kafka;
  readonly outageSeconds: number;
  /** Messages a second, of all devices together. */
  readonly rate: number;
  readonly clients: number;
  /** Bytes of a payload, its number included. */
  readonly payloadBytes: number;
  readonly print: (line: string) => void;
}

export interface OutageResult {
  readonly acked: number;
  /** Of those, the ones that no record has. */
  readonly missing: number;
  readonly duplicated: number;
  readonly outOfOrder: number;
  /** Connections that ended before the devices were done. */
  readonly reconnects: number;
  /** From PUBLISH to PUBACK, the longest: before Kafka went, and from then on. */
  readonly slowestMs: { readonly before: number; readonly after: number };
  /** PUBACKs a second while Kafka was away. */
  readonly awayRate: number;
  /** PUBACKs a second while the buffer drained. */
  readonly arrivalRate: number;
  /** Records a second that Kafka acknowledged meanwhile. */
  readonly replayRate: number;
  /** Records in the buffer when Kafka was back. */
  readonly backlog: number;
  /** From Kafka's return until the oldest record in the buffer was younger than a second. */
  readonly emptySeconds: number;
  /** Resident bytes of the gateway: before the outage, at its end, and the most. */
  readonly rss: { readonly before: number; readonly atEnd: number; readonly most: number };
  /** Of the gateway in the outage, per message. */
  readonly cpuMicros: number;
}

/** For the longest outage that makes sense. */
const giveUpMs = 30 * 60_000;

export async function runOutage(options: OutageOptions): Promise<OutageResult> {
  const { kafka, outageSeconds, print } = options;
  const topic = `outage-${randomUUID()}`;
  await kafka.createTopic(topic, 8);
  const folder = mkdtempSync(join(tmpdir(), "sluice-outage-"));
  const config = join(folder, "sluice.yaml");
  writeFileSync(config, toYaml(documents(kafka, topic)));
  const gateway = await spawnGateway(config);
  const fleet = await startFleet(options, gateway.port);
  const rss = { before: 0, atEnd: 0, most: 0 };
  const watch = setInterval(() => {
    rss.most = Math.max(rss.most, rssOf(gateway));
  }, 500);
  try {
    await sleep(Math.min(10_000, outageSeconds * 250));
    rss.before = rssOf(gateway);
    const slowestBefore = fleet.takeSlowest();
    const awayFrom = { at: performance.now(), acked: fleet.acked(), cpu: cpuOf(gateway) };
    await kafka.kill();
    print("Kafka is gone");
    for (let second = 0; second < outageSeconds; second++) {
      await sleep(Math.max(0, awayFrom.at + 1000 * (second + 1) - performance.now()));
      if (second % 60 === 59) {
        const waiting = await gateway.metric("sluice_kafka_buffer_records");
        print(`${second + 1} s: ${waiting} records in the buffer, gateway ${megabytes(rssOf(gateway))} MB`);
      }
    }
    const away = fleet.acked() - awayFrom.acked;
    const awayRate = away / ((performance.now() - awayFrom.at) / 1000);
    const cpuMicros = (1e6 * (cpuOf(gateway) - awayFrom.cpu)) / away;
    rss.atEnd = rssOf(gateway);
    await kafka.restart();
    const back = { at: performance.now(), acked: fleet.acked(), sent: await sent(gateway) };
    const backlog = await gateway.metric("sluice_kafka_buffer_records");
    print(`Kafka is back: ${backlog} records in the buffer, gateway ${megabytes(rss.atEnd)} MB`);
    // Until it has found Kafka, the clock runs all the same.
    await eventually(
      async () =>
        (await gateway.metric("sluice_kafka_connected")) === 1 &&
        (await gateway.metric("sluice_kafka_buffer_age_seconds")) < 1,
      true,
      giveUpMs,
    );
    const seconds = (performance.now() - back.at) / 1000;
    const arrivalRate = (fleet.acked() - back.acked) / seconds;
    const replayRate = ((await sent(gateway)) - back.sent) / seconds;
    print(`caught up after ${seconds.toFixed(1)} s`);
    await fleet.finish();
    await eventually(() => gateway.metric("sluice_kafka_buffer_records"), 0, 60_000);
    const report = await compare(kafka, topic, fleet.counts());
    return {
      ...report,
      acked: fleet.acked(),
      reconnects: fleet.reconnects(),
      slowestMs: { before: slowestBefore, after: fleet.takeSlowest() },
      awayRate,
      arrivalRate,
      replayRate,
      backlog,
      emptySeconds: seconds,
      rss,
      cpuMicros,
    };
  } finally {
    clearInterval(watch);
    await fleet.end();
    await gateway.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

export function describeOutage(result: OutageResult): string {
  const { rss, slowestMs } = result;
  return [
    `acknowledged            ${result.acked}`,
    `acked and missing       ${result.missing}`,
    `duplicated              ${result.duplicated}`,
    `out of order            ${result.outOfOrder}`,
    `reconnects of devices   ${result.reconnects}`,
    `slowest PUBACK          ${Math.round(slowestMs.before)} ms with Kafka, ${Math.round(slowestMs.after)} ms from then on`,
    `acknowledged, Kafka away ${Math.round(result.awayRate)} a second, ${Math.round(result.cpuMicros)} us of the gateway's CPU each`,
    `in the buffer at its return ${result.backlog}`,
    `arriving while it drains ${Math.round(result.arrivalRate)} a second`,
    `replayed meanwhile      ${Math.round(result.replayRate)} a second`,
    `caught up after         ${result.emptySeconds.toFixed(1)} s`,
    `gateway's memory        ${megabytes(rss.before)} MB before, ${megabytes(rss.atEnd)} MB at the outage's end, ${megabytes(rss.most)} MB at most`,
  ].join("\n");
}

function documents(kafka: Kafka, topic: string): object[] {
  const filter = {
    name: "kafka",
    kind: "KafkaMQTT",
    backend: kafka.brokers,
    topic: { default: topic },
    ack: "buffered",
    buffer: { dir: "buffer", maxBytes: 4 * 2 ** 30, onFull: "reject" },
  };
  const rules = [{ when: { packetType: "Publish" }, pipeline: "publish" }];
  return [
    { kind: "MQTTProxy", name: "mqttproxy", host: "127.0.0.1", port: 0, rules },
    { kind: "Pipeline", name: "publish", filters: [filter] },
    { kind: "AdminAPI", name: "admin-api", port: 0 },
  ];
}

interface Fleet {
  acked(): number;
  reconnects(): number;
  /** Milliseconds of the slowest PUBACK since the last call. */
  takeSlowest(): number;
  /** Numbers that each client has had acknowledged: all below. */
  counts(): ReadonlyMap<string, number>;
  /** Publishes no more; resolves when all is acknowledged. */
  finish(): Promise<void>;
  end(): Promise<void>;
}

async function startFleet({ clients, rate, payloadBytes }: OutageOptions, port: number): Promise<Fleet> {
  const counts = new Map<string, number>();
  const filler = "x".repeat(payloadBytes);
  const devices: { id: string; client: MqttClient; next: number }[] = [];
  let [acked, published, reconnects, slowest] = [0, 0, 0, 0];
  let isOver = false;
  for (let index = 0; index < clients; index++) {
    const id = `device-${index}`;
    const client = await connectAsync(`mqtt://127.0.0.1:${port}`, { clientId: id, clean: false, keepalive: 10 });
    client.on("error", () => undefined);
    client.on("close", () => {
      if (!isOver) reconnects++;
    });
    counts.set(id, 0);
    devices.push({ id, client, next: 0 });
  }
  const startedAt = performance.now();
  const timer = setInterval(() => {
    const due = ((performance.now() - startedAt) * rate) / 1000;
    while (published < due) {
      const device = devices[published++ % devices.length];
      if (!device) break;
      const { id, client } = device;
      const at = performance.now();
      const payload = `${id} ${device.next++} ${filler}`.slice(0, Math.max(payloadBytes, id.length + 9));
      client.publish(`from/${id}`, payload, { qos: 1 }, (error) => {
        if (error) return;
        acked++;
        counts.set(id, (counts.get(id) ?? 0) + 1);
        slowest = Math.max(slowest, performance.now() - at);
      });
    }
  }, 5);
  return {
    acked: () => acked,
    reconnects: () => reconnects,
    takeSlowest() {
      const taken = slowest;
      slowest = 0;
      return taken;
    },
    counts: () => counts,
    async finish() {
      clearInterval(timer);
      await eventually(() => published - acked, 0, 60_000);
      isOver = true;
    },
    async end() {
      clearInterval(timer);
      isOver = true;
      await Promise.all(devices.map(({ client }) => client.endAsync(true)));
    },
  };
}

/** Reads the topic without keeping it: a million records and more. */
async function compare(kafka: Kafka, topic: string, counts: ReadonlyMap<string, number>) {
  const seen = new Map([...counts].map(([id, count]) => [id, new Uint8Array(count)]));
  const newest = new Map<string, number>();
  const wanted = [...(await kafka.endOffsets(topic)).values()].reduce((sum, each) => sum + each, 0);
  let [read, duplicated, outOfOrder] = [0, 0, 0];
  const consumer = new KafkaJs({ brokers: kafka.brokers, logLevel: logLevel.NOTHING }).consumer({
    groupId: `outage-${randomUUID()}`,
  });
  try {
    await consumer.connect();
    await consumer.subscribe({ topic, fromBeginning: true });
    const all = Promise.withResolvers<void>();
    await consumer.run({
      autoCommit: false,
      eachBatch({ batch }) {
        for (const { value } of batch.messages) {
          const [id = "", text = ""] = String(value).split(" ", 2);
          const number = Number(text);
          const known = seen.get(id);
          read++;
          if (!known) continue;
          if (known[number] === 1) {
            duplicated++;
            continue;
          }
          known[number] = 1;
          if (number < (newest.get(id) ?? -1)) outOfOrder++;
          else newest.set(id, number);
        }
        if (read >= wanted) all.resolve();
        return Promise.resolve();
      },
    });
    if (wanted > 0) await all.promise;
  } finally {
    await consumer.disconnect();
  }
  const missing = [...seen.values()].reduce((sum, known) => sum + known.filter((each) => each === 0).length, 0);
  return { missing, duplicated, outOfOrder };
}

function sent(gateway: SpawnedGateway): Promise<number> {
  return gateway.metric("sluice_kafka_records_acked_total");
}

function megabytes(bytes: number): number {
  return Math.round(bytes / 1e6);
}

function rssOf({ pid }: SpawnedGateway): number {
  return 1024 * Number(/VmRSS:\s*(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
}

/** Seconds, of a clock of 100 ticks a second. */
function cpuOf({ pid }: SpawnedGateway): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
  return (Number(fields[11]) + Number(fields[12])) / 100;
}
