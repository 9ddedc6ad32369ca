/** kill -9 between any two of: fetched by KafkaSource, with the device, acknowledged by it, committed. Nothing may be lost. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { eventually } from "./eventually.ts";
import type { Kafka } from "./kafka.ts";
import { openSourceBroker, sourceConfig } from "./kafka-source.ts";
import { createRandom } from "./random.ts";
import { connectRaw, type RawClient } from "./raw-client.ts";
import { spawnGateway, type SpawnedGateway } from "./spawned-gateway.ts";

/** What has just happened, to some record of the round, when the gateway is killed. */
const moments = ["produced", "delivered", "acknowledged", "committed"] as const;
const partitions = 3;

/** A gateway that was killed is missed after a second: brokers of their own allow that. */
export const crashBroker = { config: { "group.min.session.timeout.ms": "500" } };

export interface SourceCrashReport {
  readonly produced: number;
  readonly missing: string[];
  /** Records of one partition that the device first got in another order. */
  readonly swapped: string[];
  readonly repeated: number;
  readonly committed: number;
}

/** @param rounds four for each of the moments, at least, for a fair share of all */
export async function crashSource(kafka: Kafka, rounds: number, seed: number): Promise<SourceCrashReport> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-source-crash-"));
  const file = join(folder, "sluice.yaml");
  const [topic, group] = [`crash-${seed}`, `crash-${seed}`];
  const random = createRandom(seed);
  const broker = await openSourceBroker(kafka.brokers);
  await kafka.createTopic(topic, partitions);
  const source = {
    topics: [topic],
    group,
    sessionTimeoutMs: 1000,
    commitIntervalMs: 20,
    mqtt: { topic: "to/{{ key }}" },
  };
  const store = { kind: "LevelStore", name: "sessions", dir: "sessions", fsync: "always" };
  await writeFile(file, sourceConfig(kafka.brokers, source, [store, { kind: "AdminAPI", name: "admin-api", port: 0 }]));

  const produced: string[] = [];
  const got = new Set<string>();
  let repeated = 0;
  let gateway: SpawnedGateway | undefined;
  let device: RawClient | undefined;

  /** @param happened called at each step of a record on its way */
  async function connectDevice(port: number, happened: (moment: string) => void): Promise<void> {
    device = await connectRaw(port, "device", { clean: false });
    const client = device;
    const early = [...client.received];
    client.onPacket = (packet) => {
      if (packet.cmd !== "publish") return;
      const text = packet.payload.toString();
      if (got.has(text)) repeated++;
      got.add(text);
      happened("delivered");
      // One that was killed in between has not been acknowledged.
      if (client.isClosed) return;
      client.send({ cmd: "puback", messageId: packet.messageId ?? 0 });
      happened("acknowledged");
    };
    for (const packet of early) client.onPacket(packet);
  }

  async function produce(count: number): Promise<void> {
    const messages = Array.from({ length: count }, () => {
      const partition = random(partitions);
      const value = `${partition} ${produced.length}`;
      produced.push(value);
      return { partition, key: `p${partition}`, value };
    });
    await broker.produce(topic, messages);
  }

  async function committed(): Promise<number> {
    const offsets = Object.values(await broker.committed(group, topic));
    return offsets.reduce((sum, offset) => sum + Math.max(0, offset), 0);
  }

  try {
    gateway = await spawnGateway(file);
    device = await connectRaw(gateway.port, "device", { clean: false });
    await device.subscribe("to/#", 1);
    device.destroy();
    for (let round = 0; round < rounds; round++) {
      const moment = moments[round % moments.length];
      const running = (gateway ??= await spawnGateway(file));
      let left = 1 + random(40);
      await connectDevice(running.port, (what) => {
        if (what !== moment || --left !== 0) return;
        running.signal("SIGKILL");
        device?.destroy();
      });
      const before = await committed();
      await produce(60);
      if (moment === "produced") await sleep(random(400));
      else if (moment === "committed") await eventually(async () => (await committed()) > before, true, 30_000);
      else await eventually(() => left <= 0, true, 30_000);
      running.signal("SIGKILL");
      device?.destroy();
      gateway = undefined;
    }
    gateway = await spawnGateway(file);
    await connectDevice(gateway.port, () => undefined);
    await eventually(() => produced.every((value) => got.has(value)), true, 30_000).catch(() => undefined);
    await eventually(committed, produced.length, 10_000).catch(() => undefined);
    return {
      produced: produced.length,
      missing: produced.filter((value) => !got.has(value)),
      swapped: swapsOf([...got]),
      repeated,
      committed: await committed(),
    };
  } finally {
    device?.destroy();
    await gateway?.stop();
    await broker.close();
    await rm(folder, { recursive: true, force: true });
  }
}

function swapsOf(values: readonly string[]): string[] {
  const last = new Map<string, number>();
  return values.flatMap((value) => {
    const [partition = "", number] = value.split(" ");
    const before = last.get(partition) ?? -1;
    last.set(partition, Number(number));
    return Number(number) < before ? [`${value} after ${before}`] : [];
  });
}

export function assertSourceLostNothing({ produced, missing, swapped, committed }: SourceCrashReport): void {
  assert.deepEqual({ missing, swapped, committed }, { missing: [], swapped: [], committed: produced });
}
