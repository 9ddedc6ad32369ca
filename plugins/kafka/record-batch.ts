/**
 * Kafka's record batch of version 2 (KIP-98, with KIP-82's headers), written in one pass: nothing is allocated a record.
 * https://kafka.apache.org/documentation/#recordbatch
 */
import { crc32c } from "./crc32c.ts";

/** Names and values in turn. */
export type HeaderList = readonly (string | Buffer)[];

export interface BatchRecord {
  readonly key: string | Buffer | null;
  /** Null: a tombstone. */
  readonly value: Buffer | null;
  readonly headers: HeaderList;
  /** Milliseconds since the epoch. */
  readonly timestamp: number;
  /** What it takes in a batch at most: {@link boundOf}. */
  readonly bytes: number;
}

/** What a batch says of its producer and itself. */
export interface BatchTerms {
  /** The lowest three bits name the codec; the fifth is set in a transaction. */
  readonly attributes: number;
  /** -1 where the producer is not idempotent. */
  readonly producerId: bigint;
  readonly producerEpoch: number;
  readonly firstSequence: number;
}

/** Bytes of a batch up to its records. */
export const batchHeadBytes = 61;
const magic = 2;
/** Where in the head the fields stand that are written last, and what the checksum covers. */
const at = { length: 8, crc: 17, attributes: 21 };
/** Length, attributes, deltas, lengths of key and value, number of headers, each at its longest. */
const recordOverhead = 1 + 5 + 10 + 5 + 5 + 5 + 5;
const maxVarint = 5;

/** As many bytes as a record can take at most. Counting the bytes of its text would cost as much as writing them. */
export function boundOf(key: BatchRecord["key"], value: BatchRecord["value"], headers: HeaderList): number {
  let bound = recordOverhead + boundOfBytes(key) + boundOfBytes(value);
  for (const part of headers) bound += maxVarint + boundOfBytes(part);
  return bound;
}

/** The sum of theirs. */
export function boundOfAll(records: readonly BatchRecord[]): number {
  let bound = 0;
  for (const { bytes } of records) bound += bytes;
  return bound;
}

/** A UTF-16 unit takes at most three bytes of UTF-8. */
function boundOfBytes(part: string | Buffer | null): number {
  if (part === null) return 0;
  return typeof part === "string" ? part.length * 3 : part.length;
}

/** @returns where it ends; `target` has room for {@link boundOfAll} behind `start`. Throws where that was too little. */
export function writeRecords(
  target: Buffer,
  start: number,
  records: readonly BatchRecord[],
  firstTime: number,
): number {
  let end = start;
  let delta = 0;
  for (const record of records) end = writeRecord(target, end, record, delta++, firstTime);
  // What is written behind the end of a Buffer is lost without an error.
  if (end > target.length) throw new RangeError(`${end - target.length} bytes more than the records' bound`);
  return end;
}

function writeRecord(target: Buffer, start: number, record: BatchRecord, delta: number, firstTime: number): number {
  const { key, value, headers, timestamp } = record;
  // The length comes first and is known last. Most records are between 64 and 8,191 bytes, whose length takes two.
  let end = start + 2;
  target[end++] = 0;
  end = writeSigned(target, end, timestamp - firstTime);
  end = writeUnsigned(target, end, delta * 2);
  end = writeBytes(target, end, key);
  end = writeBytes(target, end, value);
  // Twice their number is its zigzag form.
  end = writeUnsigned(target, end, headers.length);
  for (const part of headers) end = writeBytes(target, end, part);
  const length = end - start - 2;
  const size = lengthOfUnsigned(length * 2);
  if (size !== 2) {
    target.copyWithin(start + size, start + 2, end);
    end += size - 2;
  }
  writeUnsigned(target, start, length * 2);
  return end;
}

/** Null is of the length -1. */
function writeBytes(target: Buffer, start: number, part: string | Buffer | null): number {
  if (part === null) {
    target[start] = 1;
    return start + 1;
  }
  if (typeof part === "string") return writeText(target, start, part);
  const end = writeUnsigned(target, start, part.length * 2);
  target.set(part, end);
  return end + part.length;
}

/** Short text is mostly ASCII, which a loop writes faster than a call into native code. */
function writeText(target: Buffer, start: number, text: string): number {
  const { length } = text;
  if (length < 64) {
    let index = 0;
    for (; index < length; index++) {
      const code = text.charCodeAt(index);
      if (code > 127) break;
      target[start + 1 + index] = code;
    }
    if (index === length) {
      target[start] = length * 2;
      return start + 1 + length;
    }
  }
  const bytes = Buffer.byteLength(text);
  const end = writeUnsigned(target, start, bytes * 2);
  return end + target.write(text, end, bytes);
}

/** A varint of at most 32 bits, not negative. */
function writeUnsigned(target: Buffer, start: number, value: number): number {
  let end = start;
  let rest = value;
  while (rest > 127) {
    target[end++] = (rest & 127) | 128;
    rest >>>= 7;
  }
  target[end++] = rest;
  return end;
}

function lengthOfUnsigned(value: number): number {
  let length = 1;
  for (let rest = value; rest > 127; rest >>>= 7) length++;
  return length;
}

/** A varlong: zigzag, of up to 64 bits. */
function writeSigned(target: Buffer, start: number, value: number): number {
  if (value >= 0 && value < 0x4000_0000) return writeUnsigned(target, start, value * 2);
  const wide = BigInt(value);
  let rest = BigInt.asUintN(64, (wide << 1n) ^ (wide >> 63n));
  let end = start;
  for (; rest > 127n; rest >>= 7n) target[end++] = Number(rest & 127n) | 128;
  target[end++] = Number(rest);
  return end;
}

/** The first and the last time of the records, which are not empty. */
export function timesOf(records: readonly BatchRecord[]): { readonly first: number; readonly last: number } {
  let [first, last] = [Infinity, -Infinity];
  for (const { timestamp } of records) {
    if (timestamp < first) first = timestamp;
    if (timestamp > last) last = timestamp;
  }
  return { first, last };
}

/** Writes the head of a batch whose records lie from `start + batchHeadBytes` up to `end`, compressed or not. */
export function writeHead(
  target: Buffer,
  start: number,
  end: number,
  records: readonly BatchRecord[],
  terms: BatchTerms,
): void {
  const { first, last } = timesOf(records);
  // The broker gives the offset; the epoch of the leader is its business too.
  target.fill(0, start, start + 16);
  target.writeInt32BE(end - start - at.length - 4, start + at.length);
  target[start + 16] = magic;
  let next = target.writeInt16BE(terms.attributes, start + at.attributes);
  next = target.writeInt32BE(records.length - 1, next);
  next = target.writeBigInt64BE(BigInt(first), next);
  next = target.writeBigInt64BE(BigInt(last), next);
  next = target.writeBigInt64BE(terms.producerId, next);
  next = target.writeInt16BE(terms.producerEpoch, next);
  next = target.writeInt32BE(terms.firstSequence, next);
  target.writeInt32BE(records.length, next);
  target.writeUInt32BE(crc32c(target, start + at.attributes, end), start + at.crc);
}
