/** kill -9 on the way from Kafka to a device, once at each moment; the long suite takes more seeds. */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { startKafka } from "../helpers/kafka.ts";
import { assertSourceLostNothing, crashBroker, crashSource } from "../helpers/kafka-source-crash.ts";

const kafka = await startKafka(crashBroker);
after(() => kafka?.stop());

test(
  "KafkaSource, the device, its ack, the commit: the gateway killed between any two, and nothing is lost",
  { skip: kafka ? false : "no Kafka", timeout: 120_000 },
  async (t) => {
    assert.ok(kafka);
    const report = await crashSource(kafka, 4, 1);
    t.diagnostic(JSON.stringify(report));
    assertSourceLostNothing(report);
  },
);
