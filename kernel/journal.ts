/**
 * Writes to a journal in groups: whatever is put while one batch is on its way goes with the next, so that many
 * acknowledgements share one fsync.
 */
import { messageOf, SluiceError } from "./errors.ts";
import type { Journal, JournalEntry, Logger, Metrics } from "./plugin.ts";

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

export function createJournalWriter(
  journal: Journal,
  { log, metrics }: { log: Logger; metrics: Metrics },
): JournalWriter {
  const meters = {
    failures: metrics.counter(
      "sluice_store_failures_total",
      "Writes to the journal that failed; what waited for them was not acknowledged.",
    ),
    records: metrics.counter("sluice_store_records_total", "Records written to the journal, deletions included."),
    seconds: metrics.histogram("sluice_store_write_seconds", "How long a write to the journal takes, with its fsync."),
  };
  let pending = new Map<string, (() => Buffer) | undefined>();
  let fresh = new Set<string>();
  let batch = Promise.withResolvers<void>();
  let scheduled = false;
  let writing: Promise<void> | undefined;
  let failure: string | undefined;
  let retry: NodeJS.Timeout | undefined;
  let closed = false;
  /** Something was put after the close, and is not written. */
  let isLate = false;

  function schedule(): void {
    if (scheduled || writing || retry) return;
    scheduled = true;
    // After what this turn of the event loop has read from other clients, which then shares the batch.
    setImmediate(() => {
      scheduled = false;
      if (!closed) flush();
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
    // Also where nothing is left to write: somebody may wait for what was taken back meanwhile.
    flush();
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
    if (closed) return;
    retry = setTimeout(() => {
      retry = undefined;
      flush();
    }, retryMs);
  }

  return {
    put(key, value, isNew) {
      if (closed) {
        isLate = true;
        return;
      }
      if (isNew && !pending.has(key)) fresh.add(key);
      pending.set(key, value);
      schedule();
    },
    delete(key) {
      if (closed) {
        isLate = true;
        return;
      }
      if (fresh.delete(key)) pending.delete(key);
      else pending.set(key, undefined);
      schedule();
    },
    commit() {
      if (isLate) return Promise.reject(new SluiceError("STORE_FAILED", "the journal is closed"));
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
      batch.promise.catch(() => undefined);
      if (failure === undefined) batch.resolve();
      else batch.reject(new SluiceError("STORE_FAILED", `the journal could not be written: ${failure}`));
    },
  };
}
