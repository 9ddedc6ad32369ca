/** `sluice cluster status`: the nodes of a cluster. */
import { parseArgs } from "node:util";
import type { MemberReport } from "@sluice/kernel";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import { defineCommand } from "./command.ts";
import { formatTable, printable } from "./table.ts";

const help = `Usage: sluice cluster status [options]

Show the nodes of the cluster that a running gateway is in: which are up, with which version and config, and how many
clients each has. A config that reads "differs" is not the one of the node that was asked: a change did not reach that
node, or it could not take it.

Options:
${apiHelp}

Exit codes: 0 all nodes are up, ready and have one config, 1 some are not, 2 wrong usage, 3 the gateway can't be reached

Example:
  sluice cluster status --api http://10.0.0.7:2381`;

/** As the API tells it. */
interface Member {
  readonly node: string;
  readonly isSelf: boolean;
  readonly state: string;
  readonly report?: Omit<MemberReport, "startedAt"> & { readonly startedAt: string };
}

export default defineCommand("show the nodes of a cluster", help, async (args, io) => {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { api: { type: "string" }, json: { type: "boolean", default: false } },
  });
  if (positionals.length !== 1 || positionals[0] !== "status") {
    throw failure(exit.usage, "sluice cluster takes status. See --help.");
  }
  const answer = (await openApi(values.api, io).request("GET", "/status/members")) as {
    readonly joined: boolean;
    readonly members: readonly Member[];
  };
  const problems = problemsOf(answer.members);
  if (values.json) {
    io.stdout.write(`${JSON.stringify(answer)}\n`);
  } else {
    io.stdout.write(table(answer.members));
    if (!answer.joined) io.stdout.write("this gateway is in no cluster\n");
    for (const problem of problems) io.stdout.write(`${printable(problem)}\n`);
  }
  return problems.length === 0 ? exit.done : exit.refused;
});

function table(members: readonly Member[]): string {
  return formatTable([
    ["NODE", "STATE", "VERSION", "CONFIG", "CLIENTS", "SESSIONS", "SINCE"],
    ...members.map(({ node, isSelf, state, report }) => [
      isSelf ? `${node} *` : node,
      report && !report.ready ? "not ready" : state,
      report?.version ?? "-",
      report === undefined ? "-" : `${report.config.version}${differs(report, members) ? " differs" : ""}`,
      report === undefined ? "-" : String(report.connections),
      report === undefined ? "-" : String(report.sessions),
      report?.startedAt.replace(/\.\d+Z$/, "Z") ?? "-",
    ]),
  ]);
}

function differs({ config }: Pick<MemberReport, "config">, members: readonly Member[]): boolean {
  return config.digest !== members.find(({ isSelf }) => isSelf)?.report?.config.digest;
}

/** A node that has said goodbye is none. */
function problemsOf(members: readonly Member[]): string[] {
  return members.flatMap(({ node, state, report }) => {
    if (state === "left") return [];
    if (!report) return [`${node}: ${state === "down" ? "is down" : "does not answer"}`];
    const config = differs(report, members) ? [`${node}: has another config`] : [];
    return [...config, ...report.unhealthy.map(({ name, detail }) => `${node}: ${name}: ${detail ?? "not healthy"}`)];
  });
}
