/** One MQTTProxy: admission, takeover, packet -> pipeline, message -> subscribers. */
import { randomUUID } from "node:crypto";
import { type ConnackCode, encodeAck, encodeConnack, encodeSuback, type InPacket, pingresp } from "./codec.ts";
import { type CloseReason, Connection, type ConnectionOwner, pause } from "./connection.ts";
import { SluiceError } from "./errors.ts";
import { createInflight, type Inflight } from "./inflight.ts";
import { createKeyedLimiter, createLimiter, type Limiter } from "./limiter.ts";
import { type Listener, listen } from "./listener.ts";
import { createLane, createPipeline, type Job, type Lane, type Outcome, type Pipeline } from "./pipeline.ts";
import type {
  Client,
  Clock,
  Logger,
  Message,
  Metrics,
  PacketType,
  ProxyHandle,
  PublishOutcome,
  PublishPacket,
  QoS,
  Reason,
  SubscribePacket,
} from "./plugin.ts";
import { createProxyMetrics } from "./proxy-metrics.ts";
import type { Delivery } from "./session.ts";
import type { ProxySpec } from "./spec.ts";
import { maxSubscriptions, type SessionHandle, type Store } from "./store.ts";
import { createThrottle } from "./throttle.ts";
import { topicFilterProblem, topicNameProblem } from "./topics.ts";

export interface Proxy extends ProxyHandle {
  /** @throws SluiceError LISTEN_FAILED */
  listen(): Promise<void>;
  /** Of the bound listener: `mqtt://127.0.0.1:1883`. */
  readonly url: string;
  /** @throws SluiceError TOPIC_INVALID, QUEUE_FULL, STORE_CLOSED */
  publish(message: Message): Promise<PublishOutcome>;
  /** Stops accepting and reading, waits up to `drainMs` for the packets under way, closes every connection. */
  stop(drainMs: number): Promise<void>;
}

export interface ProxyDeps {
  /** The running generation of a pipeline. */
  pipeline(name: string): Pipeline | undefined;
  readonly store: Store;
  readonly metrics: Metrics;
  readonly log: Logger;
  readonly clock: Clock;
}

/** What an admitted connection has. */
interface Peer {
  readonly client: Client;
  readonly handle: SessionHandle;
  readonly inflight: Inflight;
  readonly publishLimit: Limiter | undefined;
  readonly publishLane: Lane;
  readonly otherLanes: Map<PacketType, Lane>;
  will: Message | undefined;
  faultTimer: NodeJS.Timeout | undefined;
}

/** Addresses whose rate of connecting is remembered. */
const maxAddresses = 100_000;

/** Connections that have not been admitted yet; more are closed at once. */
const maxPending = 20_000;

/** The deadline of a fan-out where no pipeline gives one. */
const bareTimeoutMs = 30_000;

/** What a client of 3.1.x is told for a reason [MQTT-3.2.2-4]; all others are "not authorized". */
const connackCodes: Partial<Record<Reason, ConnackCode>> = {
  clientIdentifierNotValid: 2,
  serverUnavailable: 3,
  serverBusy: 3,
  quotaExceeded: 3,
  connectionRateExceeded: 3,
  badUserNameOrPassword: 4,
};

const subackRefused = 0x80;

const passed: Outcome = { kind: "passed" };

export function createProxy(spec: ProxySpec, deps: ProxyDeps): Proxy {
  const { log } = deps;
  const now = (): number => deps.clock.now();
  const connections = new Set<Connection>();
  const peers = new Map<Connection, Peer>();
  const byClientId = new Map<string, Connection>();
  const connectLimit = spec.connectionLimit && createLimiter(spec.connectionLimit, now);
  const addressLimit = spec.connectionLimit && createKeyedLimiter(spec.connectionLimit, now, maxAddresses);
  const throttle = createThrottle(5000);
  const meters = createProxyMetrics(spec.name, deps.metrics, () => ({
    connections: byClientId.size,
    pending: connections.size - byClientId.size,
    ...store.counts,
  }));
  const store = deps.store.open(spec.name, {
    queue: spec.queue,
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
  let listener: Listener | undefined;
  let stopping = false;
  /** Runs that outlive their connection: wills and Disconnect pipelines. */
  let lastWords = 0;
  let quiet: (() => void) | undefined;

  const owner: ConnectionOwner = {
    onPacket(connection, packet) {
      meters.received(packet.cmd);
      const peer = peers.get(connection);
      if (!peer) {
        if (packet.cmd === "connect") admit(connection, packet);
        return;
      }
      handlePacket(connection, peer, packet);
    },
    onRefusal(connection, refusal) {
      meters.refusedBytes(refusal.code);
      throttle(refusal.code, (suppressed) =>
        log.info(
          { proxy: spec.name, address: connection.address, reason: refusal.message, suppressed },
          "Closed for a packet that is not allowed",
        ),
      );
      if (refusal.connack !== undefined && !peers.has(connection))
        connection.send(encodeConnack(refusal.connack, false));
      connection.close(closeReasons[refusal.code] ?? "malformedPacket");
    },
    onDrain: (connection) => peers.get(connection)?.handle.resume(),
    onClosed(connection, why) {
      connections.delete(connection);
      meters.closed(why);
      const peer = peers.get(connection);
      if (!peer) return;
      peers.delete(connection);
      if (byClientId.get(peer.client.id) === connection) byClientId.delete(peer.client.id);
      clearTimeout(peer.faultTimer);
      peer.inflight.close();
      report(Promise.resolve(peer.handle.close()), peer.client.id);
      log.debug({ proxy: spec.name, clientId: peer.client.id, why }, "Disconnected");
      sayLastWords(peer, why);
    },
  };

  // ---- CONNECT: the steps, in order ----

  function admit(connection: Connection, connect: InPacket & { cmd: "connect" }): void {
    connection.pause(pause.auth);
    connection.startKeepAlive(connect.keepalive);
    if (addressLimit && !addressLimit(connection.address).admit(connectBytes(connect))) {
      refuse(connection, 3, "connectionRateExceeded", connect.clientId);
      return;
    }
    // [MQTT-3.1.3-8]: without an id the session can't be found again.
    if (connect.clientId === "" && !connect.clean) {
      refuse(connection, 2, "clientIdentifierNotValid", "");
      return;
    }
    const client: Client = {
      // [MQTT-3.1.3-6]: an id of its own, so that anonymous clients don't take each other over.
      id: connect.clientId === "" ? `auto-${randomUUID()}` : connect.clientId,
      username: connect.username,
      address: connection.address,
      protocolVersion: connect.protocolVersion,
      certificate: undefined,
      data: new Map(),
    };
    if (isFull(client.id)) {
      refuse(connection, 3, "serverBusy", client.id);
      return;
    }
    const { clean, keepalive, password, username, will } = connect;
    const outcome = run(
      {
        type: "Connect",
        origin: "client",
        packet: { clientId: client.id, clean, keepalive, password, username, will },
        client,
        lane: createLane(),
      },
      (late) => authenticated(connection, client, connect, late),
    );
    if (outcome) authenticated(connection, client, connect, outcome);
  }

  function authenticated(
    connection: Connection,
    client: Client,
    { clean, will, ...connect }: InPacket & { cmd: "connect" },
    outcome: Outcome,
  ): void {
    if (connection.closed) return;
    if (outcome.kind !== "passed") {
      const reason = refusalReason(outcome);
      refuse(connection, outcome.kind === "fault" ? 3 : (connackCodes[reason] ?? 5), reason, client.id);
      return;
    }
    if (connectLimit && !connectLimit.admit(connectBytes(connect))) {
      refuse(connection, 3, "connectionRateExceeded", client.id);
      return;
    }
    if (isFull(client.id)) {
      refuse(connection, 3, "serverBusy", client.id);
      return;
    }
    void acquire(connection, client, clean, will);
  }

  async function acquire(
    connection: Connection,
    client: Client,
    clean: boolean,
    will: Message | undefined,
  ): Promise<void> {
    let handle: SessionHandle;
    try {
      handle = await store.acquire({
        clientId: client.id,
        clean,
        info: { username: client.username, address: client.address },
        onLost: (why) => connection.close(why),
      });
    } catch (error) {
      refuse(connection, 3, "serverUnavailable", client.id, error);
      return;
    }
    if (connection.closed) {
      await handle.close();
      return;
    }
    const inflight = createInflight({
      retryMs: spec.retryInterval * 1000,
      resend(frame) {
        if (!connection.hasRoom) return;
        meters.resent();
        connection.send(frame);
      },
    });
    peers.set(connection, {
      client,
      handle,
      inflight,
      publishLimit: spec.clientPublishLimit && createLimiter(spec.clientPublishLimit, now),
      publishLane: createLane(),
      otherLanes: new Map(),
      will,
      faultTimer: undefined,
    });
    byClientId.set(client.id, connection);
    meters.accepted();
    log.debug({ proxy: spec.name, clientId: client.id, address: client.address, present: handle.present }, "Connected");
    connection.send(encodeConnack(0, handle.present));
    handle.attach((delivery, again) => deliver(connection, inflight, delivery, again), spec.maxInflight);
    connection.resume(pause.auth);
  }

  /** A client may always take its own connection over, also where every place is taken. */
  function isFull(clientId: string): boolean {
    return spec.maxAllowedConnection > 0 && byClientId.size >= spec.maxAllowedConnection && !byClientId.has(clientId);
  }

  function refuse(connection: Connection, code: ConnackCode, reason: string, clientId: string, error?: unknown): void {
    if (connection.closed) return;
    meters.refused(reason);
    throttle(`refused ${reason}`, (suppressed) =>
      log.info(
        { proxy: spec.name, clientId, address: connection.address, reason, ...problem(error), suppressed },
        "Refused",
      ),
    );
    connection.send(encodeConnack(code, false));
    connection.close("refused");
  }

  // ---- packets of an admitted client ----

  function handlePacket(connection: Connection, peer: Peer, packet: InPacket): void {
    switch (packet.cmd) {
      case "publish":
        onPublish(connection, peer, packet);
        break;
      case "puback": {
        const delivery = peer.inflight.settle(packet.packetId);
        if (delivery) peer.handle.settle(delivery);
        break;
      }
      case "subscribe":
        onSubscribe(connection, peer, packet);
        break;
      case "unsubscribe":
        onUnsubscribe(connection, peer, packet);
        break;
      case "pingreq":
        meters.sent("pingresp");
        connection.send(pingresp);
        break;
      case "disconnect":
        peer.will = undefined;
        connection.close("disconnect");
        break;
      default:
        // A second CONNECT never leaves the decoder; the rest belongs to QoS 2.
        connection.close("protocolError");
    }
  }

  function onPublish(connection: Connection, peer: Peer, publish: InPacket & { cmd: "publish" }): void {
    if (publish.qos === 2) {
      connection.close("protocolError");
      return;
    }
    if (peer.publishLimit && !peer.publishLimit.admit(publish.bytes)) {
      meters.delayed();
      connection.defer(publish, peer.publishLimit.waitMs());
      return;
    }
    meters.messageIn();
    const { topic, payload, qos, retain, dup, packetId } = publish;
    const packet: PublishPacket = { topic, payload, qos, retain, dup, packetId };
    const work = connection.begin(packetId ?? 0, publish.bytes);
    const settle = (outcome: Outcome): void => {
      const acked = acknowledges(outcome);
      if (outcome.kind !== "passed") meters.dropped(dropReason(outcome));
      if (acked && qos > 0) meters.sent("puback");
      connection.finish(work, acked);
      if (outcome.kind === "disconnected") connection.close("pipeline");
      else if (!acked && qos > 0) giveGrace(connection, peer);
    };
    const outcome = run(publishJob(peer, packet, "client"), settle);
    if (outcome) settle(outcome);
  }

  function publishJob(peer: Peer, packet: PublishPacket, origin: "client" | "will"): Job {
    const { topic } = packet;
    return {
      type: "Publish",
      origin,
      packet,
      client: peer.client,
      lane: peer.publishLane,
      final: spec.brokerMode ? () => fanOut(packet, topic, peer.client.id) : undefined,
    };
  }

  /** brokerMode: what the pipeline left of the message goes to the subscribers. */
  function fanOut(packet: PublishPacket, published: string, from: string): void | Promise<unknown> {
    const { topic, payload, qos, retain } = packet;
    const invalid = topic === published ? undefined : topicNameProblem(topic);
    if (invalid) throw new SluiceError("TOPIC_INVALID", `a filter left a topic that is not valid: ${invalid}`);
    const stored = store.publish({ topic, payload, qos, retain }, { from });
    if (stored instanceof Promise) return stored;
  }

  /** No ack: the client has to send again, which in 3.1.x it only does on a new connection [MQTT-4.4.0-1]. */
  function giveGrace(connection: Connection, peer: Peer): void {
    peer.faultTimer ??= setTimeout(() => connection.close("fault"), spec.faultGraceMs);
  }

  function onSubscribe(connection: Connection, peer: Peer, subscribe: InPacket & { cmd: "subscribe" }): void {
    const packet: SubscribePacket = {
      packetId: subscribe.packetId,
      subscriptions: subscribe.subscriptions.map(({ topicFilter, qos }) => ({ topicFilter, qos, refused: false })),
    };
    const settle = (outcome: Outcome): void => {
      if (outcome.kind === "disconnected") connection.close("pipeline");
      if (connection.closed) return;
      report(grant(connection, peer, packet, outcome.kind === "passed"), peer.client.id);
    };
    const outcome = run(
      { type: "Subscribe", origin: "client", packet, client: peer.client, lane: lane(peer, "Subscribe") },
      settle,
    );
    if (outcome) settle(outcome);
  }

  /** One code per topic filter, in their order [MQTT-3.8.4-5]; in effect before the SUBACK leaves. */
  async function grant(
    connection: Connection,
    { handle }: Peer,
    { packetId, subscriptions }: SubscribePacket,
    allowed: boolean,
  ): Promise<void> {
    const codes: number[] = [];
    for (const { topicFilter, qos, refused } of subscriptions) {
      const isNew = !handle.subscriptions.has(topicFilter);
      if (!allowed || refused || topicFilterProblem(topicFilter) !== undefined) codes.push(subackRefused);
      else if (isNew && handle.subscriptions.size >= maxSubscriptions) codes.push(subackRefused);
      else {
        const granted: QoS = qos === 0 ? 0 : 1;
        const stored = handle.subscribe(topicFilter, granted);
        if (stored instanceof Promise) await stored;
        codes.push(granted);
      }
    }
    meters.sent("suback");
    connection.send(encodeSuback(packetId, codes));
  }

  function onUnsubscribe(
    connection: Connection,
    peer: Peer,
    { packetId, topicFilters }: InPacket & { cmd: "unsubscribe" },
  ): void {
    const settle = (outcome: Outcome): void => {
      if (outcome.kind === "disconnected") connection.close("pipeline");
      else if (outcome.kind === "fault") giveGrace(connection, peer);
      else report(release(connection, peer, packetId, outcome.kind === "passed" ? topicFilters : []), peer.client.id);
    };
    const outcome = run(
      {
        type: "Unsubscribe",
        origin: "client",
        packet: { packetId, topicFilters },
        client: peer.client,
        lane: lane(peer, "Unsubscribe"),
      },
      settle,
    );
    if (outcome) settle(outcome);
  }

  /** 3.1.x knows no refusal of an UNSUBSCRIBE: a policy that forbids it keeps the subscription, and the UNSUBACK comes. */
  async function release(
    connection: Connection,
    { handle }: Peer,
    packetId: number,
    topicFilters: readonly string[],
  ): Promise<void> {
    for (const topicFilter of topicFilters) {
      const stored = handle.unsubscribe(topicFilter);
      if (stored instanceof Promise) await stored;
    }
    meters.sent("unsuback");
    connection.send(encodeAck("unsuback", packetId));
  }

  function deliver(connection: Connection, inflight: Inflight, delivery: Delivery, again: boolean): boolean {
    if (!connection.hasRoom) return false;
    meters.delivered();
    connection.send(inflight.encode(delivery, again));
    return true;
  }

  // ---- the end of a connection ----

  function sayLastWords(peer: Peer, why: CloseReason): void {
    // A restart of the gateway is not the death of a device.
    const { will } = peer;
    if (will && why !== "disconnect" && why !== "shutdown") {
      const packet: PublishPacket = { ...will, dup: false, packetId: undefined };
      meters.messageIn();
      sayLast(publishJob(peer, packet, "will"));
    }
    sayLast({
      type: "Disconnect",
      origin: "client",
      packet: { graceful: why === "disconnect" },
      client: peer.client,
      lane: lane(peer, "Disconnect"),
    });
  }

  function sayLast(job: Job): void {
    lastWords++;
    const settle = (outcome: Outcome): void => {
      if (job.type === "Publish" && outcome.kind !== "passed") meters.dropped(dropReason(outcome));
      if (--lastWords === 0) quiet?.();
    };
    const outcome = run(job, settle);
    if (outcome) settle(outcome);
  }

  // ---- what they share ----

  /** No rule for a packet type = allowed. A rule's pipeline was there when the config was checked. */
  function run(job: Job, done: (outcome: Outcome) => void): Outcome | undefined {
    const name = spec.rules[job.type];
    const pipeline = name === undefined ? undefined : deps.pipeline(name);
    if (pipeline) return pipeline.run(job, done);
    if (name !== undefined) {
      return { kind: "fault", error: new SluiceError("CONFIG_INVALID", `${spec.name}: no pipeline ${name}`) };
    }
    return job.final ? bare.run(job, done) : passed;
  }

  function lane({ otherLanes }: Peer, type: PacketType): Lane {
    let found = otherLanes.get(type);
    if (!found) otherLanes.set(type, (found = createLane()));
    return found;
  }

  /** A store that fails must not end the process; the client that it failed is closed and comes again. */
  function report(work: Promise<unknown>, clientId: string): void {
    work.catch((error: unknown) => {
      throttle("store", (suppressed) =>
        log.error({ proxy: spec.name, clientId, ...problem(error), suppressed }, "The session store failed"),
      );
      byClientId.get(clientId)?.close("fault");
    });
  }

  return {
    name: spec.name,
    get url() {
      const { address = "", port = spec.port } = listener?.address ?? {};
      const host = address === "::" || address === "0.0.0.0" || address === "" ? "127.0.0.1" : address;
      return `${spec.useTLS ? "mqtts" : "mqtt"}://${host.includes(":") ? `[${host}]` : host}:${port}`;
    },
    async listen() {
      listener = await listen({
        host: spec.host,
        port: spec.port,
        tls: spec.useTLS ? { certificate: spec.certificate, handshakeTimeoutMs: spec.handshakeTimeoutMs } : undefined,
        onSocket(socket) {
          if (stopping || connections.size - byClientId.size >= maxPending) {
            meters.refused("tooManyPending");
            socket.destroy();
            return;
          }
          connections.add(new Connection(socket, owner, spec));
        },
        onHandshakeError(error) {
          meters.refused("handshake");
          log.debug({ proxy: spec.name, error: error.message }, "A connection failed before MQTT");
        },
      });
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
      address: listener ? `${listener.address.address}:${listener.address.port}` : undefined,
      useTLS: spec.useTLS,
      brokerMode: spec.brokerMode,
      connections: byClientId.size,
      ...store.counts,
    }),
    async stop(drainMs) {
      stopping = true;
      await listener?.close();
      for (const connection of connections) connection.pause(pause.shutdown);
      const until = performance.now() + drainMs;
      // Polled: it happens once in a gateway's life, and a counter on the hot path would cost every packet.
      while (performance.now() < until && [...connections].some((connection) => connection.working > 0)) {
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      const closed = [...connections].map(
        ({ socket }) =>
          new Promise<void>((resolve) => (socket.destroyed ? resolve() : socket.once("close", () => resolve()))),
      );
      for (const connection of connections) connection.close("shutdown");
      await Promise.all(closed);
      if (lastWords > 0) await new Promise<void>((resolve) => (quiet = resolve));
    },
  };
}

const closeReasons: Record<string, CloseReason> = {
  MALFORMED_PACKET: "malformedPacket",
  PACKET_TOO_LARGE: "packetTooLarge",
  PROTOCOL_ERROR: "protocolError",
  UNSUPPORTED_VERSION: "refused",
};

/** design.md §4: verdicts are acked, since no retry would change them; faults never are. */
function acknowledges(outcome: Outcome): boolean {
  if (outcome.kind === "unhandled") return outcome.verdict;
  return outcome.kind !== "fault" && outcome.kind !== "disconnected";
}

function dropReason(outcome: Outcome): string {
  return outcome.kind === "unhandled" ? outcome.result : outcome.kind;
}

function refusalReason(outcome: Outcome): Reason {
  if (outcome.kind === "rejected" || outcome.kind === "disconnected") return outcome.reason;
  return outcome.kind === "fault" ? "serverUnavailable" : "notAuthorized";
}

/** About the CONNECT's size: what a byte limit on connecting counts. */
function connectBytes(connect: {
  clientId: string;
  username?: string | undefined;
  password?: Buffer | undefined;
}): number {
  return 14 + connect.clientId.length + (connect.username?.length ?? 0) + (connect.password?.length ?? 0);
}

function problem(error: unknown): { error?: string } {
  if (error === undefined) return {};
  return { error: error instanceof Error ? error.message : String(error) };
}
