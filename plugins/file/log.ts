/**
 * One topic's log: appends of all connections are gathered and written together (group commit), in the order they came.
 * It is opened by its first append and holds the topic's lock until it is closed.
 */
import { mkdir, rename, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import type { Client, Clock, Logger } from "@sluice/kernel";
import { openActiveFile, syncFolder } from "./active-file.ts";
import type { ActiveFile } from "./active-file.ts";
import type { Config } from "./config.ts";
import { createLineQueue } from "./line-queue.ts";
import { takeLock } from "./lock.ts";
import type { Lock } from "./lock.ts";
import type { FileMeter } from "./meter.ts";
import { chooseExpired } from "./retention.ts";
import type { RotatedFile } from "./retention.ts";
import { fileName, listTopicFiles, stemOf } from "./topic-file.ts";
import { waitingFault } from "./waiting-fault.ts";

/** Bounds one write, and with it the memory that it takes beside the queue. */
const maxBatchBytes = 4 * 1024 * 1024;
/** An offset's digits, the brace and the line feed, at most. */
export const lineEndBytes = 18;

export interface LogOptions {
  readonly folder: string;
  readonly topic: string;
  readonly config: Config;
  /** The filter, for the lock. */
  readonly owner: string;
  readonly lockWaitMs: number;
  readonly clock: Clock;
  readonly log: Logger;
  readonly meter: FileMeter;
  /** A place among the open files; resolves when there is one. */
  takePlace(): Promise<void>;
  leavePlace(): void;
  /** Of records that were queued and now are written or have failed. */
  onSettled(bytes: number): void;
  /** All that was queued is settled. */
  onIdle(): void;
}

export interface TopicLog {
  /**
   * `text` is a line as far as its offset. Resolves when the record is written (`fsync: always`: and on the disk);
   * rejects when it is not in the file, as when the disk is full: the next append tries anew.
   * @param keeper who sends it again where it is not written: what else of its waits then is not written either
   */
  append(text: string, bytes: number, keeper: Client | undefined): Promise<void>;
  isIdle(): boolean;
  isOpen(): boolean;
  /** To be called every few seconds: refreshes the lock, deletes what is too old, notices a file taken away. */
  maintain(): Promise<void>;
  /** Writes what is queued, syncs, and gives up the lock. */
  close(): Promise<void>;
}

/** All that there is while the log is open. */
interface Opened {
  readonly lock: Lock;
  file: ActiveFile;
  rotated: RotatedFile[];
  nextOffset: number;
}

export function createLog(options: LogOptions): TopicLog {
  const { folder, topic, config, clock, log, meter } = options;
  const path = join(folder, fileName(topic));
  const queue = createLineQueue(Math.min(maxBatchBytes, config.rotateBytes), clock);
  const closing = new AbortController();
  let opened: Opened | undefined;
  let working: Promise<void> | undefined;
  let unsynced = false;
  let syncTimer: { clear(): void } | undefined;

  function append(text: string, bytes: number, keeper: Client | undefined): Promise<void> {
    // Not at once, so that what other connections bring in this turn of the event loop goes with it.
    working ??= new Promise<void>((resolve) => setImmediate(resolve)).then(work);
    return queue.add(text, bytes, keeper);
  }

  async function work(): Promise<void> {
    for (let batch = queue.take(); batch; batch = queue.take()) {
      const { lines, withheld, bytes } = batch;
      meter.withheld(withheld);
      try {
        if (lines.length > 0) {
          await write(lines, bytes);
          meter.wrote(topic, lines.length);
        }
        batch.written();
      } catch (error) {
        const problem = describe(error);
        meter.failed(topic, lines.length, problem.message);
        batch.failed(waitingFault(problem));
        if (opened?.file.broken) await shut();
      }
      options.onSettled(bytes);
    }
    working = undefined;
    options.onIdle();
  }

  async function write(lines: readonly string[], bytes: number): Promise<void> {
    opened ??= await openLog();
    if (opened.file.size > 0 && opened.file.size + bytes > config.rotateBytes) await rotate(opened);
    let offset = opened.nextOffset;
    let text = "";
    for (const line of lines) text += `${line}${offset++}}\n`;
    const started = performance.now();
    const data = Buffer.from(text);
    await opened.file.write(data, config.fsync === "always");
    opened.nextOffset = offset;
    meter.observeWrite(data.length, (performance.now() - started) / 1000);
    if (config.fsync === "interval") {
      unsynced = true;
      syncTimer ??= clock.setTimeout(() => void syncLater(), config.fsyncIntervalMs);
    }
  }

  async function openLog(): Promise<Opened> {
    await options.takePlace();
    let lock: Lock | undefined;
    try {
      await mkdir(folder, { recursive: true });
      const lockPath = join(folder, `.${stemOf(topic)}.lock`);
      const { owner, lockWaitMs } = options;
      lock = await takeLock({ path: lockPath, owner, waitMs: lockWaitMs, clock, signal: closing.signal });
      const rotated = await findRotated();
      const file = await openActiveFile(path);
      if (file.tornBytes > 0) {
        meter.tore();
        log.warn({ file: path, bytes: file.tornBytes }, "dropped a record cut off at the end of the file");
      }
      const nextOffset = 1 + (file.lastOffset ?? (await lastOffsetOf(rotated.at(-1))));
      if (file.size === 0 && config.fsync !== "never") await syncFolder(folder);
      const made: Opened = { lock, file, rotated, nextOffset };
      await expire(made);
      return made;
    } catch (error) {
      await lock?.release();
      options.leavePlace();
      throw error;
    }
  }

  async function findRotated(): Promise<RotatedFile[]> {
    const files: RotatedFile[] = [];
    for (const { n, path: at } of (await listTopicFiles(folder, topic)).get(topic) ?? []) {
      if (n === undefined) continue;
      const { size, mtimeMs } = await stat(at);
      files.push({ n, path: at, bytes: size, endedAt: mtimeMs });
    }
    return files;
  }

  /** Renames the file and begins a new one. Where that fails half way, the log is opened anew by the next batch. */
  async function rotate(at: Opened): Promise<void> {
    const n = (at.rotated.at(-1)?.n ?? 0) + 1;
    const bytes = at.file.size;
    const aside = join(folder, fileName(topic, n));
    try {
      if (config.fsync !== "never") await at.file.sync();
      await rename(path, aside);
      const file = await openActiveFile(path);
      const old = at.file;
      at.file = file;
      await old.close();
    } catch (error) {
      await shut();
      throw error;
    }
    unsynced = false;
    at.rotated.push({ n, path: aside, bytes, endedAt: clock.now() });
    meter.rotated();
    if (config.fsync !== "never") await syncFolder(folder);
    await expire(at);
  }

  /** Deleting can wait: what fails here is tried again, and keeps nobody from writing. */
  async function expire(at: Opened): Promise<void> {
    for (const file of chooseExpired(at.rotated, at.file.size, config.retention ?? {}, clock.now())) {
      try {
        await unlink(file.path);
        meter.expired();
        log.info({ file: file.path, bytes: file.bytes }, "deleted a rotated file, as retention says");
      } catch (error) {
        if (!(error instanceof Error && "code" in error && error.code === "ENOENT")) {
          log.error({ file: file.path, err: error }, "could not delete a rotated file; will try again");
          return;
        }
      }
      at.rotated = at.rotated.filter((each) => each !== file);
    }
  }

  async function syncLater(): Promise<void> {
    syncTimer = undefined;
    if (!unsynced || !opened) return;
    unsynced = false;
    try {
      await opened.file.sync();
      meter.synced(topic);
    } catch (error) {
      // Records of the last interval were acknowledged already: only a power cut now can lose them.
      meter.syncFailed(topic, describe(error).message);
      log.error({ file: path, err: error }, "could not sync the file to the disk");
    }
  }

  /** Closes what is open, so that the next batch looks at the file anew. */
  async function shut(): Promise<void> {
    if (!opened) return;
    const { file, lock } = opened;
    opened = undefined;
    syncTimer?.clear();
    syncTimer = undefined;
    try {
      if (unsynced) await file.sync();
      unsynced = false;
    } catch (error) {
      log.error({ file: path, err: error }, "could not sync the file to the disk");
    }
    for (const step of [() => file.close(), () => lock.release()]) {
      try {
        await step();
      } catch (error) {
        log.error({ file: path, err: error }, "could not close the file");
      }
    }
    options.leavePlace();
  }

  async function maintain(): Promise<void> {
    // The file's size is only known between writes.
    if (!opened || working) return;
    const done = Promise.withResolvers<void>();
    working = done.promise;
    try {
      if (!(await opened.lock.refresh()) || !(await opened.file.isIntact())) {
        log.error({ file: path }, "the file or its lock was changed by another program; opening it anew");
        await shut();
      } else {
        await expire(opened);
      }
    } catch (error) {
      log.error({ file: path, err: error }, "could not look after the file");
    }
    done.resolve();
    // What was appended meanwhile found somebody working.
    if (!queue.isEmpty) working = work();
    else {
      working = undefined;
      options.onIdle();
    }
  }

  async function close(): Promise<void> {
    closing.abort();
    for (let busy = working; busy; busy = working) await busy;
    await shut();
  }

  function describe(error: unknown): Error {
    const reason = error instanceof Error ? error.message : String(error);
    return new Error(reason.includes(path) ? reason : `${path}: ${reason}`, { cause: error });
  }

  return {
    append,
    isIdle: () => working === undefined && queue.isEmpty,
    isOpen: () => opened !== undefined,
    maintain,
    close,
  };
}

async function lastOffsetOf(rotated: RotatedFile | undefined): Promise<number> {
  if (!rotated) return -1;
  const file = await openActiveFile(rotated.path);
  await file.close();
  return file.lastOffset ?? -1;
}
