/** `sluice get`: the objects of a running gateway. */
import { parseArgs } from "node:util";
import { stringify } from "yaml";
import type { ConfigDocument } from "@sluice/kernel";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import { defineCommand } from "./command.ts";
import { resolveKind } from "./object-kind.ts";
import { formatTable } from "./table.ts";

const help = `Usage: sluice get [all | KIND [NAME]] [options]

Show the objects that run, with their defaults; secrets are ***. It exits with 1 if there is no such object.

Options:
  -o, --output FORMAT table (the default), yaml or json
${apiHelp}

KIND is a kind's name in any case or an alias of it: mqttproxy, mqtt or mp; pipeline, pipelines or pl.

Examples:
  sluice get
  sluice get pipeline publish -o yaml`;

interface Status {
  readonly spec: ConfigDocument;
  readonly status: {
    readonly healthy: boolean;
    readonly health: readonly { readonly name: string; readonly ok: boolean; readonly detail?: string }[];
  };
}

export default defineCommand("show the objects of a running gateway", help, async (args, io) => {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      output: { type: "string", short: "o" },
      api: { type: "string" },
      json: { type: "boolean", default: false },
    },
  });
  const [given = "all", name, ...rest] = positionals;
  const output = values.output ?? (values.json ? "json" : "table");
  if (!["table", "yaml", "json"].includes(output)) {
    throw failure(exit.usage, `--output must be table, yaml or json, not "${output}".`);
  }
  if (rest.length > 0 || (given === "all" && name !== undefined)) {
    throw failure(exit.usage, "sluice get takes a kind, or all, and perhaps a name. See --help.");
  }

  const api = openApi(values.api, io);
  const kind = given === "all" ? undefined : await resolveKind(api, given);
  const all = (await api.request("GET", "/objects")) as readonly ConfigDocument[];
  const documents = all.filter(
    (each) => (kind === undefined || each.kind === kind) && (name === undefined || each.name === name),
  );
  if (name !== undefined && documents.length === 0) throw failure(exit.refused, `there is no ${kind} named "${name}"`);
  if (output === "json") io.stdout.write(`${JSON.stringify(name === undefined ? documents : documents[0], null, 2)}\n`);
  else if (output === "yaml") io.stdout.write(documents.map((each) => stringify(each)).join("---\n"));
  else {
    const statuses = (await api.request("GET", "/status/objects")) as Record<string, Status>;
    io.stdout.write(documents.length === 0 ? "no objects\n" : table(documents, new Map(Object.entries(statuses))));
  }
  return exit.done;
});

function table(documents: readonly ConfigDocument[], statuses: ReadonlyMap<string, Status>): string {
  return formatTable([
    ["KIND", "NAME", "HEALTH", "DETAIL"],
    ...documents.map(({ kind, name }) => {
      const status = statuses.get(name)?.status;
      const told = status?.health.filter(({ ok }) => ok === status.healthy) ?? [];
      const details = told.flatMap((each) =>
        each.detail ? [name === each.name ? each.detail : `${each.name}: ${each.detail}`] : [],
      );
      return [kind, name, status ? (status.healthy ? "ok" : "unhealthy") : "-", details.join("; ") || "-"];
    }),
  ]);
}
