/** Records that could not be mapped, as they came, in a Kafka topic of their own with the reason in their headers. */
import type { Clock } from "@sluice/kernel";
import type { Kafka, Producer } from "kafkajs";
import { createPartitioner } from "./client.ts";
import { judgeError, type Failure } from "./failure.ts";
import { choosePartition } from "./partitioner.ts";
import type { SourceRecord, Unmapped } from "./source-mapper.ts";

export interface DeadLetter {
  /**
   * Once every in-sync replica has it: nothing. `refused`: Kafka will never take it. A failure: not now. One at a time, as
   * kafkajs reorders concurrent sends. Never rejects.
   */
  send(record: SourceRecord, why: Unmapped): Promise<"refused" | Failure | undefined>;
  close(): Promise<void>;
}

/** @param service the name of the KafkaSource, for the header that tells who gave the record up */
export function createDeadLetter(kafka: Kafka, topic: string, service: string, clock: Clock): DeadLetter {
  let producer: Promise<Producer> | undefined;
  let round = 0;
  let last: Promise<unknown> = Promise.resolve();

  async function connect(): Promise<Producer> {
    const made = kafka.producer({
      createPartitioner: createPartitioner(({ key }, _topic, partitions) =>
        choosePartition(key ?? null, partitions, round++),
      ),
      retry: { retries: 0 },
    });
    await made.connect();
    return made;
  }

  async function disconnect(): Promise<void> {
    const old = producer;
    producer = undefined;
    await old?.then((each) => each.disconnect()).catch(() => undefined);
  }

  async function write(record: SourceRecord, { reason, detail }: Unmapped): Promise<"refused" | Failure | undefined> {
    const { key, value, headers, partition, offset, timestamp } = record;
    const why = {
      error: reason,
      errorDetail: detail,
      errorTopic: record.topic,
      errorPartition: String(partition),
      errorOffset: String(offset),
      errorService: service,
    };
    try {
      const message = { key, value, headers: { ...headers, ...why }, timestamp: String(timestamp || clock.now()) };
      await (await (producer ??= connect())).send({ topic, acks: -1, messages: [message] });
      return undefined;
    } catch (error) {
      const failure = judgeError(error);
      if (failure.reason === "tooLarge" || failure.reason === "invalidRecord") return "refused";
      // kafkajs' producers do not get over a topic that was missing: the next attempt is a new one's.
      await disconnect();
      return failure;
    }
  }

  return {
    send(record, why) {
      const sent = last.then(() => write(record, why));
      last = sent;
      return sent;
    },
    close: disconnect,
  };
}
