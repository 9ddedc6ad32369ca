/** How a command changes the config of a running gateway: plan, change, result, and perhaps a wait for health. */
import { setTimeout as sleep } from "node:timers/promises";
import { styleText } from "node:util";
import type { CommandIo, ConfigResult, HistoryEntry, Plan, PlanItem } from "@sluice/kernel";
import { exit, failure } from "./api.ts";
import type { Api } from "./api.ts";
import type { DocumentChange } from "./change-route.ts";
import { printable } from "./table.ts";

/** What all of these commands take, for parseArgs. */
export const changeOptions = {
  "dry-run": { type: "boolean", default: false },
  wait: { type: "boolean", default: false },
  timeout: { type: "string", default: "30" },
  json: { type: "boolean", default: false },
  api: { type: "string" },
} as const;

export const changeHelp = `  --dry-run           show the plan and change nothing
  --wait              wait until all objects that are left of the change are healthy; exit 1 if they don't become so
  --timeout SECONDS   how long to wait (default 30)`;

export interface ChangeValues {
  readonly "dry-run": boolean;
  readonly wait: boolean;
  readonly timeout: string;
  readonly json: boolean;
}

export interface ChangeRequest {
  readonly method: "POST" | "PUT" | "DELETE";
  readonly path: string;
  readonly query?: readonly (readonly [string, string])[];
  readonly body?: object;
}

/** As the API tells it. */
type ChangeAnswer = Omit<ConfigResult, "documents">;

export interface PlannedChange extends ChangeAnswer {
  readonly changes: readonly DocumentChange[];
}

/** Returns the exit code. */
export async function runChange(
  api: Api,
  io: CommandIo,
  request: ChangeRequest,
  values: ChangeValues,
): Promise<number> {
  const timeoutMs = Number(values.timeout) * 1000;
  if (!(timeoutMs > 0 && timeoutMs <= 86_400_000)) {
    throw failure(exit.usage, `--timeout must be a number of seconds, not "${values.timeout}".`);
  }
  const print = (text: string): void => void (values.json || io.stdout.write(text));

  const planned = await planChange(api, request);
  print(formatPlan(planned.plan, io.colors));
  for (const { where, message } of planned.warnings) io.stderr.write(`warning: ${printable(`${where}: ${message}`)}\n`);
  print(formatNodes(planned.nodes, "plan"));
  if (values["dry-run"]) {
    io.stdout.write(values.json ? `${JSON.stringify(planned)}\n` : "dry run: nothing was changed\n");
    return exit.done;
  }

  // What was shown is what happens: another change in between is refused (412).
  const done = await send(api, request, [], { "if-match": `"${planned.version}"` });
  if (values.json) io.stdout.write(`${JSON.stringify(done)}\n`);
  print(`version ${done.version} runs\n`);
  print(formatNodes(done.nodes, "result"));
  const without = (done.nodes ?? []).filter(({ outcome }) => outcome !== "applied");
  if (without.length > 0) {
    const names = without.map(({ node }) => printable(node)).join(", ");
    throw failure(
      exit.refused,
      `the change was made on this node, but not on ${names}: sluice cluster status shows how they stand`,
    );
  }
  if (!values.wait) return exit.done;
  const unhealthy = await waitForHealth(api, io, changedObjects(done.plan), timeoutMs);
  if (unhealthy.length === 0) {
    print("healthy\n");
    return exit.done;
  }
  throw failure(
    exit.refused,
    `the change was made, but after ${values.timeout} s this is not healthy:\n${unhealthy.map((each) => `  ${printable(each)}`).join("\n")}`,
  );
}

/** What the change would do; nothing is changed. */
export async function planChange(api: Api, request: ChangeRequest): Promise<PlannedChange> {
  return (await send(api, request, [["dryRun", "true"]])) as PlannedChange;
}

async function send(
  api: Api,
  { method, path, query = [], body }: ChangeRequest,
  more: readonly (readonly [string, string])[],
  headers?: Readonly<Record<string, string>>,
): Promise<ChangeAnswer> {
  const parameters = new URLSearchParams();
  for (const [name, value] of [...query, ...more]) parameters.append(name, value);
  const search = parameters.size === 0 ? "" : `?${parameters.toString()}`;
  return (await api.request(method, path + search, body, headers)) as ChangeAnswer;
}

/** One line for each object that does not stay as it is, as in a diff. Ends with a line end. */
export function formatPlan({ items, isEmpty }: Plan, colors: boolean): string {
  if (isEmpty) return "no difference\n";
  const lines = items.filter(({ action }) => action !== "keep").map((item) => formatItem(item, colors));
  const kept = items.length - lines.length;
  return `${lines.join("\n")}\n${kept === 0 ? "" : `  ${kept} kept as they are\n`}`;
}

/** One line for each other node; of a plan only those that would not take it. Empty, or ends with a line end. */
function formatNodes(nodes: ChangeAnswer["nodes"], of: "plan" | "result"): string {
  return (nodes ?? [])
    .filter(({ outcome }) => of === "result" || outcome !== "accepted")
    .map(({ node, outcome, version, problem }) => {
      const what = outcome === "applied" ? `version ${version} runs` : `${outcome}: ${problem ?? "no reason given"}`;
      return `${printable(`node ${node}: ${what}`)}\n`;
    })
    .join("");
}

const marks = { build: ["+", "green"], change: ["~", "yellow"], drop: ["-", "red"], keep: [" ", "reset"] } as const;

function formatItem({ kind, name, action, fields, notes }: PlanItem, colors: boolean): string {
  const [mark, color] = marks[action];
  const what = fields.length === 0 ? "" : ` (${fields.join(", ")})`;
  const line = printable(`${mark} ${action} ${kind} ${name}${what}`);
  const shown = colors ? styleText(color, line, { validateStream: false }) : line;
  return [shown, ...notes.map((note) => `    ${printable(note)}`)].join("\n");
}

/** The documents that a plan touches and leaves running; a filter stands for its pipeline. */
function changedObjects({ items }: Plan): Set<string> {
  const touched = items.filter(({ action }) => action === "build" || action === "change");
  return new Set(touched.map(({ name }) => name.split("/")[0]!));
}

interface Status {
  readonly status: {
    readonly healthy: boolean;
    readonly health: readonly { readonly name: string; readonly ok: boolean; readonly detail?: string }[];
  };
}

const pollMs = 250;

/** What is not healthy when the time is over; nothing as soon as all is. */
async function waitForHealth(api: Api, io: CommandIo, names: Set<string>, timeoutMs: number): Promise<string[]> {
  const until = performance.now() + timeoutMs;
  for (;;) {
    const all = Object.entries((await api.request("GET", "/status/objects")) as Record<string, Status>);
    const unhealthy = all
      .filter(([name, { status }]) => names.has(name) && !status.healthy)
      .flatMap(([, { status }]) => status.health.filter(({ ok }) => !ok))
      .map(({ name, detail }) => (detail ? `${name}: ${detail}` : name));
    if (unhealthy.length === 0 || performance.now() >= until) return unhealthy;
    await sleep(Math.min(pollMs, Math.max(1, until - performance.now())), undefined, { signal: io.signal });
  }
}

/** The history as the API tells it: its times are ISO 8601. */
export type HistoryRow = Omit<HistoryEntry, "at"> & { readonly at: string };

export async function readHistory(api: Api): Promise<readonly HistoryRow[]> {
  return (await api.request("GET", "/history")) as readonly HistoryRow[];
}
