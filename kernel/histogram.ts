/** A histogram whose series add up in plain numbers: prom-client's own hashes the labels at each observation. */
import type { Histogram } from "./plugin.ts";

/** One line of the text format. */
interface Sample {
  readonly metricName: string;
  readonly labels: Record<string, string | number>;
  readonly value: number;
}

interface Series {
  readonly labels: Record<string, string>;
  /** Of each bucket alone, the last one for what is above all bounds. */
  readonly counts: number[];
  sum: number;
  count: number;
}

export interface HistogramSpec {
  readonly name: string;
  readonly labels: readonly string[];
  /** Upper bounds, growing. */
  readonly buckets: readonly number[];
}

/** `samples` reads it for the text format: cumulative buckets, sum and count of each series that was observed. */
export function createHistogram({
  name,
  labels,
  buckets,
}: HistogramSpec): Histogram & { readonly samples: () => Sample[] } {
  const bySeries = new Map<string, Series>();

  function seriesOf(fixed: Record<string, string>): Series {
    const key = labels.map((label) => fixed[label] ?? "").join("\0");
    const known = bySeries.get(key);
    if (known) return known;
    const unknown = Object.keys(fixed).find((label) => !labels.includes(label));
    if (unknown !== undefined) throw new TypeError(`${name} has no label ${unknown}`);
    const series: Series = { labels: { ...fixed }, counts: buckets.map(() => 0), sum: 0, count: 0 };
    series.counts.push(0);
    bySeries.set(key, series);
    return series;
  }

  function observe(series: Series, value: number): void {
    if (!Number.isFinite(value)) throw new TypeError(`${name} can't observe ${value}`);
    let at = 0;
    while (at < buckets.length && value > (buckets[at] ?? 0)) at++;
    series.counts[at] = (series.counts[at] ?? 0) + 1;
    series.sum += value;
    series.count++;
  }

  function read(series: Series): Sample[] {
    let sum = 0;
    const bounds = [...buckets, "+Inf"];
    return [
      ...bounds.map((le, at) => {
        sum += series.counts[at] ?? 0;
        return { metricName: `${name}_bucket`, labels: { le, ...series.labels }, value: sum };
      }),
      { metricName: `${name}_sum`, labels: series.labels, value: series.sum },
      { metricName: `${name}_count`, labels: series.labels, value: series.count },
    ];
  }

  // Without labels there is the one series, also before it was observed.
  if (labels.length === 0) seriesOf({});
  return {
    observe: (by, value) => observe(seriesOf(by), value),
    with(fixed) {
      const series = seriesOf(fixed);
      return { observe: (value) => observe(series, value) };
    },
    samples: () =>
      [...bySeries.values()]
        .filter((series) => series.count > 0 || labels.length === 0)
        .flatMap((series) => read(series)),
  };
}
