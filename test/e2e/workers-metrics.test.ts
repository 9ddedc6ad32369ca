/** What several workers measure is shown as of one gateway: what adds up is added, an age is that of the oldest. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { runCommand } from "@sluice/testkit";
import type { LiveView } from "../../plugins/admin-api/live-view.ts";
import top from "../../plugins/admin-api/top.ts";
import { eventually } from "../helpers/eventually.ts";
import { findFreePort } from "../helpers/free-port.ts";
import { startWorkers } from "../helpers/workers.ts";

test("two workers whose Kafka is away: records on disk add up, their age does not, and `sluice top` says so", async (t) => {
  const begun = performance.now();
  const away = await findFreePort();
  const gateway = await startWorkers(
    t,
    `kind: MQTTProxy
name: mqttproxy
port: 0
rules: [{ when: { packetType: Publish }, pipeline: pub }]
---
kind: Pipeline
name: pub
filters:
  - name: sink
    kind: KafkaMQTT
    backend: [127.0.0.1:${away}]
    topic: { default: t }
    ack: buffered
    buffer: { dir: ./buffer }`,
  );
  const since = performance.now();
  for (const worker of [0, 1]) {
    const client = await gateway.connect(worker, `c${worker}`);
    await client.publish("a/b", "x");
  }
  const own = { filter: "pub/sink" };
  await eventually(async () => await gateway.metric("sluice_kafka_buffer_records", own), 2);
  assert.equal(await gateway.metric("sluice_kafka_connected", own), 0);
  await eventually(async () => (await gateway.metric("sluice_kafka_buffer_age_seconds", own)) > 1, true);
  const age = await gateway.metric("sluice_kafka_buffer_age_seconds", own);
  const most = (performance.now() - since) / 1000;
  assert.ok(age <= most, `${age} s is no age of a record that is ${most} s old at most`);

  const { code, stdout, stderr } = await runCommand(top, [
    "--once",
    "--json",
    "--interval",
    "0.5",
    "--api",
    gateway.process.api,
  ]);
  assert.deepEqual([code, stderr], [0, ""]);
  const view = JSON.parse(stdout) as LiveView;
  const [filter] = view.filters;
  assert.deepEqual([filter?.filter, filter?.kafka, filter?.buffered], ["pub/sink", "away", 2]);
  assert.ok(filter!.bufferAge! > age && filter!.bufferAge! <= (performance.now() - since) / 1000, stdout);
  // Each process' own delay has a series, of which the greatest is shown; none is longer than its process lives.
  const delays = await Promise.all(
    ["main", "0", "1"].map((worker) => gateway.metric("sluice_event_loop_delay_seconds", { worker, stat: "max" })),
  );
  const lived = (performance.now() - begun) / 1000;
  assert.ok(
    delays.every((delay) => delay > 0 && delay < lived),
    String(delays),
  );
  assert.ok(view.eventLoopDelayMs.max > 0 && view.eventLoopDelayMs.max < 1000 * lived, stdout);
});
