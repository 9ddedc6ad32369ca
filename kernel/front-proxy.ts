/**
 * A proxy in the process that holds the sessions, where other processes have its connections: what is asked of it from
 * inside the gateway, and the limits that are one for all workers.
 */
import { createKeyedLimiter, createLimiter } from "./limiter.ts";
import { createOutsidePublish } from "./outside-publish.ts";
import type { Proxy, ProxyDeps } from "./proxy.ts";
import { createProxyLog } from "./proxy-log.ts";
import { addTotals, createProxyMetrics, type ProxyTotals } from "./proxy-metrics.ts";
import type { ProxySpec, RateLimit } from "./spec.ts";
import type { WillOfClient } from "./store.ts";
import type { ServedProxy } from "./store-server.ts";
import { createSysTopics } from "./sys-topics.ts";
import { isDeepStrictEqual } from "node:util";

/** What the workers tell of their parts of the proxy. */
export interface Front {
  listeners(proxy: string): readonly { readonly name: string; readonly url: string; readonly address: string }[];
  totals(proxy: string): readonly ProxyTotals[];
  /** Clients connected now, and at most at a time. */
  connected(proxy: string): { readonly now: number; readonly peak: number };
  /** A session was removed from here. */
  ended(proxy: string, clientId: string): void;
  /** A client is connected to another node. @param resumed its session goes on there */
  back(proxy: string, clientId: string, resumed: boolean): void;
  /** Resolves when the will has left the pipeline of a worker, or is not to. @param dueAt milliseconds since the epoch */
  speakFor(proxy: string, will: WillOfClient, dueAt: number): Promise<void>;
  /** From now on its workers may use it. */
  serve(proxy: ServedProxy): void;
}

/** Addresses whose rate of connecting is remembered. */
const maxAddresses = 100_000;

export function createFrontProxy(initial: ProxySpec, deps: ProxyDeps, front: Front): Proxy {
  let spec = initial;
  const { clock } = deps;
  const { name } = spec;
  const now = (): number => clock.now();
  const seldom = createProxyLog(deps.log);
  const ended = new AbortController();
  const startedAt = now();
  const meters = createProxyMetrics(name, deps.metrics.scoped(ended.signal), () => ({
    // Those are the workers' own.
    connections: 0,
    pending: 0,
    ...store.counts,
  }));
  const store = deps.store.open(name, {
    get queue() {
      return spec.queue;
    },
    get retained() {
      return spec.retained;
    },
    topicCacheSize: spec.topicCacheSize,
    onDropped: (reason, count) => meters.dropped(reason, count),
    now,
    onOrphanedWill: (will, dueAt) => front.speakFor(name, will, dueAt),
    onElsewhere: (clientId, resumed) => front.back(name, clientId, resumed),
  });
  let limiters = limitersOf(spec.connectionLimit);
  const publish = createOutsidePublish(store, clock, () => meters.messageIn());
  const sysTopics = createSysTopics({
    clock,
    read: () => {
      const { now: connected, peak: maxConnected } = front.connected(name);
      return {
        version: deps.version,
        uptimeSec: Math.floor((now() - startedAt) / 1000),
        connected,
        maxConnected,
        totals: [meters.totals, ...front.totals(name)].reduce(addTotals),
        ...store.counts,
      };
    },
    publish: (message) => store.publish(message),
    failed: (topic, error) => seldom.sysFailed(topic, error),
  });

  function limitersOf(limit: RateLimit | undefined) {
    if (!limit) return undefined;
    const forgotten = (): void => meters.addressForgotten();
    return {
      byAddress: createKeyedLimiter(limit, { now, max: maxAddresses, forgotten }),
      proxy: createLimiter(limit, now),
    };
  }

  const served: ServedProxy = {
    name,
    store,
    get maxConnections() {
      return spec.maxAllowedConnection;
    },
    admit(of, address, bytes) {
      if (!limiters) return true;
      return (of === "address" ? limiters.byAddress(address) : limiters.proxy).admit(bytes);
    },
    get hasPresence() {
      return spec.presence !== undefined;
    },
    now,
    lost: (count) => {
      for (let n = 0; n < count; n++) meters.closed("workerEnded");
    },
    willsLost: (count) => meters.dropped("workerEnded", count),
  };
  front.serve(served);

  return {
    name,
    totals: meters.totals,
    get urls() {
      return front.listeners(name).map(({ url }) => url);
    },
    prepare: (next) =>
      Promise.resolve({
        addresses: [],
        commit() {
          if (!isDeepStrictEqual(spec.connectionLimit, next.connectionLimit)) {
            limiters = limitersOf(next.connectionLimit);
          }
          spec = next;
          sysTopics.every(next.sysInterval);
        },
        rollback() {
          // What has never run is nobody's.
          if (spec === initial) ended.abort();
        },
        retire: () => Promise.resolve(),
      }),
    publish,
    sessions: {
      query: async () => await store.query(),
      async remove(clientId) {
        const removed = await store.remove(clientId);
        front.ended(name, clientId);
        return removed;
      },
    },
    status: () => ({
      address: front.listeners(name)[0]?.address,
      listeners: front.listeners(name).map(({ name: listener, url }) => ({ name: listener, url })),
      brokerMode: spec.brokerMode,
      connections: front.connected(name).now,
      ...store.counts,
    }),
    orphan() {
      // The workers have its pipelines.
    },
    stop() {
      sysTopics.close();
      ended.abort();
      return Promise.resolve();
    },
  };
}
