/** The addresses that a proxy listens on, from its options: its own host and port, and its `listeners`. */
import { resolve } from "node:path";
import { readCertificates, readClientCA, type Reading } from "./certificates.ts";
import { isMap, type Entry, type Options } from "./entry.ts";
import type { Path } from "./schema.ts";
import type { Address, CertificatePair, ListenerSpec, TlsSpec, WebSocketSpec } from "./spec.ts";

/** The name of the one that a proxy's own `host` and `port` make. */
const ownName = "default";

const standardPath = "/mqtt";
const standardMode = "0600";

/** Options that mean something with TLS only. */
const tlsOptions = ["clientCA", "clientCAFile", "clientCertificate", "usernameFrom"] as const;

export interface ReadListener {
  readonly spec: ListenerSpec;
  readonly proxy: Entry;
  /** Of the option that says the address. */
  readonly path: Path;
}

/** Listeners with a problem that leaves no address are left out. Options may not have passed the schema. */
export function readListeners(proxy: Entry, reading: Reading): ReadListener[] {
  const { options } = proxy;
  const listed = Array.isArray(options["listeners"]) ? options["listeners"].filter(isMap) : [];
  const ofProxy = shared(proxy, reading);
  const own = readOwn(proxy, ofProxy, reading, listed.length);
  const names = new Set(own ? [ownName] : []);
  const read = listed.flatMap((item, index) => {
    const path = ["listeners", index];
    const name = typeof item["name"] === "string" ? item["name"] : "";
    if (names.has(name)) {
      const other = own && name === ownName ? "is the name of the proxy's own host and port" : "is taken already";
      reading.found.problem(proxy.where([...path, "name"]), `"${name}" ${other}: choose another`);
    }
    names.add(name);
    return readOne(proxy, item, path, ofProxy, reading) ?? [];
  });
  const all = own ? [own, ...read] : read;
  if (!all.some(({ spec }) => spec.tls)) refuseTlsOptions(proxy, options, [], "set useTLS", reading);
  return all;
}

/** What listeners take from their proxy where they have none of their own; read once, and only if it is needed. */
interface Shared {
  certificates(): readonly CertificatePair[];
  clientCA(): string | undefined;
}

function shared(proxy: Entry, reading: Reading): Shared {
  let certificates: CertificatePair[] | undefined;
  let clientCA: { readonly text: string | undefined } | undefined;
  return {
    certificates: () =>
      (certificates ??= readCertificates(proxy, proxy.options["certificate"], ["certificate"], reading)),
    clientCA: () => (clientCA ??= { text: readClientCA(proxy, proxy.options, [], reading) }).text,
  };
}

function readOwn(proxy: Entry, ofProxy: Shared, reading: Reading, listed: number): ReadListener | undefined {
  const { options } = proxy;
  const { found } = reading;
  const { host, port, useTLS } = options;
  if (port === undefined) {
    if (listed === 0) {
      const advice = "give the TCP port for MQTT clients (1883 by custom, 8883 with TLS), or listeners";
      found.problem(proxy.where(["port"]), `is missing: ${advice}`);
    } else if (host !== undefined || useTLS === true) {
      const field = host === undefined ? "useTLS" : "host";
      found.problem(proxy.where([field]), "belongs to port, which is not given: move it into listeners");
    }
    return undefined;
  }
  if (typeof port !== "number") return undefined;
  const tls = useTLS === true ? readTls(proxy, options, [], "useTLS", ofProxy, reading) : undefined;
  return {
    proxy,
    path: ["port"],
    spec: {
      name: ownName,
      address: { host: typeof host === "string" ? host : undefined, port },
      proxyProtocol: options["proxyProtocol"] === true,
      tls,
      webSocket: undefined,
    },
  };
}

function readOne(proxy: Entry, item: Options, path: Path, ofProxy: Shared, reading: Reading): ReadListener | undefined {
  const { found } = reading;
  const problem = (field: string, message: string) => found.problem(proxy.where([...path, field]), message);
  const { protocol, host, port, socket, mode } = item;
  const isTls = protocol === "mqtts" || protocol === "wss";
  const isWebSocket = protocol === "ws" || protocol === "wss";
  if (port === undefined && socket === undefined) problem("port", "is missing: give port, or socket");
  if (port !== undefined && socket !== undefined) problem("socket", "is given beside port: keep one of them");
  if (host !== undefined && socket !== undefined) problem("host", "belongs to a port: a unix socket has none");
  if (mode !== undefined && socket === undefined) problem("mode", "belongs to a socket: a port has no permissions");
  for (const field of isWebSocket ? [] : ["path", "origins"]) {
    const value = item[field];
    if (value !== undefined && !(Array.isArray(value) && value.length === 0))
      problem(field, "is for ws and wss: remove it, or set protocol");
  }
  if (isTls && socket !== undefined)
    problem("protocol", `is ${protocol}, which a unix socket has no use for: set mqtt or ws`);
  if (!isTls) {
    refuseTlsOptions(proxy, item, path, "set protocol to mqtts or wss", reading);
    if (Array.isArray(item["certificate"]) && item["certificate"].length > 0)
      problem("certificate", "is for TLS: set protocol to mqtts or wss");
  }
  const address = addressOf(item, reading.folder);
  if (address === undefined) return undefined;
  return {
    proxy,
    path: [...path, socket === undefined ? "port" : "socket"],
    spec: {
      name: typeof item["name"] === "string" ? item["name"] : "",
      address,
      proxyProtocol: item["proxyProtocol"] === true,
      tls: isTls ? readTls(proxy, item, path, "protocol", ofProxy, reading) : undefined,
      webSocket: isWebSocket ? webSocketOf(item) : undefined,
    },
  };
}

function webSocketOf({ path, origins }: Options): WebSocketSpec {
  return {
    path: typeof path === "string" ? path : standardPath,
    origins: Array.isArray(origins) ? origins.map((origin) => String(origin).toLowerCase()) : [],
  };
}

function addressOf({ host, port, socket, mode }: Options, folder: string): Address | undefined {
  if (typeof socket === "string") {
    return { socket: resolve(folder, socket), mode: parseInt(typeof mode === "string" ? mode : standardMode, 8) };
  }
  return typeof port === "number" ? { host: typeof host === "string" ? host : undefined, port } : undefined;
}

/** @param switchedBy the option that asks for TLS */
function readTls(
  proxy: Entry,
  item: Options,
  path: Path,
  switchedBy: string,
  ofProxy: Shared,
  reading: Reading,
): TlsSpec {
  const { found } = reading;
  const listed = item["certificate"];
  const isOwn = path.length > 0 && Array.isArray(listed) && listed.length > 0;
  const certificate = isOwn
    ? readCertificates(proxy, listed, [...path, "certificate"], reading)
    : ofProxy.certificates();
  const isListed = isOwn || (Array.isArray(proxy.options["certificate"]) && proxy.options["certificate"].length > 0);
  if (!isListed) {
    const value = item[switchedBy] === true ? "true" : String(item[switchedBy]);
    found.problem(
      proxy.where([...path, switchedBy]),
      `is ${value}, but there is no certificate: give at least one under certificate`,
    );
  }
  const hasCA = (options: Options): boolean =>
    options["clientCA"] !== undefined || options["clientCAFile"] !== undefined;
  const isCAGiven = hasCA(item) || hasCA(proxy.options);
  const inherited = (field: string): unknown => item[field] ?? proxy.options[field];
  const asked = (inherited("clientCertificate") ?? (isCAGiven ? "require" : "none")) as TlsSpec["clientCertificate"];
  const from = (inherited("usernameFrom") ?? "none") as TlsSpec["usernameFrom"];
  const at = (field: string): Path => (item[field] === undefined ? [field] : [...path, field]);
  if (asked !== "none" && !isCAGiven) {
    const advice = "give the authorities that issue the clients' certificates under clientCA or clientCAFile";
    found.problem(proxy.where(at("clientCertificate")), `is ${asked}, but there is no clientCA: ${advice}`);
  }
  if (from !== "none" && (!isCAGiven || (asked === "none" && item["usernameFrom"] !== undefined))) {
    found.problem(proxy.where(at("usernameFrom")), "needs client certificates: give a clientCA");
  }
  return {
    certificate,
    clientCA:
      !isCAGiven || asked === "none"
        ? undefined
        : hasCA(item)
          ? readClientCA(proxy, item, path, reading)
          : ofProxy.clientCA(),
    clientCertificate: asked,
    usernameFrom: asked === "none" ? "none" : from,
  };
}

/** Whoever asks for client certificates must not get a listener that asks for none. */
function refuseTlsOptions(proxy: Entry, options: Options, path: Path, advice: string, { found }: Reading): void {
  for (const field of tlsOptions) {
    const value = options[field];
    if (value !== undefined && value !== "none") found.problem(proxy.where([...path, field]), `is for TLS: ${advice}`);
  }
}
