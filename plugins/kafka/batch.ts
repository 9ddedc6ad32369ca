/** Records of one topic that are sent together. */
import type { Entry } from "./entry.ts";

export interface Batch {
  entries: Entry[];
  bytes: number;
  /** It may be in Kafka already, in whole or in part. */
  sent: boolean;
}

export function createBatch(entries: Entry[], sent: boolean): Batch {
  return { entries, bytes: entries.reduce((sum, entry) => sum + entry.bytes, 0), sent };
}

/** True where every record is for the same partition, which stores it whole or not at all. */
export function isWhole({ entries }: Batch): boolean {
  const partition = entries[0]?.partition;
  return entries.every((entry) => entry.partition === partition);
}

/** What was sent stays together for each partition: some of them may have it, and know it again only as the same batch. */
export function divideByPartition({ entries }: Batch): Batch[] {
  return [...Map.groupBy(entries, (entry) => entry.partition).values()].map((group) => createBatch(group, true));
}

/** Of a whole batch that was refused, so that nothing of it is in Kafka. */
export function halve({ entries }: Batch): Batch[] {
  const middle = Math.ceil(entries.length / 2);
  return [createBatch(entries.slice(0, middle), false), createBatch(entries.slice(middle), false)];
}
