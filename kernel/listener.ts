/** One bound address: TCP, and behind it TLS with a certificate chosen by the name that the client asks for. */
import { X509Certificate } from "node:crypto";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { createSecureContext, createServer as createTlsServer, type SecureContext, type TLSSocket } from "node:tls";
import { SluiceError } from "./errors.ts";
import type { CertificatePair } from "./spec.ts";

export interface ListenerOptions {
  /** Undefined = every interface, IPv6 and IPv4. */
  readonly host: string | undefined;
  /** 0 = any free one. */
  readonly port: number;
  readonly onSocket: (socket: Socket | TLSSocket) => void;
  /** Accepting failed, or a TLS handshake did or timed out; the socket is closed already. */
  readonly onError: (error: Error) => void;
}

export interface Listener {
  readonly address: AddressInfo;
  /** From here on sockets are handed out; those that came before are the first. New handshakes use `tls`, if any. */
  open(tls: TlsGate | undefined): void;
  /** Stops accepting, and ends handshakes under way; sockets that were handed over are their owner's. */
  close(): Promise<void>;
}

/** What TLS needs, checked and ready: made before a change, used after it. */
export interface TlsGate {
  handshake(socket: Socket, done: (socket: TLSSocket) => void, failed: (error: Error) => void): void;
}

/** Sockets that may wait for `open`; the kernel's own backlog holds more. */
const maxWaiting = 1000;

/** @throws SluiceError LISTEN_FAILED with the address and the system's reason. */
export async function listen(options: ListenerOptions): Promise<Listener> {
  const server = createServer({ noDelay: true });
  /** Sockets without an owner: waiting for `open`, or in a handshake. */
  const unowned = new Set<Socket>();
  let isOpen = false;
  let gate: TlsGate | undefined;

  function handOut(socket: Socket): void {
    if (!gate) {
      unowned.delete(socket);
      options.onSocket(socket);
      return;
    }
    gate.handshake(
      socket,
      (secure) => {
        unowned.delete(socket);
        options.onSocket(secure);
      },
      (error) => options.onError(error),
    );
  }

  server.on("connection", (socket) => {
    if (!isOpen && unowned.size >= maxWaiting) {
      socket.destroy();
      return;
    }
    unowned.add(socket);
    socket.once("close", () => unowned.delete(socket));
    // Of a socket that nobody has yet, an error is only its end.
    socket.on("error", ignore);
    if (isOpen) handOut(socket);
  });

  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => reject(bindError(error, options)));
    server.listen({ port: options.port, ...(options.host === undefined ? {} : { host: options.host }) }, resolve);
  });
  // An accept can fail later (out of file descriptors); the clients that are connected must not pay for it.
  server.removeAllListeners("error");
  server.on("error", (error) => options.onError(error));

  return {
    address: server.address() as AddressInfo,
    open(tls) {
      gate = tls;
      if (isOpen) return;
      isOpen = true;
      for (const socket of unowned) handOut(socket);
    },
    close() {
      // Its callback would wait for the connections, which end in their own time.
      server.close();
      for (const socket of unowned) socket.destroy();
      return Promise.resolve();
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

function ignore(): void {
  // The close that follows is what counts.
}

function peer(socket: Socket): string {
  return `${socket.remoteAddress}:${socket.remotePort}`;
}

function bindError(error: NodeJS.ErrnoException, { host, port }: ListenerOptions): SluiceError {
  const advice =
    error.code === "EADDRINUSE"
      ? "another process has it: stop that one, or set another port"
      : error.code === "EACCES"
        ? "this user may not bind it: ports below 1024 need a privilege"
        : "check host and port";
  return new SluiceError("LISTEN_FAILED", `can't listen on ${host ?? "*"}:${port}: ${error.message}; ${advice}`, {
    cause: error,
  });
}
