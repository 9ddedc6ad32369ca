/** Reads Prometheus' text format, as `/metrics` gives it. */

export interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** By metric name, series in their order. Lines that are no sample are left out. */
export type Exposition = ReadonlyMap<string, readonly Sample[]>;

const sample = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? ([-+]?(?:\d\S*|Inf)|NaN)(?: \d+)?$/;
const label = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const escapes: Readonly<Record<string, string>> = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

export function parseExposition(text: string): Exposition {
  const series = new Map<string, Sample[]>();
  for (const line of text.split("\n")) {
    const [, name, labels = "", value] = sample.exec(line) ?? [];
    if (name === undefined || value === undefined) continue;
    const found = Object.fromEntries(
      [...labels.matchAll(label)].map(([, key = "", quoted = ""]) => [
        key,
        quoted.replaceAll(/\\[n"\\]/g, (escape) => escapes[escape] ?? escape),
      ]),
    );
    const known = series.get(name) ?? [];
    known.push({ labels: found, value: Number(value.replace("Inf", "Infinity")) });
    series.set(name, known);
  }
  return series;
}

/** Of the series that have these labels; 0 where there is none. */
export function sumOf(exposition: Exposition, name: string, labels: Readonly<Record<string, string>> = {}): number {
  return (exposition.get(name) ?? [])
    .filter((each) => Object.entries(labels).every(([key, value]) => each.labels[key] === value))
    .reduce((sum, { value }) => sum + value, 0);
}
