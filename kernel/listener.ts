/** One listener of a proxy: an address, and in front of its sockets TLS with a certificate by the name that the client asks for. */
import { X509Certificate } from "node:crypto";
import type { AddressInfo, Socket } from "node:net";
import { createSecureContext, createServer as createTlsServer, type SecureContext, type TLSSocket } from "node:tls";
import type { Claim } from "./addresses.ts";
import { SluiceError } from "./errors.ts";
import type { CertificatePair } from "./spec.ts";

export interface ListenerOptions {
  readonly onSocket: (socket: Socket | TLSSocket) => void;
  /** Accepting failed, or a TLS handshake did or timed out; the socket is closed already. */
  readonly onError: (error: Error) => void;
}

export interface Listener {
  readonly address: AddressInfo;
  /** From here on sockets of the address are handed out; those that came before are the first. New handshakes use `tls`, if any. */
  open(tls: TlsGate | undefined): void;
  /** Gives the address up, and ends handshakes under way; sockets that were handed over are their owner's. */
  close(): void;
}

/** What TLS needs, checked and ready: made before a change, used after it. */
export interface TlsGate {
  handshake(socket: Socket, done: (socket: TLSSocket) => void, failed: (error: Error) => void): void;
}

/** @param claim is the listener's from here on: it is released by `close` */
export function createListener(claim: Claim, options: ListenerOptions): Listener {
  const shaking = new Set<Socket>();
  let gate: TlsGate | undefined;

  function onSocket(socket: Socket): void {
    if (!gate) {
      options.onSocket(socket);
      return;
    }
    shaking.add(socket);
    socket.once("close", () => shaking.delete(socket));
    gate.handshake(
      socket,
      (secure) => {
        shaking.delete(socket);
        options.onSocket(secure);
      },
      options.onError,
    );
  }

  return {
    address: claim.address,
    open(tls) {
      gate = tls;
      claim.open({ onSocket, onError: options.onError });
    },
    close() {
      claim.release();
      for (const socket of shaking) socket.destroy();
    },
  };
}

/**
 * @param pairs the first answers clients that send no server name, or one that no pair covers
 * @throws what OpenSSL says of a pair that can't be used
 */
export function createTlsGate(pairs: readonly CertificatePair[], handshakeTimeoutMs: number): TlsGate {
  const [first] = pairs;
  if (!first) throw new SluiceError("CONFIG_INVALID", "TLS needs a certificate");
  const contexts = pairs.map(({ cert, key }) => ({
    certificate: new X509Certificate(cert),
    context: createSecureContext({ cert, key, minVersion: "TLSv1.2" }),
  }));
  // Never bound: sockets of the TCP listener are handed to it, so that TLS can change while the address stays.
  const server = createTlsServer({
    cert: first.cert,
    key: first.key,
    minVersion: "TLSv1.2",
    handshakeTimeout: handshakeTimeoutMs,
    SNICallback(name: string, done: (error: Error | null, context?: SecureContext) => void) {
      done(null, contexts.find(({ certificate }) => certificate.checkHost(name) !== undefined)?.context);
    },
  });
  // What a handshake belongs to is known by the peer's address and port, which the TLS socket shares with its TCP one.
  const shaking = new Map<string, { done: (socket: TLSSocket) => void; failed: (error: Error) => void }>();
  server.on("secureConnection", (socket) => {
    const key = peer(socket);
    const waiting = shaking.get(key);
    shaking.delete(key);
    if (waiting) waiting.done(socket);
    else socket.destroy();
  });
  server.on("tlsClientError", (error, socket) => {
    fail(peer(socket), error);
    socket.destroy();
  });

  function fail(key: string, error: Error): void {
    const waiting = shaking.get(key);
    shaking.delete(key);
    waiting?.failed(error);
  }

  return {
    handshake(socket, done, failed) {
      const key = peer(socket);
      shaking.set(key, { done, failed });
      socket.once("close", () => fail(key, new Error("closed during the TLS handshake")));
      server.emit("connection", socket);
    },
  };
}

function peer(socket: Socket): string {
  return `${socket.remoteAddress}:${socket.remotePort}`;
}
