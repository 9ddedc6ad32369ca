/**
 * What acknowledged QoS 1 messages to persistent sessions cost, by fsync rule and by how many are under way, and how long a
 * restart with 100,000 queued messages takes: `node test/bench/store.ts [messages]`. The folder is on the disk of the
 * current folder, since a temporary folder may be in memory.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { createMemoryStore } from "../../kernel/memory-store.ts";
import type { Service } from "../../kernel/plugin.ts";
import type { ProxyStore, Store } from "../../kernel/store.ts";
import kind from "../../plugins/level-store/index.ts";
import { createTestHost } from "../helpers/host.ts";

type Fsync = "always" | "interval" | "never";

const messages = Number(process.argv[2] ?? 20_000);
const sessions = 1000;
const payload = Buffer.alloc(128, "x");

async function open(
  folder: string,
  fsync: Fsync | undefined,
): Promise<{ whole: Store; store: ProxyStore; service: Service | undefined }> {
  const { host } = createTestHost({ folder });
  const service = fsync && (await kind.create({ dir: "sessions", fsync, fsyncIntervalMs: 50 }, host));
  await service?.start?.();
  const whole = createMemoryStore({
    node: { id: "bench", incarnation: "1" },
    journal: service?.journal,
    log: host.log,
    metrics: host.metrics,
    now: Date.now,
  });
  await whole.start();
  const store = whole.open("bench", {
    queue: { maxMessages: 1_000_000, maxBytes: 2 ** 31, maxTotalBytes: 2 ** 32, onFull: "fault" },
    retained: { maxMessages: 0, maxBytes: 0 },
    topicCacheSize: 100_000,
    onDropped: (reason) => console.log(`dropped: ${reason}`),
    now: Date.now,
  });
  return { whole, store, service };
}

/** Persistent sessions whose clients are away. */
async function subscribe(store: ProxyStore): Promise<void> {
  for (let n = 0; n < sessions; n++) {
    const handle = await store.acquire({
      clientId: `device-${n}`,
      cleanStart: false,
      expirySec: 0xffff_ffff,
      info: { username: undefined, address: "" },
      onLost: () => undefined,
    });
    void handle.subscribe(`device/${n}/command`, {
      qos: 1,
      noLocal: false,
      retainAsPublished: false,
      retainHandling: 0,
      identifier: 0,
    });
    await handle.close();
  }
}

/** Publishes `count` messages with so many under way; answers milliseconds each, sorted, and the seconds of all. */
async function publish(
  store: ProxyStore,
  count: number,
  underway: number,
): Promise<{ latencies: number[]; seconds: number }> {
  const latencies: number[] = [];
  let next = 0;
  const startedAt = performance.now();
  await Promise.all(
    Array.from({ length: underway }, async () => {
      while (next < count) {
        const n = next++;
        const at = performance.now();
        await store.publish({ topic: `device/${n % sessions}/command`, payload, qos: 1, retain: false });
        latencies.push(performance.now() - at);
      }
    }),
  );
  return { latencies: latencies.sort((a, b) => a - b), seconds: (performance.now() - startedAt) / 1000 };
}

for (const fsync of [undefined, "never", "interval", "always"] as const) {
  for (const underway of [1, 64, 1000]) {
    const folder = await mkdtemp(join(process.cwd(), ".bench-store-"));
    try {
      const { whole, store, service } = await open(folder, fsync);
      await subscribe(store);
      const count = underway === 1 && fsync === "always" ? messages / 10 : messages;
      const cpu = process.cpuUsage();
      const { latencies, seconds } = await publish(store, count, underway);
      const { user, system } = process.cpuUsage(cpu);
      const at = (share: number): string => (latencies[Math.floor(latencies.length * share)] ?? 0).toFixed(2);
      console.log(
        `${fsync ? `fsync ${fsync}` : "in memory"}, ${underway} under way: ${Math.round(count / seconds)} acknowledged/s, ` +
          `p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, ${((user + system) / count).toFixed(1)} us of CPU each`,
      );
      await whole.stop();
      await service?.stop?.();
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }
}

const folder = await mkdtemp(join(process.cwd(), ".bench-store-"));
try {
  const first = await open(folder, "never");
  await subscribe(first.store);
  await publish(first.store, 100_000, 1000);
  await first.whole.stop();
  await first.service?.stop?.();
  const startedAt = performance.now();
  const before = process.cpuUsage();
  const { whole, store, service } = await open(folder, "always");
  const ms = performance.now() - startedAt;
  const { user, system } = process.cpuUsage(before);
  console.log(
    `restart with ${store.counts.queued} queued messages of ${sessions} sessions: ${Math.round(ms)} ms, ` +
      `${Math.round((user + system) / 1000)} ms of CPU`,
  );
  await whole.stop();
  await service?.stop?.();
} finally {
  await rm(folder, { recursive: true, force: true });
}
