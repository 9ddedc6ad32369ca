import { after, test } from "node:test";
import { publishThroughOutage } from "../helpers/kafka-outage.ts";
import { startKafka } from "../helpers/kafka.ts";

const kafka = await startKafka({ own: true });
after(() => kafka?.stop());

test(
  "L6: Kafka is killed for 6 s under load: every acknowledged message is in the topic",
  {
    skip: kafka ? false : "no Kafka",
    timeout: 120_000,
  },
  async (t) => {
    if (kafka) await publishThroughOutage(t, kafka, { downMs: 6000, clients: 20, messagesPerClient: 45, timeout: 2 });
  },
);
