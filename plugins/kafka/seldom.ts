/** A log that an outage can't flood: each kind of trouble at once, and then a sum each half minute. */
import type { Clock } from "@sluice/kernel";

/** Milliseconds between two log lines about the same kind of trouble: an outage would write dozens a second. */
const everyMs = 30_000;
/** Kinds that are remembered; the one that was spoken of first is forgotten for one more. */
const maxKinds = 1000;

export interface Seldom<K> {
  /** @param speak called now or never; with how many were left out since the last one, where there were any */
  say(about: K, speak: (more: { readonly suppressed?: number }) => void): void;
  /** It has ended: its next one is said at once. */
  forget(about: K): void;
}

export function createSeldom<K>(clock: Clock): Seldom<K> {
  const spoken = new Map<K, { at: number; suppressed: number }>();
  return {
    say(about, speak) {
      const now = clock.now();
      const last = spoken.get(about);
      if (last && now - last.at < everyMs) {
        last.suppressed++;
        return;
      }
      const [first] = spoken.keys();
      if (!last && spoken.size >= maxKinds && first !== undefined) spoken.delete(first);
      spoken.set(about, { at: now, suppressed: 0 });
      speak(last && last.suppressed > 0 ? { suppressed: last.suppressed } : {});
    },
    forget: (about) => void spoken.delete(about),
  };
}
