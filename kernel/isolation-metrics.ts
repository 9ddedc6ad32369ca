/** What an isolated filter counts: collected in its thread, and kept in the registry of the gateway's. */
import type { MetricChanges, MetricDefinition } from "./crossing.ts";
import { messageOf, SluiceError } from "./errors.ts";
import type { Counter, Gauge, Histogram, Host, Metrics } from "./plugin.ts";
import { createThrottle } from "./throttle.ts";

/** Applies what has come over; a metric that can't be kept is logged and hurts nothing else. */
export function createMetricSink(host: Host): (changes: MetricChanges) => void {
  const counters = new Map<string, Counter>();
  const gauges = new Map<string, Gauge>();
  const histograms = new Map<string, Histogram>();
  const collected = new Map<string, readonly (readonly [Record<string, string>, number])[]>();
  const throttle = createThrottle(60_000);

  function guard(name: string, apply: () => void): void {
    try {
      apply();
    } catch (error) {
      throttle(name, () => host.log.error({ metric: name, error: messageOf(error) }, "A metric could not be kept"));
    }
  }

  return ({ definitions, values, collected: sets }) => {
    for (const { type, name, help, labels, buckets, options } of definitions) {
      guard(name, () => {
        if (type === "counter") counters.set(name, host.metrics.counter(name, help, labels));
        else if (type === "histogram") histograms.set(name, host.metrics.histogram(name, help, labels, buckets));
        else gauges.set(name, host.metrics.gauge(name, help, labels, undefined, options));
      });
    }
    for (const [name, labels, all] of values) {
      guard(name, () => {
        for (const value of all) {
          counters.get(name)?.inc(labels, value);
          gauges.get(name)?.set(labels, value);
          histograms.get(name)?.observe(labels, value);
        }
      });
    }
    for (const [name, series] of sets) {
      if (!collected.has(name)) {
        guard(name, () => {
          host.metrics.gauge(name, "", [], (gauge) => {
            for (const [labels, value] of collected.get(name) ?? []) gauge.set(labels, value);
          });
        });
      }
      collected.set(name, series);
    }
  };
}

export function refused(member: string): SluiceError {
  return new SluiceError(
    "ISOLATION_REFUSED",
    `host.${member} is not available to an isolated filter: run it without "isolate", or do without`,
  );
}

export interface ThreadMetrics {
  readonly metrics: Metrics;
  take(): MetricChanges | undefined;
  collect(): void;
}

type Labels = Record<string, string>;
interface Series {
  readonly name: string;
  readonly labels: Labels;
  values: number[];
}

export function createThreadMetrics(wake: () => void): ThreadMetrics {
  const known = new Set<string>();
  let definitions: MetricDefinition[] = [];
  const series = new Map<string, Series>();
  let changed = new Set<Series>();
  const collectors = new Map<string, ((gauge: Gauge) => void)[]>();
  let collected: MetricChanges["collected"][number][] = [];

  function define(definition: MetricDefinition): void {
    if (known.has(definition.name)) return;
    known.add(definition.name);
    definitions.push({ ...definition, labels: [...definition.labels] });
    wake();
  }
  function seriesOf(name: string, labels: Labels): Series {
    const key = `${name} ${JSON.stringify(labels)}`;
    let found = series.get(key);
    if (!found) series.set(key, (found = { name, labels: { ...labels }, values: [] }));
    return found;
  }
  function touch(one: Series): void {
    if (changed.has(one)) return;
    changed.add(one);
    wake();
  }
  function add(one: Series, by: number): void {
    one.values[0] = (one.values[0] ?? 0) + by;
    touch(one);
  }
  function observe(one: Series, value: number): void {
    one.values.push(value);
    touch(one);
  }

  return {
    metrics: {
      counter(name, help, labels = []) {
        define({ type: "counter", name, help, labels });
        return {
          inc: (by = {}, amount = 1) => add(seriesOf(name, by), amount),
          with(fixed) {
            const one = seriesOf(name, fixed);
            return { inc: (by = 1) => add(one, by) };
          },
        };
      },
      gauge(name, help, labels = [], collect, options) {
        define({ type: "gauge", name, help, labels, options });
        if (collect) collectors.set(name, [...(collectors.get(name) ?? []), collect]);
        return {
          set(by, value) {
            const one = seriesOf(name, by);
            one.values[0] = value;
            touch(one);
          },
        };
      },
      histogram(name, help, labels = [], buckets) {
        define({ type: "histogram", name, help, labels, buckets: buckets && [...buckets] });
        return {
          observe: (by, value) => observe(seriesOf(name, by), value),
          with(fixed) {
            const one = seriesOf(name, fixed);
            return { observe: (value) => observe(one, value) };
          },
        };
      },
      text: () => Promise.reject(refused("metrics.text")),
      contentType: "text/plain",
    },
    collect() {
      collected = [...collectors].map(([name, each]) => {
        const now: [Labels, number][] = [];
        for (const one of each) one({ set: (labels, value) => void now.push([labels, value]) });
        return [name, now];
      });
    },
    take() {
      if (definitions.length === 0 && changed.size === 0 && collected.length === 0) return undefined;
      const taken: MetricChanges = {
        definitions,
        values: [...changed].map((one) => [one.name, one.labels, one.values]),
        collected,
      };
      for (const one of changed) one.values = [];
      changed = new Set();
      definitions = [];
      collected = [];
      return taken;
    },
  };
}
