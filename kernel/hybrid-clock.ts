/**
 * Numbers that grow with time and with what other nodes have said: of two connections of one client, of which the second
 * node has heard of the first, the later one has the greater number, however wrong a node's clock is.
 */
export interface HybridClock {
  /** @param after greater than this too */
  next(after?: number): number;
  /** Another node has said this number. */
  seen(value: number): void;
}

/** A clock that is ahead of ours by more than this is not believed. */
const maxAheadMs = 24 * 3600 * 1000;

/** @param now milliseconds since the epoch */
export function createHybridClock(now: () => number): HybridClock {
  let last = 0;
  return {
    next(after = 0) {
      last = Math.max(last + 1, after + 1, now());
      return last;
    },
    seen(value) {
      if (Number.isSafeInteger(value) && value > last && value < now() + maxAheadMs) last = value;
    },
  };
}
