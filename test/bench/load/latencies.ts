/** Times in buckets that are 1/16 apart: counts that can be subtracted, sent to another process and asked for a share. */

const perOctave = 16;
/** From 1 us to over an hour. */
const buckets = 32 * perOctave;

export interface Latencies {
  add(ms: number): void;
  read(): number[];
}

export function createLatencies(): Latencies {
  const counts = new Uint32Array(buckets);
  return {
    add(ms) {
      const us = ms * 1000;
      const at = us <= 1 ? 0 : Math.min(buckets - 1, Math.floor(Math.log2(us) * perOctave));
      counts[at]!++;
    },
    read: () => [...counts],
  };
}

export function minus(after: readonly number[], before: readonly number[]): number[] {
  return after.map((count, n) => count - (before[n] ?? 0));
}

/** Milliseconds that this share of all took at most, 4 % too high at worst; NaN where there are none. */
export function shareOf(counts: readonly number[], share: number): number {
  const total = counts.reduce((sum, count) => sum + count, 0);
  let seen = 0;
  for (const [n, count] of counts.entries()) {
    seen += count;
    if (count > 0 && seen >= total * share) return 2 ** ((n + 1) / perOctave) / 1000;
  }
  return Number.NaN;
}
