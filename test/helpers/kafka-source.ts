/** What tests of KafkaSource have in common: records of any producer, the group's offsets, and a gateway's config. */
import { randomUUID } from "node:crypto";
import { Kafka as KafkaJs, logLevel, type CompressionTypes, type Message } from "kafkajs";
import { stopIdleTimer } from "../../plugins/kafka/client.ts";

export interface SourceBroker {
  produce(topic: string, messages: Message[], compression?: CompressionTypes): Promise<void>;
  /** Offset of each partition that the group has committed; -1 = none. */
  committed(group: string, topic: string): Promise<Record<number, number>>;
  /** How many members the group has now. */
  members(group: string): Promise<number>;
  close(): Promise<void>;
}

export async function openSourceBroker(brokers: string[]): Promise<SourceBroker> {
  stopIdleTimer();
  const client = new KafkaJs({ brokers, logLevel: logLevel.NOTHING, retry: { retries: 8 } });
  const producer = client.producer({
    allowAutoTopicCreation: false,
    createPartitioner:
      () =>
      ({ message }) =>
        message.partition ?? 0,
  });
  const admin = client.admin();
  await Promise.all([producer.connect(), admin.connect()]);
  return {
    async produce(topic, messages, compression) {
      await producer.send({ topic, messages, ...(compression === undefined ? {} : { compression }) });
    },
    async committed(groupId, topic) {
      const [found] = await admin.fetchOffsets({ groupId, topics: [topic] });
      return Object.fromEntries((found?.partitions ?? []).map(({ partition, offset }) => [partition, Number(offset)]));
    },
    async members(groupId) {
      const { groups } = await admin.describeGroups([groupId]);
      return groups[0]?.members.length ?? 0;
    },
    async close() {
      await Promise.all([producer.disconnect(), admin.disconnect()]);
    },
  };
}

/** A proxy and a source, as YAML (which JSON is). @param source options of the KafkaSource */
export function sourceConfig(brokers: string[], source: Record<string, unknown>, more: object[] = []): string {
  const { mqtt, ...rest } = source;
  const documents = [
    { kind: "MQTTProxy", name: "mqttproxy", host: "127.0.0.1", port: 0, brokerMode: true },
    {
      kind: "KafkaSource",
      name: "source",
      backend: brokers,
      group: `g-${randomUUID()}`,
      from: "earliest",
      proxy: "mqttproxy",
      sessionTimeoutMs: 6000,
      refreshIntervalMs: 500,
      mqtt: { topic: "{{ key }}", ...(mqtt as object | undefined) },
      ...rest,
    },
    ...more,
  ];
  return documents.map((document) => JSON.stringify(document)).join("\n---\n");
}
