/** For probes, scrapers and people: is it alive, is it ready, what is it, what does it count. */
import type { Host } from "@sluice/kernel";
import { send } from "./negotiate.ts";
import type { Route } from "./route.ts";

export function healthRoutes(host: Host): Route[] {
  return [
    {
      method: "GET",
      path: "/healthz",
      atRoot: true,
      summary: "200 while the process answers",
      handle: (ctx) => send(ctx, { ok: true }),
    },
    {
      method: "GET",
      path: "/readyz",
      atRoot: true,
      summary:
        "200 once every listener is bound and every service started; with ?strict also every object healthy; ?verbose lists all",
      // Kafka being away is no reason to take the gateway out of a load balancer, which would only close the devices'
      // connections: unhealthy objects are listed, and turn the answer into 503 for those alone who ask with ?strict.
      handle(ctx) {
        const ready = host.isReady();
        const health = host.health();
        const unhealthy = health.filter(({ ok }) => !ok);
        const isAsked = (flag: string): boolean => ctx.query[flag] !== undefined && ctx.query[flag] !== "false";
        const strict = isAsked("strict");
        ctx.status = ready && !(strict && unhealthy.length > 0) ? 200 : 503;
        send(ctx, {
          ready,
          unhealthy: unhealthy.map(({ name, detail }) => ({ name, detail: detail ?? "" })),
          ...(isAsked("verbose") && { health: health.map(({ name, ok, detail = "" }) => ({ name, ok, detail })) }),
        });
      },
    },
    {
      method: "GET",
      path: "/metrics",
      atRoot: true,
      summary: "all metrics in Prometheus' text format",
      async handle(ctx) {
        const text = await host.metrics.text();
        ctx.set("Content-Type", host.metrics.contentType);
        ctx.body = text;
      },
    },
    {
      method: "GET",
      path: "/about",
      summary: "name, version and start time of the gateway",
      handle(ctx) {
        const about = host.about();
        const uptimeSeconds = Math.floor((host.clock.now() - about.startedAt) / 1000);
        send(ctx, { ...about, startedAt: new Date(about.startedAt).toISOString(), uptimeSeconds });
      },
    },
  ];
}
