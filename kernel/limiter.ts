/** Rate limits as Easegress counts them: fixed windows, no burst beyond the window but one overshoot, paid back later. */
import type { RateLimit } from "./spec.ts";

export interface Limiter {
  /** Spends one request of `bytes`, or answers false and spends nothing. */
  admit(bytes: number): boolean;
  /** Milliseconds until `admit` may answer true again; 0 = now. */
  waitMs(): number;
}

/** A cost is admitted while the window's use is *below* the limit, then counted whole: the debt goes to later windows. */
export function createLimiter(limit: RateLimit, now: () => number): Limiter {
  const periodMs = limit.timePeriod * 1000;
  let windowStart = now();
  let requests = 0;
  let bytes = 0;

  function turn(): void {
    const windows = Math.floor((now() - windowStart) / periodMs);
    if (windows <= 0) return;
    windowStart += windows * periodMs;
    requests = Math.max(0, requests - windows * limit.requestRate);
    bytes = Math.max(0, bytes - windows * limit.bytesRate);
  }

  function open(): boolean {
    return (
      (limit.requestRate <= 0 || requests < limit.requestRate) && (limit.bytesRate <= 0 || bytes < limit.bytesRate)
    );
  }

  /** How many windows must pass before `used` is below `rate`. */
  function windowsFor(used: number, rate: number): number {
    return rate <= 0 || used < rate ? 0 : Math.floor(used / rate);
  }

  return {
    admit(cost) {
      turn();
      if (!open()) return false;
      if (limit.requestRate > 0) requests++;
      if (limit.bytesRate > 0) bytes += cost;
      return true;
    },
    waitMs() {
      turn();
      const windows = Math.max(windowsFor(requests, limit.requestRate), windowsFor(bytes, limit.bytesRate));
      return windows === 0 ? 0 : windowStart + windows * periodMs - now();
    },
  };
}

/** One limiter a key, the oldest given up beyond `max` keys: for limits an address. */
export function createKeyedLimiter(
  limit: RateLimit,
  { now, max, forgotten }: { now: () => number; max: number; forgotten: () => void },
): (key: string) => Limiter {
  const limiters = new Map<string, Limiter>();
  return (key) => {
    let limiter = limiters.get(key);
    if (!limiter) {
      if (limiters.size >= max) {
        limiters.delete(limiters.keys().next().value ?? "");
        forgotten();
      }
      limiters.set(key, (limiter = createLimiter(limit, now)));
    }
    return limiter;
  };
}
