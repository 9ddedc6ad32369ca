import { after, test } from "node:test";
import { publishThroughOutage } from "../helpers/kafka-outage.ts";
import { startKafka } from "../helpers/kafka.ts";

const kafka = await startKafka({ own: true });
after(() => kafka?.stop());

test(
  "L6: Kafka is killed for 20 s while 3,000 messages are published: every acknowledged one is in the topic",
  {
    skip: kafka ? false : "no Kafka",
    timeout: 180_000,
  },
  async (t) => {
    if (kafka)
      await publishThroughOutage(t, kafka, { downMs: 20_000, clients: 30, messagesPerClient: 100, timeout: 5 });
  },
);
