/**
 * Records on disk that Kafka does not have yet: appended to segments, many at once (group commit), read back in order, and
 * gone with their segment once all of it is done. Which are done is written down twice a second, so that after a crash
 * some are read again, but none is missed.
 */
import { mkdir, open, unlink, type FileHandle } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Clock, Logger } from "@sluice/kernel";
import type { BufferMeter } from "./buffer-meter.ts";
import type { BufferOptions } from "./config.ts";
import { lockFolder } from "./folder-lock.ts";
import { encodeFrames, frameHeaderBytes, segmentName, type Frame } from "./segment.ts";
import { findSegments, mendLast, readCheckpoint, syncFolder, writeAll, writeCheckpoint } from "./segment-files.ts";
import { createSegmentReader, type Segment } from "./segment-reader.ts";

/** Bounds one write, and with it the memory that it takes beside the queue. */
const maxBatchBytes = 4 * 1024 * 1024;
const segmentBytes = { most: 64 * 1024 * 1024, least: 16 * 1024 };
const checkpointMs = 500;

export interface DiskBuffer {
  /**
   * Resolves when the record is as safe as `fsync` says; rejects where it is not kept. Records keep the order of calls.
   * @param keeper id of the client that sends it again where it is not kept: what else of its waits then is not kept either
   */
  append(body: Buffer, expiresAt: number, keeper?: string): Promise<void>;
  /** The same for several: all of them, or none. */
  appendTogether(bodies: readonly Buffer[]): Promise<void>;
  /** The next records that are not done, about `maxBytes` of them. One call at a time. */
  read(maxBytes: number): Promise<Frame[]>;
  /** Reading begins again with the first record that is not done. */
  rewind(): void;
  /** This record, and all before it. */
  done(sequence: number): void;
  /** Called when there is more to read. */
  onAppended: (() => void) | undefined;
  stats(): BufferStats;
  configure(options: BufferOptions): void;
  /** Bytes of what is beside the segments and counts towards `maxBytes`. */
  reserve(bytes: () => number): void;
  /** Writes what is queued, and lets go of the folder. */
  close(): Promise<void>;
}

export interface BufferStats {
  /** Records that are not done. */
  readonly records: number;
  readonly bytes: number;
  /** There was no room for a record, and nothing has gone since. */
  readonly isFull: boolean;
  /** Why nothing can be written now. */
  readonly problem: string | undefined;
}

interface Pending {
  readonly bodies: readonly Buffer[];
  readonly bytes: number;
  readonly expiresAt: number;
  readonly keeper: string | undefined;
  resolve(): void;
  reject(error: Error): void;
}

export interface DiskBufferDeps {
  readonly folder: string;
  /** The filter, for whoever finds the folder taken. */
  readonly owner: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly meter: BufferMeter;
}

export async function openDiskBuffer(initial: BufferOptions, deps: DiskBufferDeps): Promise<DiskBuffer> {
  const { folder, clock, log, meter } = deps;
  let options = initial;
  const made = await mkdir(folder, { recursive: true });
  if (made !== undefined && initial.fsync !== "never") await syncFolder(dirname(made));
  const unlock = await lockFolder(join(folder, ".lock"), deps.owner, clock);
  const segments = await findSegments(folder).catch(giveUp);
  // Of what is gone, all was done.
  let doneUpTo = Math.max(await readCheckpoint(folder), (segments[0]?.first ?? 1) - 1);
  const mended = await mendLast(segments).catch(giveUp);
  if (mended.cutBytes > 0) {
    meter.tore();
    log.warn({ folder, bytes: mended.cutBytes }, "cut off what a crash had left of a record");
  }
  let nextSequence = Math.max(mended.nextSequence, doneUpTo + 1);
  // Nothing is appended to what a crash has left.
  let active: { segment: Segment; handle: FileHandle } | undefined;
  let reserved = (): number => 0;
  let queue: Pending[] = [];
  let working: Promise<void> | undefined;
  let wake: (() => void) | undefined;
  let problem: string | undefined;
  let isFull = false;
  let isClosing = false;
  let syncTimer: { clear(): void } | undefined;
  let checkpointTimer: { clear(): void } | undefined;
  let written = doneUpTo;

  const reader = createSegmentReader(
    {
      segments: () => segments,
      corrupted(segment) {
        meter.corrupted();
        log.error({ file: segment.path }, "the buffer has a part that can't be read, and goes on behind it");
      },
      lost(records) {
        meter.lost("corrupt", records);
        log.error({ folder, records }, "the buffer has lost records");
      },
    },
    doneUpTo + 1,
  );

  async function giveUp(error: unknown): Promise<never> {
    await unlock();
    throw error;
  }

  function totalBytes(): number {
    return segments.reduce((sum, { bytes }) => sum + bytes, reserved());
  }

  function hasRoomFor(bytes: number): boolean {
    return totalBytes() + bytes <= options.maxBytes;
  }

  /** An eighth of all, so that there is always one to give up. */
  function segmentLimit(): number {
    return Math.max(Math.min(options.maxBytes / 8, segmentBytes.most), segmentBytes.least);
  }

  function full(): Error {
    return new Error(
      `the buffer ${folder} is full (${totalBytes()} of ${options.maxBytes} bytes): Kafka has been away for too long, or raise buffer.maxBytes`,
    );
  }

  /**
   * Not kept; nor is what its keepers have sent since, which must not come before it. Returns how many that is in all.
   */
  function giveBack(refused: readonly Pending[], error: Error): number {
    const keepers = new Set(refused.map(({ keeper }) => keeper));
    keepers.delete(undefined);
    const { behind = [], others = [] } = Object.groupBy(queue, ({ keeper }) =>
      keepers.has(keeper) ? "behind" : "others",
    );
    queue = others;
    for (const each of [...refused, ...behind]) each.reject(error);
    return refused.length + behind.length;
  }

  async function work(): Promise<void> {
    for (;;) {
      // In the order they came, so the late are in front.
      const firstInTime = queue.findIndex(({ expiresAt }) => expiresAt > clock.now());
      const late = queue.splice(0, firstInTime < 0 ? queue.length : firstInTime);
      if (late.length > 0) meter.refused(giveBack(late, full()));
      const batch: Pending[] = [];
      let bytes = 0;
      // As many as there is room for, and one at least.
      const most = Math.min(maxBatchBytes, segmentLimit(), options.maxBytes - totalBytes());
      for (const each of queue) {
        if (batch.length > 0 && bytes + each.bytes > most) break;
        batch.push(each);
        bytes += each.bytes;
      }
      if (batch.length === 0) break;
      isFull = !hasRoomFor(bytes) && !(await makeRoom(bytes));
      if (isFull) {
        if (options.onFull === "block" && !isClosing) {
          await waitForRoom();
        } else {
          queue = queue.slice(batch.length);
          meter.refused(giveBack(batch, full()));
        }
        continue;
      }
      queue = queue.slice(batch.length);
      try {
        await write(batch.flatMap(({ bodies }) => bodies));
        problem = undefined;
        for (const each of batch) each.resolve();
      } catch (error) {
        const reason = error instanceof Error ? error.message : String(error);
        if (problem === undefined) log.error({ folder, error: reason }, "the buffer can't be written");
        problem = reason;
        meter.failed(giveBack(batch, new Error(`${folder}: ${reason}`, { cause: error })));
      }
      onAppended();
    }
    working = undefined;
  }

  function onAppended(): void {
    buffer.onAppended?.();
  }

  function waitForRoom(): Promise<void> {
    return new Promise((resolve) => {
      const timer = clock.setTimeout(() => wake?.(), 100);
      wake = () => {
        timer.clear();
        wake = undefined;
        resolve();
      };
    });
  }

  /** False where only what has not been sent yet could go, and must not. */
  async function makeRoom(bytes: number): Promise<boolean> {
    if (active && doneUpTo === nextSequence - 1 && active.segment.bytes > 0) await leaveActive();
    await reclaim();
    while (options.onFull === "dropOldest" && !hasRoomFor(bytes)) {
      const [oldest] = segments;
      if (!oldest) break;
      if (oldest === active?.segment) await leaveActive();
      const last = (segments[1]?.first ?? nextSequence) - 1;
      const dropped = last - Math.max(doneUpTo, oldest.first - 1);
      if (dropped > 0) meter.lost("dropped", dropped);
      doneUpTo = Math.max(doneUpTo, last);
      reader.skip(doneUpTo + 1);
      await reclaim();
    }
    return hasRoomFor(bytes);
  }

  /** Deletes the segments all of whose records are done. */
  async function reclaim(): Promise<void> {
    for (let [oldest, next] = segments; oldest && oldest !== active?.segment; [oldest, next] = segments) {
      if ((next?.first ?? nextSequence) > doneUpTo + 1) break;
      segments.shift();
      isFull = false;
      await unlink(oldest.path).catch((error: unknown) => {
        log.error({ file: oldest.path, err: error }, "could not delete a segment whose records Kafka has");
      });
    }
  }

  async function write(bodies: readonly Buffer[]): Promise<void> {
    if (active && active.segment.bytes >= segmentLimit()) await leaveActive();
    active ??= await openSegment();
    const { segment, handle } = active;
    const frames = encodeFrames(nextSequence, bodies);
    const startedAt = performance.now();
    try {
      await writeAll(handle, frames, segment.bytes);
      if (options.fsync === "always") await handle.datasync();
    } catch (error) {
      // Part of it may be there: what was refused must not come back. Where even that fails, numbers go on behind it.
      try {
        await handle.truncate(segment.bytes);
      } catch {
        nextSequence += bodies.length;
        await leaveActive();
      }
      throw error;
    }
    segment.bytes += frames.length;
    nextSequence += bodies.length;
    meter.wrote(bodies.length, frames.length, (performance.now() - startedAt) / 1000);
    if (options.fsync === "interval") syncTimer ??= clock.setTimeout(() => void syncLater(), options.fsyncIntervalMs);
  }

  async function openSegment(): Promise<{ segment: Segment; handle: FileHandle }> {
    const path = join(folder, segmentName(nextSequence));
    const handle = await open(path, "w");
    const segment: Segment = { first: nextSequence, path, bytes: 0 };
    // One that was never written to has the same name.
    while (segments.at(-1)?.first === segment.first) segments.pop();
    segments.push(segment);
    if (options.fsync !== "never") await syncFolder(folder);
    return { segment, handle };
  }

  async function leaveActive(): Promise<void> {
    if (!active) return;
    const { handle } = active;
    active = undefined;
    if (options.fsync !== "never") await handle.datasync().catch(reportSync);
    await handle.close();
  }

  function reportSync(error: unknown): void {
    meter.syncFailed();
    log.error({ folder, err: error }, "could not sync the buffer to the disk");
  }

  async function syncLater(): Promise<void> {
    syncTimer = undefined;
    await active?.handle.datasync().catch(reportSync);
  }

  async function checkpoint(): Promise<void> {
    checkpointTimer = undefined;
    if (written === doneUpTo) return;
    const upTo = doneUpTo;
    try {
      await writeCheckpoint(folder, upTo);
      written = upTo;
    } catch (error) {
      log.debug({ folder, err: error }, "could not write down which records are done");
    }
  }

  function enqueue(bodies: readonly Buffer[], expiresAt: number, keeper?: string): Promise<void> {
    if (isClosing) return Promise.reject(new Error(`the buffer ${folder} is closed`));
    const bytes = bodies.reduce((sum, body) => sum + body.length + frameHeaderBytes, 0);
    return new Promise<void>((resolve, reject) => {
      queue.push({ bodies, bytes, expiresAt, keeper, resolve, reject });
      // Not at once, so that what other connections bring in this turn of the event loop goes with it.
      working ??= new Promise<void>((go) => setImmediate(go)).then(work);
    });
  }

  const buffer: DiskBuffer = {
    append: (body, expiresAt, keeper) => enqueue([body], expiresAt, keeper),
    appendTogether: (bodies) => enqueue(bodies, Infinity),
    read: (wanted) => reader.read(wanted),
    rewind: () => reader.seek(doneUpTo + 1),
    done(sequence) {
      if (sequence <= doneUpTo) return;
      doneUpTo = sequence;
      checkpointTimer ??= clock.setTimeout(() => void checkpoint().then(reclaim), checkpointMs);
      if (wake) void reclaim().then(() => wake?.());
    },
    onAppended: undefined,
    stats: () => ({ records: nextSequence - 1 - doneUpTo, bytes: totalBytes(), isFull, problem }),
    configure(changed) {
      options = changed;
    },
    reserve(bytes) {
      reserved = bytes;
    },
    async close() {
      isClosing = true;
      wake?.();
      for (let busy = working; busy; busy = working) await busy;
      syncTimer?.clear();
      checkpointTimer?.clear();
      await leaveActive();
      await reader.close();
      await checkpoint();
      await reclaim();
      await unlock();
    },
  };
  return buffer;
}
