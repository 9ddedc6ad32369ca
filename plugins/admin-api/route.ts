/** What a file of routes hands to the app. Types only. */
import type { RouterContext } from "@koa/router";

export interface Route {
  readonly method: "GET" | "POST" | "PUT" | "DELETE";
  /** Below `/apis/v1` and `/apis/v2`, which are identical; a trailing slash is tolerated. */
  readonly path: string;
  /** Served without the prefix too, where probes and scrapers look for it. */
  readonly atRoot?: boolean;
  /** One line for the list of routes. */
  readonly summary: string;
  /** Answers with `send` or throws: `throw problem(status, message)`, or an error whose `code` problem.ts knows. */
  handle(ctx: RouterContext): void | Promise<void>;
}
