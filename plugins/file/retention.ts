/** Which rotated files have to go. */
import type { Retention } from "./config.ts";

export interface RotatedFile {
  readonly n: number;
  readonly path: string;
  readonly bytes: number;
  /** Milliseconds since the epoch of its last record. */
  readonly endedAt: number;
}

/**
 * `rotated` from the oldest to the newest. While the active file is empty the newest stays, however old: the topic's
 * offsets are continued from it.
 */
export function chooseExpired(
  rotated: readonly RotatedFile[],
  activeBytes: number,
  { maxBytes = Infinity, maxAge = Infinity }: Retention,
  now: number,
): RotatedFile[] {
  const candidates = activeBytes === 0 ? rotated.slice(0, -1) : rotated;
  let bytes = rotated.reduce((sum, file) => sum + file.bytes, activeBytes);
  const expired: RotatedFile[] = [];
  for (const file of candidates) {
    if (bytes <= maxBytes && now - file.endedAt <= maxAge * 1000) break;
    expired.push(file);
    bytes -= file.bytes;
  }
  return expired;
}
