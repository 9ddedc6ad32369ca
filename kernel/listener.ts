/** One bound address: TCP, or TLS with a certificate chosen by the name that the client asks for. */
import { X509Certificate } from "node:crypto";
import { createServer, type AddressInfo, type Socket } from "node:net";
import {
  createSecureContext,
  createServer as createTlsServer,
  type SecureContext,
  type TlsOptions,
  type TLSSocket,
} from "node:tls";
import { SluiceError } from "./errors.ts";
import type { CertificatePair } from "./spec.ts";

export interface ListenerOptions {
  /** Undefined = every interface, IPv6 and IPv4. */
  readonly host: string | undefined;
  /** 0 = any free one. */
  readonly port: number;
  /** The first pair answers clients that send no server name, or one that no pair covers. */
  readonly tls: { readonly certificate: readonly CertificatePair[]; readonly handshakeTimeoutMs: number } | undefined;
  onSocket(socket: Socket | TLSSocket): void;
  /** A TLS handshake failed or timed out; the socket is closed already. */
  onHandshakeError(error: Error): void;
}

export interface Listener {
  readonly address: AddressInfo;
  /** Stops accepting, and ends handshakes under way; sockets that were handed over are their owner's. */
  close(): Promise<void>;
}

/** @throws SluiceError LISTEN_FAILED with the address and the system's reason. */
export async function listen(options: ListenerOptions): Promise<Listener> {
  const { tls } = options;
  const server = tls
    ? createTlsServer({ ...secureOptions(tls.certificate), handshakeTimeout: tls.handshakeTimeoutMs, noDelay: true })
    : createServer({ noDelay: true });
  // Sockets in a TLS handshake, which have no owner yet, by the peer's address and port.
  const shaking = new Map<string, Socket>();
  let closed = false;
  server.on(tls ? "secureConnection" : "connection", (socket: Socket | TLSSocket) => {
    shaking.delete(peer(socket));
    if (closed) socket.destroy();
    else options.onSocket(socket);
  });
  if (tls) {
    server.on("connection", (socket: Socket) => {
      const key = peer(socket);
      shaking.set(key, socket);
      socket.once("close", () => shaking.delete(key));
    });
    server.on("tlsClientError", (error: Error, socket: TLSSocket) => {
      socket.destroy();
      options.onHandshakeError(error);
    });
  }

  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const where = `${options.host ?? "*"}:${options.port}`;
      const advice =
        error.code === "EADDRINUSE"
          ? "another process has it: stop that one, or set another port"
          : error.code === "EACCES"
            ? "this user may not bind it: ports below 1024 need a privilege"
            : "check host and port";
      reject(
        new SluiceError("LISTEN_FAILED", `can't listen on ${where}: ${error.message}; ${advice}`, { cause: error }),
      );
    });
    server.listen({ port: options.port, ...(options.host === undefined ? {} : { host: options.host }) }, resolve);
  });
  // An accept can fail later (out of file descriptors); the clients that are connected must not pay for it.
  server.removeAllListeners("error");
  server.on("error", (error) => options.onHandshakeError(error));

  return {
    address: server.address() as AddressInfo,
    close() {
      closed = true;
      // Its callback would wait for the connections, which end in their own time.
      server.close();
      for (const socket of shaking.values()) socket.destroy();
      return Promise.resolve();
    },
  };
}

function peer(socket: Socket): string {
  return `${socket.remoteAddress}:${socket.remotePort}`;
}

/** A context for each pair, chosen by SNI: the first whose certificate covers the name. */
function secureOptions(pairs: readonly CertificatePair[]): TlsOptions {
  const [first] = pairs;
  if (!first) throw new SluiceError("CONFIG_INVALID", "TLS needs a certificate");
  const contexts = pairs.map(({ cert, key }) => ({
    certificate: new X509Certificate(cert),
    context: createSecureContext({ cert, key, minVersion: "TLSv1.2" }),
  }));
  return {
    cert: first.cert,
    key: first.key,
    minVersion: "TLSv1.2",
    SNICallback(name: string, done: (error: Error | null, context?: SecureContext) => void) {
      done(null, contexts.find(({ certificate }) => certificate.checkHost(name) !== undefined)?.context);
    },
  };
}
