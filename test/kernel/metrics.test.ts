import assert from "node:assert/strict";
import { test } from "node:test";
import { createMetricSink, createThreadMetrics } from "../../kernel/isolation-metrics.ts";
import { createMetrics, mergeSnapshots } from "../../kernel/metrics.ts";
import type { Host } from "../../kernel/plugin.ts";

test("a histogram's text is Prometheus': cumulative buckets with both ends, sum and count of each series observed", async () => {
  const metrics = createMetrics();
  const histogram = metrics.histogram("a_seconds", "Help.", ["pipeline", "filter"], [0.1, 1]);
  const series = histogram.with({ pipeline: "x", filter: 'y"z' });
  for (const value of [0, 0.1, 0.5, 31]) series.observe(value);
  histogram.observe({ filter: "y", pipeline: "x" }, 0.25);
  histogram.with({ pipeline: "never", filter: "observed" });
  assert.equal(
    await metrics.text(),
    `# HELP a_seconds Help.
# TYPE a_seconds histogram
a_seconds_bucket{le="0.1",pipeline="x",filter="y\\"z"} 2
a_seconds_bucket{le="1",pipeline="x",filter="y\\"z"} 3
a_seconds_bucket{le="+Inf",pipeline="x",filter="y\\"z"} 4
a_seconds_sum{pipeline="x",filter="y\\"z"} 31.6
a_seconds_count{pipeline="x",filter="y\\"z"} 4
a_seconds_bucket{le="0.1",filter="y",pipeline="x"} 0
a_seconds_bucket{le="1",filter="y",pipeline="x"} 1
a_seconds_bucket{le="+Inf",filter="y",pipeline="x"} 1
a_seconds_sum{filter="y",pipeline="x"} 0.25
a_seconds_count{filter="y",pipeline="x"} 1
`,
  );
});

test("a histogram without labels is there before it is observed; asking again gives the same one", async () => {
  const metrics = createMetrics();
  metrics.histogram("b_bytes", "Sizes.", [], [10]);
  metrics.histogram("b_bytes", "Sizes.").observe({}, 4);
  assert.match(await metrics.text(), /b_bytes_bucket\{le="10"\} 1\nb_bytes_bucket\{le="\+Inf"\} 1\nb_bytes_sum 4\n/);
});

test("a value that is no number, and a label that it does not have, are refused", () => {
  const histogram = createMetrics().histogram("c_seconds", "Help.", ["pipeline"]);
  assert.throws(() => histogram.observe({ pipeline: "x" }, Number.NaN), TypeError);
  assert.throws(() => histogram.with({ other: "x" }), /has no label other/);
});

test("series of several workers: counters and what waits add up, an age is the greatest, connected are all or none", async () => {
  const workers = [1, 2].map(() => createMetrics());
  for (const [n, worker] of workers.entries()) {
    const labels = { filter: "p/f" };
    worker.counter("sent_total", "Sent.", ["filter"]).inc(labels, 3);
    worker.histogram("took_seconds", "Took.", [], [1]).observe({}, 2);
    worker.gauge("waiting", "Waiting.", ["filter"], (gauge) => gauge.set(labels, 4));
    worker.gauge("age_seconds", "Age.", ["filter"], (gauge) => gauge.set(labels, n === 0 ? 9 : 7), { merge: "max" });
    const own = worker.scoped(AbortSignal.abort());
    own.gauge("connected", "Connected.", ["filter"], undefined, { merge: "min" }).set(labels, n);
    worker.gauge("late", "Late.", ["worker"], (gauge) => gauge.set({ worker: String(n) }, 5), { merge: "max" });
  }
  const main = createMetrics(() => Promise.all(workers.map((worker) => worker.snapshot())));
  // What asks for a metric again, or in a process that has no value of it, changes nothing.
  main.gauge("age_seconds", "Age.", ["filter"], undefined, { merge: "max" });
  const text = await main.text();
  for (const line of [
    'sent_total{filter="p/f"} 6',
    "took_seconds_sum 4",
    'waiting{filter="p/f"} 8',
    'age_seconds{filter="p/f"} 9',
    'connected{filter="p/f"} 0',
    'late{worker="0"} 5',
    'late{worker="1"} 5',
  ]) {
    assert.ok(text.split("\n").includes(line), `${line} in ${text}`);
  }
  // Also where what has been put together is put together again.
  const snapshots = await Promise.all(workers.map((worker) => worker.snapshot()));
  const merged = await mergeSnapshots([await mergeSnapshots(snapshots), ...snapshots]);
  const ageOf = merged.find(({ name }) => name === "age_seconds")?.["values"] as { value: number }[];
  assert.deepEqual(
    ageOf.map(({ value }) => value),
    [9],
  );
});

test("a gauge of an isolated filter keeps its rule on the way out of its thread", async () => {
  const metrics = createMetrics();
  const thread = createThreadMetrics(() => undefined);
  thread.metrics.gauge("old_seconds", "Old.", [], (gauge) => gauge.set({}, 3), { merge: "max" });
  thread.metrics.gauge("held", "Held.").set({}, 2);
  thread.collect();
  const apply = createMetricSink({ metrics } as unknown as Host);
  apply(structuredClone(thread.take()!));
  const merged = await mergeSnapshots([await metrics.snapshot(), await metrics.snapshot()]);
  const valueOf = (name: string) => merged.find((each) => each.name === name)?.["values"];
  assert.deepEqual([valueOf("old_seconds"), valueOf("held")], [[{ value: 3, labels: {} }], [{ value: 4, labels: {} }]]);
});
