/** Sends what a disk buffer holds to Kafka, in its order, with a bounded number of records under way. */
import type { Clock, Logger } from "@sluice/kernel";
import type { BufferMeter } from "./buffer-meter.ts";
import type { Cluster } from "./cluster.ts";
import type { DiskBuffer } from "./disk-buffer.ts";
import type { Entry, Owner } from "./entry.ts";
import type { RefusedFile } from "./refused-file.ts";
import type { Frame } from "./segment.ts";
import { decodeRecord } from "./stored-record.ts";

/** Most that is read from the disk ahead of Kafka's acknowledgements; `span` counts those behind the oldest that have come. */
const window = { records: 20_000, bytes: 16 * 1024 * 1024, span: 200_000 };
const readBytes = 256 * 1024;
const retryMs = 1000;

export interface DrainOptions {
  readonly buffer: DiskBuffer;
  readonly cluster: Cluster;
  readonly refused: RefusedFile;
  readonly clock: Clock;
  readonly log: Logger;
  readonly meter: BufferMeter;
  /** Milliseconds after which a record is given up. */
  readonly maxAgeMs: number;
  acked(): void;
}

export interface Drain {
  readonly owner: Owner;
  /** Milliseconds since the epoch of the oldest record under way; undefined where none is. */
  oldest(): number | undefined;
  /** Reads no more, and resolves when nothing is under way or, with some left undone, after `withinMs`. */
  stop(withinMs: number): Promise<void>;
}

interface UnderWay {
  readonly sequence: number;
  readonly receivedAt: number;
  isDone: boolean;
}

export function startDrain(options: DrainOptions): Drain {
  const { buffer, cluster, refused, clock, log, meter, maxAgeMs } = options;
  /** In the buffer's order; they are done in any. */
  let underWay: UnderWay[] = [];
  let head = 0;
  let bytes = 0;
  let isStopped = false;
  let isReading = false;
  let wasAppended = false;
  let lastRead: Promise<void> | undefined;
  let whenEmpty: (() => void) | undefined;
  const bySequence = new Map<number, UnderWay>();

  function finish(sequence: number): void {
    const entry = bySequence.get(sequence);
    if (!entry) return;
    entry.isDone = true;
    bySequence.delete(sequence);
    let upTo: number | undefined;
    for (let first = underWay[head]; first?.isDone; first = underWay[++head]) upTo = first.sequence;
    if (head > 4096 || head === underWay.length) {
      underWay = underWay.slice(head);
      head = 0;
    }
    if (upTo !== undefined) buffer.done(upTo);
    if (bySequence.size === 0) whenEmpty?.();
    pump();
  }

  const owner: Owner = {
    settled(entry, outcome, failure) {
      bytes -= entry.bytes;
      const { sequence = 0 } = entry;
      if (outcome === "acked") {
        options.acked();
        finish(sequence);
      } else if (outcome === "expired") {
        meter.lost("expired", 1);
        finish(sequence);
      } else if (outcome !== "closed") {
        void setAside(entry, sequence, outcome, failure?.message ?? "");
      }
    },
  };

  /** Its device has the acknowledgement, so it may not vanish: what can't be written here is tried again. */
  async function setAside(entry: Entry, sequence: number, reason: string, message: string): Promise<void> {
    while (!isStopped) {
      try {
        await refused.append({ ...entry, partition: entry.partition }, reason);
        buffer.reserve(refused.bytes);
        meter.setAside(reason);
        log.error(
          { topic: entry.topic, reason, error: message },
          "Kafka refuses a record; it is now in refused.ndjson",
        );
        finish(sequence);
        return;
      } catch (error) {
        log.error({ err: error }, "could not write to refused.ndjson; will try again");
        await new Promise<void>((resolve) => clock.setTimeout(resolve, retryMs));
      }
    }
  }

  function send({ sequence, body }: Frame): void {
    const { content, receivedAt } = decodeRecord(body) ?? { content: undefined, receivedAt: 0 };
    if (!content) {
      // Its checksum is right, so another version of the gateway has written it.
      meter.lost("corrupt", 1);
      log.error({ sequence }, "the buffer holds a record that this version can't read");
    }
    const entry: UnderWay = { sequence, receivedAt, isDone: false };
    underWay.push(entry);
    bySequence.set(sequence, entry);
    if (!content) {
      finish(sequence);
      return;
    }
    bytes += content.bytes;
    const { partition, ...rest } = content;
    const at = partition === undefined ? {} : { partition };
    const expiresAt = receivedAt + maxAgeMs;
    cluster.push(content.topic, { ...rest, ...at, expiresAt, clientId: undefined, owner, sequence });
  }

  function hasRoom(): boolean {
    const { size } = bySequence;
    return size < window.records && bytes < window.bytes && underWay.length - head < window.span;
  }

  async function read(): Promise<void> {
    try {
      while (!isStopped && hasRoom()) {
        wasAppended = false;
        const frames = await buffer.read(readBytes);
        if (isStopped) break;
        for (const frame of frames) send(frame);
        if (frames.length === 0 && !wasAppended) break;
      }
    } catch (error) {
      log.error({ err: error }, "the buffer can't be read; will try again");
      clock.setTimeout(pump, retryMs);
    }
    isReading = false;
  }

  function pump(): void {
    wasAppended = true;
    if (isStopped || isReading || !hasRoom()) return;
    isReading = true;
    lastRead = read();
  }

  buffer.rewind();
  buffer.onAppended = pump;
  pump();

  return {
    owner,
    oldest: () => underWay[head]?.receivedAt,
    async stop(withinMs) {
      isStopped = true;
      buffer.onAppended = undefined;
      await lastRead;
      if (bySequence.size === 0) return;
      await new Promise<void>((resolve) => {
        const timer = clock.setTimeout(resolve, withinMs);
        whenEmpty = () => {
          timer.clear();
          resolve();
        };
      });
    },
  };
}
