/** CONNECT, step by step: limits -> Connect pipeline -> session -> CONNACK. */
import { isUtf8 } from "node:buffer";
import { randomUUID } from "node:crypto";
import type { Admitted } from "./admitted.ts";
import { type AuthExchange, createAuthExchange } from "./authentication.ts";
import type { InPacket } from "./codec.ts";
import { SluiceError } from "./errors.ts";
import { encodeConnack, encodeConnackV5 } from "./encoder.ts";
import { type CloseReason, type Connection, pause } from "./connection.ts";
import type { ConnackCode } from "./frame.ts";
import { createKeyedLimiter, createLimiter } from "./limiter.ts";
import { type Outcome, reasonOf, textOf } from "./outcome.ts";
import type { ConnectIn } from "./packet.ts";
import { createLane, type Job } from "./pipeline.ts";
import type { Client, Reason } from "./plugin.ts";
import { reasonCodeFor } from "./reasons.ts";
import { neverExpires } from "./session.ts";
import { type ProxySpec, type RateLimit, retainAvailable } from "./spec.ts";
import type { ProxyStore, SessionHandle, WillOfClient } from "./store.ts";

export interface Admission {
  /** Nothing more is read from the connection until it is admitted; else it is refused and closed. */
  admit(connection: Connection, connect: ConnectIn): void;
  /** A packet before the CONNACK: only AUTH and DISCONNECT are allowed [MQTT-4.12.0-4]. */
  packet(connection: Connection, packet: InPacket): void;
  closed(connection: Connection): void;
  /** `connectionLimit` has changed. */
  limit(to: RateLimit | undefined): void;
}

export interface AdmissionDeps {
  readonly spec: ProxySpec;
  readonly store: ProxyStore;
  now(): number;
  /** An address is no longer counted, for there are too many. */
  forgotten(): void;
  run(job: Job, done: (outcome: Outcome) => void): Outcome | undefined;
  /** Where others admit clients to this proxy too: `connectionLimit`, as one for all of them. */
  readonly admitAlso: ((of: "address" | "proxy", address: string, bytes: number) => Promise<boolean>) | undefined;
  /** Is there no place for this client? */
  isFull(clientId: string): boolean;
  /** Sends the CONNACK and reads on. */
  admitted(admitted: Admitted, connack: Buffer): void;
  refused(connection: Connection, reason: string, clientId: string, error?: unknown): void;
  sent(cmd: "auth"): void;
}

/** Addresses whose rate of connecting is remembered. */
const maxAddresses = 100_000;

/** What a client of 3.1.x is told for a reason [MQTT-3.2.2-4]; all others are "not authorized". */
const connackCodes: Partial<Record<Reason, ConnackCode>> = {
  clientIdentifierNotValid: 2,
  serverUnavailable: 3,
  serverBusy: 3,
  quotaExceeded: 3,
  connectionRateExceeded: 3,
  badUserNameOrPassword: 4,
};

/** A CONNECT on its way. */
interface Arrival {
  readonly connection: Connection;
  readonly client: Client;
  readonly connect: ConnectIn;
  /** Seconds: what the client asked for, or what it is told. */
  readonly keepalive: number;
  readonly exchange: AuthExchange | undefined;
}

export function createAdmission(initial: RateLimit | undefined, deps: AdmissionDeps): Admission {
  const now = (): number => deps.now();
  // Before authentication the limit counts an address, so that strangers can't use up what is everybody's.
  const byAddress = (limit: RateLimit) =>
    createKeyedLimiter(limit, { now, max: maxAddresses, forgotten: () => deps.forgotten() });
  let addressLimit = initial && byAddress(initial);
  let proxyLimit = initial && createLimiter(initial, now);
  /** Of connections that are being authenticated by AUTH packets. */
  const exchanges = new Map<Connection, AuthExchange>();

  function refuse(
    connection: Connection,
    { clientId, protocolVersion }: Pick<ConnectIn, "clientId" | "protocolVersion">,
    reason: Reason,
    why: { readonly text?: string | undefined; readonly error?: unknown } = {},
  ): void {
    if (connection.closed) return;
    deps.refused(connection, reason, clientId, why.error);
    connection.send(
      protocolVersion === 5
        ? refusalV5(reason, why.text, connection.maximumPacketSize)
        : encodeConnack(connackCodes[reason] ?? 5, false),
    );
    connection.close("refused");
  }

  function authenticated(arrival: Arrival, outcome: Outcome): void {
    const { connection, client, connect, exchange } = arrival;
    exchanges.delete(connection);
    exchange?.end("the client is authenticated");
    if (connection.closed) return;
    const known = { clientId: client.id, protocolVersion: connect.protocolVersion };
    const { connectionLimit } = deps.spec;
    if (outcome.kind !== "passed") {
      refuse(connection, known, reasonOf(outcome), {
        text: textOf(outcome),
        error: outcome.kind === "fault" ? outcome.error : undefined,
      });
    } else if (exchange && !exchange.accepted) {
      refuse(connection, known, "badAuthenticationMethod"); // [MQTT-4.12.0-1]
    } else if (!deps.admitAlso && proxyLimit && !proxyLimit.admit(bytesOf(connect))) {
      refuse(connection, known, "connectionRateExceeded");
    } else if (deps.isFull(client.id)) {
      refuse(connection, known, "serverBusy");
    } else if (deps.admitAlso && connectionLimit) {
      void ifAdmitted("proxy", connection, { ...connect, clientId: client.id }, () => void acquire(arrival));
    } else {
      void acquire(arrival);
    }
  }

  /** Goes on where the limit of all admits this one too. */
  async function ifAdmitted(
    of: "address" | "proxy",
    connection: Connection,
    connect: ConnectIn,
    go: () => void,
  ): Promise<void> {
    try {
      const isWithin = await deps.admitAlso?.(of, connection.address, bytesOf(connect));
      if (connection.closed) return;
      if (isWithin) go();
      else refuse(connection, connect, "connectionRateExceeded");
    } catch (error) {
      refuse(connection, connect, "serverUnavailable", { error });
    }
  }

  async function acquire(arrival: Arrival): Promise<void> {
    const { connection, client, connect } = arrival;
    const expirySec = expiryOf(connect, deps.spec);
    let handle: SessionHandle;
    try {
      handle = await deps.store.acquire({
        clientId: client.id,
        cleanStart: connect.clean,
        expirySec,
        info: { username: client.username, address: client.address },
        onLost: closerOf(connection),
        protocolVersion: client.protocolVersion,
        will: connect.will && { will: connect.will, client: idOf(client) },
      });
    } catch (error) {
      const known = { clientId: client.id, protocolVersion: connect.protocolVersion };
      const isFull = error instanceof SluiceError && error.code === "PROXY_FULL";
      refuse(connection, known, isFull ? "serverBusy" : "serverUnavailable", { error });
      return;
    }
    if (connection.closed) {
      handle.willDone?.();
      await handle.close();
      return;
    }
    const { spec } = deps;
    const admitted: Admitted = {
      connection,
      client,
      handle,
      connect: { ...connect, password: undefined },
      sessionExpiry: expirySec,
      receiveMaximum: Math.min(spec.maxInWork, 65_535),
      topicAliasMaximum: spec.topicAliasMaximum,
    };
    const connack =
      connect.protocolVersion === 5 ? connackOf(admitted, arrival, spec) : encodeConnack(0, handle.present);
    deps.admitted(admitted, connack);
  }

  return {
    limit(to) {
      addressLimit = to && byAddress(to);
      proxyLimit = to && createLimiter(to, now);
    },
    admit(connection, connect) {
      const { spec } = deps;
      connection.pause(pause.auth);
      connection.maximumPacketSize = connect.properties?.maximumPacketSize ?? Infinity;
      const keepalive = keepAliveOf(connect, spec);
      connection.startKeepAlive(keepalive);
      if (deps.admitAlso && spec.connectionLimit) {
        void ifAdmitted("address", connection, connect, () => arrive(connection, connect, keepalive));
        return;
      }
      if (addressLimit && !addressLimit(connection.address).admit(bytesOf(connect))) {
        refuse(connection, connect, "connectionRateExceeded");
        return;
      }
      arrive(connection, connect, keepalive);
    },
    packet(connection, packet) {
      if (packet.cmd === "auth" && exchanges.get(connection)?.answered(packet)) return;
      connection.close(packet.cmd === "disconnect" ? "disconnect" : "protocolError");
    },
    closed(connection) {
      exchanges.get(connection)?.end("the connection has ended");
      exchanges.delete(connection);
    },
  };

  function arrive(connection: Connection, connect: ConnectIn, keepalive: number): void {
    const { spec } = deps;
    // Without an id the session can't be found again [MQTT-3.1.3-8]; MQTT 5 tells the client the one it is given.
    if (connect.clientId === "" && !connect.clean && connect.protocolVersion !== 5) {
      refuse(connection, connect, "clientIdentifierNotValid");
      return;
    }
    const unserved = willProblem(connect, spec);
    if (unserved) {
      refuse(connection, connect, unserved);
      return;
    }
    // What a certificate proves counts for more than what a CONNECT says.
    const username = connection.remote.username ?? connect.username;
    const client: Client = {
      // An id of its own [MQTT-3.1.3-6], so that anonymous clients don't take each other over.
      id: connect.clientId === "" ? `auto-${randomUUID()}` : connect.clientId,
      username,
      address: connection.address,
      protocolVersion: connect.protocolVersion,
      certificate: connection.remote.certificate,
      data: new Map(),
    };
    if (deps.isFull(client.id)) {
      refuse(connection, { ...connect, clientId: client.id }, "serverBusy");
      return;
    }
    const exchange = exchangeOf(connection, connect);
    if (exchange) exchanges.set(connection, exchange);
    const arrival: Arrival = { connection, client, connect, keepalive, exchange };
    const { clean, password, will, properties } = connect;
    const packet = {
      clientId: client.id,
      clean,
      keepalive: connect.keepalive,
      password,
      username,
      will,
      properties,
    };
    const job: Job = {
      type: "Connect",
      origin: "client",
      packet,
      client,
      lane: createLane(),
      auth: exchange?.auth,
    };
    const outcome = deps.run(job, (late) => authenticated(arrival, late));
    if (outcome) authenticated(arrival, outcome);
  }

  function exchangeOf(connection: Connection, { properties }: ConnectIn): AuthExchange | undefined {
    if (properties?.authenticationMethod === undefined) return undefined;
    return createAuthExchange({
      method: properties.authenticationMethod,
      data: properties.authenticationData,
      reauth: false,
      send(frame) {
        deps.sent("auth");
        connection.send(frame);
        connection.resume(pause.auth);
      },
      received: () => connection.pause(pause.auth),
    });
  }
}

/** Lives as long as the session's handle; so that it keeps nothing else of the arrival alive, the password least of all. */
function closerOf(connection: Connection): (why: CloseReason) => void {
  return (why) => connection.close(why);
}

/** What of a client another node is told. */
function idOf({ id, username, address, protocolVersion }: Client): WillOfClient["client"] {
  return { id, username, address, protocolVersion };
}

/** Seconds that the session outlives the connection: as asked for, within the proxy's bound. */
function expiryOf({ clean, properties }: ConnectIn, { maxSessionExpiry }: ProxySpec): number {
  const asked = properties ? properties.sessionExpiry : clean ? 0 : neverExpires;
  return Math.min(asked, maxSessionExpiry);
}

/** Only MQTT 5 can be told another keep alive than it asked for [MQTT-3.2.2-21]. */
function keepAliveOf({ keepalive, protocolVersion }: ConnectIn, { maxKeepAlive }: ProxySpec): number {
  const isLonger = maxKeepAlive > 0 && (keepalive === 0 || keepalive > maxKeepAlive);
  return protocolVersion === 5 && isLonger ? maxKeepAlive : keepalive;
}

/** A will that could not be published as it is [MQTT-3.2.2-12] [MQTT-3.2.2-13]. */
function willProblem({ will, protocolVersion }: ConnectIn, spec: ProxySpec): Reason | undefined {
  if (!will) return undefined;
  if (will.qos > spec.maxQos) return "qosNotSupported";
  const isText = will.properties?.payloadFormat === 1;
  if (spec.checkPayloadFormat && isText && !isUtf8(will.payload)) return "payloadFormatInvalid";
  return protocolVersion === 5 && will.retain && !retainAvailable(spec) ? "retainNotSupported" : undefined;
}

/** The words are left out where they don't fit [MQTT-3.2.2-19]. */
function refusalV5(reason: Reason, text: string | undefined, maximumPacketSize: number): Buffer {
  const connack = { reasonCode: reasonCodeFor("connack", reason), sessionPresent: false };
  const full = encodeConnackV5({ ...connack, reasonString: text });
  return full.length > maximumPacketSize ? encodeConnackV5(connack) : full;
}

/** MQTT 5: what the client is granted, told where it is not what it would take for granted. */
function connackOf(admitted: Admitted, { connect, keepalive, exchange }: Arrival, spec: ProxySpec): Buffer {
  const { client, handle, sessionExpiry, receiveMaximum, topicAliasMaximum } = admitted;
  const { properties } = connect;
  return encodeConnackV5({
    reasonCode: 0,
    sessionPresent: handle.present,
    assignedClientId: connect.clientId === "" ? client.id : undefined, // [MQTT-3.2.2-16]
    sessionExpiry: sessionExpiry === properties?.sessionExpiry ? undefined : sessionExpiry,
    serverKeepAlive: keepalive === connect.keepalive ? undefined : keepalive,
    receiveMaximum: receiveMaximum === 65_535 ? undefined : receiveMaximum,
    maximumPacketSize: spec.maxPacketBytes,
    topicAliasMaximum: topicAliasMaximum === 0 ? undefined : topicAliasMaximum,
    maximumQos: spec.maxQos === 2 ? undefined : spec.maxQos, // [MQTT-3.2.2-9]
    retainAvailable: retainAvailable(spec) ? undefined : false,
    responseInformation: properties?.requestResponseInformation ? spec.responseInformation : undefined,
    authenticationMethod: properties?.authenticationMethod,
    authenticationData: exchange?.data,
  });
}

/** About the CONNECT's size: what a byte limit on connecting counts. */
function bytesOf({ clientId, username, password }: ConnectIn): number {
  return 14 + clientId.length + (username?.length ?? 0) + (password?.length ?? 0);
}
