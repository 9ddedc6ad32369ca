/** `sluice history`: the configs that a running gateway has had. */
import { parseArgs } from "node:util";
import { apiHelp, exit, openApi } from "./api.ts";
import { readHistory } from "./change.ts";
import { defineCommand } from "./command.ts";
import { formatTable } from "./table.ts";

const help = `Usage: sluice history [options]

List the configs that were applied since the gateway was started, newest first: when, by whom, and what they changed.

Options:
${apiHelp}`;

export default defineCommand("list the configs that a running gateway has had", help, async (args, io) => {
  const { values } = parseArgs({
    args,
    options: { api: { type: "string" }, json: { type: "boolean", default: false } },
  });
  const entries = await readHistory(openApi(values.api, io));
  const rows = entries.map(({ version, at, by, changed }) => [
    String(version),
    at.replace(/\.\d+Z$/, "Z"),
    by,
    changed.join(", ") || "-",
  ]);
  io.stdout.write(
    values.json ? `${JSON.stringify(entries)}\n` : formatTable([["VERSION", "WHEN", "BY", "CHANGED"], ...rows]),
  );
  return exit.done;
});
