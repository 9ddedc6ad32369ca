/** "Did you mean": the name that was probably meant by one that isn't known. */
import { closest, distance } from "fastest-levenshtein";

/** The candidate nearest to `word` in spelling, or undefined where none is near enough to be worth saying. */
export function suggest(word: string, candidates: readonly string[]): string | undefined {
  if (word === "" || candidates.length === 0) return undefined;
  const lower = word.toLowerCase();
  const byLower = new Map(candidates.map((candidate) => [candidate.toLowerCase(), candidate]));
  const near = closest(lower, [...byLower.keys()]);
  // Two letters swapped are a distance of two.
  const allowed = lower.length < 4 ? 1 : Math.max(2, Math.floor(lower.length / 3));
  return distance(lower, near) <= allowed ? byLower.get(near) : undefined;
}

/** `; did you mean "x"?`, or nothing. */
export function didYouMean(word: string, candidates: readonly string[]): string {
  const near = suggest(word, candidates);
  return near === undefined ? "" : `; did you mean "${near}"?`;
}
