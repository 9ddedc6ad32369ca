/**
 * Messages on their way to this node at once. Those of the log come with the headers that the stream adds when it hands
 * them on; the others, of QoS 0, in a frame that says who has sent them and how many before, by which a second copy (two
 * subscriptions of a node may match one message) is known:
 *
 *     0xFE | sender u32 | count u48 | body
 */
import { randomBytes } from "node:crypto";
import type { Counter, Logger } from "@sluice/kernel";
import type { ClusterListener, ClusterMessage } from "@sluice/kernel/cluster";
import { decodeBody, encodeBody } from "./body.ts";
import { type Connection, headOf, type Incoming } from "./connection.ts";
import type { ProxyLayout } from "./layout.ts";
import { subjectProblem } from "./subjects.ts";

export interface LiveMeters {
  readonly received: Counter;
  /** Copies that were left out. */
  readonly doubled: Counter;
  readonly sent: Counter;
  /** QoS 0 that could not be sent: no connection, or it is too slow. */
  readonly unsent: Counter;
}

export interface Live {
  readonly send: (message: ClusterMessage) => boolean;
  readonly receive: (message: Incoming) => void;
}

const frameMark = 0xfe;
const frameBytes = 11;
/** What may wait in memory for a slow connection; beyond it QoS 0 is not sent. */
const maxUnflushedBytes = 16 * 1024 * 1024;
/** Nodes come and go; who has not sent for long may be forgotten. */
const maxSenders = 10_000;

export function createLive(
  layout: ProxyLayout,
  listener: ClusterListener,
  { connection, meters, log }: { connection: Connection; meters: LiveMeters; log: Logger },
): Live {
  const sender = randomBytes(4).readUInt32BE();
  const counts = new Map<number, number>();
  const lastSeqs: number[] = [];
  const counters = {
    received: meters.received.with({ proxy: layout.proxy }),
    doubled: meters.doubled.with({ proxy: layout.proxy }),
    sent: meters.sent.with({ proxy: layout.proxy }),
    unsent: meters.unsent.with({ proxy: layout.proxy }),
  };
  let count = 0;

  function fromLog(message: Incoming, head: Buffer): void {
    const { subject } = message;
    const text = head.toString("latin1");
    const seq = numberAfter(text, "Nats-Sequence: ");
    if (seq === undefined) return;
    const shard = shardOf(subject);
    // Later ones first only where a leader that has been deposed hands on what it had: the log has it.
    if (seq <= (lastSeqs[shard] ?? 0)) {
      counters.doubled.inc();
      return;
    }
    lastSeqs[shard] = seq;
    const bytes = bytesOf(message);
    if (bytes.length === 0) return;
    counters.received.inc();
    const decoded = decodeBody(bytes, layout.topicOf(subject));
    listener.onMessage(decoded, { shard, seq }, numberAfter(text, "Nats-Last-Sequence: "));
  }

  function fromNode(message: Incoming): void {
    const bytes = bytesOf(message);
    if (bytes[0] !== frameMark || bytes.length < frameBytes) {
      log.warn({ subject: message.subject }, "A message that no gateway has sent");
      return;
    }
    const from = bytes.readUInt32BE(1);
    const number = bytes.readUIntBE(5, 6);
    if (number <= (counts.get(from) ?? 0)) {
      counters.doubled.inc();
      return;
    }
    if (counts.size >= maxSenders) counts.clear();
    counts.set(from, number);
    counters.received.inc();
    listener.onMessage(decodeBody(bytes.subarray(frameBytes), layout.topicOf(message.subject)), undefined, undefined);
  }

  return {
    send(message) {
      const { topic, to } = message;
      if (subjectProblem(topic) !== undefined || connection.unflushedBytes > maxUnflushedBytes) {
        counters.unsent.inc();
        return false;
      }
      const body = encodeBody(message);
      const bytes = Buffer.allocUnsafe(frameBytes + body.length);
      bytes[0] = frameMark;
      bytes.writeUInt32BE(sender, 1);
      bytes.writeUIntBE(++count, 5, 6);
      body.copy(bytes, frameBytes);
      const isSent =
        bytes.length <= (connection.server?.maxPayload ?? 0) && connection.publish(layout.live(topic, to), bytes);
      (isSent ? counters.sent : counters.unsent).inc();
      return isSent;
    },
    receive(message) {
      const head = headOf(message);
      if (head) fromLog(message, head);
      else fromNode(message);
    },
  };
}

function bytesOf({ data }: Incoming): Buffer {
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}

/** The third token. */
function shardOf(subject: string): number {
  const from = subject.indexOf(".", subject.indexOf(".") + 1) + 1;
  let shard = 0;
  for (let at = from; ; at++) {
    const digit = subject.charCodeAt(at) - 0x30;
    if (!(digit >= 0 && digit <= 9)) return shard;
    shard = shard * 10 + digit;
  }
}

function numberAfter(text: string, key: string): number | undefined {
  // The stream's own headers are behind those that the message was published with.
  const from = text.lastIndexOf(`\n${key}`);
  if (from < 0) return undefined;
  let value = 0;
  for (let at = from + 1 + key.length; ; at++) {
    const digit = text.charCodeAt(at) - 0x30;
    if (!(digit >= 0 && digit <= 9)) return value;
    value = value * 10 + digit;
  }
}
