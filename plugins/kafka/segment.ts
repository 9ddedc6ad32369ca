/**
 * What a segment of the disk buffer is made of: frames, one behind the other, each with a mark, its length, a checksum and
 * its number, so that what a crash or a bad disk has left can be told from what was written, and found again behind it.
 *
 * mark (4 bytes) | length of the body (4) | CRC-32 of number and body (4) | number (6) | body
 */
import { crc32 } from "node:zlib";

const mark = Buffer.from("SLB1");
export const frameHeaderBytes = 18;
const extension = ".seg";

export interface Frame {
  readonly sequence: number;
  /** A view of what was read. */
  readonly body: Buffer;
}

export interface Parsed {
  readonly frames: Frame[];
  /** Bytes of the chunk that are dealt with; the rest has to be read again, with more behind it. */
  readonly consumed: number;
  /** Bytes that belong to no frame, of those consumed. */
  readonly skipped: number;
  /** Bytes of the frame that the chunk ends within, where it is known. */
  readonly needed: number;
}

export function encodeFrames(firstSequence: number, bodies: readonly Buffer[]): Buffer {
  const frames = Buffer.allocUnsafe(bodies.reduce((sum, body) => sum + frameHeaderBytes + body.length, 0));
  let at = 0;
  for (const [index, body] of bodies.entries()) {
    mark.copy(frames, at);
    frames.writeUInt32BE(body.length, at + 4);
    frames.writeUIntBE(firstSequence + index, at + 12, 6);
    body.copy(frames, at + frameHeaderBytes);
    const end = at + frameHeaderBytes + body.length;
    frames.writeUInt32BE(crc32(frames.subarray(at + 12, end)), at + 8);
    at = end;
  }
  return frames;
}

/** @param left bytes of the file from the beginning of the chunk on: no frame goes beyond them */
export function parseFrames(chunk: Buffer, left: number): Parsed {
  const frames: Frame[] = [];
  let at = 0;
  let skipped = 0;
  const isLast = chunk.length >= left;
  while (at < chunk.length) {
    const found = parseFrame(chunk, at, left - at);
    if (typeof found === "object") {
      frames.push(found);
      at += frameHeaderBytes + found.body.length;
      continue;
    }
    if (found > 0) return { frames, consumed: at, skipped, needed: found };
    // No frame begins here: the next mark may begin one.
    const next = chunk.indexOf(mark, at + 1);
    const end = next >= 0 ? next : isLast ? chunk.length : Math.max(at + 1, chunk.length - mark.length + 1);
    skipped += end - at;
    at = end;
    if (next < 0) break;
  }
  return { frames, consumed: at, skipped, needed: 0 };
}

/** The frame; or how many bytes are needed to say; or 0 where there is none. */
function parseFrame(chunk: Buffer, at: number, left: number): Frame | number {
  if (left < frameHeaderBytes) return 0;
  if (chunk.length - at < frameHeaderBytes) return frameHeaderBytes;
  if (chunk.compare(mark, 0, mark.length, at, at + mark.length) !== 0) return 0;
  const end = frameHeaderBytes + chunk.readUInt32BE(at + 4);
  if (end > left) return 0;
  if (at + end > chunk.length) return end;
  if (crc32(chunk.subarray(at + 12, at + end)) !== chunk.readUInt32BE(at + 8)) return 0;
  return { sequence: chunk.readUIntBE(at + 12, 6), body: chunk.subarray(at + frameHeaderBytes, at + end) };
}

/** Named by the number of its first record, so that names sort as the records do. */
export function segmentName(first: number): string {
  return `${String(first).padStart(15, "0")}${extension}`;
}

/** Undefined for a name that {@link segmentName} does not give. */
export function parseSegmentName(name: string): number | undefined {
  const digits = /^(\d{15})\.seg$/.exec(name)?.[1];
  return digits === undefined ? undefined : Number(digits);
}
