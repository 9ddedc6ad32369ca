/** One bound address with bounds on everything a caller could drag out. It outlives the AdminAPI that opened it. */
import { createServer } from "node:http";
import type { RequestListener, Server } from "node:http";
import { createServer as createSecureServer } from "node:https";
import type { Host } from "@sluice/kernel";

export interface Tls {
  /** PEM, as is all here. */
  readonly cert: string;
  readonly key: string;
  readonly clientCA?: string;
}

export interface DoorOptions {
  readonly host: string;
  readonly port: number;
  readonly maxConnections: number;
  readonly tls?: Tls;
}

/** Who answers behind a door: the one that has been there longest. */
export interface Tenant {
  readonly options: DoorOptions;
  readonly handle: RequestListener;
  /** From now on its answers must end their connection. */
  end(): void;
}

export interface Door {
  /** Binds; rejects with an error that names the address. */
  listen(): Promise<void>;
  /** Will answer when all who came earlier have left. */
  enter(tenant: Tenant): void;
  /**
   * Requests that the tenant has begun to answer stay its own. Where another one waits, it answers from now on, with the
   * address and the connections as they are. Else the door is closed: no new connections, requests under way get a
   * while, then what is left is closed.
   */
  leave(tenant: Tenant): Promise<void>;
  /** `http://127.0.0.1:2381`, with the port really bound. */
  url(): string;
}

/** All in milliseconds. */
export interface TimeLimits {
  /** For the TLS handshake, the whole header, and the whole request: a caller that dribbles is closed (408). */
  readonly headers: number;
  readonly request: number;
  /** How often those two are looked at. */
  readonly check: number;
  /** Longer than the idle time of usual clients' pools, so that they close first and never write into a closing socket. */
  readonly keepAlive: number;
  /** A socket on which nothing moves is closed, even while an answer waits: the bound on every handler. */
  readonly idle: number;
  /** For requests under way when the door is closed. */
  readonly stop: number;
}

export const usualLimits: TimeLimits = {
  headers: 10_000,
  request: 60_000,
  check: 2_000,
  keepAlive: 75_000,
  idle: 120_000,
  stop: 5_000,
};

/** What of the options can't change behind an open door: a listening server knows only one kind of connection. */
export const modeOf = ({ tls }: DoorOptions): string =>
  tls === undefined ? "http" : tls.clientCA === undefined ? "https" : "https with client certificates";

export function createDoor({ log, metrics, clock }: Host, first: Tenant, limits: TimeLimits): Door {
  const { options } = first;
  const tenants = [first];
  let current = first;
  // Called by name, so that a request is answered by whoever is current when it comes.
  const handle: RequestListener = (req, res) => current.handle(req, res);
  const server = options.tls
    ? createSecureServer({ ...secureContext(options.tls), ...secureMode(options.tls, limits) }, handle)
    : createServer({ connectionsCheckingInterval: limits.check }, handle);
  const refused = metrics
    .counter("sluice_http_connections_refused_total", "HTTP connections closed on arrival: maxConnections were open.")
    .with({});
  server.headersTimeout = limits.headers;
  server.requestTimeout = limits.request;
  server.keepAliveTimeout = limits.keepAlive;
  server.timeout = limits.idle;
  server.maxConnections = options.maxConnections;
  server.on("drop", () => refused.inc());
  server.on("tlsClientError", (error: Error) => log.debug({ err: error }, "a TLS handshake with the HTTP API failed"));
  // The reader of the body says "continue", or 413 before a byte of it was sent.
  server.on("checkContinue", handle);

  function serve(next: Tenant): void {
    const [old, wanted] = [current.options.tls, next.options.tls];
    server.maxConnections = next.options.maxConnections;
    if (wanted && "setSecureContext" in server) server.setSecureContext(secureContext(wanted));
    if (old?.clientCA !== wanted?.clientCA) {
      // The connections that are open were let in by certificates which may be good no more.
      current.end();
      server.closeIdleConnections();
    }
    current = next;
  }

  return {
    listen() {
      return new Promise((resolve, reject) => {
        const fail = (error: NodeJS.ErrnoException): void => reject(bindError(error, options));
        server.once("error", fail);
        server.listen({ host: options.host, port: options.port }, () => {
          server.off("error", fail);
          server.on("error", (error) => log.error({ err: error }, "the HTTP server has a problem"));
          resolve();
        });
      });
    },
    enter: (tenant) => void tenants.push(tenant),
    leave(tenant) {
      tenants.splice(tenants.indexOf(tenant), 1);
      const [next] = tenants;
      if (!next) {
        tenant.end();
        return close(server, clock, limits.stop);
      }
      if (tenant === current) serve(next);
      return Promise.resolve();
    },
    url: () => urlOf(server, options),
  };
}

const secureContext = ({ cert, key, clientCA }: Tls) => ({
  cert,
  key,
  ...(clientCA !== undefined && { ca: clientCA }),
});

const secureMode = ({ clientCA }: Tls, limits: TimeLimits) => ({
  connectionsCheckingInterval: limits.check,
  handshakeTimeout: limits.headers,
  minVersion: "TLSv1.2" as const,
  requestCert: clientCA !== undefined,
  rejectUnauthorized: true,
});

function close(server: Server, clock: Host["clock"], ms: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = clock.setTimeout(() => server.closeAllConnections(), ms);
    // Closes the idle connections too; an answer under way ends its own.
    server.close(() => {
      timer.clear();
      resolve();
    });
  });
}

function urlOf(server: Server, { tls }: DoorOptions): string {
  const bound = server.address();
  if (bound === null || typeof bound === "string") throw new Error("the HTTP server has no address");
  const name = bound.family === "IPv6" ? `[${bound.address}]` : bound.address;
  return `${tls ? "https" : "http"}://${name}:${bound.port}`;
}

function bindError(error: NodeJS.ErrnoException, { host, port }: DoorOptions): Error {
  const advice: Record<string, string> = {
    EADDRINUSE: "the port is in use; stop what uses it, or set another `port` in an AdminAPI document",
    EACCES: "this user may not bind the port; set a `port` above 1023",
    EADDRNOTAVAIL: "this machine has no such address; set another `host`",
    ENOTFOUND: "the name can't be resolved; set another `host`",
  };
  const why = advice[error.code ?? ""] ?? error.message;
  return new Error(`AdminAPI can't listen on ${host}:${port} (${error.code ?? "error"}): ${why}`, { cause: error });
}
