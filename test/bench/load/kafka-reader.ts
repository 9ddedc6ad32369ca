/** Reads a topic of Kafka from now on and tells how long ago each record was sent, as its first 8 bytes say. */
import { Kafka, logLevel } from "kafkajs";
import { stopIdleTimer } from "../../../plugins/kafka/client.ts";
import { nowMs } from "./frames.ts";
import { createLatencies } from "./latencies.ts";
import type { Load } from "./load.ts";

export interface KafkaReaderOptions {
  readonly brokers: readonly string[];
  readonly topic: string;
}

export const kafkaReader: Load<KafkaReaderOptions> = {
  async start({ brokers, topic }) {
    stopIdleTimer();
    const latencies = createLatencies();
    let received = 0;
    const kafka = new Kafka({ brokers: [...brokers], clientId: "bench", logLevel: logLevel.NOTHING });
    const consumer = kafka.consumer({ groupId: `bench-${process.pid}-${nowMs()}`, maxWaitTimeInMs: 500 });
    await consumer.connect();
    await consumer.subscribe({ topics: [topic], fromBeginning: false });
    const joined = Promise.withResolvers<void>();
    consumer.on("consumer.group_join", () => joined.resolve());
    await consumer.run({
      autoCommit: false,
      eachBatch({ batch }) {
        const now = nowMs();
        for (const { value } of batch.messages) {
          received++;
          if (value && value.length >= 8) latencies.add(now - value.readDoubleLE(0));
        }
        return Promise.resolve();
      },
    });
    await joined.promise;
    const read = () => ({ sent: 0, acked: 0, received, latencies: latencies.read() });
    return {
      read,
      async stop() {
        await consumer.disconnect();
        return read();
      },
    };
  },
};
