/** Which partition a record goes to: as Kafka's Java client chooses for a record with a key. */

/** What kafkajs knows of a partition; `leader` is -1 while it has none. */
export interface Partition {
  readonly partitionId: number;
  readonly leader: number;
}

/** `key` is hashed as UTF-8. `round` counts up for records without a key, which go round the partitions that have a leader. */
export function choosePartition(key: string | Buffer | null, partitions: readonly Partition[], round: number): number {
  if (key !== null)
    return (murmur2(typeof key === "string" ? Buffer.from(key) : key) & 0x7fff_ffff) % partitions.length;
  const led = partitions.filter(({ leader }) => leader >= 0);
  const among = led.length > 0 ? led : partitions;
  return among[round % among.length]?.partitionId ?? 0;
}

/** The 32-bit murmur2 of Kafka's org.apache.kafka.common.utils.Utils, as a signed integer. */
export function murmur2(data: Uint8Array): number {
  const { length } = data;
  let hash = 0x9747_b28c ^ length;
  let at = 0;
  for (; at + 4 <= length; at += 4) {
    let word = byte(data, at) | (byte(data, at + 1) << 8) | (byte(data, at + 2) << 16) | (byte(data, at + 3) << 24);
    word = Math.imul(word, 0x5bd1_e995);
    word = Math.imul(word ^ (word >>> 24), 0x5bd1_e995);
    hash = Math.imul(hash, 0x5bd1_e995) ^ word;
  }
  const rest = length - at;
  if (rest === 3) hash ^= byte(data, at + 2) << 16;
  if (rest >= 2) hash ^= byte(data, at + 1) << 8;
  if (rest >= 1) hash = Math.imul(hash ^ byte(data, at), 0x5bd1_e995);
  hash = Math.imul(hash ^ (hash >>> 13), 0x5bd1_e995);
  return hash ^ (hash >>> 15);
}

function byte(data: Uint8Array, at: number): number {
  return data[at] ?? 0;
}
