/** The HTTP server: one bound address with bounds on everything a caller could drag out. */
import { createServer } from "node:http";
import type { RequestListener } from "node:http";
import type { Host } from "@sluice/kernel";

export interface ServerOptions {
  readonly host: string;
  readonly port: number;
  readonly maxConnections: number;
}

export interface HttpServer {
  /** Binds; rejects with an error that names the address. */
  start(): Promise<void>;
  /** Stops accepting, lets requests under way finish for a while, then closes what is left. Ends once. */
  stop(): Promise<void>;
  isStopping(): boolean;
  /** `http://127.0.0.1:2381`, with the port really bound; undefined while nothing is. */
  url(): string | undefined;
}

/** All in milliseconds. */
export interface TimeLimits {
  /** For the whole header, and for the whole request: a caller that dribbles is answered 408 and closed. */
  readonly headers: number;
  readonly request: number;
  /** How often those two are looked at. */
  readonly check: number;
  /** Longer than the idle time of usual clients' pools, so that they close first and never write into a closing socket. */
  readonly keepAlive: number;
  /** A socket on which nothing moves is closed, even while an answer waits: the bound on every handler. */
  readonly idle: number;
  /** For requests under way when the service stops. */
  readonly stop: number;
}

const usualLimits: TimeLimits = {
  headers: 10_000,
  request: 60_000,
  check: 2_000,
  keepAlive: 75_000,
  idle: 120_000,
  stop: 5_000,
};

export function createHttpServer(
  host: Host,
  options: ServerOptions,
  handle: RequestListener,
  limits: TimeLimits = usualLimits,
): HttpServer {
  const { log, clock } = host;
  const refused = host.metrics
    .counter("sluice_http_connections_refused_total", "HTTP connections closed on arrival: maxConnections were open.")
    .with({});
  const server = createServer({ connectionsCheckingInterval: limits.check }, handle);
  server.headersTimeout = limits.headers;
  server.requestTimeout = limits.request;
  server.keepAliveTimeout = limits.keepAlive;
  server.timeout = limits.idle;
  server.maxConnections = options.maxConnections;
  server.on("drop", () => refused.inc());
  // The reader of the body says "continue", or 413 before a byte of it was sent.
  server.on("checkContinue", handle);
  let stopping: Promise<void> | undefined;
  let bound: string | undefined;

  function listen(): Promise<void> {
    return new Promise((resolve, reject) => {
      const fail = (error: NodeJS.ErrnoException): void => reject(bindError(error, options));
      server.once("error", fail);
      server.listen({ host: options.host, port: options.port }, () => {
        server.off("error", fail);
        server.on("error", (error) => log.error({ err: error }, "the HTTP server has a problem"));
        resolve();
      });
    });
  }

  function close(): Promise<void> {
    return new Promise((resolve) => {
      const timer = clock.setTimeout(() => server.closeAllConnections(), limits.stop);
      // Closes the idle connections too; an answer under way ends its own.
      server.close(() => {
        timer.clear();
        resolve();
      });
    });
  }

  return {
    async start() {
      await listen();
      // A start that took too long may have been given up.
      if (stopping) return close();
      const address = server.address();
      if (address === null || typeof address === "string") throw new Error("the HTTP server has no address");
      bound = `http://${address.family === "IPv6" ? `[${address.address}]` : address.address}:${address.port}`;
      log.info({ url: bound }, `HTTP API at ${bound}`);
      if (!isLoopback(address.address)) {
        log.warn({ url: bound }, "the HTTP API can be reached from other machines and asks for no credentials");
      }
    },
    stop() {
      bound = undefined;
      return (stopping ??= server.listening ? close() : Promise.resolve());
    },
    isStopping: () => stopping !== undefined,
    url: () => bound,
  };
}

function isLoopback(address: string): boolean {
  return address === "::1" || address.startsWith("127.") || address.startsWith("::ffff:127.");
}

function bindError(error: NodeJS.ErrnoException, { host, port }: ServerOptions): Error {
  const advice: Record<string, string> = {
    EADDRINUSE: "the port is in use; stop what uses it, or set another `port`",
    EACCES: "this user may not bind the port; set a `port` above 1023",
    EADDRNOTAVAIL: "this machine has no such address; set another `host`",
    ENOTFOUND: "the name can't be resolved; set another `host`",
  };
  const why = advice[error.code ?? ""] ?? error.message;
  return new Error(`AdminAPI can't listen on ${host}:${port} (${error.code ?? "error"}): ${why}`, { cause: error });
}
