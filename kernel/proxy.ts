/** One MQTTProxy: admission, takeover, packet -> pipeline, message -> subscribers. */
import type { Duplex } from "node:stream";
import { isDeepStrictEqual } from "node:util";
import type { Addresses } from "./addresses.ts";
import { createAdmission } from "./admission.ts";
import type { Admitted, PeerDeps } from "./admitted.ts";
import { Connection, type ConnectionOwner, pause } from "./connection.ts";
import { drain } from "./drain.ts";
import { SluiceError } from "./errors.ts";
import { filteredMessage } from "./filtered-message.ts";
import { createInboundWork } from "./inbound-work.ts";
import { createOutlivingRuns } from "./outliving-runs.ts";
import type { ListenerOwner } from "./listener.ts";
import { createListeners } from "./listeners.ts";
import { nameOf, type Outcome } from "./outcome.ts";
import { Peer } from "./peer.ts";
import { createLane, createPipeline, type Done, type Job, type Pipeline } from "./pipeline.ts";
import type {
  Client,
  Clock,
  Logger,
  Message,
  Metrics,
  ProxyHandle,
  PublishOutcome,
  PublishPacket,
  PublishRequest,
} from "./plugin.ts";
import { createPoison } from "./poison.ts";
import { createOutsidePublish } from "./outside-publish.ts";
import { createPresenceTeller, type Presence } from "./presence.ts";
import { createProxyLog } from "./proxy-log.ts";
import { createProxyMetrics, type ProxyTotals } from "./proxy-metrics.ts";
import { refuse } from "./refusals.ts";
import type { Siblings } from "./siblings.ts";
import type { DrainSpec, ProxySpec } from "./spec.ts";
import { noCounts, type Store, type WillOfClient } from "./store.ts";
import { createSysTopics } from "./sys-topics.ts";
import { createTurns } from "./turns.ts";
import { createWills } from "./will.ts";

export interface Proxy extends ProxyHandle {
  /** Since it was made. */
  readonly totals: ProxyTotals;
  /** Of the bound listeners: `mqtt://127.0.0.1:1883`. */
  readonly urls: readonly string[];
  /** @throws SluiceError TOPIC_INVALID, PROPERTIES_INVALID, QUEUE_FULL, STORE_CLOSED */
  publish(message: Message, request?: PublishRequest): Promise<PublishOutcome>;
  /**
   * Does all of a change that can fail: binds where the address is new, checks what TLS needs. The first call is the start.
   * @throws SluiceError LISTEN_FAILED, CONFIG_INVALID; nothing has changed then
   */
  prepare(next: ProxySpec): Promise<ProxyChange>;
  /** It is dropped: its last packets go through these pipelines, which may be gone from what runs. */
  orphan(pipeline: ProxyDeps["pipeline"]): void;
  /**
   * Stops accepting, closes the connections at the drain's rate, each when its packets under way are through.
   * @param isLeaving the whole gateway stops
   */
  stop(how: DrainSpec, isLeaving?: boolean): Promise<void>;
}

/** A change that is ready: one of the two is called, once. */
export interface ProxyChange {
  /** Bound, of all listeners that there will be. */
  readonly addresses: readonly string[];
  /** Can't fail. Connections stay; those that come from here on are the new address's and the new certificate's. */
  commit(): void;
  rollback(): void;
  /** After `commit`: closes the connections of listeners that are gone. */
  retire(how: DrainSpec): Promise<void>;
}

export interface ProxyDeps {
  /** The running generation of a pipeline. */
  pipeline(name: string): Pipeline | undefined;
  readonly addresses: Addresses;
  readonly store: Store;
  readonly metrics: Metrics & { scoped(signal: AbortSignal): Metrics };
  readonly log: Logger;
  readonly clock: Clock;
  /** Of the gateway. */
  readonly version: string;
  /** Of a proxy whose clients are shared out among workers. */
  readonly siblings?: Siblings | undefined;
}

/** Connections that have not been admitted yet, and as many that don't speak MQTT yet; more are closed at once. */
const maxPending = 20_000;

/** The deadline of a fan-out where no pipeline gives one. */
const bareTimeoutMs = 30_000;

const passed: Outcome = { kind: "passed" };

/** @param initial what `prepare` is called with first */
export function createProxy(initial: ProxySpec, deps: ProxyDeps): Proxy {
  let spec = initial;
  const { log, siblings } = deps;
  const now = (): number => deps.clock.now();
  const connections = new Set<Connection>();
  const peers = new Map<Connection, Peer>();
  const presences = new Map<Connection, Presence>();
  const byClientId = new Map<string, Connection>();
  const seldom = createProxyLog(log);
  /** Its gauges end with it. */
  const ended = new AbortController();
  const meters = createProxyMetrics(spec.name, deps.metrics.scoped(ended.signal), () => ({
    connections: byClientId.size,
    pending: arrivals.arriving.size + connections.size - byClientId.size,
    // What all workers share is counted where it is.
    ...(siblings ? noCounts : store.counts),
  }));
  const store = deps.store.open(spec.name, {
    get queue() {
      return spec.queue;
    },
    get retained() {
      return spec.retained;
    },
    topicCacheSize: spec.topicCacheSize,
    onDropped: (reason, count) => meters.dropped(reason, count),
    now,
    onOrphanedWill: publishOrphaned,
    onElsewhere: (clientId, resumed) => wills.back(clientId, resumed),
  });
  // For packet types without a rule: brokerMode's fan-out keeps the connection's order there too.
  const bare = createPipeline(
    { name: spec.name, flow: [], filters: [], data: {}, timeoutMs: bareTimeoutMs },
    new Map(),
    deps,
  );
  let pipelineOf = (name: string): Pipeline | undefined => deps.pipeline(name);
  let isStarted = false;
  let stopping = false;
  const outliving = createOutlivingRuns(run);
  const wills = createWills(deps.clock, siblings && ((clientId, waits) => siblings.willWaits(clientId, waits)));
  const startedAt = now();
  let maxConnected = 0;
  const sysTopics = createSysTopics({
    clock: deps.clock,
    read: () => ({
      version: deps.version,
      uptimeSec: Math.floor((now() - startedAt) / 1000),
      connected: byClientId.size,
      maxConnected,
      totals: meters.totals,
      ...store.counts,
    }),
    publish: (message) => store.publish(message),
    failed: (topic, error) => seldom.sysFailed(topic, error),
  });
  const inboundWork = createInboundWork<Outcome>();
  const poison = createPoison({
    get spec() {
      return spec;
    },
    forgotten: () => meters.suspectForgotten(),
  });
  siblings?.listen({
    underWay: (clientId) => inboundWork.ids(clientId),
    join: (clientId, packetId, settled) => inboundWork.join(clientId, packetId, settled),
    begunElsewhere: (clientId, packetId) => inboundWork.begin(clientId, packetId),
    back(clientId, resumed) {
      wills.back(clientId, resumed);
      if (!resumed) inboundWork.forget(clientId);
    },
    ended: (clientId) => wills.ended(clientId),
    speakFor({ client, will, connection }, said) {
      if (connection !== undefined) {
        const told = { ...client, certificate: undefined, data: new Map<string, unknown>() };
        teller.disconnected({ client: told, connection, lane: createLane() }, "workerEnded");
      }
      if (will && !stopping) speakWill({ client, will }, said);
      else said();
    },
  });

  const owner: ConnectionOwner = {
    turns: createTurns(),
    crowd: { inWork: 0 },
    get limits() {
      return spec;
    },
    onPacket(connection, packet) {
      meters.received(packet.cmd);
      const peer = peers.get(connection);
      if (peer) peer.packet(packet);
      else if (packet.cmd === "connect") admission.admit(connection, packet);
      else admission.packet(connection, packet);
    },
    onRefusal(connection, refusal) {
      meters.refusedBytes(refusal.code);
      seldom.refusedBytes(connection.address, refusal);
      refuse(connection, refusal, peers.has(connection));
    },
    onFailure: (connection, error) => seldom.failed(connection.address, error),
    onPaused(_connection, why) {
      const reason = pauseReasons.get(why);
      if (reason !== undefined) meters.paused(reason);
    },
    onDrain: (connection) => peers.get(connection)?.drained(),
    onDisconnect: () => meters.sent("disconnect"),
    onClosed(connection, why) {
      connections.delete(connection);
      admission.closed(connection);
      meters.closed(why);
      const peer = peers.get(connection);
      if (!peer) return;
      peers.delete(connection);
      const { id } = peer.admitted.client;
      if (byClientId.get(id) === connection) byClientId.delete(id);
      log.debug({ clientId: id, why }, "Disconnected");
      peer.closed(why);
      const presence = presences.get(connection);
      if (!presence) return;
      presences.delete(connection);
      teller.disconnected(presence, why);
    },
  };

  const teller = createPresenceTeller({
    get spec() {
      return spec.presence;
    },
    now,
    send: (job) =>
      outliving.run(job, ({ kind }) => {
        if (kind !== "passed") meters.dropped("presence");
      }),
  });

  const peerDeps: PeerDeps = {
    get spec() {
      return spec;
    },
    store,
    meters,
    wills,
    inboundWork,
    poison,
    now,
    run,
    outlive: (speak) => outliving.outlive(speak),
    buried(clientId, letter, failed) {
      if (failed) meters.deadLetterFailed();
      seldom.buried(clientId, letter, failed);
    },
    storeFailed: (clientId, error) => seldom.storeFailed(clientId, error),
  };

  const admission = createAdmission(spec.connectionLimit, {
    get spec() {
      return spec;
    },
    store,
    sent: (cmd) => meters.sent(cmd),
    now,
    run,
    admitAlso: siblings && ((of, address, bytes) => siblings.admit(of, address, bytes)),
    // A client may always take its own connection over, also where every place is taken.
    forgotten: () => meters.addressForgotten(),
    isFull: (clientId) =>
      spec.maxAllowedConnection > 0 && byClientId.size >= spec.maxAllowedConnection && !byClientId.has(clientId),
    admitted,
    refused(connection, reason, clientId, error) {
      meters.refused(reason);
      seldom.refused(connection.address, reason, clientId, error);
    },
  });

  function admitted(by: Admitted, connack: Buffer): void {
    const { connection, client, handle, connect } = by;
    const peer = new Peer(by, peerDeps);
    peers.set(connection, peer);
    byClientId.set(client.id, connection);
    maxConnected = Math.max(maxConnected, byClientId.size);
    meters.accepted();
    log.debug({ clientId: client.id, address: client.address, present: handle.present }, "Connected");
    if (!handle.present) inboundWork.forget(client.id);
    connection.send(connack);
    connection.protocolVersion = connect.protocolVersion;
    wills.back(client.id, handle.present);
    peer.attach();
    if (spec.presence) presences.set(connection, teller.connected(client, handle.ordinal));
    connection.resume(pause.auth);
  }

  /** The will of a client whose node is gone. Resolves when it is seen to. */
  function publishOrphaned(left: WillOfClient, dueAt: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const speak = (): void => speakWill(left, resolve);
    const delay = (dueAt - now()) / 1000;
    // It may still come back.
    if (delay > 0) wills.wait(left.client.id, delay, speak, resolve);
    else speak();
    return promise;
  }

  /** The will of a client whose connection was elsewhere: through the same pipeline as if it had been here. */
  function speakWill({ will, client: known }: WillOfClient, said: () => void): void {
    const client: Client = { ...known, certificate: undefined, data: new Map() };
    const packet: PublishPacket = {
      topic: will.topic,
      payload: will.payload,
      qos: will.qos,
      retain: will.retain,
      properties: will.properties,
      dup: false,
      packetId: undefined,
    };
    const toAll = async (): Promise<void> => {
      await store.publish(filteredMessage(packet, will.topic, will.properties), { from: client.id });
    };
    const final = spec.brokerMode ? toAll : undefined;
    const job: Job = { type: "Publish", origin: "will", packet, client, lane: createLane(), final };
    meters.messageIn();
    outliving.run(job, (outcome) => {
      if (outcome.kind !== "passed") meters.dropped(nameOf(outcome));
      said();
    });
  }

  /** No rule for a packet type = allowed. A rule's pipeline was there when the config was checked. */
  function run<J extends Job>(job: J, done: Done<J>): Outcome | undefined {
    const name = job.pipeline ?? spec.rules[job.type];
    const pipeline = name === undefined ? undefined : pipelineOf(name);
    if (pipeline) return pipeline.run(job, done);
    if (name !== undefined) {
      return { kind: "fault", error: new SluiceError("CONFIG_INVALID", `${spec.name}: no pipeline ${name}`) };
    }
    return job.final ? bare.run(job, done) : passed;
  }

  const arrivals: ListenerOwner = {
    arriving: new Set(),
    maxArriving: maxPending,
    onStream(stream: Duplex, remote) {
      if (stopping || connections.size - byClientId.size >= maxPending) {
        meters.refused("tooManyPending");
        stream.destroy();
        return;
      }
      connections.add(new Connection(stream, remote, owner));
    },
    onFailure(why, error) {
      meters.refused(why);
      log.debug({ why, error: error.message }, "A connection failed before MQTT");
    },
    onRefused(code, why) {
      meters.refusedBytes(code);
      seldom.refusedStream(code, why);
    },
  };
  const listeners = createListeners(deps.addresses, arrivals, spec.name);

  return {
    name: spec.name,
    totals: meters.totals,
    get urls() {
      return listeners.list().map(({ url }) => url);
    },
    async prepare(next) {
      const change = await listeners.prepare(next.listeners, next);
      let gone: ReadonlySet<symbol> = new Set();
      return {
        addresses: change.addresses,
        commit() {
          const previous = spec;
          spec = next;
          if (!isDeepStrictEqual(previous.connectionLimit, next.connectionLimit)) admission.limit(next.connectionLimit);
          if (!isDeepStrictEqual(previous.clientPublishLimit, next.clientPublishLimit)) {
            for (const peer of peers.values()) peer.limitPublishes();
          }
          if (!isStarted) siblings?.ready();
          isStarted = true;
          // Of several workers, the process that has the numbers of all tells them.
          if (!siblings) sysTopics.every(next.sysInterval);
          gone = change.commit();
        },
        rollback() {
          change.rollback();
          if (!isStarted) ended.abort();
        },
        async retire(how) {
          if (gone.size === 0) return;
          await drain(
            [...connections].filter(({ remote }) => gone.has(remote.listener)),
            how,
          );
        },
      };
    },
    publish: createOutsidePublish(store, deps.clock, () => meters.messageIn()),
    sessions: {
      query: async () => await store.query(),
      async remove(clientId) {
        const removed = await store.remove(clientId);
        wills.ended(clientId);
        return removed;
      },
    },
    status: () => ({
      address: listeners.list()[0]?.address,
      listeners: listeners.list().map(({ name, url }) => ({ name, url })),
      brokerMode: spec.brokerMode,
      connections: byClientId.size,
      ...store.counts,
    }),
    orphan(pipeline) {
      pipelineOf = pipeline;
    },
    async stop(how, isLeaving = false) {
      stopping = true;
      listeners.close();
      await drain(connections, how);
      sysTopics.close();
      if (isLeaving && store.passesWillsOn) wills.leave();
      else wills.close();
      await outliving.over();
      ended.abort();
    },
  };
}

/** Those worth counting: each CONNECT pauses for its pipeline, and a stop pauses everybody. */
const pauseReasons = new Map<number, string>([
  [pause.work, "work"],
  [pause.limit, "limit"],
  [pause.output, "output"],
  [pause.turn, "turn"],
]);
