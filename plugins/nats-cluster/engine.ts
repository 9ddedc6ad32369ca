/** The engine of many nodes, on NATS: everything below this file put together, set up, and watched. */
import { randomBytes } from "node:crypto";
import type { Clock, Logger, Metrics } from "@sluice/kernel";
import type {
  ClusterCaps,
  ClusterEngine,
  ClusterHealth,
  ClusterInterest,
  ClusterListener,
  ClusterProxy,
} from "@sluice/kernel/cluster";
import { type Config, durationMs } from "./config.ts";
import { createConnection } from "./connection.ts";
import { createControl } from "./control.ts";
import { createInbox } from "./inbox.ts";
import { createSubjectInterest } from "./interest.ts";
import { createLayout } from "./layout.ts";
import { createLive } from "./live.ts";
import { createLog } from "./log.ts";
import { createMembers } from "./members.ts";
import { createMeters } from "./meters.ts";
import { createPublisher } from "./publisher.ts";
import { createPulse } from "./pulse.ts";
import { createReads } from "./reads.ts";
import { createRecords } from "./records.ts";
import { createRetained } from "./retained.ts";
import { checkServer, findSyncProblem } from "./server-check.ts";
import { dedupeMs, ensureStreams, StreamMismatch } from "./streams.ts";
import { createWills, forgetIncarnation, listIncarnations } from "./wills.ts";

export interface NatsEngine extends ClusterEngine {
  /** Connects in the background, for as long as it takes. */
  start(): void;
  stop(): Promise<void>;
}

export interface EngineDeps {
  readonly nodeName: string;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly clock: Clock;
}

/** A server's default, until one has said its own. */
const defaultMaxPayload = 1024 * 1024;
/** For headers, and what a message has beside its payload. */
const overheadBytes = 4096;
const maxTopicBytes = 512;
const setUpEveryMs = 500;
const watchEveryMs = 250;
const countEveryMs = 10_000;
const stopMs = 2000;

export function createEngine(config: Config, { nodeName, log, metrics, clock }: EngineDeps): NatsEngine {
  const { timeouts } = config;
  const node = { id: nodeName, incarnation: randomBytes(9).toString("base64url") };
  const layout = createLayout(config.namespace, config.shards);
  const connection = createConnection(
    { servers: config.servers, name: `sluice ${nodeName}`, credentials: config, tls: config.tls },
    { log, clock, arriving: notePause },
  );
  const inbox = createInbox(connection, clock);
  const meters = createMeters(metrics, {
    interest: () => [...proxies.values()].reduce((sum, { proxy }) => sum + proxy.interest.size, 0),
    waiting: () => publisher.size,
    waitingSeconds: () => publisher.oldestMs() / 1000,
    peers: () => members.peers().filter(({ isUp }) => isUp).length,
    connected: () => connection.isUp,
  });
  let asked = 0;
  let watchedAt = clock.now();
  const pulse = createPulse(timeouts, {
    connection,
    clock,
    ask: () => (isSetUp ? reads.isLed(layout.streams.sessions(asked++ % layout.shards)) : undefined),
  });
  const patienceMs = (): number => pulse.patienceMs();
  const publisher = createPublisher(
    connection,
    { totalMs: timeouts.totalMs, shards: config.shards, maxInFlight: config.maxInFlight, ackMs: patienceMs },
    { clock, meters, confirmed: () => pulse.confirmed() },
  );
  const reads = createReads(inbox, { clock, answerMs: patienceMs, totalMs: timeouts.totalMs });
  const control = createControl(node.id, { connection, inbox, layout, log });
  const members = createMembers(node, connection, { subject: layout.control.heartbeat, clock, log });
  const proxies = new Map<string, { proxy: ClusterProxy; listener: ClusterListener }>();
  const healthListeners = new Set<() => void>();
  const timers = new Set<{ clear(): void }>();
  let isStopped = false;
  let isSetUp = false;
  let takesBatches = false;
  let wasUp = false;
  let setUpProblem: string | undefined = "the streams have not been looked at yet";
  let health: ClusterHealth = healthNow();

  const limits = {
    maxTopicBytes,
    get maxMessageBytes() {
      return (connection.server?.maxPayload ?? defaultMaxPayload) - overheadBytes;
    },
    get maxRecordBytes() {
      return (connection.server?.maxPayload ?? defaultMaxPayload) - overheadBytes;
    },
  };
  const caps: ClusterCaps = {
    ackDurability: config.replicas > 1 ? "quorum-fsync" : "fsync",
    maxTopicBytes,
    get maxMessageBytes() {
      return limits.maxMessageBytes;
    },
    get maxRecordBytes() {
      return limits.maxRecordBytes;
    },
    graceMs: config.fence.grace * 1000,
    kickMs: timeouts.kickMs,
    dedupeMs: Math.min(dedupeMs.log, durationMs(config.log.retention)),
  };

  function wait(ms: number): Promise<void> {
    return new Promise((resolve) => after(ms, resolve));
  }

  function after(ms: number, run: () => void): void {
    const timer = clock.setTimeout(() => {
      timers.delete(timer);
      run();
    }, ms);
    timers.add(timer);
  }

  function healthNow(): ClusterHealth {
    const reasons: string[] = [];
    if (!connection.isUp) reasons.push(`NATS: ${connection.problem ?? "there is no connection"}`);
    else if (setUpProblem !== undefined) reasons.push(`NATS: ${setUpProblem}`);
    const reached = isSetUp && pulse.isReached;
    if (connection.isUp && isSetUp && !reached) {
      reasons.push(pulse.isLate ? "NATS: the server does not answer" : "NATS: no majority of the servers answers");
    }
    const lateMs = publisher.oldestMs();
    const isLate = lateMs > patienceMs();
    if (isLate) reasons.push(`NATS: a message has waited ${Math.round(lateMs / 1000)} s to be confirmed`);
    if (members.hasTwin) reasons.push(`another node is called ${node.id} too: give each a nodeName of its own`);
    const live = connection.isUp;
    return { live, durable: live && reached && !isLate && !members.hasTwin, reached, reasons };
  }

  /** The seconds in a reason are no change. */
  function look(): void {
    const now = healthNow();
    const differs =
      now.live !== health.live ||
      now.durable !== health.durable ||
      now.reached !== health.reached ||
      now.reasons.length !== health.reasons.length;
    health = now;
    if (differs) for (const listener of healthListeners) listener();
  }

  /** The process stood still, or its timers did: sessions may have been taken over meanwhile, which comes first. */
  function notePause(): void {
    const now = clock.now();
    if (now - watchedAt < watchEveryMs + pulse.lateMs) return;
    watchedAt = now;
    pulse.lose();
    look();
  }

  function watch(): void {
    if (isStopped) return;
    notePause();
    watchedAt = clock.now();
    look();
    after(watchEveryMs, watch);
  }

  function recount(): void {
    if (!isSetUp || !connection.isUp) return;
    for (const { proxy } of proxies.values()) void proxy.retained.recount().catch(() => undefined);
  }

  function recountEvery(): void {
    if (isStopped) return;
    recount();
    after(countEveryMs, recountEvery);
  }

  async function setUp(): Promise<void> {
    if (isStopped || isSetUp || !connection.isUp) return;
    try {
      const server = checkServer(connection.server?.version ?? "");
      if (server.problem !== undefined) throw new StreamMismatch(server.problem);
      await ensureStreams(connection, layout, {
        namespace: config.namespace,
        replicas: config.replicas,
        retentionMs: durationMs(config.log.retention),
        maxBytes: config.log.maxBytes,
        timeoutMs: timeouts.ackMs,
        takesBatches: server.takesBatches === true,
      });
      takesBatches = server.takesBatches === true;
      isSetUp = true;
      setUpProblem = undefined;
      recount();
      pulse.confirmed();
      log.info({ shards: config.shards, replicas: config.replicas }, "The cluster's streams are ready");
      if (server.warning !== undefined) log.warn({ version: connection.server?.version }, server.warning);
      const sync = await findSyncProblem(inbox, timeouts.ackMs);
      if (sync !== undefined) log.warn({}, sync);
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      if (!isSetUp && text !== setUpProblem) {
        if (error instanceof StreamMismatch) log.error({}, `This node can't join the cluster: ${text}`);
        else log.warn({ err: error }, "The cluster's streams could not be made ready; trying again");
        setUpProblem = text;
      }
    }
    look();
    if (!isSetUp) after(setUpEveryMs, () => void setUp());
  }

  connection.onChange((isUp) => {
    if (isUp) {
      void setUp();
      if (wasUp) for (const { listener } of proxies.values()) listener.onInterrupted();
      wasUp = true;
    }
    look();
  });

  /** Nodes that died while nobody was there to see it. */
  async function reportLost(): Promise<void> {
    if (isStopped) return;
    if (!isSetUp || !connection.isUp) {
      after(setUpEveryMs, () => void reportLost());
      return;
    }
    try {
      const known = new Set(members.peers().map(({ incarnation }) => incarnation));
      for (const each of await listIncarnations({ layout, reads })) {
        if (each.incarnation !== node.incarnation && !known.has(each.incarnation)) members.reportLost(each);
      }
    } catch (error) {
      log.warn({ err: error }, "What nodes that are gone have left could not be read; trying again");
      after(countEveryMs, () => void reportLost());
    }
  }

  function openInterest(name: string, receive: ReturnType<typeof createLive>["receive"]): ClusterInterest {
    const proxy = layout.of(name);
    const subjects = createSubjectInterest({
      max: config.interest.max,
      everything: proxy.liveSubject(proxy.everything),
      subscribe: (subject) => connection.subscribe(subject, receive),
    });
    return {
      async add(selector) {
        const selection = proxy.selection(selector);
        subjects.add(proxy.liveSubject(selection));
        await settle(selection.shard);
      },
      delete(selector) {
        subjects.delete(proxy.liveSubject(proxy.selection(selector)));
      },
      get size() {
        return subjects.size;
      },
    };
  }

  /**
   * What was subscribed to is known to the server of this node, and, since the question went the same way after it, to
   * those that lead the shards.
   */
  async function settle(shard: number | undefined): Promise<void> {
    const until = clock.now() + timeouts.totalMs;
    for (;;) {
      try {
        await connection.flush();
        break;
      } catch (error) {
        if (isStopped || clock.now() >= until) throw error;
        await wait(setUpEveryMs / 5);
      }
    }
    const shards = shard === undefined ? Array.from({ length: layout.shards }, (_, each) => each) : [shard];
    await Promise.all(shards.map((each) => reads.state(layout.streams.log(each))));
  }

  /** Unless others have something to see to: wills that wait. */
  async function forgetSelf(): Promise<void> {
    for (const { proxy } of proxies.values()) {
      for await (const left of proxy.wills.of(node.incarnation)) if (left.length > 0) return;
    }
    await forgetIncarnation({ layout, publisher }, node.incarnation);
  }

  return {
    node,
    caps,
    health: () => health,
    onHealth(listener) {
      healthListeners.add(listener);
      return () => void healthListeners.delete(listener);
    },
    peers: () => members.peers(),
    onPeer: (listener) => members.onPeer(listener),
    control,
    open(name, listener) {
      const proxy = layout.of(name);
      const live = createLive(proxy, listener, { connection, meters, log });
      const retained = createRetained({ layout, proxy, reads, publisher, limits, now: () => clock.now() });
      const opened: ClusterProxy = {
        interest: openInterest(name, live.receive),
        send: (message) => live.send(message),
        log: createLog({ layout, proxy, reads, publisher, incarnation: node.incarnation, limits, wait }),
        records: createRecords({
          layout,
          proxy,
          reads,
          publisher,
          limits,
          conflicts: meters.conflicts,
          batches: meters.batches,
          wait,
          takesBatches: () => takesBatches,
        }),
        retained,
        wills: createWills({ node, layout, proxy, reads, publisher, now: () => clock.now() }),
      };
      proxies.set(name, { proxy: opened, listener });
      recount();
      return opened;
    },
    start() {
      control.start();
      members.start();
      pulse.start();
      connection.start();
      watch();
      after(countEveryMs, recountEvery);
      after(countEveryMs, () => void reportLost());
    },
    async stop() {
      if (connection.isUp && isSetUp) {
        await Promise.race([forgetSelf().catch(() => undefined), wait(stopMs)]);
      }
      isStopped = true;
      pulse.stop();
      members.stop();
      await Promise.race([connection.flush().catch(() => undefined), wait(stopMs)]);
      for (const timer of timers) timer.clear();
      publisher.close();
      await connection.close();
    },
  };
}
