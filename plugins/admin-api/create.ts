/** `sluice create`: add objects to a running gateway. */
import { parseArgs } from "node:util";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import { changeHelp, changeOptions, runChange } from "./change.ts";
import { defineCommand } from "./command.ts";
import { readDocumentFiles } from "./input.ts";

const help = `Usage: sluice create -f FILE... [options]

Add the objects in these files to a running gateway: all of them or, where anything is wrong or a name is taken, none.
As sluice apply, which replaces what is there.

Options:
  -f, --file FILE     YAML or JSON, one document or several ("-": standard input); may be given more than once
${changeHelp}
${apiHelp}

Example:
  sluice create -f mqttproxy.yaml`;

export default defineCommand("add objects to a running gateway", help, async (args, io) => {
  const { values } = parseArgs({
    args,
    options: { file: { type: "string", short: "f", multiple: true }, ...changeOptions },
  });
  if (!values.file) throw failure(exit.usage, "sluice create takes --file. See --help.");
  const api = openApi(values.api, io);
  const body = await readDocumentFiles(values.file, io);
  return runChange(api, io, { method: "POST", path: "/objects", body }, values);
});
