/** A record as the disk buffer keeps it: binary, so that a payload is copied and nothing is escaped. */
import { boundOf } from "./record-batch.ts";
import type { Content } from "./record.ts";

const version = 1;
/** Lengths are 32 bits; this one stands for "there is none". */
const none = 0xffff_ffff;

export interface StoredRecord {
  readonly content: Content;
  /** Milliseconds since the epoch. */
  readonly receivedAt: number;
}

/** Version, time of arrival (8), timestamp (8), partition (4), topic, key, number of headers (4), each name and value with its kind, value. */
export function encodeRecord({ content, receivedAt }: StoredRecord): Buffer {
  const { topic, key, value, headers, timestamp, partition } = content;
  let variable = Buffer.byteLength(topic) + Buffer.byteLength(key ?? "");
  for (const part of headers) variable += 5 + Buffer.byteLength(part);
  const record = Buffer.allocUnsafe(1 + 8 + 8 + 4 + 4 + 4 + 4 + 4 + variable + value.length);
  let at = record.writeUInt8(version, 0);
  at = record.writeDoubleBE(receivedAt, at);
  at = record.writeDoubleBE(timestamp, at);
  at = record.writeUInt32BE(partition ?? none, at);
  const writeText = (text: string): void => {
    const length = record.write(text, at + 4);
    record.writeUInt32BE(length, at);
    at += 4 + length;
  };
  const writeBytes = (bytes: Buffer): void => {
    at = record.writeUInt32BE(bytes.length, at);
    at += bytes.copy(record, at);
  };
  writeText(topic);
  if (key === null) at = record.writeUInt32BE(none, at);
  else writeText(key);
  at = record.writeUInt32BE(headers.length / 2, at);
  for (let index = 0; index < headers.length; index += 2) {
    const each = headers[index + 1] ?? "";
    writeText(String(headers[index]));
    at = record.writeUInt8(typeof each === "string" ? 0 : 1, at);
    if (typeof each === "string") writeText(each);
    else writeBytes(each);
  }
  writeBytes(value);
  return record.subarray(0, at);
}

/** Undefined for what {@link encodeRecord} has not made. Value and binary headers are views of `record`. */
export function decodeRecord(record: Buffer): StoredRecord | undefined {
  let at = 0;
  const take = (length: number): Buffer => {
    if (at + length > record.length) throw new RangeError("cut off");
    return record.subarray(at, (at += length));
  };
  const takeNumber = (): number => take(4).readUInt32BE();
  const takeText = (): string => take(takeNumber()).toString();
  try {
    if (take(1)[0] !== version) return undefined;
    const receivedAt = take(8).readDoubleBE();
    const timestamp = take(8).readDoubleBE();
    const partition = takeNumber();
    const topic = takeText();
    const keyLength = takeNumber();
    const key = keyLength === none ? null : take(keyLength).toString();
    const headers: (string | Buffer)[] = [];
    for (let left = takeNumber(); left > 0; left--) {
      const name = takeText();
      const isText = take(1)[0] === 0;
      const bytes = take(takeNumber());
      headers.push(name, isText ? bytes.toString() : bytes);
    }
    const value = take(takeNumber());
    if (at !== record.length || ![receivedAt, timestamp].every(Number.isSafeInteger)) return undefined;
    const known = partition === none ? undefined : partition;
    const content = {
      topic,
      key,
      value,
      headers,
      timestamp,
      partition: known,
      bytes: boundOf(key, value, headers),
    };
    return { content, receivedAt };
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}
