/** `sluice apply`: create or replace objects of a running gateway. */
import { parseArgs } from "node:util";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import { changeHelp, changeOptions, runChange } from "./change.ts";
import { defineCommand } from "./command.ts";
import { readDocumentFiles } from "./input.ts";

const help = `Usage: sluice apply -f FILE... [options]

Create the objects in these files, or replace those of the same kind and name, in a running gateway: all of them or,
where anything is wrong, none. The plan is shown first; connections stay. The gateway writes the change to its own
config files, so that it is still there after a restart. Objects that the files don't name stay as they are.

Options:
  -f, --file FILE     YAML or JSON, one document or several ("-": standard input); may be given more than once
${changeHelp}
${apiHelp}

Examples:
  sluice apply -f mqttproxy.yaml --dry-run
  sluice apply -f mqttproxy.yaml -f pipelines.yaml --wait`;

export default defineCommand("create or replace objects of a running gateway", help, async (args, io) => {
  const { values } = parseArgs({
    args,
    options: { file: { type: "string", short: "f", multiple: true }, ...changeOptions },
  });
  if (!values.file) throw failure(exit.usage, "sluice apply takes --file. See --help.");
  const api = openApi(values.api, io);
  const body = await readDocumentFiles(values.file, io);
  return runChange(api, io, { method: "PUT", path: "/objects", body }, values);
});
