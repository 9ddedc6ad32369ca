/**
 * What a fleet asks of a cluster, worked out from unit costs: `node test/bench/cluster-arithmetic.ts [--write]` prints the
 * tables of docs/scale.md, or writes them there.
 */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

/** Where each is from: docs/scale.md. Microseconds are of CPU. */
export const unit = {
  /** All servers of a cell together: appended with three copies and fsync, republished, routed. */
  logUs: 38,
  /** A guarded write of a session's cursor; the claim of a session with what is loaded after it. */
  cursorUs: 60,
  connectUs: 90,
  /** A filter of a connected session looked at for what it may have missed. */
  auditUs: 11,
  auditSeconds: 30,
  /** Bytes of a subscription at the server that the gateway is connected to, and at each other one. */
  interestNearBytes: 2500,
  interestFarBytes: 1600,
  /** Bytes that a server keeps for each subject of a stream. */
  subjectBytes: 330,
  subjectsPerSession: 3,
  /** On disk, of a message with a payload of 128 bytes. */
  messageBytes: 206,
  /** A gateway's: publish into the log, receive from it, deliver to a device one at a time. */
  gatewayPublishUs: 2.5,
  gatewayReceiveUs: 6.7,
  gatewayDeliverUs: 9,
  /** Bytes of a connection with its session, its subscription and the interest in it. */
  gatewayClientBytes: 12_000,
} as const;

export interface Fleet {
  readonly clients: number;
  readonly cells: number;
  readonly serversPerCell: number;
  readonly clientsPerGateway: number;
  /** Seconds between two commands to one client, QoS 1, each to a topic of its own. */
  readonly commandSeconds: number;
  readonly connectsPerSecond: number;
  readonly retentionHours: number;
}

export const fleets: readonly Fleet[] = [
  {
    clients: 1e6,
    cells: 1,
    serversPerCell: 3,
    clientsPerGateway: 40_000,
    commandSeconds: 60,
    connectsPerSecond: 10_000,
    retentionHours: 6,
  },
  {
    clients: 1e8,
    cells: 25,
    serversPerCell: 5,
    clientsPerGateway: 40_000,
    commandSeconds: 60,
    connectsPerSecond: 10_000,
    retentionHours: 6,
  },
];

const million = 1e6;
const giga = 2 ** 30;

/** A row each: what, and its figure for every fleet. A cell's, unless the row says otherwise. */
export function rowsFor(all: readonly Fleet[]): string[][] {
  const row = (name: string, figure: (fleet: Fleet, clients: number, rate: number) => string): string[] => [
    name,
    ...all.map((fleet) =>
      figure(fleet, fleet.clients / fleet.cells, fleet.clients / fleet.cells / fleet.commandSeconds),
    ),
  ];
  const cores = (us: number): string => (us / million).toFixed(2);
  const gib = (bytes: number): string => (bytes / giga).toFixed(1);
  return [
    row("cells", ({ cells }) => String(cells)),
    row("clients", (_, clients) => whole(clients)),
    row("engine servers", ({ serversPerCell }) => String(serversPerCell)),
    row("gateways", ({ clientsPerGateway }, clients) => whole(clients / clientsPerGateway)),
    row("commands a second", (_, __, rate) => whole(rate)),
    row("engine: cores for the log", (_, __, rate) => cores(rate * unit.logUs)),
    row("engine: cores for cursors, at most", (_, __, rate) => cores(rate * unit.cursorUs)),
    row("engine: cores for audits", (_, clients) => cores((clients / unit.auditSeconds) * unit.auditUs)),
    row("engine: cores while all come back", ({ connectsPerSecond }) => cores(connectsPerSecond * unit.connectUs)),
    row("minutes until all are back", ({ connectsPerSecond }, clients) =>
      (clients / connectsPerSecond / 60).toFixed(1),
    ),
    row("engine: GiB of interest, each server", ({ serversPerCell }, clients) =>
      gib(clients * (unit.interestNearBytes / serversPerCell + unit.interestFarBytes * (1 - 1 / serversPerCell))),
    ),
    row("engine: GiB of session records, each server", (fleet, clients) =>
      gib(clients * unit.subjectsPerSession * unit.subjectBytes * share(fleet)),
    ),
    row("engine: GiB of log index, each server", (fleet, clients) => gib(clients * unit.subjectBytes * share(fleet))),
    row("engine: GiB of disk, each server", (fleet, _, rate) =>
      gib(rate * unit.messageBytes * fleet.retentionHours * 3600 * share(fleet)),
    ),
    row("a gateway: GiB", ({ clientsPerGateway }) => gib(clientsPerGateway * unit.gatewayClientBytes)),
    row("a gateway: cores for commands", ({ clientsPerGateway, commandSeconds }) =>
      cores(
        (clientsPerGateway / commandSeconds) * (unit.gatewayPublishUs + unit.gatewayReceiveUs + unit.gatewayDeliverUs),
      ),
    ),
  ];
}

/** Each stream has three copies, spread over the servers. */
function share({ serversPerCell }: Fleet): number {
  return Math.min(1, 3 / serversPerCell);
}

function whole(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

/** As Markdown. */
export function tableFor(all: readonly Fleet[]): string {
  const head = ["", ...all.map(({ clients }) => `${whole(clients)} clients`)];
  const rows = [head, ...rowsFor(all)];
  const widths = head.map((_, column) => Math.max(...rows.map((row) => row[column]!.length), 3));
  const line = (row: readonly string[]): string =>
    `| ${row.map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!))).join(" | ")} |`;
  const rule = `| ${widths.map((width, column) => (column === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`)).join(" | ")} |`;
  return [line(head), rule, ...rows.slice(1).map(line)].join("\n");
}

const marks = ["<!-- arithmetic -->\n\n", "\n\n<!-- end of arithmetic -->"] as const;

/** The page with its table made anew. */
export function withTable(page: string): string {
  const [before, rest = ""] = page.split(marks[0]);
  const [, after = ""] = rest.split(marks[1]);
  return `${before}${marks[0]}${tableFor(fleets)}${marks[1]}${after}`;
}

if (import.meta.main) {
  const path = join(import.meta.dirname, "../../docs/scale.md");
  if (process.argv.includes("--write")) await writeFile(path, withTable(await readFile(path, "utf8")));
  else console.log(tableFor(fleets));
}
