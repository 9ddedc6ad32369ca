/** `sluice sessions`: list a proxy's sessions, or kick some out. */
import { parseArgs } from "node:util";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import { defineCommand } from "./command.ts";
import { formatTable } from "./table.ts";

const help = `Usage: sluice sessions list <proxy> [options]
       sluice sessions kick <proxy> <clientId...> [options]

list shows the sessions of a proxy, connected or not. kick closes the connections of these clients and forgets their
sessions, subscriptions and queued messages included; it exits with 1 if one of them had no session.

Options:
  -q, --query TEXT    list: only sessions with a topic filter that contains TEXT
${apiHelp}

Examples:
  sluice sessions list mqttproxy -q Beijing/
  sluice sessions kick mqttproxy dev1 dev2`;

/** What the API says of a session, as far as it is shown. */
interface Row {
  readonly sessionID: string;
  readonly connected: boolean;
  readonly username: string | null;
  readonly address: string | null;
  readonly connectedAt: string;
  readonly subscriptions: readonly { readonly topicFilter: string; readonly qos: number }[];
  readonly queued: number;
  readonly inflight: number;
}

/** The API wants a page with a query; this one has room for all. */
const onePage = 999_999_999;

export default defineCommand("list a proxy's sessions, or kick some out", help, async (args, io) => {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      query: { type: "string", short: "q" },
      api: { type: "string" },
      json: { type: "boolean", default: false },
    },
  });
  const [action, proxy, ...ids] = positionals;
  const path = `/mqttproxy/${encodeURIComponent(proxy ?? "")}`;

  if (action === "list" && proxy && ids.length === 0) {
    const search = values.query === undefined ? "" : `?${query(values.query)}`;
    const answer = await openApi(values.api, io).request("GET", `${path}/session/query${search}`);
    const { sessions } = answer as { sessions: readonly Row[] };
    io.stdout.write(values.json ? `${JSON.stringify(answer)}\n` : table(sessions));
    return exit.done;
  }
  if (action === "kick" && proxy && ids.length > 0) {
    if (values.query !== undefined) throw failure(exit.usage, "--query belongs to sluice sessions list.");
    const wanted = [...new Set(ids)];
    const sessions = wanted.map((sessionID) => ({ sessionID }));
    const answer = await openApi(values.api, io).request("DELETE", `${path}/sessions`, { sessions });
    const { removed } = answer as { removed: number };
    io.stdout.write(values.json ? `${JSON.stringify(answer)}\n` : `removed ${removed} of ${count(wanted.length)}\n`);
    return removed === wanted.length ? exit.done : exit.refused;
  }
  throw failure(
    exit.usage,
    "Usage: sluice sessions list <proxy>, or sluice sessions kick <proxy> <clientId...>. See --help.",
  );
});

function query(q: string): string {
  return new URLSearchParams({ page: "1", page_size: String(onePage), q }).toString();
}

function table(sessions: readonly Row[]): string {
  if (sessions.length === 0) return "no sessions\n";
  const rows = [
    ["CLIENT", "STATE", "USER", "ADDRESS", "SINCE", "QUEUED", "INFLIGHT", "SUBSCRIPTIONS"],
    ...sessions.map((session) => [
      session.sessionID,
      session.connected ? "connected" : "away",
      session.username ?? "-",
      session.address ?? "-",
      session.connectedAt.replace(/\.\d+Z$/, "Z"),
      String(session.queued),
      String(session.inflight),
      session.subscriptions.map(({ topicFilter, qos }) => `${topicFilter} (${qos})`).join(", ") || "-",
    ]),
  ];
  return `${formatTable(rows)}${count(sessions.length)}, ${sessions.filter((each) => each.connected).length} connected\n`;
}

function count(sessions: number): string {
  return sessions === 1 ? "1 session" : `${sessions} sessions`;
}
