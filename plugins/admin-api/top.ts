/** `sluice top`: what a running gateway is doing, as it does it. */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { CommandIo } from "@sluice/kernel";
import { type Api, apiOption, exit, failure, openApi } from "./api.ts";
import { defineCommand } from "./command.ts";
import { parseExposition } from "./exposition.ts";
import { compare, formatView, type Reading } from "./live-view.ts";

const help = `Usage: sluice top [options]

Show what a running gateway is doing: clients, messages and acknowledgements a second, what waits, CPU, memory and how
late the event loop is. On a terminal it is written anew in place until Ctrl-C; elsewhere one table after the other.

Options:
  --interval SECONDS  between two readings (default 2)
  --once              one table, of one interval, and the end
${apiOption}
  --json              a line of JSON for each table

Exit codes: 0 done, 1 refused by the gateway, 2 wrong usage, 3 the gateway can't be reached`;

/** ANSI: to the upper left corner; the rest of a line, or of the screen, is cleared. */
const terminal = { home: "\u001b[H", clear: "\u001b[H\u001b[2J", endOfLine: "\u001b[K", below: "\u001b[J" };

export default defineCommand("show live rates of a running gateway", help, async (args, io) => {
  const { values } = parseArgs({
    args,
    options: {
      interval: { type: "string", default: "2" },
      once: { type: "boolean", default: false },
      api: { type: "string" },
      json: { type: "boolean", default: false },
    },
  });
  const seconds = /^\d+(\.\d+)?$/.test(values.interval) ? Number(values.interval) : 0;
  if (seconds < 0.1 || seconds > 3600) {
    throw failure(exit.usage, `--interval must be 0.1 to 3600 seconds, not "${values.interval}".`);
  }
  const api = openApi(values.api, io);
  const isInPlace = !values.json && !values.once && isTerminal(io);
  let before = await read(api);
  for (let count = 0; ; count++) {
    if (!(await wait(seconds, io))) return exit.done;
    const now = await read(api);
    const view = compare(before, now);
    before = now;
    if (values.json) io.stdout.write(`${JSON.stringify(view)}\n`);
    else if (isInPlace) io.stdout.write(inPlace(formatView(view, api.url), count === 0));
    else io.stdout.write(`${count === 0 ? "" : "\n"}${formatView(view, api.url)}`);
    if (values.once) return exit.done;
  }
});

async function read(api: Api): Promise<Reading> {
  const text = await api.text("/metrics");
  const metrics = parseExposition(text);
  if (!metrics.has("sluice_process_cpu_seconds")) {
    throw failure(exit.refused, `${api.url} did not answer with a gateway's metrics: is it a Sluice gateway?`);
  }
  return { at: performance.now() / 1000, metrics };
}

/** False where the user wants no more. */
async function wait(seconds: number, { signal }: CommandIo): Promise<boolean> {
  try {
    await sleep(seconds * 1000, undefined, { signal });
    return true;
  } catch (error) {
    if (signal.aborted) return false;
    throw error;
  }
}

function isTerminal({ stdout }: CommandIo): boolean {
  return "isTTY" in stdout && stdout.isTTY === true;
}

function inPlace(text: string, isFirst: boolean): string {
  const lines = text.replaceAll("\n", `${terminal.endOfLine}\n`);
  return `${isFirst ? terminal.clear : terminal.home}${lines}${terminal.below}`;
}
