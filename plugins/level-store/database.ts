/** A LevelDB folder as a journal: atomic batches, each synced as the options say. The only importer of classic-level. */
import { mkdir } from "node:fs/promises";
import { type BatchOperation, ClassicLevel } from "classic-level";
import type { Clock, Journal, JournalEntry } from "@sluice/kernel";

export type Fsync = "always" | "interval" | "never";

export interface Database extends Journal {
  /** @throws an error that says what is wrong with the folder, and what to do */
  open(): Promise<void>;
  /** What has been written is synced, whatever the options say. */
  close(): Promise<void>;
}

export interface DatabaseOptions {
  /** Absolute. */
  readonly dir: string;
  readonly fsync: Fsync;
  readonly fsyncIntervalMs: number;
  readonly clock: Clock;
}

/** Written to have what came before it synced: LevelDB syncs with a write only. The kernel never sees it. */
const syncMark = "synced";

const recordsAtOnce = 1000;

type Level = ClassicLevel<string, Buffer>;

export function createDatabase({ dir, fsync, fsyncIntervalMs, clock }: DatabaseOptions): Database {
  let level: Level | undefined;
  let unsynced: { clear(): void } | undefined;

  async function open(): Promise<Level> {
    // Payloads are in it.
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const opened: Level = new ClassicLevel(dir, { keyEncoding: "utf8", valueEncoding: "buffer" });
    try {
      await opened.open();
    } catch (error) {
      throw explain(error, dir);
    }
    level = opened;
    return opened;
  }

  /** After a failed write LevelDB refuses all others; opened anew, it takes them as soon as the disk does. */
  async function abandon(): Promise<void> {
    unsynced?.clear();
    unsynced = undefined;
    const failed = level;
    level = undefined;
    await failed?.close().catch(() => undefined);
  }

  async function batch(changes: readonly JournalEntry[], sync: boolean): Promise<void> {
    const to = level ?? (await open());
    try {
      await to.batch(changes.map(toOperation), { sync });
    } catch (error) {
      await abandon();
      throw explain(error, dir);
    }
  }

  function syncSoon(): void {
    unsynced ??= clock.setTimeout(() => {
      unsynced = undefined;
      // One that fails is found out by the next write, which then fails too.
      if (level) void batch([{ key: syncMark, value: Buffer.alloc(0) }], true).catch(() => undefined);
    }, fsyncIntervalMs);
  }

  return {
    durability: fsync === "always" ? "fsync" : "process",
    async open() {
      await open();
    },
    async *read() {
      const from = level ?? (await open());
      const iterator = from.iterator({ highWaterMarkBytes: 1024 * 1024 });
      try {
        for (;;) {
          const piece = await iterator.nextv(recordsAtOnce);
          if (piece.length === 0) return;
          yield piece.filter(([key]) => key !== syncMark).map(([key, value]) => ({ key, value }));
        }
      } catch (error) {
        throw explain(error, dir);
      } finally {
        await iterator.close();
      }
    },
    async write(changes) {
      await batch(changes, fsync === "always");
      if (fsync === "interval") syncSoon();
    },
    async close() {
      unsynced?.clear();
      unsynced = undefined;
      if (!level) return;
      await batch([{ key: syncMark, value: Buffer.alloc(0) }], true).catch(() => undefined);
      await abandon();
    },
  };
}

function toOperation({ key, value }: JournalEntry): BatchOperation<Level, string, Buffer> {
  return value === undefined ? { type: "del", key } : { type: "put", key, value };
}

/** classic-level's errors say little; what it found is in the cause. */
function explain(error: unknown, dir: string): Error {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const code = typeof cause === "object" && cause !== null && "code" in cause ? cause.code : undefined;
  const text = cause instanceof Error ? cause.message : String(cause);
  if (code === "LEVEL_LOCKED") {
    return new Error(`${dir} is in use by another gateway: stop that one, or give each its own dir`, { cause: error });
  }
  if (code === "LEVEL_CORRUPTION") {
    return new Error(
      `${dir} is damaged (${text}): restore it from a backup, or move it away to start without any session`,
      { cause: error },
    );
  }
  return new Error(`${dir}: ${text}`, { cause: error });
}
