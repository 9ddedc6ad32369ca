/**
 * The gateway, and other servers beside it, measured: see docs/performance.md.
 *
 *   npm run bench -- [--vs mosquitto] [--vs aedes] [--vs mochi] [--vs easegress=PATH] [--vs host:port] [--vs 'command {port}']
 *     [--rows a,b] [--seconds 2] [--rounds 2] [--json file] [--html file.html|file.svg]
 *
 * Exit code 1 where a row failed, or a message was lost, by the gateway.
 */
import { writeFile } from "node:fs/promises";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { pictureOf } from "./picture.ts";
import { dataOf, judge, tableOf } from "./report.ts";
import { rows as allRows, yardsticksOf } from "./rows.ts";
import { runRows } from "./run-rows.ts";
import { serverKind } from "./servers/kinds.ts";
import { sluice } from "./servers/sluice.ts";

const { values } = parseArgs({
  options: {
    vs: { type: "string", multiple: true, default: [] },
    rows: { type: "string" },
    seconds: { type: "string", default: "2" },
    rounds: { type: "string", default: "2" },
    json: { type: "string" },
    html: { type: "string" },
  },
});
const [seconds, rounds] = [atLeast("seconds", 0.1), atLeast("rounds", 1)];
const rows = values.rows === undefined ? allRows : values.rows.split(",").map(rowNamed);
const kinds = [sluice, ...values.vs.map(serverKind)];
const startedAt = performance.now();
const how = {
  seconds,
  rounds,
  progress: (line: string): void =>
    void process.stderr.write(`${((performance.now() - startedAt) / 1000).toFixed(0).padStart(4)} s  ${line}\n`),
};
const results = await runRows({ rows, kinds, ...how });
const yardsticks = yardsticksOf(rows);
const measures = kinds.filter(({ name }) => name === "mosquitto");
if (measures.length > 0 && yardsticks.length > 0) {
  results.push(...(await runRows({ rows: yardsticks, kinds: measures, ...how })));
}
const report = judge([...rows, ...yardsticks], results, sluice.name);
process.stdout.write(`${tableOf(report)}\n`);
if (values.json) await writeFile(values.json, `${JSON.stringify(dataOf(report, { seconds, rounds }), undefined, 2)}\n`);
if (values.html) {
  const note = `${cpus().length} cores (${cpus()[0]?.model.trim()}), Node ${process.version}, the best of ${rounds} ${rounds === 1 ? "round" : "rounds"} of ${seconds} s, ${new Date().toISOString()}.`;
  await writeFile(values.html, pictureOf(report, { note, isSvg: values.html.endsWith(".svg") }));
}
const own = results.filter(({ server }) => server === sluice.name);
process.exitCode = own.some(({ error, rounds: all }) => error !== undefined || all.some(({ lost }) => lost)) ? 1 : 0;

function rowNamed(name: string) {
  const found = allRows.find((row) => row.name === name);
  if (!found) throw new Error(`no row is named ${name}: ${allRows.map((row) => row.name).join(", ")}`);
  return found;
}

function atLeast(name: "seconds" | "rounds", least: number): number {
  const value = Number(values[name]);
  if (!(value >= least)) throw new Error(`--${name} must be ${least} or more`);
  return value;
}
