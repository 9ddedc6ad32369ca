/** The metrics registry that everything is handed; the only importer of prom-client. */
import {
  AggregatorRegistry,
  Counter as PromCounter,
  Gauge as PromGauge,
  type Metric as PromMetric,
  Registry,
} from "prom-client";
import { createHistogram } from "./histogram.ts";
import type { Counter, Gauge, GaugeOptions, Histogram, Metrics } from "./plugin.ts";

/** Seconds: from a synchronous filter's microseconds to a pipeline's deadline. */
const defaultBuckets = [0.00001, 0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 30];

/** One metric with all its series, as it goes from one process to another. */
export interface MetricSnapshot {
  readonly name: string;
  readonly type: string | number;
  readonly [field: string]: unknown;
}

export interface MetricsRegistry extends Metrics {
  /** The same registry for one instance: its collectors end with its signal. */
  scoped(signal: AbortSignal): Metrics;
  /** All series as they are now. */
  snapshot(): Promise<readonly MetricSnapshot[]>;
}

/** Equal series become one: their sum, of histograms bucket by bucket; of a gauge what its {@link GaugeOptions} say. */
export function mergeSnapshots(snapshots: readonly (readonly MetricSnapshot[])[]): Promise<readonly MetricSnapshot[]> {
  return asSnapshot(aggregate(snapshots));
}

function aggregate(snapshots: readonly (readonly MetricSnapshot[])[]): Registry {
  return AggregatorRegistry.aggregate(snapshots as unknown as object[]);
}

async function asSnapshot(registry: Registry): Promise<readonly MetricSnapshot[]> {
  return (await registry.getMetricsAsJSON()) as unknown as readonly MetricSnapshot[];
}

/**
 * A registry of its own, so that two gateways in one process (as in tests) don't share series.
 * @param others what other processes of the gateway have counted; it is added to what is shown
 */
export function createMetrics(
  others: () => Promise<readonly (readonly MetricSnapshot[])[]> = () => Promise.resolve([]),
): MetricsRegistry {
  const registry = new Registry();
  const counters = new Map<string, Counter>();
  const gauges = new Map<string, { gauge: Gauge; collectors: Set<(gauge: Gauge) => void> }>();
  const histograms = new Map<string, Histogram>();

  function counter(name: string, help: string, labels: readonly string[] = []): Counter {
    const known = counters.get(name);
    if (known) return known;
    // A hot path adds to a plain number; prom-client, which hashes the labels at each call, sees the sums at a scrape.
    const cells = new Map<string, { labels: Record<string, string>; pending: number }>();
    const prom = new PromCounter({
      name,
      help,
      labelNames: [...labels],
      registers: [registry],
      collect() {
        for (const cell of cells.values()) {
          this.inc(cell.labels, cell.pending);
          cell.pending = 0;
        }
      },
    });
    const made: Counter = {
      inc: (by = {}, amount = 1) => prom.inc(by, amount),
      with(fixed) {
        const key = JSON.stringify(fixed);
        let cell = cells.get(key);
        if (!cell) cells.set(key, (cell = { labels: fixed, pending: 0 }));
        const target = cell;
        return {
          inc(by = 1) {
            target.pending += by;
          },
        };
      },
    };
    counters.set(name, made);
    return made;
  }

  function gauge(
    name: string,
    help: string,
    labels: readonly string[] = [],
    collect?: (gauge: Gauge) => void,
    { merge = "sum" }: GaugeOptions = {},
    signal?: AbortSignal,
  ): Gauge {
    let entry = gauges.get(name);
    if (!entry) {
      const collectors = new Set<(gauge: Gauge) => void>();
      const prom = new PromGauge({
        name,
        help,
        labelNames: [...labels],
        registers: [registry],
        aggregator: merge,
        collect() {
          // What a collector no longer reports (a proxy that is gone) must not stay on the page.
          if (collectors.size > 0) this.reset();
          for (const each of collectors) each(made);
        },
      });
      const made: Gauge = { set: (by, value) => prom.set(by, value) };
      gauges.set(name, (entry = { gauge: made, collectors }));
    }
    if (collect && !signal?.aborted) {
      const { collectors } = entry;
      collectors.add(collect);
      signal?.addEventListener("abort", () => collectors.delete(collect), { once: true });
    }
    return entry.gauge;
  }

  function histogram(
    name: string,
    help: string,
    labels: readonly string[] = [],
    buckets: readonly number[] = defaultBuckets,
  ): Histogram {
    const known = histograms.get(name);
    if (known) return known;
    const { samples, ...made } = createHistogram({ name, labels, buckets });
    // All that a registry asks of a metric; prom-client's types want its own classes.
    const read = async () => ({ name, help, type: "histogram", aggregator: "sum", values: samples() });
    registry.registerMetric({ name, help, get: read } as unknown as PromMetric);
    histograms.set(name, made);
    return made;
  }

  const metrics: Metrics = {
    counter,
    gauge,
    histogram,
    async text() {
      const theirs = await others();
      if (theirs.length === 0) return registry.metrics();
      return aggregate([await asSnapshot(registry), ...theirs]).metrics();
    },
    contentType: registry.contentType,
  };
  return {
    ...metrics,
    snapshot: () => asSnapshot(registry),
    scoped: (signal) => ({
      ...metrics,
      gauge: (name, help, labels, collect, options) => gauge(name, help, labels, collect, options, signal),
    }),
  };
}
