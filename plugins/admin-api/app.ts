/** The Koa application: one middleware around everything, the router, and what no route took. */
import Koa from "koa";
import type { ParameterizedContext } from "koa";
import { Router } from "@koa/router";
import type { Host } from "@sluice/kernel";
import { changeRoutes } from "./change-route.ts";
import type { Authenticator } from "./credentials.ts";
import { drainRoutes } from "./drain-route.ts";
import { healthRoutes } from "./health-route.ts";
import { kindRoutes } from "./kinds-route.ts";
import { logLevelRoutes } from "./log-level-route.ts";
import { memberRoutes } from "./members-route.ts";
import { send } from "./negotiate.ts";
import { objectRoutes } from "./objects-route.ts";
import type { OriginCheck } from "./origin.ts";
import { problem, sendProblem } from "./problem.ts";
import { publishRoutes } from "./publish-route.ts";
import { createRequestMetrics } from "./request-metrics.ts";
import type { Route } from "./route.ts";
import { sessionRoutes } from "./sessions-route.ts";

const prefixes = ["/apis/v1", "/apis/v2"];

export interface AppOptions {
  readonly maxBodyBytes: number;
  readonly maxPublishes: number;
  readonly checkOrigin: OriginCheck;
  readonly authenticator: Authenticator;
  /** Paths that need no credentials, without their prefix. */
  readonly openRoutes: readonly string[];
  /** True while answers must end their connection. */
  isEnding(): boolean;
}

export function createApp(host: Host, options: AppOptions): Koa {
  const { maxBodyBytes, maxPublishes, checkOrigin, authenticator } = options;
  const open = new Set(options.openRoutes.flatMap((path) => [path, ...prefixes.map((prefix) => prefix + path)]));
  const observe = createRequestMetrics(host.metrics);
  const routes = [
    ...publishRoutes(host, { maxBodyBytes, maxPublishes }),
    ...sessionRoutes(host, maxBodyBytes),
    ...objectRoutes(host),
    ...changeRoutes(host, maxBodyBytes),
    ...kindRoutes(host),
    ...healthRoutes(host),
    ...logLevelRoutes(host),
    ...drainRoutes(host),
    ...memberRoutes(host),
  ];
  routes.push({
    method: "GET",
    path: "",
    summary: "this list",
    handle: (ctx) => send(ctx, listing),
  });
  const listing = [
    {
      group: "admin",
      entries: routes.map(({ method, path, summary }) => ({ method, path: `/apis/v2${path}`, summary })),
    },
  ];

  /** Leaves the caller's name for handlers in `ctx.state.by`. Before the router: strangers learn of no route. */
  function authorize(ctx: ParameterizedContext): void {
    const reads = ctx.method === "GET" || ctx.method === "HEAD" || ctx.method === "OPTIONS";
    if (reads && open.has(ctx.path.replace(/\/$/, ""))) return;
    const caller = authenticator.identify(ctx.req);
    if (!caller) {
      ctx.set("WWW-Authenticate", [...authenticator.challenges]);
      throw problem(
        401,
        "this API asks for credentials: send a key of this AdminAPI as `Authorization: Bearer KEY` (commands take it from SLUICE_API_KEY; `sluice key NAME` makes one)",
      );
    }
    if (!reads && caller.access === "read")
      throw problem(403, `${caller.by} may only read: use a key with \`access: write\` for this`);
    ctx.state["by"] = caller.by;
  }

  async function answer(ctx: ParameterizedContext, next: () => Promise<unknown>): Promise<void> {
    const startedAt = performance.now();
    try {
      const refusal = checkOrigin(ctx.req.headers);
      if (refusal) throw problem(403, refusal);
      authorize(ctx);
      await next();
    } catch (error) {
      // Nobody is left to answer where the caller has gone.
      if (ctx.writable) sendProblem(ctx, error, host.log);
      else host.log.debug({ err: error }, "a caller closed its connection before it was answered");
    }
    if (ctx.writable) {
      ctx.set("X-Config-Version", String(host.config.version()));
      if (options.isEnding()) ctx.set("Connection", "close");
    }
    observe(ctx.method, routeOf(ctx), ctx.writable ? ctx.status : 499, (performance.now() - startedAt) / 1000);
  }

  const app = new Koa();
  // All that handlers throw ends above: what is left is a connection lost while it was written to.
  app.on("error", (error) => host.log.debug({ err: error }, "an HTTP connection was lost"));
  // oxlint-disable-next-line oxc/no-async-endpoint-handlers -- this is Koa, which awaits its middleware
  app.use(answer);
  app.use(createRouter(routes).routes());
  app.use(unmatched);
  return app;
}

function createRouter(routes: readonly Route[]): Router {
  const router = new Router({ sensitive: true });
  for (const route of routes) {
    const paths = prefixes.map((prefix) => prefix + route.path);
    if (route.atRoot) paths.push(route.path);
    for (const path of paths) router.register(path, [route.method], (ctx) => route.handle(ctx));
  }
  return router;
}

function unmatched(ctx: ParameterizedContext): void {
  const layers: { methods: string[] }[] = ctx["matched"] ?? [];
  const allowed = [...new Set(layers.flatMap(({ methods }) => methods))].sort();
  if (allowed.length === 0) throw problem(404, "no such route: GET /apis/v2 lists them");
  ctx.set("Allow", allowed.join(", "));
  if (ctx.method === "OPTIONS") ctx.status = 204;
  else throw problem(405, `this route takes ${allowed.join(" or ")}, not ${ctx.method}`);
}

/** The pattern without its version prefix; one name for whatever no route took. */
function routeOf(ctx: ParameterizedContext): string {
  const pattern: unknown = ctx["routeMatched"] ? ctx["routerPath"] : undefined;
  return typeof pattern === "string" ? pattern.replace(/^\/apis\/v[12]/, "") || "/" : "none";
}
