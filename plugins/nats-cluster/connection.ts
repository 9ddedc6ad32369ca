/**
 * The connection to the NATS servers: found again for as long as it takes, with callbacks that can't harm it. The only
 * importer of @nats-io/transport-node.
 */
import {
  AuthorizationError,
  connect,
  credsAuthenticator,
  nkeys,
  nkeyAuthenticator,
  TimeoutError,
  tokenAuthenticator,
  usernamePasswordAuthenticator,
  type Authenticator,
  type ConnectionOptions,
  type Msg,
  type MsgHdrs,
  type NatsConnection,
} from "@nats-io/transport-node";
import type { Clock, Logger } from "@sluice/kernel";
import type { Credentials } from "./config.ts";

/** A message as it came, its parts not read yet. */
export type Incoming = Msg;

export interface Connection {
  /** A server answers; false also before the first has. */
  readonly isUp: boolean;
  /** Of the last server that answered, or undefined before the first. */
  readonly server: { readonly version: string; readonly maxPayload: number; readonly name: string } | undefined;
  /** Why there is no connection, in words. */
  readonly problem: string | undefined;
  /** For what needs the library's own object. Undefined before the first server has answered. */
  readonly raw: NatsConnection | undefined;
  /**
   * Goes out with what else is sent in this turn. Answers false, and nothing was sent, where there is no connection.
   * @param head a NATS header block, `NATS/1.0\r\n` and the empty line included
   */
  publish(subject: string, payload: Uint8Array, reply?: string, head?: Buffer): boolean;
  /** Lasts over lost connections. What the callback throws is logged. */
  subscribe(subject: string, callback: (message: Incoming) => void): () => void;
  /** Resolves once the server has seen all that was sent before. Rejects where the connection is lost meanwhile. */
  flush(): Promise<void>;
  /** Bytes handed to the socket since the server has last answered a flush: what may wait in memory. */
  readonly unflushedBytes: number;
  /** Called after each change of `isUp`. */
  onChange(changed: (isUp: boolean) => void): void;
  close(): Promise<void>;
}

export interface ConnectionConfig {
  readonly servers: readonly string[];
  readonly name: string;
  readonly credentials: Credentials;
  readonly tls: { readonly ca?: string; readonly cert?: string; readonly key?: string } | undefined;
}

/** A server that answers no ping is left after at most three of these. */
const pingIntervalMs = 2000;
const reconnectMs = 250;
const connectTimeoutMs = 5000;
const flushEveryBytes = 1024 * 1024;

export function createConnection(
  config: ConnectionConfig,
  { log, clock, arriving }: { log: Logger; clock: Clock; arriving: () => void },
): Connection & { start(): void } {
  const listeners: ((isUp: boolean) => void)[] = [];
  const pending = new Map<object, { subject: string; callback: (message: Incoming) => void; end?: () => void }>();
  let raw: NatsConnection | undefined;
  let isUp = false;
  let isClosed = false;
  let problem: string | undefined = "no server has answered yet";
  let server: Connection["server"];
  let unflushedBytes = 0;
  let isFlushing = false;
  let retry: { clear(): void } | undefined;

  function changed(up: boolean): void {
    if (isUp === up || isClosed) return;
    isUp = up;
    unflushedBytes = 0;
    for (const listener of listeners) listener(up);
  }

  function met(connection: NatsConnection): void {
    const { info } = connection;
    if (info) server = { version: info.version, maxPayload: info.max_payload, name: info.server_name };
    problem = undefined;
    log.info({ server: connection.getServer(), version: server?.version }, "Connected to NATS");
    changed(true);
  }

  async function dial(): Promise<void> {
    try {
      const connection = await connect(options(config));
      if (isClosed) {
        await connection.close();
        return;
      }
      raw = connection;
      for (const each of pending.values()) each.end = listen(connection, each.subject, each.callback);
      void watch(connection);
      met(connection);
    } catch (error) {
      if (isClosed) return;
      const text = reasonOf(error, config);
      if (problem !== text) {
        log.warn(
          { reason: text, servers: config.servers },
          "NATS can't be reached, or refuses this node; trying again",
        );
      }
      problem = text;
      dialLater();
    }
  }

  function dialLater(): void {
    retry = clock.setTimeout(() => void dial(), reconnectMs * 2);
  }

  async function watch(connection: NatsConnection): Promise<void> {
    for await (const status of connection.status()) {
      if (status.type === "disconnect") {
        problem = `the connection to ${status.server} was lost`;
        log.warn({ server: status.server }, "The connection to NATS was lost");
        changed(false);
      } else if (status.type === "reconnect") {
        met(connection);
      } else if (status.type === "error") {
        log.warn({ err: status.error }, "NATS reported an error");
      }
    }
    // It tries again for ever, but for a library's own fault and for credentials that were refused twice.
    if (isClosed) return;
    changed(false);
    raw = undefined;
    problem = "the connection to NATS ended";
    log.error({}, "The connection to NATS ended; trying again");
    dialLater();
  }

  /** What a callback throws would end the library's reader, and with it every session of the node. */
  function listen(connection: NatsConnection, subject: string, callback: (message: Incoming) => void): () => void {
    const subscription = connection.subscribe(subject, {
      callback(error, message) {
        if (error) {
          log.error({ err: error, subject }, "NATS refused a subscription");
          return;
        }
        try {
          arriving();
          callback(message);
        } catch (thrown) {
          log.error({ err: thrown, subject: message.subject }, "A message from NATS could not be handled");
        }
      },
    });
    return () => subscription.unsubscribe();
  }

  async function flush(): Promise<void> {
    if (!raw || !isUp) throw new Error(problem ?? "there is no connection to NATS");
    const before = unflushedBytes;
    isFlushing = true;
    try {
      await raw.flush();
    } finally {
      isFlushing = false;
    }
    unflushedBytes = Math.max(0, unflushedBytes - before);
  }

  return {
    start: () => void dial(),
    get isUp() {
      return isUp;
    },
    get server() {
      return server;
    },
    get problem() {
      return problem;
    },
    get raw() {
      return raw;
    },
    get unflushedBytes() {
      return unflushedBytes;
    },
    publish(subject, payload, reply, head) {
      if (!raw || !isUp) return false;
      unflushedBytes += payload.length + subject.length;
      if (unflushedBytes > flushEveryBytes && !isFlushing) void flush().catch(() => undefined);
      if (head) raw.publish(subject, payload, { reply: reply ?? "", headers: encoded(head) });
      else if (reply === undefined) raw.publish(subject, payload);
      else raw.publish(subject, payload, { reply });
      return true;
    },
    subscribe(subject, callback) {
      const key = {};
      pending.set(key, { subject, callback, ...(raw ? { end: listen(raw, subject, callback) } : {}) });
      return () => {
        const known = pending.get(key);
        pending.delete(key);
        if (!isClosed) known?.end?.();
      };
    },
    flush,
    onChange(listener) {
      listeners.push(listener);
    },
    async close() {
      isClosed = true;
      isUp = false;
      retry?.clear();
      await raw?.close();
    },
  };
}

/**
 * The header block as it came; undefined = there is none. The library parses all of it into a map at the first look, which
 * takes longer than everything else that a message needs.
 */
export function headOf(message: Incoming): Buffer | undefined {
  const { _msg: parsed, _rdata: data } = message as unknown as { _msg?: { hdr: number }; _rdata?: Uint8Array };
  if (!parsed || !data) {
    const lines = [...(message.headers ?? [])].map(([name, values]) => `${name}: ${values[0]}`);
    return message.headers && Buffer.from(`NATS/1.0\r\n${lines.join("\r\n")}\r\n\r\n`);
  }
  return parsed.hdr > 0 ? Buffer.from(data.buffer, data.byteOffset, parsed.hdr) : undefined;
}

/** The library only ever asks it for its bytes when it is sent. */
function encoded(head: Buffer): MsgHdrs {
  return { encode: () => head } as unknown as MsgHdrs;
}

function options({ servers, name, credentials, tls }: ConnectionConfig): ConnectionOptions {
  const authenticator = authenticatorOf(credentials);
  return {
    servers: [...servers],
    name,
    // What a node publishes is for the others.
    noEcho: true,
    maxReconnectAttempts: -1,
    reconnectTimeWait: reconnectMs,
    reconnectJitter: reconnectMs,
    pingInterval: pingIntervalMs,
    maxPingOut: 2,
    timeout: connectTimeoutMs,
    ignoreAuthErrorAbort: true,
    noAsyncTraces: true,
    ...(authenticator ? { authenticator } : {}),
    ...((tls ?? servers.some((each) => each.startsWith("tls://"))) ? { tls: { ...tls } } : {}),
  };
}

function authenticatorOf({ user, password, token, creds, nkey }: Credentials): Authenticator | undefined {
  if (creds !== undefined) return credsAuthenticator(Buffer.from(creds));
  if (nkey !== undefined) return nkeyAuthenticator(Buffer.from(nkey.trim()));
  if (token !== undefined) return tokenAuthenticator(token);
  if (user !== undefined) return usernamePasswordAuthenticator(user, password);
  return undefined;
}

/** Why there is no connection, with the option to look at; no secrets. */
function reasonOf(error: unknown, { credentials, tls, servers }: ConnectionConfig): string {
  const text = error instanceof Error ? error.message : String(error);
  const isTls = tls !== undefined || servers.some((each) => each.startsWith("tls://"));
  if (error instanceof AuthorizationError) {
    const way = (["creds", "nkey", "token", "user"] as const).find((each) => credentials[each] !== undefined);
    if (way !== undefined) return `the server does not accept this node's \`${way}\` (${text})`;
    return `the server asks for credentials, and NATSCluster has none of user, token, creds and nkey (${text})`;
  }
  if (error instanceof TimeoutError) {
    const wanted =
      tls?.cert === undefined ? "`tls.cert` and `tls.key`" : "another `tls.cert`, of an authority that it trusts";
    return `no answer within ${connectTimeoutMs / 1000} s${isTls ? `; the server may ask for ${wanted}` : ""}`;
  }
  if (!(error instanceof Error && "code" in error && /CERT|SELF_SIGNED|VERIFY|ISSUER/.test(String(error.code))))
    return text;
  return `the server's certificate is not trusted: look at \`tls.ca\`, and address it by a name in the certificate (${text})`;
}

/** What is wrong with credentials that no server has seen yet, by their option; never what they are. */
export function credentialsProblem({
  creds,
  nkey,
}: Credentials): { way: "creds" | "nkey"; problem: string } | undefined {
  if (nkey !== undefined && !isUserSeed(nkey)) {
    return { way: "nkey", problem: "is not the seed of a user's nkey: that begins with SU and has 58 characters" };
  }
  if (creds === undefined) return undefined;
  const [jwt, seed] = [...creds.matchAll(/-{3,}BEGIN [^\n]*-{3,}\s*(\S+)\s*-{3,}END /g)].map(([, text]) => text);
  if (jwt === undefined || seed === undefined) {
    return { way: "creds", problem: "is not what a .creds file has: a user's JWT, and then its seed" };
  }
  if (isUserSeed(seed)) return undefined;
  return { way: "creds", problem: "has a seed that is not a user's: that begins with SU and has 58 characters" };
}

function isUserSeed(seed: string): boolean {
  try {
    return nkeys.fromSeed(Buffer.from(seed.trim())).getPublicKey().startsWith("U");
  } catch {
    return false;
  }
}
