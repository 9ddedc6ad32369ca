/**
 * Reads a topic of Kafka from now on and tells how long ago each record was sent, as its first 8 bytes say. It speaks
 * Fetch itself: kafkajs' consumer takes a third of a millisecond to hand out what has come, which is not the gateway's.
 */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { Kafka, logLevel } from "kafkajs";
import { stopIdleTimer } from "../../../plugins/kafka/client.ts";
import { fetchRequest, readFetched } from "./fetch.ts";
import { nowMs } from "./frames.ts";
import { createLatencies } from "./latencies.ts";
import type { Load } from "./load.ts";

export interface KafkaReaderOptions {
  readonly brokers: readonly string[];
  /** Without compression. */
  readonly topic: string;
}

export const kafkaReader: Load<KafkaReaderOptions> = {
  async start({ brokers, topic }) {
    const latencies = createLatencies();
    let received = 0;
    let failure: Error | undefined;
    const leaders = await findLeaders(brokers, topic);
    const sockets = await Promise.all(leaders.map(open));

    /** One request at a time to each broker: for what is new of the partitions that it leads. */
    async function open({ host, port, offsets }: Leader): Promise<Socket> {
      const socket = connect({ host, port, noDelay: true });
      await once(socket, "connect");
      socket.on("error", (error: Error) => (failure ??= error));
      const ask = (): void => void socket.write(fetchRequest(topic, offsets));
      let rest: Buffer = Buffer.alloc(0);
      socket.on("data", (chunk: Buffer) => {
        const now = nowMs();
        rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
        if (rest.length < 4 || rest.length < 4 + rest.readInt32BE(0)) return;
        const answer = rest;
        rest = Buffer.alloc(0);
        try {
          readFetched(answer, offsets, (value) => {
            received++;
            if (value.length >= 8) latencies.add(now - value.readDoubleLE(0));
          });
          ask();
        } catch (error) {
          failure ??= error as Error;
        }
      });
      ask();
      return socket;
    }

    const read = () => {
      if (failure) throw failure;
      return { sent: 0, acked: 0, received, latencies: latencies.read() };
    };
    return {
      read,
      stop() {
        for (const socket of sockets) socket.destroy();
        return Promise.resolve(read());
      },
    };
  },
};

interface Leader {
  readonly host: string;
  readonly port: number;
  /** Partition -> offset of the next record. */
  readonly offsets: Map<number, bigint>;
}

async function findLeaders(brokers: readonly string[], topic: string): Promise<Leader[]> {
  stopIdleTimer();
  const admin = new Kafka({ brokers: [...brokers], clientId: "bench", logLevel: logLevel.NOTHING }).admin();
  await admin.connect();
  try {
    const { brokers: nodes } = await admin.describeCluster();
    const { topics } = await admin.fetchTopicMetadata({ topics: [topic] });
    const ends = new Map(
      (await admin.fetchTopicOffsets(topic)).map(({ partition, high }) => [partition, BigInt(high)]),
    );
    return nodes.flatMap(({ nodeId, host, port }) => {
      const own = topics[0]!.partitions.filter(({ leader }) => leader === nodeId);
      const offsets = new Map(own.map(({ partitionId }) => [partitionId, ends.get(partitionId) ?? 0n]));
      return own.length > 0 ? [{ host, port, offsets }] : [];
    });
  } finally {
    await admin.disconnect();
  }
}
