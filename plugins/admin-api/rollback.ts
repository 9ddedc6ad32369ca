/** `sluice rollback`: have an earlier config run again. */
import { parseArgs } from "node:util";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import { changeHelp, changeOptions, readHistory, runChange } from "./change.ts";
import { defineCommand } from "./command.ts";

const help = `Usage: sluice rollback [VERSION] [options]

Apply the config that ran as this version (sluice history lists them), or as the one before the one that runs. It gets
a new version.

Options:
${changeHelp}
${apiHelp}

Example:
  sluice rollback --dry-run`;

export default defineCommand("have an earlier config run again", help, async (args, io) => {
  const { values, positionals } = parseArgs({ args, allowPositionals: true, options: changeOptions });
  const [given, ...rest] = positionals;
  if (rest.length > 0 || (given !== undefined && !/^\d{1,15}$/.test(given))) {
    throw failure(exit.usage, "sluice rollback takes one version, a number. See --help.");
  }
  const api = openApi(values.api, io);
  const version = given ?? (await readHistory(api))[1]?.version;
  if (version === undefined) throw failure(exit.refused, "there is no earlier config: sluice history lists them");
  return runChange(api, io, { method: "POST", path: `/history/${version}/rollback` }, values);
});
