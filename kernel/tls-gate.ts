/** TLS in front of a listener's sockets: certificates by server name, and the clients' own certificates. */
import { X509Certificate } from "node:crypto";
import type { Socket } from "node:net";
import { createSecureContext, createServer, type SecureContext, type TLSSocket } from "node:tls";
import { SluiceError } from "./errors.ts";
import type { TlsSpec } from "./spec.ts";

/** What TLS needs, checked and ready: made before a change, used after it. */
export interface TlsGate {
  /** @param done gets the client's certificate, where it was asked for and has been verified */
  handshake(socket: Socket, done: (socket: TLSSocket, certificate?: X509Certificate) => void, failed: Failed): void;
}

type Failed = (error: Error) => void;

interface Handshake {
  readonly done: (socket: TLSSocket, certificate?: X509Certificate) => void;
  readonly failed: Failed;
}

/** @throws what OpenSSL says of a pair or an authority that can't be used */
export function createTlsGate(spec: TlsSpec, handshakeTimeoutMs: number): TlsGate {
  const [first] = spec.certificate;
  if (!first) throw new SluiceError("CONFIG_INVALID", "TLS needs a certificate");
  // The context that a server name chooses also brings the authorities that clients are measured by.
  const common = { minVersion: "TLSv1.2", ...(spec.clientCA === undefined ? {} : { ca: spec.clientCA }) } as const;
  const contexts = spec.certificate.map(({ cert, key }) => ({
    certificate: new X509Certificate(cert),
    context: createSecureContext({ cert, key, ...common }),
  }));
  // Never bound: sockets of the listener are handed to it, so that TLS can change while the address stays. A new one for
  // each change has new keys for its session tickets too: none lets in whom a former authority had vouched for.
  const server = createServer({
    cert: first.cert,
    key: first.key,
    ...common,
    handshakeTimeout: handshakeTimeoutMs,
    requestCert: spec.clientCertificate !== "none",
    // Judged below, where there is a reason to give.
    rejectUnauthorized: false,
    SNICallback(name: string, done: (error: Error | null, context?: SecureContext) => void) {
      done(null, contexts.find(({ certificate }) => certificate.checkHost(name) !== undefined)?.context);
    },
  });
  // What a handshake belongs to is known by the two ends, which the TLS socket shares with its TCP one.
  const shaking = new Map<string, Handshake>();
  server.on("secureConnection", (socket) => {
    const key = endsOf(socket);
    const waiting = shaking.get(key);
    shaking.delete(key);
    const certificate = spec.clientCertificate === "none" ? undefined : socket.getPeerX509Certificate();
    const refusal = refusalOf(socket, certificate, spec);
    if (waiting && refusal === undefined) {
      waiting.done(socket, certificate);
      return;
    }
    socket.destroy();
    waiting?.failed(new Error(refusal));
  });
  server.on("tlsClientError", (error, socket) => {
    fail(endsOf(socket), error);
    socket.destroy();
  });

  function fail(key: string, error: Error): void {
    const waiting = shaking.get(key);
    shaking.delete(key);
    waiting?.failed(error);
  }

  return {
    handshake(socket, done, failed) {
      const key = endsOf(socket);
      const onClose = (): void => fail(key, new Error("closed during the TLS handshake"));
      shaking.set(key, {
        done(secure, certificate) {
          socket.off("close", onClose);
          done(secure, certificate);
        },
        failed,
      });
      socket.once("close", onClose);
      whenBegun(socket, () => server.emit("connection", socket));
    },
  };
}

/** Less than 1 KiB, which Node's TLS takes for the encrypted bytes of a connection where it is given some of them. */
const maxFirstBytes = 1000;

/**
 * Calls `begin` when the first bytes have come, which TLS takes from the socket then, a few at a time. Where TLS reads them
 * itself, Node gives it a buffer of 64 KiB for that, and leaves it that buffer as long as the connection lasts; this way
 * it is 1 KiB, and more only from the first moment on in which more than that is under way at once.
 */
function whenBegun(socket: Socket, begin: () => void): void {
  readLess(socket);
  if (socket.readableLength > 0) {
    begin();
    return;
  }
  function onReadable(): void {
    // Nothing at its end, which "close" follows.
    if (socket.readableLength === 0) {
      socket.read();
      return;
    }
    socket.off("readable", onReadable);
    begin();
  }
  socket.on("readable", onReadable);
}

/** By itself, so that the socket keeps nothing else of its arrival alive. */
function readLess(socket: Socket): void {
  const read = socket.read.bind(socket);
  socket.read = (size) =>
    read(size ?? (socket.readableLength > maxFirstBytes ? maxFirstBytes : undefined)) as Buffer | null;
}

/** Why a client may not come in by its certificate, or by having none. */
function refusalOf(
  socket: TLSSocket,
  certificate: X509Certificate | undefined,
  { clientCertificate }: TlsSpec,
): string | undefined {
  if (clientCertificate === "none") return undefined;
  if (certificate === undefined) return clientCertificate === "require" ? "it shows no client certificate" : undefined;
  if (!socket.authorized) return `its client certificate is refused: ${String(socket.authorizationError)}`;
  return undefined;
}

/** The name that a certificate gives its holder; undefined where it gives none of this sort, or several common names. */
export function nameIn(certificate: X509Certificate, from: "cn" | "san"): string | undefined {
  if (from === "cn") {
    const { CN } = certificate.toLegacyObject().subject;
    return typeof CN === "string" && CN !== "" ? CN : undefined;
  }
  // `DNS:device-1, URI:urn:x`: a value that would be ambiguous there is quoted as JSON is.
  const entries = (certificate.subjectAltName ?? "").matchAll(/(?:^|, )([^:]+):(?:"((?:[^"\\]|\\.)*)"|([^,]*))/g);
  for (const [, type = "", quoted, plain = ""] of entries) {
    const name = quoted === undefined ? plain : (JSON.parse(`"${quoted}"`) as string);
    if (["DNS", "URI", "email", "IP Address"].includes(type) && name !== "") return name;
  }
  return undefined;
}

function endsOf({ remoteAddress, remotePort, localAddress, localPort }: Socket): string {
  return `${remoteAddress}:${remotePort} ${localAddress}:${localPort}`;
}
