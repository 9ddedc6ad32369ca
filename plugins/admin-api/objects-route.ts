/** The running objects and their status. The host has replaced their secrets by `***`. */
import type { RouterContext } from "@koa/router";
import type { ConfigDocument, Host } from "@sluice/kernel";
import { send } from "./negotiate.ts";
import { problem } from "./problem.ts";
import type { Route } from "./route.ts";

export function objectRoutes(host: Host): Route[] {
  const sorted = (): ConfigDocument[] =>
    host.config.documents().toSorted((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));

  /** The proxy's own report, and the health of the object and of everything in it (a pipeline's filters). */
  function status(document: ConfigDocument): object {
    const { name } = document;
    const health = host.health().filter((each) => each.name === name || each.name.startsWith(`${name}/`));
    return {
      spec: document,
      status: { healthy: health.every(({ ok }) => ok), health, ...host.proxies.get(name)?.status() },
      timestamp: Math.floor(host.clock.now() / 1000),
    };
  }

  /** Names are unique for each kind: `?kind=` says which one is meant. */
  function find(ctx: RouterContext): ConfigDocument {
    const { name } = ctx.params;
    const kind = [ctx.query["kind"]].flat().at(-1);
    const found = host.config
      .documents()
      .find((document) => document.name === name && (kind === undefined || document.kind === kind));
    if (!found) throw problem(404, "not found");
    return found;
  }

  return [
    {
      method: "GET",
      path: "/objects",
      summary: "the running objects with their defaults, sorted by name",
      handle: (ctx) => send(ctx, sorted()),
    },
    {
      method: "GET",
      path: "/objects/:name",
      summary: "one running object",
      handle: (ctx) => send(ctx, find(ctx)),
    },
    {
      method: "GET",
      path: "/status/objects",
      summary: "spec, status and health of every object, by name",
      // Object.fromEntries makes own properties even of a name like __proto__.
      handle: (ctx) => send(ctx, Object.fromEntries(sorted().map((document) => [document.name, status(document)]))),
    },
    {
      method: "GET",
      path: "/status/objects/:name",
      summary: "spec, status and health of one object",
      handle: (ctx) => send(ctx, status(find(ctx))),
    },
  ];
}
