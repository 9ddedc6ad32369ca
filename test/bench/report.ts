/** Results as a table for a terminal, and as data. */
import { cpus, totalmem } from "node:os";
import type { Figures } from "./measure.ts";
import type { Result } from "./run-rows.ts";
import type { Goal, Row } from "./rows.ts";

export interface Judged {
  /** What the gateway's figure should be at most. */
  readonly limit: number;
  /** Where the limit comes from. */
  readonly from: string;
  readonly isMet: boolean;
}

export interface ReportRow {
  readonly row: Row;
  /** Ours first. */
  readonly results: readonly Result[];
  readonly goal: Judged | undefined;
}

/**
 * The rows that `ours` was measured in.
 * @param given of all rows, those included that only others were measured in
 */
export function judge(rows: readonly Row[], given: readonly Result[], ours: string): ReportRow[] {
  const figureOf = (name: string, server: string): number | undefined => {
    const row = rows.find((each) => each.name === name);
    const result = given.find((each) => each.row === name && each.server === server);
    return row && result?.best?.[row.figure];
  };
  return rows.flatMap((row) => {
    const results = given.filter((each) => each.row === row.name);
    const own = figureOf(row.name, ours);
    if (results[0]?.server !== ours) return [];
    const limit = limitOf(row.goal, row.name, figureOf);
    return [{ row, results, goal: own === undefined || !limit ? undefined : { ...limit, isMet: own <= limit.limit } }];
  });
}

function limitOf(
  { share, mosquitto, once, atMost }: Goal,
  row: string,
  figureOf: (row: string, server: string) => number | undefined,
): Omit<Judged, "isMet"> | undefined {
  if (atMost !== undefined) return { limit: atMost, from: "fixed" };
  if (share === undefined) return undefined;
  const theirs = figureOf(row, "easegress");
  if (theirs !== undefined) return { limit: theirs * share, from: `${share.toFixed(1)} of easegress` };
  const yardstick = mosquitto && figureOf(mosquitto.row, "mosquitto");
  if (yardstick === undefined) return once === undefined ? undefined : { limit: once * share, from: "easegress once" };
  const times = share * mosquitto!.times;
  return { limit: yardstick * times, from: `${times.toFixed(2)} of mosquitto's ${mosquitto!.row}` };
}

export const shown = (value: number | undefined): string => {
  if (value === undefined || Number.isNaN(value)) return "-";
  return value >= 1000 ? Math.round(value).toLocaleString("en") : value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2);
};

/** How many times the figure of the first; undefined where there is nothing to compare. */
export function ratio(row: Row, first: Result | undefined, other: Result): number | undefined {
  const [a, b] = [first?.best?.[row.figure], other.best?.[row.figure]];
  return a === undefined || b === undefined || first === other ? undefined : b / a;
}

/** Percent. */
function over(row: Row, own: Result | undefined, { limit }: Judged): string {
  return shown(100 * ((own?.best?.[row.figure] ?? Number.NaN) / limit - 1));
}

function more({ best }: Result, row: Row): string {
  if (!best) return "";
  const { rate, generatorUs, p50, p99, lost, collectedKib, cpuPercent } = best;
  const parts: [string, string | undefined][] = [
    ["", rate === undefined ? undefined : `${shown(rate)}/s`],
    ["generator ", generatorUs === undefined ? undefined : `${shown(generatorUs)} us`],
    ["p50 ", p50 === undefined || Number.isNaN(p50) || row.figure === "p50" ? undefined : `${shown(p50)} ms`],
    ["p99 ", p99 === undefined || Number.isNaN(p99) ? undefined : `${shown(p99)} ms`],
    ["collected ", collectedKib === undefined ? undefined : `${shown(collectedKib)} KiB`],
    ["CPU ", cpuPercent === undefined ? undefined : `${shown(cpuPercent)} %`],
    ["LOST ", lost ? shown(lost) : undefined],
  ];
  return parts.flatMap(([name, value]) => (value === undefined ? [] : [name + value])).join(", ");
}

/** One block a row: a server a line, with how many times ours each is. */
export function tableOf(report: readonly ReportRow[]): string {
  const lines: string[] = [];
  const widest = Math.max(12, ...report.flatMap(({ results }) => results.map(({ server }) => server.length)));
  for (const { row, results, goal } of report) {
    const judged = goal
      ? `  goal <= ${shown(goal.limit)} (${goal.from}): ${goal.isMet ? "met" : `MISSED by ${over(row, results[0], goal)} %`}`
      : row.goal.share === undefined
        ? ""
        : "  goal: no yardstick was measured";
    lines.push(`${row.title} [${row.name}]${judged}`);
    for (const result of results) {
      const times = ratio(row, results[0], result);
      const figure = result.error ?? `${shown(result.best?.[row.figure])} ${row.unit}`;
      const beside = times === undefined ? "" : `x ${shown(times)}`;
      lines.push(
        `  ${result.server.padEnd(widest)} ${figure.padStart(22)} ${beside.padEnd(9)} ${more(result, row)}`.trimEnd(),
      );
    }
    lines.push(...alsoLine(row, results[0]?.best));
  }
  const goals = report.flatMap(({ goal }) => goal ?? []);
  const met = goals.filter(({ isMet }) => isMet).length;
  if (goals.length > 0) lines.push(`goals: ${met} of ${goals.length} met`);
  return lines.join("\n");
}

function alsoLine({ also }: Row, best: Figures | undefined): string[] {
  const value = also && best?.[also.figure];
  if (value === undefined) return [];
  const { unit, atMost, atLeast } = also!;
  if (atMost !== undefined)
    return [`  goal <= ${shown(atMost)} ${unit}: ${value <= atMost ? "met" : "MISSED"} (${shown(value)})`];
  if (atLeast !== undefined)
    return [`  goal >= ${shown(atLeast)} ${unit}: ${value >= atLeast ? "met" : "MISSED"} (${shown(value)})`];
  return [];
}

/** What `--json` writes. */
export function dataOf(report: readonly ReportRow[], o: { readonly seconds: number; readonly rounds: number }): object {
  return {
    at: new Date().toISOString(),
    machine: { cpus: cpus().length, model: cpus()[0]?.model.trim(), memoryBytes: totalmem(), node: process.version },
    ...o,
    rows: report.map(({ row: { name, title, figure, unit }, results, goal }) => ({
      name,
      title,
      figure,
      unit,
      goal,
      results: results.map(({ server, best, error, rounds }) => ({ server, best, error, rounds })),
    })),
  };
}
