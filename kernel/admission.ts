/** CONNECT, step by step: limits -> Connect pipeline -> session -> CONNACK. */
import { randomUUID } from "node:crypto";
import { type ConnackCode, encodeConnack, type InPacket } from "./codec.ts";
import { type Connection, pause } from "./connection.ts";
import { createKeyedLimiter, createLimiter } from "./limiter.ts";
import { createLane, type Job, type Outcome } from "./pipeline.ts";
import type { Client, Message, Reason } from "./plugin.ts";
import type { RateLimit } from "./spec.ts";
import type { ProxyStore, SessionHandle } from "./store.ts";

type ConnectIn = InPacket & { cmd: "connect" };

export interface Admission {
  /** Nothing more is read from the connection until it is admitted; else it is refused and closed. */
  admit(connection: Connection, connect: ConnectIn): void;
  /** `connectionLimit` has changed. */
  limit(to: RateLimit | undefined): void;
}

export interface AdmissionDeps {
  readonly store: ProxyStore;
  now(): number;
  /** An address is no longer counted, for there are too many. */
  forgotten(): void;
  run(job: Job, done: (outcome: Outcome) => void): Outcome | undefined;
  /** Is there no place for this client? */
  isFull(clientId: string): boolean;
  /** Sends the CONNACK and reads on. */
  admitted(connection: Connection, client: Client, handle: SessionHandle, will: Message | undefined): void;
  refused(connection: Connection, reason: string, clientId: string, error?: unknown): void;
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

export function createAdmission(initial: RateLimit | undefined, deps: AdmissionDeps): Admission {
  const now = (): number => deps.now();
  // Before authentication the limit counts an address, so that strangers can't use up what is everybody's.
  const byAddress = (limit: RateLimit) =>
    createKeyedLimiter(limit, { now, max: maxAddresses, forgotten: () => deps.forgotten() });
  let addressLimit = initial && byAddress(initial);
  let proxyLimit = initial && createLimiter(initial, now);

  function refuse(connection: Connection, reason: Reason, clientId: string, error?: unknown): void {
    if (connection.closed) return;
    deps.refused(connection, reason, clientId, error);
    connection.send(encodeConnack(connackCodes[reason] ?? 5, false));
    connection.close("refused");
  }

  function authenticated(connection: Connection, client: Client, connect: ConnectIn, outcome: Outcome): void {
    if (connection.closed) return;
    if (outcome.kind !== "passed") refuse(connection, reasonOf(outcome), client.id);
    else if (proxyLimit && !proxyLimit.admit(bytesOf(connect))) refuse(connection, "connectionRateExceeded", client.id);
    else if (deps.isFull(client.id)) refuse(connection, "serverBusy", client.id);
    else void acquire(connection, client, connect);
  }

  async function acquire(connection: Connection, client: Client, { clean, will }: ConnectIn): Promise<void> {
    let handle: SessionHandle;
    try {
      handle = await deps.store.acquire({
        clientId: client.id,
        clean,
        info: { username: client.username, address: client.address },
        onLost: (why) => connection.close(why),
      });
      if (connection.closed) await handle.close();
    } catch (error) {
      refuse(connection, "serverUnavailable", client.id, error);
      return;
    }
    if (!connection.closed) deps.admitted(connection, client, handle, will);
  }

  return {
    limit(to) {
      addressLimit = to && byAddress(to);
      proxyLimit = to && createLimiter(to, now);
    },
    admit(connection, connect) {
      connection.pause(pause.auth);
      connection.startKeepAlive(connect.keepalive);
      if (addressLimit && !addressLimit(connection.address).admit(bytesOf(connect))) {
        refuse(connection, "connectionRateExceeded", connect.clientId);
        return;
      }
      // Without an id the session can't be found again [MQTT-3.1.3-8].
      if (connect.clientId === "" && !connect.clean) {
        refuse(connection, "clientIdentifierNotValid", "");
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
        refuse(connection, "serverBusy", client.id);
        return;
      }
      const { clean, keepalive, password, will } = connect;
      const packet = { clientId: client.id, clean, keepalive, password, username, will };
      const outcome = deps.run({ type: "Connect", origin: "client", packet, client, lane: createLane() }, (late) =>
        authenticated(connection, client, connect, late),
      );
      if (outcome) authenticated(connection, client, connect, outcome);
    },
  };
}

function reasonOf(outcome: Outcome): Reason {
  if (outcome.kind === "rejected" || outcome.kind === "disconnected") return outcome.reason;
  return outcome.kind === "fault" ? "serverUnavailable" : "notAuthorized";
}

/** About the CONNECT's size: what a byte limit on connecting counts. */
function bytesOf({ clientId, username, password }: ConnectIn): number {
  return 14 + clientId.length + (username?.length ?? 0) + (password?.length ?? 0);
}
