/** The store of one node of a cluster: what is common to its proxies, on an engine that a service brings. */
import type { ClusterEngine, Unsubscribe } from "./cluster-engine.ts";
import {
  type ClusterMeters,
  type ClusterProxyStore,
  controlKinds,
  createClusterProxyStore,
} from "./cluster-proxy-store.ts";
import { SluiceError } from "./errors.ts";
import { createHybridClock } from "./hybrid-clock.ts";
import type { Logger, Metrics } from "./plugin.ts";
import type { Store } from "./store.ts";

export interface ClusterStoreOptions {
  readonly engine: ClusterEngine;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
  /** How often the log is read for messages that no hint has brought. */
  readonly auditMs?: number;
  /** How often a session's place in the log is written down, where it has moved. */
  readonly checkpointMs?: number;
  /** The least time between two looks at all sessions for those that have expired. */
  readonly sweepMs?: number;
  /** How long a node must have been silent that this one has never heard of, until it counts as gone. */
  readonly silenceMs?: number;
}

export function createClusterStore(o: ClusterStoreOptions): Store {
  const {
    engine,
    log,
    metrics,
    now,
    auditMs = 30_000,
    checkpointMs = 10_000,
    sweepMs = 60_000,
    silenceMs = 15_000,
  } = o;
  const proxies = new Map<string, ClusterProxyStore>();
  const clock = createHybridClock(now);
  const ended = new AbortController();
  const meters = createMeters(metrics, () => proxies);
  let watching: Unsubscribe[] = [];
  let graceTimer: NodeJS.Timeout | undefined;
  let wasLive = true;
  let wasReached = true;
  let closed = false;

  function healthChanged(): void {
    const { live, reached } = engine.health();
    reachedChanged(reached);
    if (live === wasLive) return;
    wasLive = live;
    if (live) for (const proxy of proxies.values()) proxy.revived();
  }

  /** Somebody else may have taken over what this node holds, and it could not hear of it. */
  function reachedChanged(reached: boolean): void {
    if (reached === wasReached) return;
    wasReached = reached;
    clearTimeout(graceTimer);
    for (const proxy of proxies.values()) proxy.reachedChanged(reached);
    if (reached) return;
    graceTimer = setTimeout(() => {
      log.warn(
        { graceMs: engine.caps.graceMs },
        "The cluster can't be reached: clients of persistent sessions are closed",
      );
      for (const proxy of proxies.values()) proxy.graceOver();
    }, engine.caps.graceMs);
  }

  return {
    node: engine.node,
    caps: {
      multiNode: true,
      get ackDurability() {
        return engine.caps.ackDurability;
      },
    },
    start() {
      watching = [
        engine.onHealth(healthChanged),
        engine.onPeer((peer) => {
          for (const proxy of proxies.values()) proxy.peerChanged(peer);
        }),
        ...controlKinds.map((kind) =>
          engine.control.handle(kind, (body, from) => {
            const { proxy } = JSON.parse(body.toString()) as { proxy: string };
            return proxies.get(proxy)?.answer(kind, body, from);
          }),
        ),
      ];
      healthChanged();
      return Promise.resolve();
    },
    async stop() {
      if (closed) return;
      closed = true;
      clearTimeout(graceTimer);
      ended.abort();
      await Promise.all([...proxies.values()].map((proxy) => proxy.close()));
      for (const stop of watching) stop();
    },
    health() {
      const { live, durable, reasons } = engine.health();
      return closed ? { live: false, durable: false, reasons: ["the store is closed"] } : { live, durable, reasons };
    },
    open(proxy, options) {
      const known = proxies.get(proxy);
      known?.reopen(options);
      if (known) return known;
      const opened = createClusterProxyStore(proxy, options, {
        engine,
        clock,
        logger: log,
        meters: meters(proxy),
        auditMs,
        checkpointMs,
        sweepMs,
        silenceMs,
        check() {
          if (closed) throw new SluiceError("STORE_CLOSED", `the session store is closed; ${proxy} takes no messages`);
        },
      });
      proxies.set(proxy, opened);
      return opened;
    },
  };
}

function createMeters(
  metrics: Metrics,
  proxies: () => ReadonlyMap<string, ClusterProxyStore>,
): (proxy: string) => ClusterMeters {
  const counter = (name: string, help: string) => metrics.counter(name, help, ["proxy"]);
  const takeovers = counter(
    "sluice_cluster_takeovers_total",
    "Sessions that this node has taken over from another node that had their clients.",
  );
  const conflicts = counter(
    "sluice_cluster_ownership_conflicts_total",
    "Claims and writes of sessions refused because another node owned them.",
  );
  const missed = counter(
    "sluice_cluster_hints_missed_total",
    "Messages found in the cluster's log that had not come by themselves.",
  );
  const gaps = counter(
    "sluice_cluster_log_gaps_total",
    "Times that the log's retention had removed messages which a session may have been waiting for.",
  );
  const uncounted = counter(
    "sluice_cluster_uncounted_total",
    "Messages of backends whose clients at other nodes could not all be counted for the answer.",
  );
  const expired = counter(
    "sluice_cluster_sessions_expired_total",
    "Sessions that this node has deleted because their time was over, whichever node had them.",
  );
  const forwarded = counter("sluice_cluster_messages_total", "Messages that this node has handed to the cluster.");
  metrics.gauge(
    "sluice_cluster_interests",
    "Topic filters that this node has asked the cluster for.",
    ["proxy"],
    (gauge) => {
      for (const [proxy, { interests }] of proxies()) gauge.set({ proxy }, interests);
    },
  );
  metrics.gauge(
    "sluice_cluster_unverified_messages",
    "Messages that have come from the cluster and that no reading of its log has met yet.",
    ["proxy"],
    (gauge) => {
      for (const [proxy, { unverified }] of proxies()) gauge.set({ proxy }, unverified);
    },
  );
  return (proxy) => ({
    takenOver: () => takeovers.inc({ proxy }),
    conflict: () => conflicts.inc({ proxy }),
    missed: (count) => missed.inc({ proxy }, count),
    gap: () => gaps.inc({ proxy }),
    uncounted: () => uncounted.inc({ proxy }),
    expired: () => expired.inc({ proxy }),
    forwarded: () => forwarded.inc({ proxy }),
  });
}
