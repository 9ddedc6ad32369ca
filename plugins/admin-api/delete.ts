/** `sluice delete`: remove objects from a running gateway. */
import { parseArgs } from "node:util";
import type { CommandIo } from "@sluice/kernel";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import type { Api } from "./api.ts";
import { changeHelp, changeOptions, runChange } from "./change.ts";
import { defineCommand } from "./command.ts";
import { readDocumentFiles } from "./input.ts";
import { resolveKind } from "./object-kind.ts";

const help = `Usage: sluice delete KIND NAME... [options]
       sluice delete KIND --all [options]
       sluice delete -f FILE... [options]

Remove objects from a running gateway, and from its config files: all that are named or, where one is missing or still
needed, none. A proxy that goes lets packets under way finish and closes its clients.

Options:
  -f, --file FILE     remove the objects that are in this file ("-": standard input); may be given more than once
  --all               all objects of this kind
${changeHelp}
${apiHelp}

KIND is a kind's name in any case or an alias of it: mqttproxy, mqtt or mp; pipeline, pipelines or pl.

Examples:
  sluice delete pipeline publish
  sluice delete -f mqttproxy.yaml --dry-run`;

export default defineCommand("remove objects from a running gateway", help, async (args, io) => {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      file: { type: "string", short: "f", multiple: true },
      all: { type: "boolean", default: false },
      ...changeOptions,
    },
  });
  const ways = [values.file !== undefined, values.all, positionals.length > 1].filter(Boolean).length;
  if (ways !== 1 || (values.all && positionals.length !== 1) || (values.file && positionals.length > 0)) {
    throw failure(exit.usage, "sluice delete takes KIND NAME..., KIND --all, or --file. See --help.");
  }
  const api = openApi(values.api, io);
  const query = await queryOf(positionals, values.file, api, io);
  return runChange(api, io, { method: "DELETE", path: "/objects", query }, values);
});

async function queryOf(
  [givenKind = "", ...names]: readonly string[],
  files: readonly string[] | undefined,
  api: Api,
  io: CommandIo,
): Promise<[string, string][]> {
  if (files) return (await readDocumentFiles(files, io)).map(({ kind, name }) => ["object", `${kind}/${name}`]);
  const resolved = await resolveKind(api, givenKind);
  if (names.length > 0) return names.map((name) => ["object", `${resolved}/${name}`]);
  return [
    ["all", "true"],
    ["kind", resolved],
  ];
}
