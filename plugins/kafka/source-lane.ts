/**
 * The records of one partition on their way to the proxy: handed on in order, several under way at a time, and finished
 * only as far as every earlier one is.
 */
import type { Clock } from "@sluice/kernel";
import type { SourceRecord } from "./source-mapper.ts";

/** Milliseconds between attempts at what the proxy could not take: doubled from the first to the last. */
const backoff = { from: 50, to: 5000 };

/** `done`: over with, for good. `held`: never, as it stands. An error: not now. */
export type Handled = "done" | "held" | Error;

/** Records under way at a time, all partitions together. */
export interface Allowance {
  readonly used: number;
  /** Takes one; where there is none, `again` is called once there may be. */
  take(again: () => void): boolean;
  give(): void;
}

export interface LaneDeps {
  readonly clock: Clock;
  readonly allowance: Allowance;
  readonly maxInFlight: number;
  /** Never rejects. */
  handle(record: SourceRecord): Promise<Handled>;
  /** `position` has moved, or the queue has become shorter. */
  advanced(): void;
}

export interface SourceLane {
  /** Offset of the next record to be fetched. */
  readonly next: bigint;
  /** Everything before this offset is over with. */
  readonly position: bigint;
  readonly queued: number;
  readonly queuedBytes: number;
  readonly inFlight: number;
  /** A record of it can't be got past. */
  readonly isHeld: boolean;
  /** The proxy can't take a record, which is tried again. */
  readonly isRetrying: boolean;
  /** @param end offset behind the records, which may be more than one behind the last of them */
  push(records: readonly SourceRecord[], end: bigint): void;
  /** Nothing new is begun; resolves when nothing is under way. */
  close(): Promise<void>;
}

interface Entry {
  readonly record: SourceRecord;
  /** Where the partition goes on once this one is over with. */
  end: bigint;
  isDone: boolean;
}

export function createAllowance(limit: number): Allowance {
  const waiting = new Set<() => void>();
  let used = 0;
  return {
    get used() {
      return used;
    },
    take(again) {
      if (used >= limit) {
        waiting.add(again);
        return false;
      }
      used++;
      return true;
    },
    give() {
      used--;
      // One that has been closed meanwhile takes nothing: the next one's turn.
      for (const first of waiting) {
        if (used >= limit) return;
        waiting.delete(first);
        first();
      }
    },
  };
}

/** @param start where the partition is taken up @param after what has to be over before its first record */
export function createSourceLane(start: bigint, after: Promise<void>, deps: LaneDeps): SourceLane {
  const { clock, allowance, maxInFlight } = deps;
  const queue: SourceRecord[] = [];
  /** Begun and not yet counted into `position`, in order. */
  const begun: Entry[] = [];
  const failed: Entry[] = [];
  const idle = new Set<() => void>();
  let wake: (() => void) | undefined;
  let isClosed = false;
  let head = 0;
  let queuedBytes = 0;
  let inFlight = 0;
  let next = start;
  let position = start;
  let mayBegin = false;
  let isHeld = false;
  let isRetrying = false;

  void (async () => {
    await after;
    mayBegin = true;
    begin();
  })();

  function begin(): void {
    while (mayBegin && !isHeld && !isRetrying && failed.length === 0 && !isClosed) {
      const record = queue[head];
      if (!record || inFlight >= maxInFlight || !allowance.take(begin)) return;
      head++;
      if (head > 1024 && head * 2 > queue.length) {
        queue.splice(0, head);
        head = 0;
      }
      queuedBytes -= sizeOf(record);
      const following = queue[head];
      const entry: Entry = { record, end: following?.offset ?? next, isDone: false };
      begun.push(entry);
      void run(entry);
    }
  }

  async function run(entry: Entry): Promise<void> {
    inFlight++;
    const handled = await deps.handle(entry.record);
    inFlight--;
    allowance.give();
    settle(entry, handled);
    if (failed.length > 0 && inFlight === 0 && !isRetrying) void retry();
    begin();
    if (inFlight === 0 && !isRetrying) release();
    deps.advanced();
  }

  function settle(entry: Entry, handled: Handled): void {
    if (handled === "held") isHeld = true;
    else if (handled !== "done") failed.push(entry);
    else {
      entry.isDone = true;
      while (begun[0]?.isDone) position = begun.shift()?.end ?? position;
    }
  }

  /** What failed is tried again by itself, one after the other, before anything behind it is begun. */
  async function retry(): Promise<void> {
    isRetrying = true;
    failed.sort((a, b) => (a.record.offset < b.record.offset ? -1 : 1));
    for (let delayMs = backoff.from; failed.length > 0 && !isHeld;) {
      await pause(delayMs * (0.75 + Math.random() / 2));
      if (isClosed) break;
      const [entry] = failed as [Entry];
      const handled = await deps.handle(entry.record);
      if (handled instanceof Error) {
        delayMs = Math.min(delayMs * 2, backoff.to);
        continue;
      }
      delayMs = 0;
      failed.shift();
      settle(entry, handled);
      deps.advanced();
    }
    isRetrying = false;
    begin();
    if (inFlight === 0) release();
    deps.advanced();
  }

  function pause(ms: number): Promise<void> {
    if (isClosed) return Promise.resolve();
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = clock.setTimeout(resolve, ms);
    wake = () => {
      timer.clear();
      resolve();
    };
    return promise;
  }

  function release(): void {
    for (const resolve of idle) resolve();
    idle.clear();
  }

  return {
    get next() {
      return next;
    },
    get position() {
      return position;
    },
    get queued() {
      return queue.length - head;
    },
    get queuedBytes() {
      return queuedBytes;
    },
    get inFlight() {
      return inFlight;
    },
    get isHeld() {
      return isHeld;
    },
    get isRetrying() {
      return isRetrying;
    },
    push(records, end) {
      for (const record of records) {
        if (record.offset < next) continue;
        queue.push(record);
        queuedBytes += sizeOf(record);
      }
      if (end > next) next = end;
      // Of compacted topics and of transactions: what is behind the last record is no record.
      if (begun.length === 0 && queue.length === head) position = next;
      begin();
    },
    close() {
      isClosed = true;
      wake?.();
      if (inFlight === 0 && !isRetrying) return Promise.resolve();
      return new Promise((resolve) => idle.add(resolve));
    },
  };
}

export function sizeOf({ key, value }: SourceRecord): number {
  return (key?.length ?? 0) + (value?.length ?? 0) + 200;
}
