/** Reads the segments of a buffer in order, past what can't be read. */
import { open, type FileHandle } from "node:fs/promises";
import { parseFrames, type Frame } from "./segment.ts";

const chunkBytes = 256 * 1024;

export interface Segment {
  /** Number of its first record. */
  readonly first: number;
  readonly path: string;
  /** Bytes that are written and may be read. */
  bytes: number;
}

export interface ReaderOptions {
  /** Oldest first; only the last one grows. */
  segments(): readonly Segment[];
  /** The segment has bytes that belong to no record. */
  corrupted(segment: Segment): void;
  /** Records that were written and can't be found. */
  lost(records: number): void;
}

export interface SegmentReader {
  /** The next records, at most about `maxBytes` of them; none at the end. One call at a time. */
  read(maxBytes: number): Promise<Frame[]>;
  /** The next record that is read is this one, or the first behind it that there is. */
  seek(sequence: number): void;
  /** The same, where it lies ahead. */
  skip(sequence: number): void;
  close(): Promise<void>;
}

export function createSegmentReader(options: ReaderOptions, from: number): SegmentReader {
  let next = from;
  let current: { segment: Segment; handle: FileHandle; offset: number; isDamaged: boolean } | undefined;
  let hasMoved = false;

  async function leave(): Promise<void> {
    const left = current;
    current = undefined;
    await left?.handle.close();
  }

  /** The segment that holds `next`, or the first behind it. */
  async function enter(): Promise<boolean> {
    const segments = options.segments();
    if (current && !hasMoved && segments.includes(current.segment)) return true;
    hasMoved = false;
    await leave();
    const segment = segments.findLast(({ first }) => first <= next) ?? segments[0];
    if (!segment) return false;
    skipTo(segment.first);
    current = { segment, handle: await open(segment.path, "r"), offset: 0, isDamaged: false };
    return true;
  }

  function skipTo(sequence: number): void {
    if (sequence <= next) return;
    options.lost(sequence - next);
    next = sequence;
  }

  function follower(segment: Segment): Segment | undefined {
    const segments = options.segments();
    return segments[segments.indexOf(segment) + 1];
  }

  async function readChunk(place: NonNullable<typeof current>, maxBytes: number): Promise<Frame[]> {
    const { segment, handle } = place;
    for (let wanted = Math.max(maxBytes, 1024); ;) {
      const left = segment.bytes - place.offset;
      const chunk = Buffer.allocUnsafe(Math.min(wanted, left));
      const { bytesRead } = await handle.read(chunk, 0, chunk.length, place.offset);
      // A file that is shorter than it was: what is missing is no record.
      const isShort = bytesRead < chunk.length;
      const { frames, consumed, skipped, needed } = parseFrames(
        chunk.subarray(0, bytesRead),
        isShort ? bytesRead : left,
      );
      if (frames.length === 0 && needed > chunk.length && !isShort) {
        wanted = needed;
        continue;
      }
      place.offset += isShort ? left : consumed;
      if ((skipped > 0 || isShort) && !place.isDamaged) {
        place.isDamaged = true;
        options.corrupted(segment);
      }
      return frames;
    }
  }

  return {
    async read(maxBytes) {
      for (;;) {
        if (!(await enter()) || !current) return [];
        const { segment } = current;
        if (current.offset >= segment.bytes) {
          const following = follower(segment);
          if (!following) return [];
          await leave();
          // `next` may be short of it where the end of this segment was lost.
          skipTo(following.first);
          continue;
        }
        const frames = await readChunk(current, Math.min(maxBytes, chunkBytes));
        const wanted: Frame[] = [];
        for (const frame of frames) {
          if (frame.sequence < next) continue;
          skipTo(frame.sequence);
          wanted.push(frame);
          next = frame.sequence + 1;
        }
        if (wanted.length > 0) return wanted;
      }
    },
    seek(sequence) {
      next = sequence;
      hasMoved = true;
    },
    skip(sequence) {
      if (sequence <= next) return;
      next = sequence;
      hasMoved = true;
    },
    close: leave,
  };
}
