/** A batch's records, as they are handed to kafkajs. */
import type { Message } from "kafkajs";
import type { Entry } from "./entry.ts";
import { RecordGroup } from "./fast-produce.ts";
import { toHeaderObject } from "./headers.ts";
import type { BatchRecord } from "./record-batch.ts";

/** What kafkajs does with a list of messages: it looks for one without a value, and groups them by partition. */
type List = Pick<Message[], "find" | "reduce">;

/**
 * For the encoder of fast-produce.ts. kafkajs' own grouping copies a partition's list for each record of it, so the list
 * groups itself.
 *
 * @param place the partition of a record, once kafkajs' partitioner has been asked about one of the topic
 */
export function createParcel(records: readonly Entry[], place: (record: Entry) => number): Message[] {
  const list = {
    // record.ts makes none without a value.
    find: () => undefined,
    reduce(group: (groups: object, record: Entry | undefined) => object): Record<number, RecordGroup> {
      group({}, records[0]);
      const groups: Record<number, RecordGroup> = {};
      for (const record of records) (groups[place(record)] ??= new RecordGroup()).records.push(record);
      return groups;
    },
  };
  return list as unknown as List as Message[];
}

/** For kafkajs' own encoder. The choice of a partition is kept with the record, for when it is sent again. */
export function toMessages(records: readonly Entry[]): Message[] {
  return records.map((record) => ({
    ...toMessage(record),
    get partition() {
      return record.partition as number;
    },
    set partition(chosen) {
      record.partition = chosen;
    },
  }));
}

export function toMessage({ key, value, headers, timestamp }: BatchRecord): Message {
  return { key, value, headers: toHeaderObject(headers), timestamp: String(timestamp) };
}
