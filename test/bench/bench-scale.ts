/**
 * How the cost grows with the size of a fleet: `npm run bench:scale -- [--seconds 2] [--curves a,b] [--json file]`. Curves:
 * clients, topics, churn, subscribed, payload, subscriptions, memory,
 * connects.
 */
import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs, promisify } from "node:util";
import { type Bench, connects, type Figures, idle, ingest, ingestBeside, subscribed } from "./measure.ts";
import type { Row } from "./rows.ts";
import { runRows } from "./run-rows.ts";
import type { Setup } from "./servers/server.ts";
import { sluice } from "./servers/sluice.ts";

const { values } = parseArgs({
  options: { seconds: { type: "string", default: "2" }, curves: { type: "string" }, json: { type: "string" } },
});
const seconds = Number(values.seconds);
const wanted = values.curves?.split(",");

interface Point {
  readonly curve: string;
  readonly at: string;
  readonly setup?: Setup;
  readonly figure: keyof Figures;
  readonly unit: string;
  readonly isFresh?: boolean;
  measure(bench: Bench): Promise<Figures>;
}

const numbers = new Intl.NumberFormat("en-US");

function ingestPoint(curve: string, at: string, options: Partial<Parameters<typeof ingest>[1]>): Point {
  const all = { clients: 50, qos: 1, window: 32, ...options } as const;
  return { curve, at, figure: "cpuUs", unit: "us a message", measure: (bench) => ingest(bench, all) };
}

/** All of one length, as the load wants them. */
function topicsOf(count: number): string[] {
  return Array.from({ length: count }, (_, n) => `bench/device/${String(n).padStart(6, "0")}/log`);
}

const points: readonly Point[] = [
  // One message at a time costs the system's calls for each, so that only equal windows can be compared.
  ...[1, 16].flatMap((window) =>
    [10, 100, 1000, 5000].map((clients) =>
      ingestPoint("clients", `${numbers.format(clients)} clients, window ${window}`, { clients, window }),
    ),
  ),
  // Beside subscriptions that have to be looked through, or there would be nothing to remember of a topic.
  ...[10, 1000, 100_000, 200_000].map((count): Point => ({
    curve: "topics",
    at: `${numbers.format(count)} topics`,
    figure: "cpuUs",
    unit: "us a message",
    measure: (bench) =>
      ingestBeside(
        bench,
        { clients: 50, qos: 1, window: 32, topics: topicsOf(count) },
        { clients: 1000, filter: "bench/device/{n}/#", rate: 0 },
      ),
  })),
  ...[10, 100, 1000, 10_000].map((each): Point => ({
    curve: "subscribed",
    at: `${numbers.format(100 * each)} subscriptions of 100 clients`,
    figure: "cpuUs",
    unit: "us a message",
    isFresh: true,
    measure: (bench) =>
      subscribed(
        bench,
        { clients: 50, qos: 1, window: 32, topics: topicsOf(10_000) },
        { clients: 100, each, filter: "bench/device/{n}/{m}/+", rate: 0 },
      ),
  })),
  ...(
    [
      ["2,000 plain subscriptions and unsubscriptions a second", "bench/device/{n}/command"],
      ["2,000 with a wildcard", "bench/device/{n}/#"],
      ["2,000 with a wildcard before the device", "bench/+/{n}/command"],
    ] as const
  ).map(([at, filter]): Point => ({
    curve: "churn",
    at,
    figure: "cpuUs",
    unit: "us a message",
    measure: (bench) =>
      ingestBeside(
        bench,
        { clients: 50, qos: 1, window: 32, topics: topicsOf(10_000) },
        { clients: 1000, filter, rate: 2000 },
      ),
  })),
  ...[16, 256, 4096, 65_536, 262_144].map((payloadBytes) =>
    ingestPoint("payload", `${numbers.format(payloadBytes)} bytes`, {
      payloadBytes,
      window: Math.max(1, Math.min(32, Math.floor(131_072 / payloadBytes))),
      clients: payloadBytes > 4096 ? 8 : 50,
    }),
  ),
  ...([["clean", true] as const, ["with a persistent session and a subscription", false] as const] as const).map(
    ([at, clean]): Point => ({
      curve: "memory",
      at,
      figure: "kib",
      unit: "KiB a connection",
      isFresh: true,
      measure: (bench) => idle(bench, { clients: 5000, keepAlive: 60, rate: 2500, clean }),
    }),
  ),
  {
    curve: "memory",
    at: "by TLS",
    setup: "tls",
    figure: "kib",
    unit: "KiB a connection",
    isFresh: true,
    measure: (bench) => idle(bench, { clients: 2000, keepAlive: 60, rate: 500 }),
  },
  ...(["broker", "tls"] as const).map((setup): Point => ({
    curve: "connects",
    at: setup === "tls" ? "by TLS" : "plain",
    setup,
    figure: "cpuUs",
    unit: "us a connect",
    measure: (bench) => connects(bench, { clients: setup === "tls" ? 1000 : 5000 }),
  })),
];

const chosen = points.filter(({ curve }) => wanted === undefined || wanted.includes(curve));
const rows = chosen.map((point): Row => ({
  name: `${point.curve}: ${point.at}`,
  title: point.at,
  setup: point.setup ?? "broker",
  figure: point.figure,
  unit: point.unit,
  goal: {},
  isFresh: point.isFresh ?? false,
  measure: (bench) => point.measure(bench),
}));
const results = await runRows({
  rows,
  kinds: [sluice],
  seconds,
  rounds: 1,
  progress: (line) => process.stderr.write(`${line}\n`),
});
for (const [n, { best, error }] of results.entries()) {
  const { curve, at, figure, unit } = chosen[n]!;
  const rate = best?.rate === undefined ? "" : `, ${numbers.format(Math.round(best.rate))} a second`;
  const kib = best?.collectedKib;
  const bytes = curve === "subscribed" && kib !== undefined ? `, ${(kib * 1024).toFixed(0)} bytes a subscription` : "";
  console.log(`${curve}: ${at}: ${error ?? `${(best?.[figure] ?? Number.NaN).toFixed(2)} ${unit}${rate}${bytes}`}`);
}

// In a process each, so that no heap is the last one's.
if (wanted === undefined || wanted.includes("subscriptions")) {
  for (const count of [1000, 10_000, 100_000, 1_000_000]) {
    const script = join(import.meta.dirname, "topics.ts");
    const { stdout } = await promisify(execFile)(process.execPath, ["--expose-gc", script, String(count)]);
    for (const line of stdout.trim().split("\n")) console.log(`subscriptions: ${line}`);
  }
}
if (values.json) await writeFile(values.json, `${JSON.stringify(results, undefined, 2)}\n`);
process.exitCode = results.some(({ error }) => error !== undefined) ? 1 : 0;
