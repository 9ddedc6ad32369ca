/** Where a file's last whole record ends. What is behind it is of a write that was cut off, by kill -9 or a power cut. */
import type { FileHandle } from "node:fs/promises";
import { parseRecord } from "./record.ts";

const blockBytes = 65_536;
const lineFeed = 10;

export interface End {
  /** Bytes up to the end of the last whole record. */
  readonly keep: number;
  /** That record's offset; undefined where the file has none. */
  readonly offset: number | undefined;
}

/** Reads backwards from `size`. Throws where the file ends with a whole line that is no record: it may be someone else's. */
export async function findEnd(handle: FileHandle, size: number, path: string): Promise<End> {
  let end = size;
  while (end > 0) {
    const lineEnd = await lastLineFeed(handle, end);
    if (lineEnd < 0) break;
    const start = (await lastLineFeed(handle, lineEnd)) + 1;
    const line = await readRange(handle, start, lineEnd);
    // After a power cut a file may be as long as it should be, but with NULs where data had not reached the disk.
    if (!line.includes(0)) {
      const record = parseRecord(line.toString());
      if (!record) throw foreign(path);
      return { keep: lineEnd + 1, offset: record.offset };
    }
    end = start;
  }
  const beginning = await readRange(handle, 0, Math.min(size, blockBytes));
  if (size > 0 && !looksTorn(beginning)) throw foreign(path);
  return { keep: 0, offset: undefined };
}

/** The position of the last line feed before `end`, or -1. */
export async function lastLineFeed(handle: FileHandle, end: number): Promise<number> {
  let to = end;
  while (to > 0) {
    const from = Math.max(0, to - blockBytes);
    const found = (await readRange(handle, from, to)).lastIndexOf(lineFeed);
    if (found >= 0) return from + found;
    to = from;
  }
  return -1;
}

export async function readRange(handle: FileHandle, from: number, to: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafe(to - from);
  let filled = 0;
  while (filled < buffer.length) {
    const { bytesRead } = await handle.read(buffer, filled, buffer.length - filled, from + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return buffer.subarray(0, filled);
}

/** A file without one whole record: the beginning of ours, or NULs. */
function looksTorn(bytes: Buffer): boolean {
  const mark = Buffer.from('{"topic":');
  const length = Math.min(mark.length, bytes.length);
  return bytes.includes(0) || bytes.subarray(0, length).equals(mark.subarray(0, length));
}

function foreign(path: string): Error {
  return new Error(
    `${path} does not end with a record of FileMQTT, and is left as it is: move it away, or use another dir`,
  );
}
