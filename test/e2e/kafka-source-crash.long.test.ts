/** kill -9 on the way from Kafka to a device, 5 seeds of 16 kills each. */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { startKafka } from "../helpers/kafka.ts";
import { assertSourceLostNothing, crashBroker, crashSource } from "../helpers/kafka-source-crash.ts";

const kafka = await startKafka(crashBroker);
after(() => kafka?.stop());

for (const seed of [11, 12, 13, 14, 15]) {
  test(
    `KafkaSource, the device, its ack, the commit: killed 16 times, seed ${seed}, and nothing is lost`,
    { skip: kafka ? false : "no Kafka", timeout: 600_000 },
    async (t) => {
      assert.ok(kafka);
      const report = await crashSource(kafka, 16, seed);
      t.diagnostic(JSON.stringify(report));
      assertSourceLostNothing(report);
    },
  );
}
