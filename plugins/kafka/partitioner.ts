/** Which partition a record goes to: as Kafka's Java client chooses for a record with a key. */

/** What kafkajs knows of a partition; `leader` is -1 while it has none. */
export interface Partition {
  readonly partitionId: number;
  readonly leader: number;
}

/** Where records go, by what was last seen of their topics' partitions. */
export interface Placement {
  /**
   * The choice is made once per record: a batch sent again must go where it went, or an idempotent producer's sequence
   * numbers would name other records than before, and the broker drop them as known. A partition that is no longer there
   * is chosen anew, because kafkajs resolves without having sent a record of an unknown partition.
   */
  place(this: void, record: Placed, topic: string, partitions: readonly Partition[]): number;
  /** As `place`, for another record of a topic whose partitions have been seen. */
  again(this: void, record: Placed, topic: string): number;
  /** Where a record would go; undefined while nothing is known of the topic. */
  choose(this: void, topic: string, key: string | null): number | undefined;
  /** How many partitions the topic has, and how many brokers lead them; 0 while nothing is known of it. */
  spread(this: void, topic: string): { readonly partitions: number; readonly leaders: number };
}

interface Placed {
  readonly key?: string | Buffer | null;
  partition?: number | undefined;
}

export function createPlacement(): Placement {
  const seen = new Map<string, readonly Partition[]>();
  let round = 0;

  function place(record: Placed, topic: string, partitions: readonly Partition[]): number {
    if (seen.get(topic) !== partitions) seen.set(topic, partitions);
    const { partition: chosen } = record;
    // Most topics' partitions come in the order of their numbers.
    const isThere =
      chosen !== undefined &&
      (partitions[chosen]?.partitionId === chosen || partitions.some(({ partitionId }) => partitionId === chosen));
    if (isThere) return chosen;
    return (record.partition = choosePartition(record.key ?? null, partitions, round++));
  }

  return {
    place,
    again: (record, topic) => place(record, topic, seen.get(topic) ?? []),
    choose(topic, key) {
      const partitions = seen.get(topic);
      return partitions && choosePartition(key, partitions, round++);
    },
    spread(topic) {
      const partitions = seen.get(topic) ?? [];
      return { partitions: partitions.length, leaders: new Set(partitions.map(({ leader }) => leader)).size };
    },
  };
}

/** `key` is hashed as UTF-8. `round` counts up for records without a key, which go round the partitions that have a leader. */
export function choosePartition(key: string | Buffer | null, partitions: readonly Partition[], round: number): number {
  if (key !== null) return (hashKey(key) & 0x7fff_ffff) % partitions.length;
  const led = partitions.filter(({ leader }) => leader >= 0);
  const among = led.length > 0 ? led : partitions;
  return among[round % among.length]?.partitionId ?? 0;
}

function hashKey(key: string | Buffer): number {
  if (typeof key !== "string") return murmur2(key);
  for (let at = 0; at < key.length; at++) if (key.charCodeAt(at) > 127) return murmur2(Buffer.from(key));
  return murmurAscii(key);
}

/** {@link murmur2} of text that is all ASCII, whose codes are its bytes. */
function murmurAscii(text: string): number {
  const { length } = text;
  let hash = 0x9747_b28c ^ length;
  let at = 0;
  for (; at + 4 <= length; at += 4) {
    const low = text.charCodeAt(at) | (text.charCodeAt(at + 1) << 8);
    hash = mixWord(hash, low | (text.charCodeAt(at + 2) << 16) | (text.charCodeAt(at + 3) << 24));
  }
  const rest = length - at;
  if (rest === 3) hash ^= text.charCodeAt(at + 2) << 16;
  if (rest >= 2) hash ^= text.charCodeAt(at + 1) << 8;
  if (rest >= 1) hash = Math.imul(hash ^ text.charCodeAt(at), 0x5bd1_e995);
  return finish(hash);
}

/** The 32-bit murmur2 of Kafka's org.apache.kafka.common.utils.Utils, as a signed integer. */
export function murmur2(data: Uint8Array): number {
  const { length } = data;
  let hash = 0x9747_b28c ^ length;
  let at = 0;
  for (; at + 4 <= length; at += 4) {
    const low = byte(data, at) | (byte(data, at + 1) << 8);
    hash = mixWord(hash, low | (byte(data, at + 2) << 16) | (byte(data, at + 3) << 24));
  }
  const rest = length - at;
  if (rest === 3) hash ^= byte(data, at + 2) << 16;
  if (rest >= 2) hash ^= byte(data, at + 1) << 8;
  if (rest >= 1) hash = Math.imul(hash ^ byte(data, at), 0x5bd1_e995);
  return finish(hash);
}

function mixWord(hash: number, word: number): number {
  const mixed = Math.imul(word, 0x5bd1_e995);
  return Math.imul(hash, 0x5bd1_e995) ^ Math.imul(mixed ^ (mixed >>> 24), 0x5bd1_e995);
}

function finish(hash: number): number {
  const mixed = Math.imul(hash ^ (hash >>> 13), 0x5bd1_e995);
  return mixed ^ (mixed >>> 15);
}

function byte(data: Uint8Array, at: number): number {
  return data[at] ?? 0;
}
