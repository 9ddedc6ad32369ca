/** A WebSocket client that sends any frames, in any pieces, and shows every frame that comes: RFC 6455 by hand. */
import { randomBytes } from "node:crypto";
import { connect as connectTcp, type Socket } from "node:net";
import { connect as connectTls, type ConnectionOptions } from "node:tls";

export const opcodes = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;

export interface Frame {
  readonly opcode: number;
  readonly isLast: boolean;
  readonly payload: Buffer;
}

export interface RawWebSocket {
  readonly socket: Socket;
  /** Of the answer to the upgrade. */
  readonly status: number;
  /** By lower-case name. */
  readonly headers: ReadonlyMap<string, string>;
  /** Frames received and not yet taken. */
  readonly frames: readonly Frame[];
  /** Takes the next frame; rejects where the connection ends before. */
  next(): Promise<Frame>;
  /** Takes binary frames until they hold this many bytes, which are all. */
  bytes(count: number): Promise<Buffer>;
  readonly closed: Promise<void>;
}

export interface WebSocketOptions {
  readonly path?: string;
  /** Undefined = none is offered. */
  readonly protocols?: string | undefined;
  readonly tls?: ConnectionOptions;
  readonly headers?: readonly string[];
  /** Sent before the upgrade: a PROXY header. */
  readonly before?: Buffer | string;
}

/** One frame, masked as a client's must be. */
export function frame(opcode: number, payload: Buffer | string, isLast = true): Buffer {
  const body = Buffer.from(payload as string);
  const mask = randomBytes(4);
  const { length } = body;
  const size = length < 126 ? 0 : length < 65_536 ? 2 : 8;
  const head = Buffer.alloc(2 + size);
  head.writeUInt8((isLast ? 0x80 : 0) | opcode, 0);
  head.writeUInt8(0x80 | (size === 0 ? length : size === 2 ? 126 : 127), 1);
  if (size === 2) head.writeUInt16BE(length, 2);
  if (size === 8) head.writeBigUInt64BE(BigInt(length), 2);
  return Buffer.concat([head, mask, body.map((byte, index) => byte ^ mask.readUInt8(index % 4))]);
}

/** Resolves when the upgrade was answered, whatever the answer. @param to a port, or the path of a unix socket */
export async function openWebSocket(to: number | string, o: WebSocketOptions = {}): Promise<RawWebSocket> {
  const { path = "/mqtt", protocols, tls, headers: more = [], before = "" } = o;
  const where = typeof to === "string" ? { path: to } : { host: "127.0.0.1", port: to };
  const socket = tls ? connectTls({ ...where, ...tls }) : connectTcp(where);
  socket.setNoDelay(true);
  socket.on("error", () => undefined);
  const frames: Frame[] = [];
  let rest = Buffer.alloc(0);
  let head: { status: number; headers: Map<string, string> } | undefined;
  let isClosed = false;
  let notify = Promise.withResolvers<void>();
  const closed = new Promise<void>((resolve) => {
    socket.once("close", () => {
      isClosed = true;
      notify.resolve();
      resolve();
    });
  });
  socket.on("data", (chunk: Buffer) => {
    rest = Buffer.concat([rest, chunk]);
    if (!head) {
      const end = rest.indexOf("\r\n\r\n");
      if (end < 0) return;
      const [first = "", ...lines] = rest.toString("latin1", 0, end).split("\r\n");
      const pairs = lines.map((line) => line.split(/: (.*)/s)).map(([name = "", value = ""]) => [name, value] as const);
      head = {
        status: Number(first.split(" ")[1]),
        headers: new Map(pairs.map(([name, value]) => [name.toLowerCase(), value])),
      };
      rest = rest.subarray(end + 4);
    }
    for (;;) {
      const found = parse(rest);
      if (!found || head.status !== 101) break;
      frames.push(found.frame);
      rest = rest.subarray(found.length);
    }
    notify.resolve();
  });

  async function until<T>(what: string, find: () => T | undefined): Promise<T> {
    const deadline = AbortSignal.timeout(10_000);
    for (;;) {
      const found = find();
      if (found !== undefined) return found;
      if (isClosed) throw new Error(`waiting for ${what}: the connection was closed`);
      notify = Promise.withResolvers();
      const late = new Promise<never>((_, reject) => {
        deadline.addEventListener("abort", () => reject(new Error(`waiting for ${what}: nothing within 10 s`)));
      });
      await Promise.race([notify.promise, late]);
    }
  }

  const lines = [
    `GET ${path} HTTP/1.1`,
    "Host: localhost",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    `Sec-WebSocket-Key: ${randomBytes(16).toString("base64")}`,
    ...(protocols === undefined ? [] : [`Sec-WebSocket-Protocol: ${protocols}`]),
    ...more,
  ];
  socket.write(before);
  socket.write(`${lines.join("\r\n")}\r\n\r\n`);
  const { status, headers } = await until("the answer to the upgrade", () => head);
  return {
    socket,
    status,
    headers,
    frames,
    closed,
    next: () => until("a frame", () => frames.shift()),
    async bytes(count) {
      let found = Buffer.alloc(0);
      while (found.length < count) {
        const { opcode, payload } = await until(`${count} bytes`, () => frames.shift());
        if (opcode !== opcodes.binary)
          throw new Error(`expected a binary frame, got one of ${opcode}: ${payload.toString()}`);
        found = Buffer.concat([found, payload]);
      }
      if (found.length > count) throw new Error(`expected ${count} bytes, got ${found.length}`);
      return found;
    },
  };
}

/** The first frame of what a server has sent, if it is whole. */
function parse(bytes: Buffer): { frame: Frame; length: number } | undefined {
  if (bytes.length < 2) return undefined;
  const [first, second] = [bytes.readUInt8(0), bytes.readUInt8(1)];
  if ((second & 0x80) !== 0) throw new Error("a server must not mask its frames");
  const size = second === 126 ? 2 : second === 127 ? 8 : 0;
  if (bytes.length < 2 + size) return undefined;
  const length = size === 0 ? second : size === 2 ? bytes.readUInt16BE(2) : Number(bytes.readBigUInt64BE(2));
  const end = 2 + size + length;
  if (bytes.length < end) return undefined;
  const payload = bytes.subarray(2 + size, end);
  return { frame: { opcode: first & 15, isLast: (first & 0x80) !== 0, payload }, length: end };
}
