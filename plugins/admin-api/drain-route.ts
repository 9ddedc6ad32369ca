/** Has the gateway stop as SIGTERM does: the way for whoever can't send it a signal. */
import type { Host } from "@sluice/kernel";
import { send } from "./negotiate.ts";
import type { Route } from "./route.ts";

export function drainRoutes(host: Host): Route[] {
  return [
    {
      method: "POST",
      path: "/drain",
      summary: "stop: clients are closed in turn, packets under way are finished, the process ends",
      handle(ctx) {
        const clients = host.proxies.list().reduce((sum, proxy) => sum + Number(proxy.status()["connections"]), 0);
        host.log.info({ clients }, "asked through the API to drain");
        send(ctx, { draining: true, clients });
        // What is under way includes this answer.
        host.drain();
      },
    },
  ];
}
