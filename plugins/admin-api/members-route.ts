/** The nodes of the cluster. */
import type { Host, MemberInfo } from "@sluice/kernel";
import { send } from "./negotiate.ts";
import type { Route } from "./route.ts";

export function memberRoutes(host: Host): Route[] {
  return [
    {
      method: "GET",
      path: "/status/members",
      summary: "the nodes of the cluster, this one first: state, version, config, clients",
      async handle(ctx) {
        const members = await host.cluster.members();
        send(ctx, { joined: host.cluster.isJoined, members: members.map(shown) });
      },
    },
  ];
}

function shown({ report, ...member }: MemberInfo): object {
  return report ? { ...member, report: { ...report, startedAt: new Date(report.startedAt).toISOString() } } : member;
}
