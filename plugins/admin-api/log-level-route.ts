/** The log level of the running gateway, shown and changed without a restart. */
import type { Host } from "@sluice/kernel";
import { send } from "./negotiate.ts";
import { problem } from "./problem.ts";
import type { Route } from "./route.ts";

const levels = ["trace", "debug", "info", "warn", "error", "fatal"];

export function logLevelRoutes(host: Host): Route[] {
  return [
    {
      method: "GET",
      path: "/logs/level",
      summary: "the log level",
      handle: (ctx) => send(ctx, { level: host.logLevel.get() }),
    },
    {
      method: "PUT",
      path: "/logs/level/:level",
      summary: `set the log level until the next start: ${levels.join(", ")}`,
      handle(ctx) {
        const level = ctx.params["level"]!.toLowerCase();
        if (!levels.includes(level)) throw problem(400, `no such log level: choose one of ${levels.join(", ")}`);
        host.logLevel.set(level);
        host.log.info({ level }, "log level changed through the API");
        send(ctx, { level });
      },
    },
  ];
}
