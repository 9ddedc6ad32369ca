/** One MQTTProxy: admission, takeover, packet -> pipeline, message -> subscribers. */
import type { Socket } from "node:net";
import { isDeepStrictEqual } from "node:util";
import type { Addresses } from "./addresses.ts";
import { createAdmission } from "./admission.ts";
import { encodeConnack } from "./codec.ts";
import { type CloseReason, Connection, type ConnectionOwner, pause } from "./connection.ts";
import { messageOf, SluiceError } from "./errors.ts";
import { createListener, createTlsGate, type Listener, type TlsGate } from "./listener.ts";
import { Peer, type PeerDeps } from "./peer.ts";
import { createPipeline, type Job, type Outcome, type Pipeline } from "./pipeline.ts";
import type { Client, Clock, Logger, Message, Metrics, ProxyHandle, PublishOutcome } from "./plugin.ts";
import { createPresenceTeller, type Presence } from "./presence.ts";
import { createProxyMetrics } from "./proxy-metrics.ts";
import type { DrainSpec, ProxySpec } from "./spec.ts";
import type { SessionHandle, Store } from "./store.ts";
import { createThrottle } from "./throttle.ts";
import { topicNameProblem } from "./topics.ts";

export interface Proxy extends ProxyHandle {
  /** Of the bound listener: `mqtt://127.0.0.1:1883`. */
  readonly url: string;
  /** @throws SluiceError TOPIC_INVALID, QUEUE_FULL, STORE_CLOSED */
  publish(message: Message): Promise<PublishOutcome>;
  /**
   * Does all of a change that can fail: binds where the address is new, checks what TLS needs. The first call is the start.
   * @throws SluiceError LISTEN_FAILED, CONFIG_INVALID; nothing has changed then
   */
  prepare(next: ProxySpec): Promise<ProxyChange>;
  /** It is dropped: its last packets go through these pipelines, which may be gone from what runs. */
  orphan(pipeline: ProxyDeps["pipeline"]): void;
  /** Stops accepting, closes the connections at the drain's rate, each when its packets under way are through. */
  stop(drain: DrainSpec): Promise<void>;
}

/** A change that is ready: one of the two is called, once. */
export interface ProxyChange {
  /** Can't fail. Connections stay; those that come from here on are the new address's and the new certificate's. */
  commit(): void;
  rollback(): void;
}

export interface ProxyDeps {
  /** The running generation of a pipeline. */
  pipeline(name: string): Pipeline | undefined;
  readonly addresses: Addresses;
  readonly store: Store;
  readonly metrics: Metrics & { scoped(signal: AbortSignal): Metrics };
  readonly log: Logger;
  readonly clock: Clock;
}

/** Connections that have not been admitted yet; more are closed at once. */
const maxPending = 20_000;

/** How often a stop looks which connections may go. */
const drainTickMs = 10;

/** The deadline of a fan-out where no pipeline gives one. */
const bareTimeoutMs = 30_000;

const passed: Outcome = { kind: "passed" };

/** @param initial what `prepare` is called with first */
export function createProxy(initial: ProxySpec, deps: ProxyDeps): Proxy {
  let spec = initial;
  const { log } = deps;
  const now = (): number => deps.clock.now();
  const connections = new Set<Connection>();
  const peers = new Map<Connection, Peer>();
  const presences = new Map<Connection, Presence>();
  const byClientId = new Map<string, Connection>();
  const throttle = createThrottle(5000);
  /** Its gauges end with it. */
  const ended = new AbortController();
  const meters = createProxyMetrics(spec.name, deps.metrics.scoped(ended.signal), () => ({
    connections: byClientId.size,
    pending: connections.size - byClientId.size,
    ...store.counts,
  }));
  const store = deps.store.open(spec.name, {
    get queue() {
      return spec.queue;
    },
    topicCacheSize: spec.topicCacheSize,
    onDropped: (reason, count) => meters.dropped(reason, count),
    now,
  });
  // For packet types without a rule: brokerMode's fan-out keeps the connection's order there too.
  const bare = createPipeline(
    { name: spec.name, flow: [], filters: [], data: {}, timeoutMs: bareTimeoutMs },
    new Map(),
    deps,
  );
  let pipelineOf = (name: string): Pipeline | undefined => deps.pipeline(name);
  let listener: Listener | undefined;
  let gate: TlsGate | undefined;
  let stopping = false;
  /** Runs that outlive their connection: wills, Disconnect pipelines and presence. */
  let lastWords = 0;
  let quiet: (() => void) | undefined;

  const owner: ConnectionOwner = {
    get limits() {
      return spec;
    },
    onPacket(connection, packet) {
      meters.received(packet.cmd);
      const peer = peers.get(connection);
      if (!peer) {
        if (packet.cmd === "connect") admission.admit(connection, packet);
        return;
      }
      peer.packet(packet);
    },
    onRefusal(connection, refusal) {
      meters.refusedBytes(refusal.code);
      throttle(refusal.code, (suppressed) =>
        log.info(
          { address: connection.address, reason: refusal.message, suppressed },
          "Closed for a packet that is not allowed",
        ),
      );
      if (refusal.connack !== undefined && !peers.has(connection))
        connection.send(encodeConnack(refusal.connack, false));
      connection.close(closeReasons[refusal.code] ?? "malformedPacket");
    },
    onFailure(connection, error) {
      throttle("failure", (suppressed) =>
        log.error(
          { address: connection.address, err: error, suppressed },
          "A packet could not be handled; its connection is closed",
        ),
      );
    },
    onPaused(_connection, why) {
      const reason = pauseReasons.get(why);
      if (reason !== undefined) meters.paused(reason);
    },
    onDrain: (connection) => peers.get(connection)?.drained(),
    onClosed(connection, why) {
      connections.delete(connection);
      meters.closed(why);
      const peer = peers.get(connection);
      if (!peer) return;
      peers.delete(connection);
      if (byClientId.get(peer.client.id) === connection) byClientId.delete(peer.client.id);
      log.debug({ clientId: peer.client.id, why }, "Disconnected");
      lastWords++;
      peer.closed(why, said);
      const presence = presences.get(connection);
      if (!presence) return;
      presences.delete(connection);
      teller.disconnected(presence, why);
    },
  };

  function said(): void {
    if (--lastWords === 0) quiet?.();
  }

  const teller = createPresenceTeller({
    get spec() {
      return spec.presence;
    },
    now,
    send(job) {
      lastWords++;
      const settle = (outcome: Outcome): void => {
        if (outcome.kind !== "passed") meters.dropped("presence");
        said();
      };
      const outcome = run(job, settle);
      if (outcome) settle(outcome);
    },
  });

  const peerDeps: PeerDeps = {
    get spec() {
      return spec;
    },
    store,
    meters,
    now,
    run,
    storeFailed(clientId, error) {
      throttle("store", (suppressed) =>
        log.error({ clientId, error: messageOf(error), suppressed }, "The session store failed"),
      );
    },
  };

  const admission = createAdmission(spec.connectionLimit, {
    store,
    now,
    run,
    // A client may always take its own connection over, also where every place is taken.
    forgotten: () => meters.addressForgotten(),
    isFull: (clientId) =>
      spec.maxAllowedConnection > 0 && byClientId.size >= spec.maxAllowedConnection && !byClientId.has(clientId),
    admitted,
    refused(connection, reason, clientId, error) {
      meters.refused(reason);
      throttle(`refused ${reason}`, (suppressed) =>
        log.info({ clientId, address: connection.address, reason, error: messageOf(error), suppressed }, "Refused"),
      );
    },
  });

  function admitted(connection: Connection, client: Client, handle: SessionHandle, will: Message | undefined): void {
    const peer = new Peer(connection, client, handle, will, peerDeps);
    peers.set(connection, peer);
    byClientId.set(client.id, connection);
    meters.accepted();
    log.debug({ clientId: client.id, address: client.address, present: handle.present }, "Connected");
    connection.send(encodeConnack(0, handle.present));
    peer.attach();
    if (spec.presence) presences.set(connection, teller.connected(client));
    connection.resume(pause.auth);
  }

  /** No rule for a packet type = allowed. A rule's pipeline was there when the config was checked. */
  function run(job: Job, done: (outcome: Outcome) => void): Outcome | undefined {
    const name = job.pipeline ?? spec.rules[job.type];
    const pipeline = name === undefined ? undefined : pipelineOf(name);
    if (pipeline) return pipeline.run(job, done);
    if (name !== undefined) {
      return { kind: "fault", error: new SluiceError("CONFIG_INVALID", `${spec.name}: no pipeline ${name}`) };
    }
    return job.final ? bare.run(job, done) : passed;
  }

  const sockets = {
    onSocket(socket: Socket) {
      if (stopping || connections.size - byClientId.size >= maxPending) {
        meters.refused("tooManyPending");
        socket.destroy();
        return;
      }
      connections.add(new Connection(socket, owner));
    },
    onError(error: Error) {
      meters.refused("handshake");
      log.debug({ error: error.message }, "A connection failed before MQTT");
    },
  };

  return {
    name: spec.name,
    get url() {
      const { address = "", port = spec.port } = listener?.address ?? {};
      const host = address === "::" || address === "0.0.0.0" || address === "" ? "127.0.0.1" : address;
      return `${spec.useTLS ? "mqtts" : "mqtt"}://${hostAndPort(host, port)}`;
    },
    async prepare(next) {
      const old = listener;
      // A context costs milliseconds of OpenSSL's time, and its clients the resumption of their TLS sessions.
      const isSameTls =
        old !== undefined &&
        next.useTLS === spec.useTLS &&
        next.handshakeTimeoutMs === spec.handshakeTimeoutMs &&
        isDeepStrictEqual(next.certificate, spec.certificate);
      const nextGate = isSameTls ? gate : next.useTLS ? createGate(next) : undefined;
      const bound =
        old && next.host === spec.host && next.port === spec.port
          ? old
          : createListener(await deps.addresses.claim(next), sockets);
      return {
        commit() {
          const previous = spec;
          spec = next;
          listener = bound;
          gate = nextGate;
          if (!isDeepStrictEqual(previous.connectionLimit, next.connectionLimit)) admission.limit(next.connectionLimit);
          if (!isDeepStrictEqual(previous.clientPublishLimit, next.clientPublishLimit)) {
            for (const peer of peers.values()) peer.limitPublishes();
          }
          bound.open(nextGate);
          if (old !== bound) old?.close();
        },
        rollback() {
          if (old !== bound) bound.close();
          if (!old) ended.abort();
        },
      };
    },
    async publish(message) {
      const invalid = topicNameProblem(message.topic);
      if (invalid) throw new SluiceError("TOPIC_INVALID", `the topic is not valid: ${invalid}`);
      meters.messageIn();
      return await store.publish(message);
    },
    sessions: {
      query: async () => await store.query(),
      remove: async (clientId) => await store.remove(clientId),
    },
    status: () => ({
      address: listener && hostAndPort(listener.address.address, listener.address.port),
      useTLS: spec.useTLS,
      brokerMode: spec.brokerMode,
      connections: byClientId.size,
      ...store.counts,
    }),
    orphan(pipeline) {
      pipelineOf = pipeline;
    },
    async stop({ timeoutMs, rate }) {
      stopping = true;
      listener?.close();
      const until = performance.now() + timeoutMs;
      const staying = new Set(connections);
      const leaving = new Set<Connection>();
      // Polled: it happens once in a gateway's life, and a counter on the hot path would cost every packet.
      for (let allowed = 1; performance.now() < until; allowed += (rate * drainTickMs) / 1000) {
        for (const connection of staying) {
          if (rate > 0 && allowed < 1) break;
          allowed--;
          staying.delete(connection);
          // Nothing more is read from it; what was is finished.
          connection.pause(pause.shutdown);
          leaving.add(connection);
        }
        for (const connection of leaving) {
          if (connection.working > 0) continue;
          connection.close("shutdown");
          leaving.delete(connection);
        }
        if (leaving.size + staying.size === 0) break;
        await new Promise((resolve) => setTimeout(resolve, drainTickMs));
      }
      const closed = [...connections].map(
        ({ socket }) =>
          new Promise<void>((resolve) => (socket.destroyed ? resolve() : socket.once("close", () => resolve()))),
      );
      for (const connection of connections) connection.close("shutdown");
      await Promise.all(closed);
      if (lastWords > 0) await new Promise<void>((resolve) => (quiet = resolve));
      ended.abort();
    },
  };
}

/** Those worth counting: each CONNECT pauses for its pipeline, and a stop pauses everybody. */
const pauseReasons = new Map<number, string>([
  [pause.work, "work"],
  [pause.limit, "limit"],
  [pause.output, "output"],
]);

const closeReasons: Record<string, CloseReason> = {
  MALFORMED_PACKET: "malformedPacket",
  PACKET_TOO_LARGE: "packetTooLarge",
  PROTOCOL_ERROR: "protocolError",
  UNSUPPORTED_VERSION: "refused",
};

function hostAndPort(host: string, port: number): string {
  return `${host.includes(":") ? `[${host}]` : host}:${port}`;
}

/** @throws SluiceError CONFIG_INVALID with OpenSSL's word on the pair */
function createGate({ certificate, handshakeTimeoutMs }: ProxySpec): TlsGate {
  try {
    return createTlsGate(certificate, handshakeTimeoutMs);
  } catch (error) {
    throw new SluiceError("CONFIG_INVALID", `can't be used for TLS: ${messageOf(error)}`);
  }
}
