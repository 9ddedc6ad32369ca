/**
 * Writes to a journal in groups: whatever is put while one batch is on its way goes with the next, so that many
 * acknowledgements share one fsync.
 */
import { messageOf, SluiceError } from "./errors.ts";
import type { Counter, Histogram, Journal, JournalEntry, Logger } from "./plugin.ts";

export interface JournalWriter {
  /**
   * Goes with the next batch; the last value of a key counts. `value` is asked for when the batch is written.
   * @param isNew the journal has no such key: where it is deleted before it was written, nothing is written at all
   */
  put(key: string, value: () => Buffer, isNew: boolean): void;
  delete(key: string): void;
  /**
   * Resolves once all that was put is durable; undefined: it is, for nothing waits.
   * @throws (rejects) SluiceError STORE_FAILED: it is not durable now; it is tried again, unless it is taken back
   */
  commit(): Promise<void> | undefined;
  /** Why the last batch failed; undefined while all is well. */
  readonly failure: string | undefined;
  /** Writes what is left. */
  close(): Promise<void>;
}

/** By key; undefined = deleted. */
type Changes = ReadonlyMap<string, (() => Buffer) | undefined>;

/** How long after a failure the next attempt is made. */
const retryMs = 1000;

export interface JournalMeters {
  readonly failures: Counter;
  readonly records: Counter;
  readonly seconds: Histogram;
}

export function createJournalWriter(
  journal: Journal,
  { log, meters }: { log: Logger; meters: JournalMeters },
): JournalWriter {
  let pending = new Map<string, (() => Buffer) | undefined>();
  let fresh = new Set<string>();
  let batch = Promise.withResolvers<void>();
  let scheduled = false;
  let writing: Promise<void> | undefined;
  let failure: string | undefined;
  let retry: NodeJS.Timeout | undefined;
  let closed = false;

  function schedule(): void {
    if (scheduled || writing || retry) return;
    scheduled = true;
    // After what this turn of the event loop has read from other clients, which then shares the batch.
    setImmediate(() => {
      scheduled = false;
      flush();
    });
  }

  function flush(): void {
    if (writing) return;
    const [changes, done] = [pending, batch];
    pending = new Map();
    fresh = new Set();
    batch = Promise.withResolvers<void>();
    if (changes.size === 0) {
      done.resolve();
      return;
    }
    writing = settle(changes, done);
  }

  async function settle(changes: Changes, done: PromiseWithResolvers<void>): Promise<void> {
    try {
      await write(changes);
    } catch (error) {
      writing = undefined;
      failed(error, changes);
      // Nobody may wait for it.
      done.promise.catch(() => undefined);
      done.reject(new SluiceError("STORE_FAILED", `the journal could not be written: ${failure}`, { cause: error }));
      return;
    }
    writing = undefined;
    if (failure !== undefined) log.info({}, "The journal takes writes again");
    failure = undefined;
    done.resolve();
    if (pending.size > 0) flush();
  }

  async function write(changes: Changes): Promise<void> {
    const startedAt = performance.now();
    await journal.write([...changes].map(([key, value]): JournalEntry => ({ key, value: value?.() })));
    meters.seconds.observe({}, (performance.now() - startedAt) / 1000);
    meters.records.inc({}, changes.size);
  }

  /** What was put since is newer. */
  function failed(error: unknown, changes: Changes): void {
    if (failure === undefined)
      log.error({ err: error }, "The journal could not be written; nothing is acknowledged until it can");
    failure = messageOf(error) ?? "for an unknown reason";
    meters.failures.inc({});
    pending = new Map([...changes, ...pending]);
    fresh.clear();
    retry = setTimeout(() => {
      retry = undefined;
      flush();
    }, retryMs);
  }

  return {
    put(key, value, isNew) {
      if (closed) return;
      if (isNew && !pending.has(key)) fresh.add(key);
      pending.set(key, value);
      schedule();
    },
    delete(key) {
      if (closed) return;
      if (fresh.delete(key)) pending.delete(key);
      else pending.set(key, undefined);
      schedule();
    },
    commit() {
      if (pending.size > 0) return batch.promise;
    },
    get failure() {
      return failure;
    },
    async close() {
      closed = true;
      clearTimeout(retry);
      retry = undefined;
      while (writing || pending.size > 0) {
        flush();
        await writing;
        if (failure !== undefined) break;
      }
      clearTimeout(retry);
      batch.promise.catch(() => undefined);
      if (failure === undefined) batch.resolve();
      else batch.reject(new SluiceError("STORE_FAILED", `the journal could not be written: ${failure}`));
    },
  };
}
