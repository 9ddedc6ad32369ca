/** "Did you mean": the name that was probably meant by one that isn't known. */
import { closest, distance } from "fastest-levenshtein";

/** The candidate nearest to `word` in spelling, or undefined where none is near enough to be worth saying. */
export function suggest(word: string, candidates: readonly string[]): string | undefined {
  if (word === "" || candidates.length === 0) return undefined;
  const lower = word.toLowerCase();
  const byLower = new Map(candidates.map((candidate) => [candidate.toLowerCase(), candidate]));
  const near = closest(lower, [...byLower.keys()]);
  const allowed = Math.max(1, Math.floor(Math.max(lower.length, near.length) / 3));
  return distance(lower, near) <= allowed ? byLower.get(near) : undefined;
}

/** `; did you mean "x"?`, or nothing. */
export function didYouMean(word: string, candidates: readonly string[]): string {
  const near = suggest(word, candidates);
  return near === undefined ? "" : `; did you mean "${near}"?`;
}
