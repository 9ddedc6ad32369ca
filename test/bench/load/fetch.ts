/** Kafka's Fetch of version 4 as bytes: https://kafka.apache.org/protocol#The_Messages_Fetch */

const fetchKey = 1;
const version = 4;
const maxWaitMs = 500;
const maxBytes = 16 * 1024 * 1024;
/** Of a record batch: from its length on; up to its records. */
const lengthEnd = 12;
const headBytes = 61;

/** @param offsets partition -> offset of the next record */
export function fetchRequest(topic: string, offsets: ReadonlyMap<number, bigint>): Buffer {
  const request = Buffer.alloc(4 + 10 + 17 + 4 + 2 + topic.length + 4 + offsets.size * 16);
  let at = request.writeInt32BE(request.length - 4, 0);
  at = request.writeInt16BE(fetchKey, at);
  at = request.writeInt16BE(version, at);
  // Correlation and client id: one request is under way at a time.
  at = request.writeInt32BE(0, at);
  at = request.writeInt16BE(-1, at);
  // No replica; as soon as there is a byte; what is not committed too.
  at = request.writeInt32BE(-1, at);
  at = request.writeInt32BE(maxWaitMs, at);
  at = request.writeInt32BE(1, at);
  at = request.writeInt32BE(maxBytes, at);
  at = request.writeInt8(0, at);
  at = request.writeInt32BE(1, at);
  at = request.writeInt16BE(topic.length, at);
  at += request.write(topic, at, "latin1");
  at = request.writeInt32BE(offsets.size, at);
  for (const [partition, offset] of offsets) {
    at = request.writeInt32BE(partition, at);
    at = request.writeBigInt64BE(offset, at);
    at = request.writeInt32BE(maxBytes, at);
  }
  return request;
}

/** Hands out the values of one topic's records and moves the offsets on. Throws where Kafka answers with an error. */
export function readFetched(answer: Buffer, offsets: Map<number, bigint>, onValue: (value: Buffer) => void): void {
  // Length, correlation id, throttle time, number of topics, name.
  let at = 16;
  at += 2 + answer.readInt16BE(at);
  let partitions = answer.readInt32BE(at);
  at += 4;
  for (; partitions > 0; partitions--) {
    const partition = answer.readInt32BE(at);
    const code = answer.readInt16BE(at + 4);
    if (code !== 0) throw new Error(`Kafka's error ${code} for partition ${partition}`);
    // Both offsets behind it, and the aborted transactions.
    at += 6 + 16;
    at += 4 + Math.max(0, answer.readInt32BE(at)) * 16;
    const end = at + 4 + Math.max(0, answer.readInt32BE(at));
    at += 4;
    // The last batch may be cut off.
    while (at + lengthEnd <= end && at + lengthEnd + answer.readInt32BE(at + 8) <= end) {
      const size = lengthEnd + answer.readInt32BE(at + 8);
      const next = readBatch(answer, at, at + size, offsets.get(partition) ?? 0n, onValue);
      offsets.set(partition, next);
      at += size;
    }
    at = end;
  }
}

/** A batch holds records from before the offset that was asked for. @returns the offset behind it */
function readBatch(bytes: Buffer, start: number, end: number, from: bigint, onValue: (value: Buffer) => void): bigint {
  const first = bytes.readBigInt64BE(start);
  if ((bytes.readInt16BE(start + 21) & 7) !== 0) throw new Error("the records are compressed");
  let at = start + headBytes;

  function varint(): number {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++]!;
      if (shift < 28) value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return (value >>> 1) ^ -(value & 1);
    }
  }

  while (at < end) {
    const size = varint();
    const next = at + size;
    at++;
    varint();
    const offset = first + BigInt(varint());
    const keyLength = varint();
    at += Math.max(0, keyLength);
    const length = Math.max(0, varint());
    if (offset >= from) onValue(bytes.subarray(at, at + length));
    at = next;
  }
  return first + BigInt(bytes.readInt32BE(start + 23)) + 1n;
}
