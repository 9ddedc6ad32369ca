/**
 * When refused callers are told so. One that comes now and then is told at once; where many ask again as soon as they are
 * refused, whatever Retry-After says, their refusals are spread over time: a refusal costs half as much as a publish, and
 * so they would take as much of the process as if nobody had refused them.
 */
import type { Host } from "@sluice/kernel";

/** In each interval: 500 a second, which is a few per cent of a core. */
const maxAtOnce = 50;
const intervalMs = 100;

/** More than that are told at once, so that nobody makes us hold more and waits longer than two seconds. */
const maxWaiting = 1000;

export interface Refusals {
  /** Undefined: now. Else resolves when this one's turn has come; first come, first served. */
  turn(): Promise<void> | undefined;
}

export function createRefusals({ clock, signal }: Pick<Host, "clock" | "signal">): Refusals {
  let told = 0;
  let waiting: (() => void)[] = [];
  let timer: { clear(): void } | undefined;

  function next(): void {
    const turns = waiting.splice(0, maxAtOnce);
    told = turns.length;
    timer = told > 0 ? clock.setTimeout(next, intervalMs) : undefined;
    for (const go of turns) go();
  }

  signal.addEventListener("abort", () => {
    timer?.clear();
    timer = undefined;
    const all = waiting;
    waiting = [];
    for (const go of all) go();
  });

  return {
    turn() {
      if (signal.aborted) return undefined;
      timer ??= clock.setTimeout(next, intervalMs);
      if (told < maxAtOnce && waiting.length === 0) {
        told++;
        return undefined;
      }
      if (waiting.length >= maxWaiting) return undefined;
      return new Promise((resolve) => waiting.push(resolve));
    },
  };
}
