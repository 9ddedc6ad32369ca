/** A clock that stands still until it is told to go on. */
import type { Clock } from "@sluice/kernel";

export interface TestClock extends Clock {
  /** Runs what is due, in its order, each at its own time. */
  advance(ms: number): void;
  /** Timers that are set: none may be left once an instance is closed. */
  readonly pending: number;
}

/** @param startMs milliseconds since the epoch */
export function createTestClock(startMs = 0): TestClock {
  let now = startMs;
  const timers = new Set<{ readonly at: number; readonly callback: () => void }>();

  function nextUntil(end: number) {
    const due = [...timers].filter(({ at }) => at <= end);
    // Of two that are due at one time, the one that was set first.
    return due.toSorted((a, b) => a.at - b.at)[0];
  }

  return {
    now: () => now,
    setTimeout(callback, ms) {
      const timer = { at: now + ms, callback };
      timers.add(timer);
      return { clear: () => void timers.delete(timer) };
    },
    advance(ms) {
      const end = now + ms;
      for (let next = nextUntil(end); next; next = nextUntil(end)) {
        timers.delete(next);
        now = next.at;
        next.callback();
      }
      now = end;
    },
    get pending() {
      return timers.size;
    },
  };
}
