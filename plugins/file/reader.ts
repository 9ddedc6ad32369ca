/** Reads a topic's lines in order, from file to file, while they are written, rotated and deleted. */
import { open, stat } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { parseRecord } from "./record.ts";
import { lastLineFeed, readRange } from "./recovery.ts";
import { fileName, listTopicFiles } from "./topic-file.ts";
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
  const list: List = async () => (await listTopicFiles(folder, topic)).get(topic) ?? [];
  const pathOf = (n?: number) => join(folder, fileName(topic, n));
  let place = await findStart(await list(), last);
  let lastOffset = -1;
  let skipTo = -1;
  try {
    while (place && !signal.aborted) {
      // Asked before reading: of a file that is no longer written to, what is read then is all there is.
      const isActive = place.n === undefined && (await isAt(place, pathOf()));
      for await (const line of readOn(place)) {
        const offset = parseRecord(line)?.offset;
        if (offset !== undefined && offset <= skipTo) continue;
        lastOffset = offset ?? lastOffset;
        yield line;
      }
      const next: NextPlace | undefined = isActive ? undefined : await openNext(place, list, pathOf);
      if (next) {
        await place.handle.close();
        place = next.place;
        // The oldest there is may have been read already.
        if (next.isLost) skipTo = lastOffset;
        continue;
      }
      if (!follow) return;
      await setTimeout(pollMs, undefined, { signal }).catch(() => undefined);
    }
  } finally {
    await place?.handle.close();
  }
}

type List = () => Promise<readonly TopicFile[]>;

interface Place {
  readonly handle: FileHandle;
  position: number;
  /** As in the name of a rotated file, which it keeps; undefined while it may be the one that is written to. */
  n: number | undefined;
}

interface NextPlace {
  readonly place: Place;
  /** The file before it was deleted or moved away, so that it is not known which comes next. */
  readonly isLost: boolean;
}

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

/** Whether the path still leads to the place's file. */
async function isAt(place: Place, path: string): Promise<boolean> {
  const { ino, size } = await place.handle.stat();
  // What a writer could not finish it takes back; the next record begins where that began.
  if (size < place.position) place.position = size;
  return (await inodeOf(path)) === ino;
}

/**
 * The file that comes after the place's, which is no longer written to; undefined while it has not been begun. Files may be
 * rotated between any two looks. So it goes by their numbers, and the one that is written to is opened first: any that
 * comes before it has its number by then.
 */
async function openNext(place: Place, list: List, pathOf: (n?: number) => string): Promise<NextPlace | undefined> {
  place.n ??= await numberOf(place, await list());
  const isLost = place.n === undefined;
  const before = place.n ?? 0;
  for (;;) {
    const active = await openIfThere(pathOf());
    const later = (await list()).find(({ n }) => n !== undefined && n > before);
    if (later?.n === undefined) return active && { place: { handle: active, position: 0, n: undefined }, isLost };
    await active?.close();
    // A listing may have missed the very next, renamed while it was made.
    for (const n of [before + 1, later.n]) {
      const handle = await openIfThere(pathOf(n));
      if (handle) return { place: { handle, position: 0, n }, isLost };
    }
  }
}

/** Which of the rotated files is the place's; the newest is looked at first. */
async function numberOf(place: Place, files: readonly TopicFile[]): Promise<number | undefined> {
  const { ino } = await place.handle.stat();
  for (const { n, path } of files.toReversed()) {
    if (n !== undefined && (await inodeOf(path)) === ino) return n;
  }
  return undefined;
}

/** Undefined where there is no such file. */
async function inodeOf(path: string): Promise<number | undefined> {
  return stat(path).then(({ ino }) => ino, ignoreMissing);
}

async function openIfThere(path: string): Promise<FileHandle | undefined> {
  return open(path, "r").catch(ignoreMissing);
}

function ignoreMissing(error: unknown): undefined {
  if (!(error instanceof Error && "code" in error && error.code === "ENOENT")) throw error;
}

/** The place where the last lines begin, over as many files as it takes. */
async function findStart(files: readonly TopicFile[], last: number): Promise<Place | undefined> {
  let wanted = last;
  let place: Place | undefined;
  for (const { path, n } of files.toReversed()) {
    const handle = await openIfThere(path);
    if (!handle) continue;
    await place?.handle.close();
    const end = (await lastLineFeed(handle, (await handle.stat()).size)) + 1;
    place = { handle, position: end, n };
    while (wanted > 0 && place.position > 0) {
      place.position = (await lastLineFeed(handle, place.position - 1)) + 1;
      wanted--;
    }
    if (wanted === 0) break;
  }
  return place;
}
