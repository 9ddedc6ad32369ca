/**
 * Devices publish numbered messages through a gateway of its own process to a real Kafka behind a {@link FaultProxy},
 * while connections, Kafka, the gateway and its disk fail. Afterwards Kafka is read and compared with what was
 * acknowledged.
 */
import { spawnSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { eventually } from "../helpers/eventually.ts";
import { findFreePort } from "../helpers/free-port.ts";
import type { Kafka } from "../helpers/kafka.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { createRandom } from "../helpers/random.ts";
import { spawnGateway, type SpawnedGateway } from "../helpers/spawned-gateway.ts";
import { startDevice, type Device } from "./device.ts";
import type { FaultProxy } from "./fault-proxy.ts";
import { judge, type Report } from "./report.ts";

const networkFaults = ["hang", "mute", "halfOpen", "refuse", "delay", "cut"] as const;
const processFaults = ["killGateway", "stopGateway", "killKafka", "pauseKafka"] as const;
export type FaultKind = (typeof networkFaults)[number] | (typeof processFaults)[number] | "fillDisk";

export interface RunOptions {
  readonly kafka: Kafka;
  readonly proxy: FaultProxy;
  readonly messages: number;
  readonly seconds: number;
  readonly faults: number;
  readonly clients: number;
  readonly ack: "kafka" | "buffered";
  readonly seed: number;
  /** Seconds that a fault lasts, at least and at most. */
  readonly faultSeconds: readonly [number, number];
  /** Which there may be; all by default. */
  readonly kinds?: readonly FaultKind[];
  readonly print: (line: string) => void;
}

export interface RunResult extends Report {
  readonly faults: readonly FaultKind[];
  /** Most memory that the gateway had, in bytes. */
  readonly peakRss: number;
}

export async function runFaults(options: RunOptions): Promise<RunResult> {
  const { kafka, proxy, ack, print } = options;
  const random = createRandom(options.seed);
  const topic = `faults-${randomUUID()}`;
  await kafka.createTopic(topic, 8);
  const folder = mkdtempSync(join(tmpdir(), "sluice-faults-"));
  const disk = join(folder, "disk");
  mkdirSync(disk);
  const isMounted =
    ack === "buffered" && spawnSync("mount", ["-t", "tmpfs", "-o", "size=256m", "tmpfs", disk]).status === 0;
  const port = await findFreePort();
  const config = join(folder, "sluice.yaml");
  writeFileSync(config, toYaml(documents(options, port, topic)));

  let gateway = await spawnGateway(config);
  let peakRss = 0;
  const watch = setInterval(() => {
    peakRss = Math.max(peakRss, rssOf(gateway));
  }, 200);
  const kills: number[] = [];
  const done: FaultKind[] = [];

  async function inflict(kind: FaultKind, ms: number): Promise<void> {
    done.push(kind);
    print(`${kind} for ${(ms / 1000).toFixed(1)} s`);
    switch (kind) {
      case "cut":
        for (const until = performance.now() + ms; performance.now() < until;) {
          proxy.cut();
          await sleep(200);
        }
        break;
      case "killGateway":
      case "stopGateway":
        if (kind === "killGateway") gateway.signal("SIGKILL");
        else await gateway.stop();
        kills.push(performance.now());
        await sleep(ms / 4);
        gateway = await spawnGateway(config);
        break;
      case "killKafka":
        await kafka.kill();
        await sleep(ms);
        await kafka.restart();
        break;
      case "pauseKafka":
        kafka.pause();
        await sleep(ms);
        kafka.resume();
        break;
      case "fillDisk":
        fillUp(join(disk, "ballast"));
        await sleep(ms);
        rmSync(join(disk, "ballast"));
        break;
      default:
        proxy.set(kind, 100);
        await sleep(ms);
        proxy.set("pass");
    }
  }

  const intervalMs = (options.seconds * 1000 * options.clients) / options.messages;
  const devices = Array.from({ length: options.clients }, (_, index) =>
    startDevice({
      url: `mqtt://127.0.0.1:${port}`,
      clientId: `device-${index}`,
      topic: `devices/${index}/numbers`,
      count: Math.floor(options.messages / options.clients),
      intervalMs,
      window: 20,
    }),
  );
  try {
    const all = Promise.all(devices.map((device) => device.done));
    all.catch(() => undefined);
    const kinds = pickFaults(options, isMounted, random);
    const startedAt = performance.now();
    for (const [index, kind] of kinds.entries()) {
      const at = ((index + 0.3 + random(400) / 1000) * options.seconds * 1000) / kinds.length;
      await sleep(Math.max(0, startedAt + at - performance.now()));
      const [least, most] = options.faultSeconds;
      await inflict(kind, 1000 * least + random(1000 * (most - least) + 1));
    }
    await inTime(all, devices);
    print(`all acknowledged after ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
    if (ack === "buffered") {
      const left = () => gateway.metric("sluice_kafka_buffer_records");
      const waiting = await left();
      await eventually(left, 0, 120_000);
      print(
        `${waiting} records were in the buffer then; all sent after ${((performance.now() - startedAt) / 1000).toFixed(1)} s`,
      );
    }
    const records = await kafka.consume(topic, { timeoutMs: 120_000 });
    return { ...judge(devices, records, kills), faults: done, peakRss };
  } finally {
    clearInterval(watch);
    await Promise.all(devices.map((device) => device.stop()));
    await gateway.stop();
    if (isMounted) spawnSync("umount", [disk]);
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Impatient, so that the faults reach the devices too: what Kafka has not taken in 5 seconds is not acknowledged. */
function documents({ kafka, ack }: RunOptions, port: number, topic: string): object[] {
  const buffer = { dir: "disk/buffer", maxBytes: 200_000_000, onFull: "reject" };
  const kafkaFilter = {
    name: "kafka",
    kind: "KafkaMQTT",
    backend: kafka.second,
    topic: { default: topic },
    deliveryTimeoutMs: 5000,
    requestTimeoutMs: 1000,
    connectionTimeoutMs: 1000,
    ack,
    ...(ack === "buffered" ? { buffer } : {}),
  };
  const rules = [{ when: { packetType: "Publish" }, pipeline: "publish" }];
  return [
    { kind: "MQTTProxy", name: "mqttproxy", host: "127.0.0.1", port, faultGrace: 1, rules },
    { kind: "Pipeline", name: "publish", timeout: 6, filters: [kafkaFilter] },
    { kind: "AdminAPI", name: "admin-api", port: 0 },
  ];
}

/** Every kind comes before one comes again. */
function pickFaults(options: RunOptions, canFillDisk: boolean, random: (below: number) => number): FaultKind[] {
  const all = [...networkFaults, ...processFaults, ...(canFillDisk ? (["fillDisk"] as const) : [])];
  const kinds = (options.kinds ?? all).filter((kind) => kind !== "fillDisk" || canFillDisk);
  const picked: FaultKind[] = [];
  while (picked.length < options.faults && kinds.length > 0) {
    const round = [...kinds];
    while (round.length > 0) picked.push(...round.splice(random(round.length), 1));
  }
  return picked.slice(0, options.faults);
}

async function inTime(all: Promise<unknown>, devices: readonly Device[]): Promise<void> {
  const state = (): string => devices.map(({ clientId, acked }) => `${clientId}: ${acked.size}`).join(", ");
  const timeout = AbortSignal.timeout(120_000);
  await Promise.race([
    all,
    new Promise((_, reject) => {
      timeout.addEventListener("abort", () => reject(new Error(`not all acknowledged: ${state()}`)), { once: true });
    }),
  ]);
}

/** Until the disk takes no more. */
function fillUp(path: string): void {
  const piece = Buffer.alloc(1024 * 1024);
  try {
    for (;;) writeFileSync(path, piece, { flag: "a" });
  } catch {
    // Full, which is what was wanted.
  }
}

function rssOf({ pid }: SpawnedGateway): number {
  try {
    return 1024 * Number(/VmRSS:\s*(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
  } catch {
    return 0;
  }
}
