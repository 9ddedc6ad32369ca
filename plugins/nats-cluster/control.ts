/** Words between nodes: requests, answered in as many pieces as their size needs, and broadcasts. */
import type { Logger } from "@sluice/kernel";
import type { ClusterControl } from "@sluice/kernel/cluster";
import type { Connection, Incoming } from "./connection.ts";
import type { Inbox } from "./inbox.ts";
import type { Layout } from "./layout.ts";

type Handler = (body: Buffer, from: string) => Buffer | void | Promise<Buffer | void>;

/** The first byte of an answer's piece. */
const piece = { more: 0, last: 1, failed: 2 };
/** A server's default limit of a message is 1 MiB. */
const pieceBytes = 256 * 1024;
/** Larger than any of it is not asked for. */
const maxRequestBytes = 512 * 1024;

export function createControl(
  node: string,
  { connection, inbox, layout, log }: { connection: Connection; inbox: Inbox; layout: Layout; log: Logger },
): ClusterControl & { start(): void } {
  const handlers = new Map<string, Handler>();

  async function handle(message: Incoming): Promise<void> {
    const { reply } = message;
    let kind = "";
    let from = "";
    try {
      const said = unpack(message.data);
      ({ kind, from } = said);
      const handler = handlers.get(kind);
      if (!handler) throw new Error(`this node does not know ${kind}`);
      const result = handler(said.body, from);
      const answer = (result instanceof Promise ? await result : result) ?? Buffer.alloc(0);
      if (reply) sendAnswer(reply, answer);
    } catch (error) {
      log.warn({ err: error, kind, from }, "A request of another node failed");
      if (reply) connection.publish(reply, Buffer.from([piece.failed]));
    }
  }

  function sendAnswer(reply: string, answer: Buffer): void {
    let at = 0;
    do {
      const part = answer.subarray(at, at + pieceBytes);
      at += part.length;
      const isLast = at >= answer.length;
      connection.publish(reply, Buffer.concat([Buffer.from([isLast ? piece.last : piece.more]), part]));
      if (isLast) return;
    } while (at < answer.length);
  }

  return {
    start() {
      connection.subscribe(layout.control.node(node), (message) => void handle(message));
      connection.subscribe(layout.control.all, (message) => void handle(message));
    },
    async request(to, kind, body, timeoutMs) {
      if (body.length > maxRequestBytes) throw new Error(`a request of ${body.length} bytes`);
      const answers = await inbox.requestAll(layout.control.node(to), pack(kind, node, body), {
        timeoutMs,
        isLast: ({ data }) => data[0] !== piece.more,
      });
      if (answers.at(-1)?.data[0] !== piece.last) throw new Error(`${to} could not answer ${kind}`);
      return Buffer.concat(answers.map(({ data }) => data.subarray(1)));
    },
    broadcast(kind, body) {
      if (body.length > maxRequestBytes) throw new Error(`a broadcast of ${body.length} bytes`);
      connection.publish(layout.control.all, pack(kind, node, body));
    },
    handle(kind, handler) {
      handlers.set(kind, handler);
      return () => {
        if (handlers.get(kind) === handler) handlers.delete(kind);
      };
    },
  };
}

/** Two lines of UTF-8, then the body. */
function pack(kind: string, from: string, body: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`${kind}\n${from.replaceAll("\n", " ")}\n`), body]);
}

function unpack(data: Uint8Array): { kind: string; from: string; body: Buffer } {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  const first = bytes.indexOf(0x0a);
  const second = bytes.indexOf(0x0a, first + 1);
  if (first < 0 || second < 0) throw new Error("words of a node that speaks otherwise");
  return {
    kind: bytes.toString("utf8", 0, first),
    from: bytes.toString("utf8", first + 1, second),
    body: bytes.subarray(second + 1),
  };
}
