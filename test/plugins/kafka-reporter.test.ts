/** What operators read of a cluster's troubles: each kind once, then its sum. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { createReporter } from "../../plugins/kafka/reporter.ts";
import { createTestHost } from "@sluice/testkit";

test("each kind of trouble is logged once, then with a sum each half minute; each is counted for every filter", async () => {
  const { host, logs, metricValue, close } = createTestHost();
  let now = 0;
  const clock = { ...host.clock, now: () => now };
  const members = new Set(
    ["publish/one", "publish/two"].map((name) => ({ name, log: host.log, metrics: host.metrics })),
  );
  const reporter = createReporter(members, ["kafka:9092"], clock);
  const failure = { reason: "unavailable", message: "Request timed out", broker: "kafka:9092" } as const;
  for (; now < 65_000; now += 100) reporter.failed(failure, "t");
  reporter.failed({ reason: "unknownTopic", message: "no such topic" }, "other");
  assert.deepEqual(
    logs.map(({ level, message, fields }) => [level, message, fields["broker"], fields["suppressed"]]),
    [
      ["warn", "Kafka: Request timed out; records wait and are sent again", "kafka:9092", undefined],
      ["warn", "Kafka: Request timed out; records wait and are sent again", "kafka:9092", 299],
      ["warn", "Kafka: Request timed out; records wait and are sent again", "kafka:9092", 299],
      ["warn", "Kafka: no such topic; records wait and are sent again", undefined, undefined],
    ],
  );
  assert.deepEqual(logs[0]?.fields["brokers"], ["kafka:9092"]);
  assert.deepEqual(logs[0]?.fields["filters"], ["publish/one", "publish/two"]);
  for (const filter of ["publish/one", "publish/two"]) {
    assert.equal(await metricValue("sluice_kafka_errors_total", { filter, reason: "unavailable" }), 650);
  }
  reporter.recovered(65_000);
  reporter.failed(failure, "t");
  assert.deepEqual(
    logs.slice(4).map(({ level, message }) => [level, message]),
    [
      ["info", "Kafka: working again"],
      ["warn", "Kafka: Request timed out; records wait and are sent again"],
    ],
  );
  close();
});
