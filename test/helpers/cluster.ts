/** Several nodes of a cluster in one process, over the engine in memory. */
import { createTestHost } from "@sluice/testkit";
import { createClusterStore } from "../../kernel/cluster-store.ts";
import type { ProxyStore, QueueLimits, Store, StoreOptions } from "../../kernel/store.ts";
import { createMemoryCluster, type MemoryCluster, type MemoryNode } from "./memory-engine.ts";

export interface TestNode {
  readonly id: string;
  readonly memory: MemoryNode;
  readonly store: Store;
  readonly proxy: ProxyStore;
  readonly dropped: Record<string, number>;
  /** As `kill -9`. */
  kill(): void;
  metric(name: string): Promise<number>;
}

export interface TestCluster {
  readonly memory: MemoryCluster;
  node(id: string, more?: Partial<StoreOptions>): Promise<TestNode>;
  /** Moves the clock of all nodes on; timers don't follow it. */
  pass(ms: number): void;
  stop(): Promise<void>;
}

export function createTestCluster(
  o: {
    shards?: number;
    random?: () => number;
    auditMs?: number;
    checkpointMs?: number;
    sweepMs?: number;
    silenceMs?: number;
    queue?: Partial<QueueLimits>;
  } = {},
): TestCluster {
  let passed = 0;
  const now = (): number => Date.now() + passed;
  const memory = createMemoryCluster({ ...o, now });
  const running = new Set<Store>();
  const hosts: (() => void)[] = [];
  return {
    memory,
    async node(id, more = {}) {
      const { host, close } = createTestHost();
      hosts.push(close);
      const node = memory.join(id);
      const store = createClusterStore({
        engine: node.engine,
        log: host.log,
        metrics: host.metrics,
        now,
        auditMs: o.auditMs ?? 30_000,
        checkpointMs: o.checkpointMs ?? 10_000,
        ...(o.sweepMs === undefined ? {} : { sweepMs: o.sweepMs }),
        ...(o.silenceMs === undefined ? {} : { silenceMs: o.silenceMs }),
      });
      await store.start();
      running.add(store);
      const dropped: Record<string, number> = {};
      const proxy = store.open("p", {
        queue: { maxMessages: 1000, maxBytes: 1 << 26, maxTotalBytes: 1 << 30, onFull: "dropOldest", ...o.queue },
        retained: { maxMessages: 1000, maxBytes: 1 << 24 },
        topicCacheSize: 100,
        onDropped: (reason, count) => void (dropped[reason] = (dropped[reason] ?? 0) + count),
        now,
        ...more,
      });
      return {
        id,
        memory: node,
        store,
        proxy,
        dropped,
        kill() {
          node.kill();
          running.delete(store);
        },
        async metric(name) {
          const found = new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, "m").exec(await host.metrics.text());
          return Number(found?.[1] ?? 0);
        },
      };
    },
    pass(ms) {
      passed += ms;
    },
    async stop() {
      await Promise.all([...running].map((store) => store.stop()));
      for (const close of hosts) close();
    },
  };
}
