import assert from "node:assert/strict";
import { test } from "node:test";
import { createMetrics } from "../../kernel/metrics.ts";

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
