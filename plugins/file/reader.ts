/** Reads a topic's lines in order, from file to file, while they are written, rotated and deleted. */
import { open, stat } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { setTimeout } from "node:timers/promises";
import { parseRecord } from "./record.ts";
import { lastLineFeed, readRange } from "./recovery.ts";
import { listTopicFiles } from "./topic-file.ts";
import type { TopicFile } from "./topic-file.ts";

const chunkBytes = 65_536;
/** Asking works on any file system and mount; watching doesn't. */
const pollMs = 100;

export interface ReadOptions {
  readonly folder: string;
  readonly topic: string;
  /** How many of the last lines to begin with. */
  readonly last: number;
  readonly follow: boolean;
  /** Ends the reading. */
  readonly signal: AbortSignal;
}

/** Whole lines without their line feeds. */
export async function* readLines({ folder, topic, last, follow, signal }: ReadOptions): AsyncGenerator<string> {
  const list = async () => (await listTopicFiles(folder, topic)).get(topic) ?? [];
  let place = await findStart(await list(), last);
  let lastOffset = -1;
  let skipTo = -1;
  try {
    while (place && !signal.aborted) {
      for await (const line of readOn(place)) {
        const offset = parseRecord(line)?.offset;
        if (offset !== undefined && offset <= skipTo) continue;
        lastOffset = offset ?? lastOffset;
        yield line;
      }
      const next: Step = await stepOn(place, await list());
      if (next === "more") continue;
      if (next === "end") {
        if (!follow) return;
        await setTimeout(pollMs, undefined, { signal }).catch(() => undefined);
        continue;
      }
      const opened = await openIfSame(next);
      if (!opened) continue;
      const done = place.handle;
      place = { handle: opened, position: 0 };
      await done.close();
      // Where our file was deleted, the oldest there is may have been read already.
      if (next.lost) skipTo = lastOffset;
    }
  } finally {
    await place?.handle.close();
  }
}

interface Place {
  readonly handle: FileHandle;
  position: number;
}

interface NextFile {
  readonly path: string;
  readonly ino: number;
  /** The file before it is no longer there. */
  readonly lost: boolean;
}

type Step = "more" | "end" | NextFile;

/** Yields the lines from the place to the end of its file; one that is not yet whole stays for the next time. */
async function* readOn(place: Place): AsyncGenerator<string> {
  let pending: Buffer[] = [];
  let readTo = place.position;
  for (;;) {
    const chunk = await readRange(place.handle, readTo, readTo + chunkBytes);
    if (chunk.length === 0) return;
    readTo += chunk.length;
    let from = 0;
    for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, from)) {
      const line = Buffer.concat([...pending, chunk.subarray(from, at)]);
      pending = [];
      from = at + 1;
      place.position += line.length + 1;
      yield line.toString();
    }
    if (from < chunk.length) pending.push(chunk.subarray(from));
  }
}

/** What comes after the end of this place's file. */
async function stepOn(place: Place, files: readonly TopicFile[]): Promise<Step> {
  const mine = await place.handle.stat();
  // What a writer could not finish it takes back; the next record begins where that began.
  if (mine.size < place.position) place.position = mine.size;
  const inodes = await Promise.all(files.map(inodeOf));
  const index = inodes.indexOf(mine.ino);
  if (index === files.length - 1 && index >= 0) return "end";
  // It is no longer written to; all that was is there by now.
  if (mine.size > place.position && !(await endsTorn(place, mine.size))) return "more";
  const next = files[index + 1];
  return next ? { path: next.path, ino: inodes[index + 1] ?? -1, lost: index < 0 } : "end";
}

/** Undefined where it was renamed or deleted since it was listed. */
async function openIfSame({ path, ino }: NextFile): Promise<FileHandle | undefined> {
  const handle = await open(path, "r").catch(() => undefined);
  if (!handle || (await handle.stat()).ino === ino) return handle;
  await handle.close();
  return undefined;
}

async function endsTorn({ handle, position }: Place, size: number): Promise<boolean> {
  return (await lastLineFeed(handle, size)) < position;
}

/** -1 for one that was renamed or deleted since it was listed. */
async function inodeOf({ path }: TopicFile): Promise<number> {
  return stat(path).then(
    (found) => found.ino,
    () => -1,
  );
}

/** The place where the last lines begin, over as many files as it takes. */
async function findStart(files: readonly TopicFile[], last: number): Promise<Place | undefined> {
  let wanted = last;
  let place: Place | undefined;
  for (const { path } of files.toReversed()) {
    const handle = await open(path, "r").catch(() => undefined);
    if (!handle) continue;
    await place?.handle.close();
    const end = (await lastLineFeed(handle, (await handle.stat()).size)) + 1;
    place = { handle, position: end };
    while (wanted > 0 && place.position > 0) {
      place.position = (await lastLineFeed(handle, place.position - 1)) + 1;
      wanted--;
    }
    if (wanted === 0) break;
  }
  return place;
}
