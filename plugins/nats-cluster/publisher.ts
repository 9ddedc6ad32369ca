/**
 * Publishes into streams and waits for their acknowledgements: one subscription for all of them and one small object for
 * each, a tenth of what the library's own publish costs.
 *
 * `append` keeps the order of what it is given, though many wait at once, by a *lane* a shard. As long as answers come, a
 * lane sends at once. After a doubt (an error that may pass, no answer in time, a lost connection) it sends nothing new:
 * it waits for what is still on its way, then sends the oldest again, alone, until that one is answered, and after it the
 * others in their order. Every message has an id by which the stream knows it again. One that a later message of its topic
 * has overtaken is not sent again, since it would come in behind: its publisher gets no acknowledgement.
 */
import { randomBytes } from "node:crypto";
import type { Clock, Counter } from "@sluice/kernel";
import { type Connection, type Incoming } from "./connection.ts";
import { isNoResponders, Unanswered } from "./inbox.ts";

export interface Publisher {
  /**
   * Into the log. Resolves with the sequence number once the stream has it. @throws (rejects) Unanswered at the time-out:
   * it may be there or not; Refused where no try will help
   */
  append(shard: number, subject: string, body: Buffer, id: string): Promise<number>;
  /**
   * Tries again until the stream answers; `head` has what makes that safe. Rejects as {@link append}.
   */
  write(subject: string, body: Buffer, head: Buffer): Promise<number>;
  /**
   * All of them in one stream or none, with one answer. Tried once. Rejects as {@link append}, or Refused as the stream
   * judges any of them. At most 1,000.
   */
  writeTogether(messages: readonly Outgoing[]): Promise<void>;
  /** How long the oldest append of any shard has waited by now, in milliseconds; 0 = none waits. */
  oldestMs(): number;
  /** Messages that wait for an acknowledgement, and those not sent yet. */
  readonly size: number;
  close(): void;
}

export interface Outgoing {
  readonly subject: string;
  readonly body: Buffer;
  /** As lines of a header block, each with its end. */
  readonly lines: string;
}

export interface PublisherOptions {
  readonly shards: number;
  /** Read at each use. */
  readonly ackMs: () => number;
  readonly totalMs: number;
  /** Of a shard. */
  readonly maxInFlight: number;
}

export interface PublisherMeters {
  /** Sent again, after a doubt. */
  readonly retries: Counter;
  /** Rejected: `timeout`, `overtaken`, `refused`, `full`. */
  readonly failures: Counter;
}

/** A stream's verdict. */
export class Refused extends Error {
  /** NATS' own error code. */
  readonly code: number;
  constructor(code: number, message: string) {
    super(message);
    this.code = code;
  }
}

/** "wrong last sequence": by itself another guarded write is under way, which passes; with a number it is a verdict. */
export const wrongSequence = { underWay: 10_164, verdict: 10_071 };
const duplicateUnderWay = 10_158;

/** After an error, for the answers of what was sent behind it. */
const settleMs = 250;
const probeEveryMs = 100;
const sweepMs = 50;
/** Of a shard: what waits to be sent. */
const maxWaiting = 65_536;
const maxWaitingBytes = 64 * 1024 * 1024;

interface Slot {
  readonly id: number;
  readonly lane: Lane | undefined;
  readonly subject: string;
  readonly body: Buffer;
  readonly head: Buffer;
  readonly startedAt: number;
  sentAt: number;
  overtaken: boolean;
  readonly resolve: (seq: number) => void;
  readonly reject: (reason: Error) => void;
}

interface Lane {
  /** By id, so the oldest first. */
  readonly sent: Map<number, Slot>;
  readonly waiting: Map<number, Slot>;
  waitingBytes: number;
  /** Undefined: it sends at once. Else when the oldest is to be sent again. */
  probeAt: number | undefined;
  /** What was sent again and is not answered yet. */
  probed: Slot | undefined;
}

export function createPublisher(
  connection: Connection,
  { shards, ackMs, totalMs, maxInFlight }: PublisherOptions,
  { clock, meters, confirmed }: { clock: Clock; meters: PublisherMeters; confirmed: () => void },
): Publisher {
  const prefix = `_INBOX.${randomBytes(9).toString("base64url")}`;
  const lanes = Array.from({ length: shards }, (): Lane => ({
    sent: new Map(),
    waiting: new Map(),
    waitingBytes: 0,
    probeAt: undefined,
    probed: undefined,
  }));
  /** Those that keep no order. */
  const singles = new Map<number, Slot>();
  const byId = new Map<number, Slot>();
  let last = 0;
  let sweep: { clear(): void } | undefined;
  let isClosed = false;

  connection.subscribe(`${prefix}.*`, (message) => {
    const slot = byId.get(Number(message.subject.slice(prefix.length + 1)));
    if (slot) answered(slot, message);
  });
  connection.onChange((isUp) => {
    for (const lane of lanes) {
      if (isUp) continue;
      if (lane.probed) probeAgain(lane, 0);
      else if (lane.sent.size > 0) doubt(lane, 0);
    }
    for (const slot of isUp ? [] : [...singles.values()]) fail(slot, new Unanswered("the connection to NATS was lost"));
  });

  function answered(slot: Slot, message: Incoming): void {
    const seq = readSeq(message.data);
    if (seq > 0) {
      acknowledged(slot, seq);
      return;
    }
    const error = errorOf(message);
    if (error instanceof Refused) {
      meters.failures.inc({ reason: "refused" });
      fail(slot, error);
    } else if (!slot.lane) fail(slot, error);
    else if (slot.lane.probed === slot) probeAgain(slot.lane, probeEveryMs);
    else doubt(slot.lane, settleMs);
  }

  function acknowledged(slot: Slot, seq: number): void {
    const { lane } = slot;
    forget(slot);
    confirmed();
    slot.resolve(seq);
    if (!lane) return;
    for (const earlier of lane.sent.values()) {
      if (earlier.id > slot.id) break;
      if (earlier.subject === slot.subject) earlier.overtaken = true;
    }
    if (lane.probeAt === undefined) pump(lane);
    else if (lane.probed === slot) reopen(lane);
  }

  /** From now on nothing new is sent until the oldest has been sent again and is answered. */
  function doubt(lane: Lane, waitMs: number): void {
    lane.probeAt ??= clock.now() + waitMs;
    startSweep();
  }

  /** The one that was sent again has failed, or is given up. */
  function probeAgain(lane: Lane, waitMs: number): void {
    lane.probed = undefined;
    lane.probeAt = clock.now() + waitMs;
  }

  function probe(lane: Lane): void {
    for (const slot of lane.sent.values()) {
      if (slot.overtaken) continue;
      lane.probeAt = clock.now() + ackMs();
      lane.probed = slot;
      meters.retries.inc({});
      send(slot);
      return;
    }
    lane.probeAt = undefined;
    pump(lane);
  }

  function reopen(lane: Lane): void {
    lane.probeAt = undefined;
    lane.probed = undefined;
    for (const slot of lane.sent.values()) {
      if (slot.overtaken) continue;
      meters.retries.inc({});
      if (!send(slot)) return;
    }
    pump(lane);
  }

  function pump(lane: Lane): void {
    for (const slot of lane.waiting.values()) {
      if (lane.sent.size >= maxInFlight || lane.probeAt !== undefined || !connection.isUp) return;
      lane.waiting.delete(slot.id);
      lane.waitingBytes -= slot.body.length;
      lane.sent.set(slot.id, slot);
      if (!send(slot)) return;
    }
  }

  function send(slot: Slot): boolean {
    slot.sentAt = clock.now();
    try {
      if (connection.publish(slot.subject, slot.body, `${prefix}.${slot.id}`, slot.head)) return true;
    } catch (error) {
      meters.failures.inc({ reason: "refused" });
      fail(slot, error instanceof Error ? error : new Error(String(error)));
      return true;
    }
    if (slot.lane) doubt(slot.lane, 0);
    return false;
  }

  function forget(slot: Slot): void {
    byId.delete(slot.id);
    const { lane } = slot;
    if (!lane) singles.delete(slot.id);
    else if (!lane.sent.delete(slot.id) && lane.waiting.delete(slot.id)) lane.waitingBytes -= slot.body.length;
  }

  function fail(slot: Slot, error: Error): void {
    forget(slot);
    slot.reject(error);
    const { lane } = slot;
    // Whether the next one is there is as much in doubt.
    if (lane?.probed === slot) probeAgain(lane, 0);
    else if (lane && lane.probeAt === undefined) pump(lane);
  }

  function startSweep(): void {
    if (isClosed) return;
    sweep ??= clock.setTimeout(() => {
      sweep = undefined;
      for (const lane of lanes) sweepLane(lane);
      const patienceMs = ackMs();
      const before = clock.now() - patienceMs;
      for (const slot of singles.values()) {
        if (slot.sentAt > before) break;
        fail(slot, new Unanswered(`NATS did not answer in ${patienceMs} ms`));
      }
      if (byId.size > 0 || lanes.some(({ probeAt }) => probeAt !== undefined)) startSweep();
    }, sweepMs);
  }

  function sweepLane(lane: Lane): void {
    const now = clock.now();
    for (const slots of [lane.sent, lane.waiting]) {
      for (const slot of slots.values()) {
        if (slot.startedAt > now - totalMs) break;
        meters.failures.inc({ reason: slot.overtaken ? "overtaken" : "timeout" });
        fail(slot, new Unanswered(`NATS did not confirm a message in ${totalMs} ms`));
      }
    }
    if (lane.probeAt !== undefined) {
      if (connection.isUp && now >= lane.probeAt) probe(lane);
      return;
    }
    for (const slot of lane.sent.values()) {
      if (slot.overtaken) continue;
      if (slot.sentAt <= now - ackMs()) doubt(lane, 0);
      return;
    }
  }

  function start(
    lane: Lane | undefined,
    subject: string,
    body: Buffer,
    head: Buffer,
  ): { readonly slot: Slot; readonly promise: Promise<number> } {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    const now = clock.now();
    const slot: Slot = {
      id: ++last,
      lane,
      subject,
      body,
      head,
      startedAt: now,
      sentAt: now,
      overtaken: false,
      resolve,
      reject,
    };
    byId.set(slot.id, slot);
    startSweep();
    return { slot, promise };
  }

  function attempt(subject: string, body: Buffer, head: Buffer): Promise<number> {
    const { slot, promise } = start(undefined, subject, body, head);
    singles.set(slot.id, slot);
    if (!send(slot)) fail(slot, new Unanswered(connection.problem ?? "there is no connection to NATS"));
    return promise;
  }

  return {
    append(shard, subject, body, id) {
      const lane = lanes[shard];
      if (!lane || isClosed) return Promise.reject(new Unanswered("the cluster is closed"));
      const goes = lane.probeAt === undefined && lane.waiting.size === 0 && lane.sent.size < maxInFlight;
      if (!goes && (lane.waiting.size >= maxWaiting || lane.waitingBytes + body.length > maxWaitingBytes)) {
        meters.failures.inc({ reason: "full" });
        return Promise.reject(new Unanswered("too many messages wait for NATS"));
      }
      const { slot, promise } = start(lane, subject, body, Buffer.from(`NATS/1.0\r\nNats-Msg-Id: ${id}\r\n\r\n`));
      if (goes) {
        lane.sent.set(slot.id, slot);
        send(slot);
      } else {
        lane.waiting.set(slot.id, slot);
        lane.waitingBytes += body.length;
      }
      return promise;
    },
    async write(subject, body, head) {
      const until = clock.now() + totalMs;
      for (let attempts = 0; ; attempts++) {
        try {
          return await attempt(subject, body, head);
        } catch (error) {
          if (!(error instanceof Unanswered) || isClosed || clock.now() >= until) throw error;
        }
        meters.retries.inc({});
        await new Promise<void>((resolve) => clock.setTimeout(resolve, Math.min(probeEveryMs, 5 * 2 ** attempts)));
      }
    },
    async writeTogether(messages) {
      const batch = randomBytes(9).toString("base64url");
      for (const [at, { subject, body, lines }] of messages.entries()) {
        const isLast = at === messages.length - 1;
        const own = `Nats-Batch-Id: ${batch}\r\nNats-Batch-Sequence: ${at + 1}\r\n${isLast ? "Nats-Batch-Commit: 1\r\n" : ""}`;
        const head = Buffer.from(`NATS/1.0\r\n${lines}${own}\r\n`);
        if (isLast) await attempt(subject, body, head);
        // Whether it has come is what the answer to the last one says.
        else connection.publish(subject, body, undefined, head);
      }
    },
    oldestMs() {
      let oldest = clock.now();
      for (const { sent, waiting } of lanes) {
        for (const slots of [sent, waiting]) {
          const first = slots.values().next().value;
          if (first && first.startedAt < oldest) oldest = first.startedAt;
        }
      }
      return clock.now() - oldest;
    },
    get size() {
      return byId.size;
    },
    close() {
      isClosed = true;
      sweep?.clear();
      for (const slot of byId.values()) {
        forget(slot);
        slot.reject(new Unanswered("the cluster is closed"));
      }
    },
  };
}

const seqKey = Buffer.from('"seq":');

/** `{"stream":"x","seq":17}`; 0 for anything else. */
function readSeq(data: Uint8Array): number {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  if (bytes.includes('"error"')) return 0;
  let at = bytes.indexOf(seqKey);
  if (at < 0) return 0;
  at += seqKey.length;
  let seq = 0;
  for (; at < bytes.length; at++) {
    const digit = (bytes[at] ?? 0) - 0x30;
    if (digit === -16 && seq === 0) continue;
    if (digit < 0 || digit > 9) break;
    seq = seq * 10 + digit;
  }
  return seq;
}

/** An error that may pass is Unanswered, whatever it was. */
function errorOf(message: Incoming): Error {
  if (isNoResponders(message)) return new Unanswered("no stream takes the message now");
  let error: { code?: number; err_code?: number; description?: string } | undefined;
  try {
    error = message.json<{ error?: typeof error }>().error;
  } catch {
    return new Unanswered("an answer that is none");
  }
  const code = error?.err_code ?? 0;
  const text = error?.description ?? "no reason given";
  const passes =
    (error?.code ?? 0) >= 500 || code === wrongSequence.underWay || code === duplicateUnderWay || error === undefined;
  return passes ? new Unanswered(text) : new Refused(code, `${text} (NATS error ${code})`);
}
