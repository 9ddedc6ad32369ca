/** One listener of a proxy: an address, and what a socket goes through there before MQTT is spoken on it. */
import type { X509Certificate } from "node:crypto";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { isDeepStrictEqual } from "node:util";
import type { Claim } from "./addresses.ts";
import type { Code } from "./errors.ts";
import { readProxyHeader } from "./proxy-protocol.ts";
import type { Address, ListenerSpec } from "./spec.ts";
import { createTlsGate, nameIn, type TlsGate } from "./tls-gate.ts";
import { createWebSocketGate, type WebSocketGate } from "./websocket.ts";

/** Who is at the other end of a connection, as far as its listener can tell. */
export interface Remote {
  /** An IP address; `unix` for a unix socket. */
  readonly address: string;
  /** Verified. */
  readonly certificate: X509Certificate | undefined;
  /** The name in the certificate, where the listener takes user names from there. */
  readonly username: string | undefined;
  /** Of the listener that brought it. */
  readonly listener: symbol;
}

/** Why a socket did not come as far as MQTT. */
export type ArrivalFailure = "accept" | "proxyHeader" | "handshake" | "upgrade" | "tooManyPending";

/** Shared by the listeners of a proxy. */
export interface ListenerOwner {
  /** Sockets that are on their way to MQTT; bounded by `maxArriving`. */
  readonly arriving: Set<Socket>;
  readonly maxArriving: number;
  onStream(stream: Duplex, remote: Remote): void;
  /** The socket is closed already, or ends by itself. */
  onFailure(why: ArrivalFailure, error: Error): void;
  /** A connection that was handed over is closed for what came on its WebSocket. */
  onRefused(code: Code, why: string): void;
}

/** Limits of the proxy that concern what comes before MQTT. */
export interface ArrivalLimits {
  readonly handshakeTimeoutMs: number;
  readonly maxPacketBytes: number;
}

/** What stands in front of MQTT: made before a change, used after it. */
export interface Gate {
  readonly spec: ListenerSpec;
  readonly limits: ArrivalLimits;
  readonly tls: TlsGate | undefined;
  readonly webSocket: WebSocketGate | undefined;
}

export interface Listener {
  /** Passed on to the one that takes its place at another address. */
  readonly id: symbol;
  readonly address: Address;
  /** Undefined before the first `open`. */
  readonly gate: Gate | undefined;
  /** From here on sockets of the address are handed out, those that came before first; all of them by this gate. */
  open(gate: Gate): void;
  /** Gives the address up. Sockets that are on their way to MQTT get there. */
  release(): void;
}

/** Messages of less are always allowed: a client may put several small packets into one. */
const minMessageBytes = 65_536;

/**
 * @param old gives what is the same: a TLS context costs milliseconds of OpenSSL's time, and its clients the resumption of
 *   their sessions
 * @throws SluiceError CONFIG_INVALID with OpenSSL's word on a pair or an authority
 */
export function createGate(spec: ListenerSpec, limits: ArrivalLimits, owner: ListenerOwner, old?: Gate): Gate {
  type Parts = (of: { spec: ListenerSpec; limits: ArrivalLimits }) => unknown[];
  const tlsParts: Parts = (of) => [of.spec.tls, of.limits.handshakeTimeoutMs];
  const webSocketParts: Parts = (of) => [of.spec.webSocket, of.limits.maxPacketBytes];
  const isSame = (parts: Parts): boolean => old !== undefined && isDeepStrictEqual(parts(old), parts({ spec, limits }));
  return {
    spec,
    limits,
    tls: isSame(tlsParts) ? old?.tls : spec.tls && createTlsGate(spec.tls, limits.handshakeTimeoutMs),
    webSocket: isSame(webSocketParts) ? old?.webSocket : webSocketGate(spec, limits, owner),
  };
}

function webSocketGate(
  { webSocket }: ListenerSpec,
  { maxPacketBytes }: ArrivalLimits,
  owner: ListenerOwner,
): WebSocketGate | undefined {
  if (!webSocket) return undefined;
  const maxMessageBytes = Math.max(maxPacketBytes, minMessageBytes);
  return createWebSocketGate({ ...webSocket, maxMessageBytes, onRefused: (code, why) => owner.onRefused(code, why) });
}

/** @param claim is the listener's from here on: `release` releases it */
export function createListener(claim: Claim, id: symbol, owner: ListenerOwner): Listener {
  let gate: Gate | undefined;

  function onSocket(socket: Socket): void {
    if (!gate) return;
    const { spec, tls, webSocket } = gate;
    const address = addressOf(socket, claim.address);
    if (!spec.proxyProtocol && !tls && !webSocket) {
      owner.onStream(socket, { address, certificate: undefined, username: undefined, listener: id });
    } else if (owner.arriving.size >= owner.maxArriving) {
      socket.destroy();
      owner.onFailure("tooManyPending", new Error("too many connections are on their way"));
    } else {
      arrive(socket, address, gate);
    }
  }

  /** PROXY header, TLS, WebSocket: each where it is switched on, in this order, and all of them within one deadline. */
  function arrive(socket: Socket, peer: string, { spec, limits, tls, webSocket }: Gate): void {
    let address = peer;
    let certificate: X509Certificate | undefined;
    let username: string | undefined;
    let step: ArrivalFailure = "proxyHeader";
    let isSettled = false;

    const fail = (error: Error): void => {
      if (isSettled) return;
      isSettled = true;
      owner.onFailure(step, error);
    };
    // It outlasts a failure: a peer that was told why gets as long to go away.
    const timer = setTimeout(() => {
      socket.destroy();
      fail(new Error(`not there within handshakeTimeout (${limits.handshakeTimeoutMs / 1000} s)`));
    }, limits.handshakeTimeoutMs);
    const onClose = (): void => {
      owner.arriving.delete(socket);
      clearTimeout(timer);
      fail(new Error("closed before it spoke MQTT"));
    };
    owner.arriving.add(socket);
    socket.once("close", onClose);

    const hand = (stream: Duplex): void => {
      isSettled = true;
      owner.arriving.delete(socket);
      clearTimeout(timer);
      socket.off("close", onClose);
      owner.onStream(stream, { address, certificate, username, listener: id });
      // One whose PROXY header was read is paused.
      if (stream === socket) socket.resume();
    };
    const upgrade = (below: Socket): void => {
      step = "upgrade";
      if (webSocket) webSocket.upgrade(below, hand, fail);
      else hand(below);
    };
    const shake = (): void => {
      step = "handshake";
      if (!tls) {
        upgrade(socket);
        return;
      }
      tls.handshake(
        socket,
        (secure, shown) => {
          certificate = shown;
          const from = spec.tls?.usernameFrom ?? "none";
          if (shown && from !== "none") {
            username = nameIn(shown, from);
            if (username === undefined) {
              secure.destroy();
              fail(new Error(`its certificate has no name for usernameFrom: ${from}`));
              return;
            }
          }
          upgrade(secure);
        },
        fail,
      );
    };
    if (!spec.proxyProtocol) {
      shake();
      return;
    }
    readProxyHeader(
      socket,
      (told) => {
        address = told ?? peer;
        shake();
      },
      (why) => {
        fail(new Error(`PROXY protocol: ${why}`));
        socket.destroy();
      },
    );
  }

  return {
    id,
    address: claim.address,
    get gate() {
      return gate;
    },
    open(next) {
      gate = next;
      claim.open({ onSocket, onError: (error) => owner.onFailure("accept", error) });
    },
    release: () => claim.release(),
  };
}

/** Empty where a client has gone already. */
function addressOf({ remoteAddress = "" }: Socket, at: Address): string {
  return "socket" in at ? "unix" : remoteAddress.replace(/^::ffff:/, "");
}
