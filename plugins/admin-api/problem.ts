/** The one way out for errors: `{"code": <HTTP status>, "message": ...}`, as Easegress words it. */
import type { ParameterizedContext } from "koa";
import type { Logger } from "@sluice/kernel";
import { send } from "./negotiate.ts";

/** HTTP statuses of the errors that `Host` rejects with. The 503s are worth a retry. */
const statusOfCode: Readonly<Record<string, number>> = {
  PROXY_NOT_FOUND: 404,
  TOPIC_INVALID: 400,
  PROPERTIES_INVALID: 400,
  QUEUE_FULL: 503,
  STORE_CLOSED: 503,
  STORE_FAILED: 503,
  CONFIG_INVALID: 400,
  CONFIG_NOT_FOUND: 404,
  CONFIG_READ_ONLY: 409,
  RESTART_NEEDED: 409,
  CONFIG_CONFLICT: 412,
  // Valid, and yet it could not be built: a port is taken, a folder can't be written.
  FILTER_CREATE_FAILED: 422,
  SERVICE_START_FAILED: 422,
  LISTEN_FAILED: 422,
  PLUGIN_START_TIMEOUT: 422,
};

/** One of several things that are wrong: where, and what to do. */
export interface Detail {
  readonly where: string;
  readonly message: string;
}

export interface Problem extends Error {
  readonly status: number;
  /** The message was written for the caller. */
  readonly expose: true;
  readonly problems?: readonly Detail[];
}

/** What a handler throws to answer with another status than 200: `throw problem(404, "not found")`. */
export function problem(status: number, message: string, problems?: readonly Detail[]): Problem {
  return Object.assign(new Error(message), { status, expose: true, ...(problems && { problems }) } as const);
}

/** Turns what a handler threw into the answer. Only what is no caller's fault is logged, and it is never shown. */
export function sendProblem(ctx: ParameterizedContext, error: unknown, log: Logger): void {
  const described = describeProblem(error, ctx, log);
  ctx.status = described.code;
  if (described.code === 503) ctx.set("Retry-After", "1");
  send(ctx, described);
}

/** What an answer says of an error, whole or as one of several results. */
export interface DescribedProblem {
  readonly code: number;
  readonly message: string;
  readonly problems?: readonly Detail[];
}

/** An error of our own is logged here. */
export function describeProblem(error: unknown, ctx: ParameterizedContext, log: Logger): DescribedProblem {
  const { status, message } = describe(error);
  if (status === 500) log.error({ err: error, method: ctx.method, path: ctx.path }, "an HTTP request failed");
  const problems = status === 500 ? undefined : problemsOf(error);
  return { code: status, message, ...(problems && { problems }) };
}

/** All that is wrong with a config, as the kernel lists it or as `problem` was given it. */
function problemsOf(error: unknown): Detail[] | undefined {
  if (!(error instanceof Error) || !("problems" in error) || !Array.isArray(error.problems)) return undefined;
  return (error.problems as readonly Detail[]).map(({ where, message }) => ({ where, message }));
}

function describe(error: unknown): { status: number; message: string } {
  if (error instanceof Error) {
    if ("expose" in error && error.expose === true && "status" in error && typeof error.status === "number") {
      return { status: error.status, message: error.message };
    }
    const status = "code" in error && typeof error.code === "string" ? statusOfCode[error.code] : undefined;
    if (status !== undefined) return { status, message: error.message };
  }
  return { status: 500, message: "the gateway could not do this because of an error of its own; its log says more" };
}
