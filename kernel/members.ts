/** The nodes of a cluster, each as it says of itself; of a gateway alone, itself. */
import type { ClusterEngine } from "./cluster-engine.ts";
import type { Host, MemberInfo, MemberReport } from "./plugin.ts";

/** The word between nodes that asks for a {@link MemberReport}. */
const kind = "members.report";

/** How long a node has to answer; one that is up and slower counts as silent. */
const answerMs = 2000;

/** Answers the other nodes' questions until the engine stops. */
export function answerMembers(engine: ClusterEngine, report: () => MemberReport): void {
  engine.control.handle(kind, () => Buffer.from(JSON.stringify(report())));
}

/** This node first, then the others by name. @param engine undefined = there are no others */
export async function queryMembers(
  engine: ClusterEngine | undefined,
  self: { readonly id: string; readonly incarnation: string },
  report: () => MemberReport,
): Promise<readonly MemberInfo[]> {
  const { id, incarnation } = engine?.node ?? self;
  const own: MemberInfo = { node: id, incarnation, isSelf: true, state: "up", report: report() };
  const peers = (engine?.peers() ?? []).toSorted((a, b) => (a.id < b.id ? -1 : 1));
  const others = peers.map(async (peer): Promise<MemberInfo> => {
    const known = { node: peer.id, incarnation: peer.incarnation, isSelf: false };
    if (!peer.isUp) return { ...known, state: peer.hasLeft ? "left" : "down", report: undefined };
    try {
      const answer = await engine!.control.request(peer.id, kind, Buffer.alloc(0), answerMs);
      return { ...known, state: "up", report: JSON.parse(answer.toString()) as MemberReport };
    } catch {
      return { ...known, state: "silent", report: undefined };
    }
  });
  return [own, ...(await Promise.all(others))];
}

/** What this node says of itself. @param digest of its config, as {@link MemberReport} has it */
export function reportOf(host: Host, digest: string): MemberReport {
  const { version, startedAt } = host.about();
  const unhealthy = host.health().filter(({ ok }) => !ok);
  const statuses = host.proxies.list().map((proxy) => proxy.status());
  const sum = (field: string): number => statuses.reduce((total, status) => total + Number(status[field] ?? 0), 0);
  return {
    version,
    startedAt,
    ready: host.isReady(),
    unhealthy: unhealthy.map(({ name, detail }) => ({ name, ...(detail === undefined ? {} : { detail }) })),
    config: { version: host.config.version(), digest },
    connections: sum("connections"),
    sessions: sum("sessions"),
  };
}
