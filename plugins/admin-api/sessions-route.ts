/** The sessions of one proxy: listed, searched, removed. Nothing of another proxy can be seen or touched from here. */
import type { ParameterizedContext } from "koa";
import type { Host, ProxyHandle, SessionInfo } from "@sluice/kernel";
import { invalidJson, readObject } from "./body.ts";
import { send } from "./negotiate.ts";
import { problem } from "./problem.ts";
import type { Route } from "./route.ts";

export function sessionRoutes(host: Host, maxBodyBytes: number): Route[] {
  function proxyOf(ctx: ParameterizedContext): ProxyHandle {
    const name: string = ctx["params"].name;
    const proxy = host.proxies.get(name);
    if (!proxy) throw problem(404, `no proxy is named ${JSON.stringify(name)}`);
    return proxy;
  }

  return [
    {
      method: "GET",
      path: "/mqttproxy/:name/session/query",
      summary: "a proxy's sessions; with page and page_size a page of those with a topic filter that contains q",
      async handle(ctx) {
        const proxy = proxyOf(ctx);
        const page = pageOf(ctx);
        const q = one(ctx.query["q"]) ?? "";
        const all = await proxy.sessions.query();
        // Filtered first and cut afterwards: a page is only empty where there is no more to show.
        const found = q === "" ? all : all.filter((session) => matchOf(session, q) !== undefined);
        const shown = page ? found.slice((page.number - 1) * page.size, page.number * page.size) : found;
        send(ctx, { sessions: shown.map((session) => view(session, q)), total: found.length });
      },
    },
    {
      method: "DELETE",
      path: "/mqttproxy/:name/sessions",
      summary: 'close the connections and forget the sessions of {"sessions": [{"sessionID"}]}',
      async handle(ctx) {
        const proxy = proxyOf(ctx);
        const { sessions = [] } = await readObject(ctx, maxBodyBytes);
        const ids = new Set<string>();
        if (!Array.isArray(sessions)) throw problem(400, `${invalidJson}: sessions must be an array`);
        for (const each of sessions as unknown[]) {
          const id = typeof each === "object" && each !== null && "sessionID" in each ? each.sessionID : undefined;
          if (typeof id !== "string")
            throw problem(400, `${invalidJson}: each of sessions must have a string sessionID`);
          ids.add(id);
        }
        let removed = 0;
        for (const id of ids) if (await proxy.sessions.remove(id)) removed++;
        send(ctx, { removed });
      },
    },
  ];
}

/** `sessionID` and `topic` are Easegress'; `topic` is the first filter that contains `q`, empty without one. */
function view(session: SessionInfo, q: string): Record<string, unknown> {
  return {
    sessionID: session.clientId,
    topic: q === "" ? "" : (matchOf(session, q) ?? ""),
    connected: session.connected,
    clean: session.clean,
    username: session.username ?? null,
    address: session.address ?? null,
    connectedAt: new Date(session.connectedAt).toISOString(),
    expiresAt: session.expiresAt === undefined ? null : new Date(session.expiresAt).toISOString(),
    subscriptions: session.subscriptions,
    queued: session.queued,
    inflight: session.inflight,
  };
}

function matchOf(session: SessionInfo, q: string): string | undefined {
  return session.subscriptions.find(({ topicFilter }) => topicFilter.includes(q))?.topicFilter;
}

/** Undefined for the whole list. As in Easegress a query names both `page` and `page_size`; other parameters don't count. */
function pageOf(ctx: ParameterizedContext): { number: number; size: number } | undefined {
  const { page, page_size: size, q } = ctx.query;
  if (page === undefined && size === undefined && q === undefined) return undefined;
  if (page === undefined || size === undefined) {
    throw problem(400, "if use query, please provide both page and page_size");
  }
  return { number: positive("page", page), size: positive("page_size", size) };
}

function positive(name: string, value: string | string[]): number {
  const text = one(value)!;
  if (!/^\d{1,9}$/.test(text) || Number(text) === 0) throw problem(400, `${name} in query should be number and >0`);
  return Number(text);
}

/** A parameter given twice counts by its last value. */
function one(value: string | string[] | undefined): string | undefined {
  return typeof value === "object" ? value.at(-1) : value;
}
