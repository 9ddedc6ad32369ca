/** Sends what a disk buffer holds to Kafka, in its order, with a bounded number of records under way. */
import type { Clock, Logger } from "@sluice/kernel";
import type { BufferMeter } from "./buffer-meter.ts";
import type { Cluster } from "./cluster.ts";
import type { DiskBuffer } from "./disk-buffer.ts";
import type { Entry, Owner } from "./entry.ts";
import type { RefusedFile } from "./refused-file.ts";
import type { Parking } from "./parking.ts";
import type { Content } from "./record.ts";
import type { Frame } from "./segment.ts";
import { decodeRecord, encodeRecord } from "./stored-record.ts";

/** Most that is read from the disk ahead of Kafka's acknowledgements; `span` counts those behind the oldest that have come. */
const window = { records: 20_000, bytes: 16 * 1024 * 1024, span: 200_000 };
const readBytes = 256 * 1024;
const retryMs = 1000;
/** Milliseconds that a record for a topic that can't be written holds the others up, before it and its like are parked. */
const parkAfterMs = 3000;

export interface DrainOptions {
  readonly buffer: DiskBuffer;
  readonly cluster: Cluster;
  readonly refused: RefusedFile;
  /** Where records of topics that can't be written wait. Undefined for a drain of one of its buffers. */
  readonly parking?: Parking;
  readonly clock: Clock;
  readonly log: Logger;
  readonly meter: BufferMeter;
  /** Milliseconds after which a record is given up. */
  readonly maxAgeMs: number;
  acked(): void;
}

export interface Drain {
  /** Its own, and those of the drains of what is parked. */
  owners(): Owner[];
  /** Milliseconds since the epoch of the oldest record under way; undefined where none is. */
  oldest(): number | undefined;
  /** Reads no more, and resolves when nothing is under way or, with some left undone, after `withinMs`. */
  stop(withinMs: number): Promise<void>;
}

interface UnderWay {
  readonly sequence: number;
  readonly topic: string;
  readonly receivedAt: number;
  isDone: boolean;
}

export function startDrain(options: DrainOptions): Drain {
  const { buffer, cluster, refused, parking, clock, log, meter, maxAgeMs } = options;
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
  /** When the oldest one became that. */
  let oldestSince = 0;
  /** Takes what is abandoned in order to be parked. */
  let abandoned: Entry[] | undefined;
  let lookTimer: { clear(): void } | undefined;
  const apart = new Map<string, Drain>();

  function finish(sequence: number): void {
    const entry = bySequence.get(sequence);
    if (!entry) return;
    entry.isDone = true;
    bySequence.delete(sequence);
    let upTo: number | undefined;
    for (let first = underWay[head]; first?.isDone; first = underWay[++head]) upTo = first.sequence;
    if (upTo !== undefined) oldestSince = clock.now();
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
      } else if (outcome === "closed") {
        abandoned?.push(entry);
      } else {
        void setAside(entry, sequence, outcome, failure?.message ?? "");
      }
    },
  };

  /** Its device has the acknowledgement, so it may not vanish: what can't be written here is tried again. */
  async function setAside(entry: Entry, sequence: number, reason: string, message: string): Promise<void> {
    while (!isStopped) {
      try {
        await refused.append({ ...entry, partition: entry.partition }, reason);
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

  function push(content: Content, receivedAt: number, sequence: number): void {
    bytes += content.bytes;
    const { partition, ...rest } = content;
    const at = partition === undefined ? {} : { partition };
    const expiresAt = receivedAt + maxAgeMs;
    cluster.push(content.topic, { ...rest, ...at, expiresAt, clientId: undefined, owner, sequence });
  }

  /** To Kafka, but for what has to follow others of its topic that are parked. */
  async function send(frames: readonly Frame[]): Promise<void> {
    const behind = new Map<DiskBuffer, Frame[]>();
    for (const frame of frames) {
      const { sequence, body } = frame;
      const { content, receivedAt } = decodeRecord(body) ?? { content: undefined, receivedAt: 0 };
      const entry: UnderWay = { sequence, topic: content?.topic ?? "", receivedAt, isDone: false };
      if (head === underWay.length) oldestSince = clock.now();
      underWay.push(entry);
      bySequence.set(sequence, entry);
      const parked = content && parking?.get(content.topic);
      if (!content) {
        // Its checksum is right, so another version of the gateway has written it.
        meter.lost("corrupt", 1);
        log.error({ sequence }, "the buffer holds a record that this version can't read");
        finish(sequence);
      } else if (parked) {
        const followers = behind.get(parked);
        if (followers) followers.push(frame);
        else behind.set(parked, [frame]);
      } else {
        push(content, receivedAt, sequence);
      }
    }
    for (const [parked, followers] of behind) {
      const bodies = followers.map(({ body }) => body);
      // Where there is no room, everything waits: nothing may overtake.
      for (let attempt = 0; !isStopped && !(await keep(parked, bodies, attempt)); attempt++) await pause();
      if (isStopped) return;
      for (const { sequence } of followers) finish(sequence);
    }
  }

  async function keep(parked: DiskBuffer, bodies: readonly Buffer[], attempt = 0): Promise<boolean> {
    try {
      await parked.appendTogether(bodies);
      return true;
    } catch (error) {
      const message = "records of a topic that can't be written hold up the others; will try again";
      if (attempt === 0) log.error({ err: error }, message);
      return false;
    }
  }

  function pause(): Promise<void> {
    return new Promise((resolve) => clock.setTimeout(resolve, retryMs));
  }

  /** The topic that holds everything up because it, or so many records for one partition of it, can't be written. */
  function blockingTopic(): string | undefined {
    const oldest = underWay[head];
    if (!parking || !oldest || clock.now() - oldestSince < parkAfterMs) return undefined;
    const { topic } = oldest;
    const isBlocking = cluster.isShut(topic) || (!hasRoom() && cluster.isDivided(topic));
    return isBlocking && parking.mayOpen(topic) ? topic : undefined;
  }

  async function park(parked: Parking, topic: string): Promise<void> {
    const target = await parked.open(topic);
    abandoned = [];
    cluster.abandon(topic, owner);
    const entries = abandoned.toSorted((a, b) => (a.sequence ?? 0) - (b.sequence ?? 0));
    abandoned = undefined;
    const contents = entries.map((entry) => ({
      content: { ...entry, partition: entry.partition },
      receivedAt: bySequence.get(entry.sequence ?? 0)?.receivedAt ?? 0,
      sequence: entry.sequence ?? 0,
    }));
    log.warn({ topic, records: entries.length }, "records of a topic that can't be written wait apart from the others");
    if (await keep(target, contents.map(encodeRecord))) {
      startApart(topic, target);
      for (const { sequence } of contents) finish(sequence);
    } else {
      for (const { content, receivedAt, sequence } of contents) push(content, receivedAt, sequence);
      oldestSince = clock.now();
    }
  }

  function startApart(topic: string, parked: DiskBuffer): void {
    if (isStopped || apart.has(topic)) return;
    const { parking: _, ...rest } = options;
    apart.set(topic, startDrain({ ...rest, buffer: parked }));
  }

  function hasRoom(): boolean {
    const { size } = bySequence;
    return size < window.records && bytes < window.bytes && underWay.length - head < window.span;
  }

  async function read(): Promise<void> {
    try {
      while (!isStopped) {
        const topic = blockingTopic();
        if (parking && topic !== undefined) await park(parking, topic);
        if (!hasRoom()) break;
        wasAppended = false;
        const frames = await buffer.read(readBytes);
        if (isStopped) break;
        await send(frames);
        if (frames.length === 0 && !wasAppended) break;
      }
    } catch (error) {
      log.error({ err: error }, "the buffer can't be read; will try again");
      clock.setTimeout(pump, retryMs);
    }
    isReading = false;
    lookAgain();
  }

  /** Something is under way, and nothing may happen any more that would have it looked at. */
  function lookAgain(): void {
    if (isStopped || !parking || bySequence.size === 0) return;
    lookTimer ??= clock.setTimeout(() => {
      lookTimer = undefined;
      pump();
    }, retryMs);
  }

  function pump(): void {
    wasAppended = true;
    if (isStopped || isReading) return;
    if (!hasRoom() && blockingTopic() === undefined) {
      lookAgain();
      return;
    }
    isReading = true;
    lastRead = read();
  }

  buffer.rewind();
  buffer.onAppended = pump;
  for (const [topic, parked] of parking?.all() ?? []) startApart(topic, parked);
  pump();

  return {
    owners: () => [owner, ...[...apart.values()].flatMap((each) => each.owners())],
    oldest: () => underWay[head]?.receivedAt,
    async stop(withinMs) {
      isStopped = true;
      buffer.onAppended = undefined;
      lookTimer?.clear();
      await lastRead;
      await Promise.all([...apart.values()].map((each) => each.stop(withinMs)));
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
