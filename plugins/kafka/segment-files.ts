/** The files of a disk buffer: its segments, and the number up to which records are done. */
import { open, readdir, readFile, rename, stat, truncate, writeFile, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { parseFrames, parseSegmentName } from "./segment.ts";
import type { Segment } from "./segment-reader.ts";

const checkpointName = "done";

/** Oldest first. */
export async function findSegments(folder: string): Promise<Segment[]> {
  const found: Segment[] = [];
  for (const name of (await readdir(folder)).toSorted()) {
    const first = parseSegmentName(name);
    if (first === undefined) continue;
    const path = join(folder, name);
    found.push({ first, path, bytes: (await stat(path)).size });
  }
  return found;
}

/** 0 where it is missing or can't be read: then all that is there is read again. */
export async function readCheckpoint(folder: string): Promise<number> {
  const text = await readFile(join(folder, checkpointName), "utf8").catch(() => "");
  return /^\d{1,15}\n$/.test(text) ? Number(text) : 0;
}

export async function writeCheckpoint(folder: string, doneUpTo: number): Promise<void> {
  const part = join(folder, `${checkpointName}.part`);
  await writeFile(part, `${doneUpTo}\n`);
  await rename(part, join(folder, checkpointName));
}

/**
 * A crash has left the last segment with a frame cut off at its end, or with holes where data had not reached the disk.
 * Resolves with the number of the next record, and how many bytes were cut off.
 */
export async function mendLast(segments: readonly Segment[]): Promise<{ nextSequence: number; cutBytes: number }> {
  const last = segments.at(-1);
  if (!last) return { nextSequence: 1, cutBytes: 0 };
  const content = await readFile(last.path);
  const { frames } = parseFrames(content, content.length);
  const final = frames.at(-1);
  const end = final ? final.body.byteOffset - content.byteOffset + final.body.length : 0;
  if (end < content.length) await truncate(last.path, end);
  last.bytes = end;
  return { nextSequence: final ? final.sequence + 1 : last.first, cutBytes: content.length - end };
}

export async function writeAll(handle: FileHandle, data: Buffer, position: number): Promise<void> {
  for (let done = 0; done < data.length;) {
    const { bytesWritten } = await handle.write(data, done, data.length - done, position + done);
    done += bytesWritten;
  }
}

/** A new name is on the disk when its folder is. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
