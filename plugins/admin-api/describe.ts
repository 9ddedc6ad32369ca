/** `sluice describe`: one object of a running gateway, with its status. */
import { parseArgs } from "node:util";
import { stringify } from "yaml";
import type { ConfigDocument } from "@sluice/kernel";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import { defineCommand } from "./command.ts";
import { resolveKind } from "./object-kind.ts";

const help = `Usage: sluice describe KIND NAME [options]

Show one object as YAML: its options with their defaults (secrets are ***), its health and that of its filters, and of
a proxy its addresses and connections.

Options:
${apiHelp}

KIND is a kind's name in any case or an alias of it: mqttproxy, mqtt or mp; pipeline, pipelines or pl.

Example:
  sluice describe mqttproxy mqttproxy`;

export default defineCommand("show one object of a running gateway with its status", help, async (args, io) => {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { api: { type: "string" }, json: { type: "boolean", default: false } },
  });
  const [given, name, ...rest] = positionals;
  if (!given || !name || rest.length > 0) {
    throw failure(exit.usage, "sluice describe takes a kind and a name. See --help.");
  }
  const api = openApi(values.api, io);
  const kind = await resolveKind(api, given);
  const running = (await api.request("GET", "/objects")) as readonly ConfigDocument[];
  if (!running.some((each) => each.kind === kind && each.name === name)) {
    throw failure(exit.refused, `there is no ${kind} named "${name}"`);
  }
  const path = `/status/objects/${encodeURIComponent(name)}?kind=${encodeURIComponent(kind)}`;
  const answer = (await api.request("GET", path)) as { readonly spec: ConfigDocument; readonly status: object };
  const { spec, status } = answer;
  io.stdout.write(values.json ? `${JSON.stringify(answer)}\n` : stringify({ ...spec, status }));
  return exit.done;
});
