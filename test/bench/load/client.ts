/** One raw connection of a load: what it writes is ready, what it reads is cut into packets and not looked into. */
import { connect as connectTcp, type Socket } from "node:net";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { connectFrame, type ConnectOptions, types } from "./frames.ts";

export interface Address {
  readonly host: string;
  readonly port: number;
  /** PEM of the authority, where TLS is spoken. */
  readonly ca?: string | undefined;
}

/** A packet lies between `start` and `end` of the bytes, `body` being where its variable header begins. */
export type OnFrame = (type: number, bytes: Buffer, body: number, end: number, start: number) => void;

export interface LoadClient {
  readonly socket: Socket | TLSSocket;
  onFrame: OnFrame | undefined;
  /** After the last packet of what was read at once. */
  onChunk: (() => void) | undefined;
  onClose: (() => void) | undefined;
  /** Without a farewell, so that no port is kept busy. */
  destroy(): void;
}

const readBytes = 256 * 1024;
/** All read into the same memory: it is cut up before the next read. */
const shared = Buffer.allocUnsafe(readBytes);
const connectTimeoutMs = 30_000;

/** Resolves with the CONNACK; rejects where it refuses, or the connection ends before. */
export function openClient(address: Address, options: ConnectOptions): Promise<LoadClient> {
  const { promise, resolve, reject } = Promise.withResolvers<LoadClient>();
  let rest: Buffer | undefined;
  let needed = 0;

  function read(chunk: Buffer): void {
    let bytes = chunk;
    if (rest) {
      bytes = Buffer.concat([rest, chunk]);
      rest = undefined;
      if (bytes.length < needed) {
        rest = bytes;
        return;
      }
    }
    const { length } = bytes;
    let at = 0;
    while (length - at >= 2) {
      let body = at + 1;
      let remaining = 0;
      let shift = 0;
      let more = true;
      while (more && body < length && shift < 28) {
        const byte = bytes[body++]!;
        remaining |= (byte & 0x7f) << shift;
        shift += 7;
        more = byte > 0x7f;
      }
      const end = body + remaining;
      needed = more ? 0 : end - at;
      if (more || end > length) break;
      client.onFrame?.(bytes[at]! >> 4, bytes, body, end, at);
      at = end;
    }
    // What is kept must not lie in memory that the next read overwrites.
    if (at < length) rest = Buffer.from(bytes.subarray(at));
    client.onChunk?.();
  }

  const { host, port, ca } = address;
  const socket =
    ca === undefined
      ? connectTcp({
          host,
          port,
          noDelay: true,
          onread: {
            buffer: shared,
            callback(length) {
              read(shared.subarray(0, length));
              return true;
            },
          },
        })
      : connectTls({ host, port, ca, servername: "localhost" }).setNoDelay(true);
  if (ca !== undefined) socket.on("data", read);

  const client: LoadClient = {
    socket,
    onFrame(type, bytes, body) {
      const code = bytes[body + 1];
      if (type === types.connack && code === 0) {
        clearTimeout(timer);
        client.onFrame = undefined;
        resolve(client);
      } else fail(`packet type ${type}, code ${code}`);
    },
    onChunk: undefined,
    onClose: undefined,
    destroy() {
      socket.removeAllListeners("close");
      if (ca === undefined) socket.resetAndDestroy();
      else socket.destroy();
    },
  };
  const fail = (why: string): void => {
    clearTimeout(timer);
    reject(new Error(`a client could not connect to ${host}:${port}: ${why}`));
    socket.destroy();
  };
  const timer = setTimeout(() => fail(`no CONNACK within ${connectTimeoutMs} ms`), connectTimeoutMs);
  socket.once(ca === undefined ? "connect" : "secureConnect", () => socket.write(connectFrame(options)));
  let why = "closed";
  socket.on("error", (error: Error) => (why = error.message));
  socket.once("close", () => {
    fail(why);
    client.onClose?.();
  });
  return promise;
}

/** As many as `count`, at most so many of them at once. */
export async function openClients(
  address: Address,
  count: number,
  optionsOf: (n: number) => ConnectOptions,
  atOnce = 50,
): Promise<LoadClient[]> {
  const clients: LoadClient[] = [];
  let next = 0;
  let failed: unknown;
  await Promise.all(
    Array.from({ length: Math.min(atOnce, count) }, async () => {
      while (next < count && failed === undefined) {
        try {
          clients.push(await openClient(address, optionsOf(next++)));
        } catch (error) {
          failed ??= error;
        }
      }
    }),
  );
  if (failed !== undefined) {
    for (const client of clients) client.destroy();
    throw failed;
  }
  return clients;
}
