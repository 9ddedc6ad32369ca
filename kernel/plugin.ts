/**
 * The plugin API: types only, so that a plugin needs no runtime import of the kernel and two copies of it can't clash.
 * Its version, which `engines.sluice` of a plugin's package.json is matched against, is {@link apiVersion} in registry.ts.
 */
import type { X509Certificate } from "node:crypto";

/** The packets that a rule can route to a pipeline. `Disconnect` also runs for a connection that ends without one. */
export type PacketType = "Connect" | "Publish" | "Subscribe" | "Unsubscribe" | "Disconnect";

export type QoS = 0 | 1 | 2;

/** An application message: what is delivered to subscribers. */
export interface Message {
  /** A topic name: 1 to 65,535 bytes of UTF-8, no wildcards, no U+0000. */
  topic: string;
  payload: Buffer;
  qos: QoS;
  retain: boolean;
}

/** Why a filter refuses. The camelCase names are MQTT 5's; the kernel maps them to what the client's version knows. */
export type Reason =
  | "unspecifiedError"
  | "implementationSpecificError"
  | "protocolError"
  | "malformedPacket"
  | "clientIdentifierNotValid"
  | "badUserNameOrPassword"
  | "notAuthorized"
  | "serverUnavailable"
  | "serverBusy"
  | "banned"
  | "topicFilterInvalid"
  | "topicNameInvalid"
  | "packetTooLarge"
  | "quotaExceeded"
  | "payloadFormatInvalid"
  | "connectionRateExceeded";

export interface ConnectPacket {
  readonly clientId: string;
  readonly username: string | undefined;
  readonly password: Buffer | undefined;
  readonly clean: boolean;
  /** Seconds; 0 = none. */
  readonly keepalive: number;
  readonly will: Message | undefined;
}

/** `topic`, `payload` and `qos` may be replaced; in brokerMode subscribers get what the pipeline left. */
export interface PublishPacket {
  topic: string;
  payload: Buffer;
  qos: QoS;
  readonly retain: boolean;
  readonly dup: boolean;
  /** 1-65535; undefined at QoS 0, for a will and for presence. */
  readonly packetId: number | undefined;
}

export interface SubscribePacket {
  readonly packetId: number;
  /** Setting `refused` answers 0x80 for this topic filter alone; `qos` may be lowered. */
  readonly subscriptions: { readonly topicFilter: string; qos: QoS; refused: boolean }[];
}

export interface UnsubscribePacket {
  readonly packetId: number;
  readonly topicFilters: readonly string[];
}

export interface DisconnectPacket {
  /** False where the connection ended without a DISCONNECT: lost, timed out, taken over, removed or refused. */
  readonly graceful: boolean;
}

/** The remote party of one connection; the same object for all its packets. */
export interface Client {
  readonly id: string;
  readonly username: string | undefined;
  /** The peer's IP address. */
  readonly address: string;
  /** 3 = MQTT 3.1, 4 = MQTT 3.1.1. */
  readonly protocolVersion: number;
  /** The client's TLS certificate, where one was asked for. */
  readonly certificate: X509Certificate | undefined;
  /** Lives as long as the connection; shared by all filters, so prefix keys with your plugin's name. */
  readonly data: Map<string, unknown>;
}

interface ContextOf<T extends PacketType, P> {
  readonly type: T;
  /** `will`: a Publish that the client left behind. `presence`: one that the gateway makes, of a client that came or went. */
  readonly origin: "client" | "will" | "presence";
  readonly packet: P;
  readonly client: Client;
  /** Lives for one packet's run through its pipeline: how filters hand values on. `PIPELINE` holds the pipeline's `data`. */
  readonly data: Map<string, unknown>;
  /** Aborts when the run's deadline has passed: stop what you are waiting for. */
  readonly signal: AbortSignal;
  /** A policy: discard the packet (Publish: acked and counted; Connect: refused; Subscribe: 0x80). */
  drop(): void;
  /** A verdict that no retry can change (Connect: CONNACK 4 or 5; Publish: acked and counted; Subscribe: 0x80). */
  reject(reason: Reason): void;
  /** Close the connection without an ack (Connect: refuse with the reason). */
  disconnect(reason: Reason): void;
}

export type ConnectContext = ContextOf<"Connect", ConnectPacket>;
export type PublishContext = ContextOf<"Publish", PublishPacket>;
export type SubscribeContext = ContextOf<"Subscribe", SubscribePacket>;
export type UnsubscribeContext = ContextOf<"Unsubscribe", UnsubscribePacket>;
export type DisconnectContext = ContextOf<"Disconnect", DisconnectPacket>;

/** What a filter is given; `ctx.type` tells which packet it holds. */
export type FilterContext = ConnectContext | PublishContext | SubscribeContext | UnsubscribeContext | DisconnectContext;

/** Nothing (go on), or the name of a declared result (`jumpIf` decides; without one the pipeline ends as design.md's table says). */
export type FilterResult = string | void | undefined;

/** An instance of a filter kind: one use of it in one pipeline of the config. */
export interface Filter {
  /**
   * Called in the order a connection's packets came. *Return* what a retry can't mend (a declared result), *throw* (or
   * reject) what it can: a throw withholds the ack. Answer synchronously where possible, which costs no promise.
   */
  handle(ctx: FilterContext): FilterResult | Promise<FilterResult>;
  /**
   * A config change replaces `previous`, of the same kind and name, by this instance: take over what need not be opened
   * anew. Called once all that is new is built, before the first `handle`; packets under way still finish in `previous`,
   * which is closed after them. A throw is logged and changes nothing.
   */
  adopt?(previous: Filter): void;
  /** Called once, after the last `handle` has settled or its deadline has passed. */
  close?(): void | Promise<void>;
  health?(): Health;
}

export interface Health {
  readonly ok: boolean;
  /** One line without secrets: what is wrong, or what it is connected to. */
  readonly detail?: string;
}

/** The default export of a filter's entry. */
export interface FilterKind<C = unknown> {
  readonly kind: string;
  readonly packets: readonly PacketType[];
  /** Every result name that `handle` may return. */
  readonly results: readonly string[];
  /** Results that are verdicts: an unhandled one acks and discards a PUBLISH, where any other is a fault (no ack). */
  readonly discards?: readonly string[];
  /** The filter keeps the order of a connection's packets itself, so the next one need not wait in front of it. */
  readonly concurrent?: boolean;
  /** What a schema can't say (does a pattern compile?), without I/O. Only called with options that passed the schema. */
  validate?(config: C): readonly FieldProblem[];
  /**
   * `config` has passed the kind's schema and `validate`, with defaults applied, without `name` and `kind`. Do not wait
   * for systems outside: a filter is built while they are away, and connects when they come.
   */
  create(config: C, host: Host): Filter | Promise<Filter>;
}

/** An instance of a service kind: what runs beside the pipelines. */
export interface Service {
  /**
   * A config change replaces `previous`, of the same kind and name: note what this instance will take over when `previous`
   * is stopped, which is after the change has been made. Called before `start`; the change may still be given up, and then
   * this instance is stopped and `previous` goes on.
   */
  adopt?(previous: Service): void;
  start?(): void | Promise<void>;
  stop?(): void | Promise<void>;
  health?(): Health;
}

/** The default export of a service's entry. */
export interface ServiceKind<C = unknown> {
  readonly kind: string;
  /** What a schema can't say (does a pattern compile?), without I/O. Only called with options that passed the schema. */
  validate?(config: C): readonly FieldProblem[];
  create(config: C, host: Host): Service | Promise<Service>;
}

/** What `validate` finds: which field of the options, what is wrong and what to do. */
export interface FieldProblem {
  /** Path inside the options: `["policies", 0, "topicIndex"]`. */
  readonly field: readonly (string | number)[];
  readonly message: string;
}

/** The default export of a command's entry (manifest `commands`): `sluice <command> ...args`. Returns the exit code. */
export interface Command {
  readonly summary: string;
  /** Printed by `--help`: usage, options, exit codes, an example. */
  readonly help: string;
  run(args: readonly string[], io: CommandIo): Promise<number>;
}

export interface CommandIo {
  readonly stdin: NodeJS.ReadableStream;
  readonly stdout: NodeJS.WritableStream;
  readonly stderr: NodeJS.WritableStream;
  readonly env: NodeJS.ProcessEnv;
  /** True where stdout is a terminal and NO_COLOR is not set. */
  readonly colors: boolean;
  /** Aborts on SIGINT and SIGTERM. */
  readonly signal: AbortSignal;
  /**
   * The config as `sluice run` would take it, each filter's options with defaults applied: of `from` (a file or folder), else found as `run` finds it.
   * Rejects with an error whose message lists every problem.
   */
  loadConfig(from?: string): Promise<LoadedConfig>;
}

export interface LoadedConfig {
  /** The file or folder it came from, absolute. */
  readonly path: string;
  /** The folder that relative paths in the config are relative to. */
  readonly folder: string;
  readonly documents: readonly ConfigDocument[];
}

/** One YAML document after substitution and defaults. `${file:...}` and other secrets are marked, never printed. */
export interface ConfigDocument {
  readonly kind: string;
  readonly name: string;
  readonly [field: string]: unknown;
}

export interface Logger {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface Counter {
  inc(labels?: Record<string, string>, by?: number): void;
  /** One series with its labels fixed: take it once, use it on the hot path. */
  with(labels: Record<string, string>): { inc(by?: number): void };
}
export interface Gauge {
  set(labels: Record<string, string>, value: number): void;
}
export interface Histogram {
  observe(labels: Record<string, string>, value: number): void;
  with(labels: Record<string, string>): { observe(value: number): void };
}

/** Asking again for a name returns the metric that exists. Names: `sluice_<noun>_<unit>_total`. */
export interface Metrics {
  counter(name: string, help: string, labels?: readonly string[]): Counter;
  /** `collect` is called at each scrape, to set what is cheaper to read than to keep; it ends with the host's signal. */
  gauge(name: string, help: string, labels?: readonly string[], collect?: (gauge: Gauge) => void): Gauge;
  /** Buckets in seconds unless the name says otherwise. */
  histogram(name: string, help: string, labels?: readonly string[], buckets?: readonly number[]): Histogram;
  /** The whole registry in Prometheus' text format. */
  text(): Promise<string>;
  readonly contentType: string;
}

export interface Clock {
  /** Milliseconds since the epoch. */
  now(): number;
  setTimeout(callback: () => void, ms: number): { clear(): void };
}

export interface PublishOutcome {
  /** Sessions with a matching subscription, connected or not. */
  readonly matched: number;
  readonly connected: number;
  /** True once the message is as safe as the store makes it. */
  readonly durable: boolean;
}

export interface SessionInfo {
  readonly clientId: string;
  readonly connected: boolean;
  readonly clean: boolean;
  readonly username: string | undefined;
  readonly address: string | undefined;
  /** Milliseconds since the epoch of the last connect. */
  readonly connectedAt: number;
  readonly subscriptions: readonly { readonly topicFilter: string; readonly qos: QoS }[];
  readonly queued: number;
  readonly inflight: number;
}

export interface ProxyHandle {
  readonly name: string;
  readonly sessions: {
    /** All sessions of this proxy, sorted by client id. */
    query(): Promise<readonly SessionInfo[]>;
    /** Closes the client's connection, if any, and forgets its session. False where there was none. */
    remove(clientId: string): Promise<boolean>;
  };
  /** What `GET /status/objects` shows of it. */
  status(): Record<string, unknown>;
}

export interface KindInfo {
  readonly kind: string;
  readonly family: "filter" | "service" | "kernel";
  /** The package that brings it, name and version; the kernel's own for its kinds. */
  readonly package: string;
  readonly version: string;
  readonly description: string;
  /** JSON Schema of its options. */
  readonly schema: object;
  /** Known once the kind is loaded, that is, named by the config. */
  readonly results?: readonly string[];
  readonly packets?: readonly PacketType[];
}

/** What a change of the config does to one object. */
export interface PlanItem {
  /** MQTTProxy, Pipeline, Gateway, or the kind of a filter or service. */
  readonly kind: string;
  /** Of a filter: `pipeline/filter`. */
  readonly name: string;
  readonly action: "keep" | "build" | "change" | "drop";
  /** Of a change: the options that differ. */
  readonly fields: readonly string[];
  /** What does not take effect at once, in words: "for new connections: maxInflight". */
  readonly notes: readonly string[];
}

export interface Plan {
  readonly items: readonly PlanItem[];
  /** Nothing is built, changed or dropped. */
  readonly isEmpty: boolean;
}

/** Documents to create or replace (by kind and name) and to remove, in one go. */
export interface ConfigChange {
  /**
   * As they are to be written, `${...}` included. A field that reads `***` where the running document shows a secret keeps
   * what is written there now.
   */
  readonly put?: readonly ConfigDocument[];
  /** Without `kind`, the one document of this name. */
  readonly remove?: readonly { readonly kind?: string; readonly name: string }[];
}

export interface ChangeOptions {
  /** Who asks, for the history. */
  readonly by: string;
  /** Work the change out and make none. */
  readonly dryRun?: boolean;
  /** CONFIG_CONFLICT unless this version runs. */
  readonly ifVersion?: number;
}

export interface ConfigResult {
  /** The running version after the change; of a dry run, the one that runs. */
  readonly version: number;
  readonly plan: Plan;
  /** What runs after it, or of a dry run would: defaults applied, secrets replaced by `***`. */
  readonly documents: readonly ConfigDocument[];
  readonly warnings: readonly { readonly where: string; readonly message: string }[];
}

export interface HistoryEntry {
  readonly version: number;
  /** `start`, `file`, `signal`, or what {@link Host.config}'s caller gave. */
  readonly by: string;
  /** Milliseconds since the epoch. */
  readonly at: number;
  /** `change MQTTProxy mqttproxy (brokerMode)`: what was built, changed and dropped. */
  readonly changed: readonly string[];
}

/** How the config is changed from inside: what `config` of a {@link Host} has beside reading. */
export interface ConfigControl {
  /**
   * All or nothing: validates, plans, and unless `dryRun` applies the change and writes it to the config's files, which
   * remain the one truth. Rejects, with nothing changed, with an error whose `code` is CONFIG_INVALID (its `problems`,
   * `{where, message}[]`, lists all), CONFIG_CONFLICT (`ifVersion` is not the running version, or a file has just been
   * edited), CONFIG_READ_ONLY (the files can't be written), CONFIG_NOT_FOUND (there is nothing to remove), or why the
   * new parts could not be built: FILTER_CREATE_FAILED, SERVICE_START_FAILED, LISTEN_FAILED, PLUGIN_START_TIMEOUT.
   */
  apply(change: ConfigChange, o: ChangeOptions): Promise<ConfigResult>;
  /** Newest first; as many as the Gateway document's `history` says, since the start. */
  history(): readonly HistoryEntry[];
  /**
   * Writes and applies, as a new version, the files' text that ran as `version`; what they refer to (certificates,
   * `${file:...}`) stays as it is now. Rejects as {@link apply}; CONFIG_NOT_FOUND where the history has no such version.
   */
  rollback(version: number, o: ChangeOptions): Promise<ConfigResult>;
}

export interface ObjectHealth extends Health {
  /** `pipeline/filter`, or a service's or proxy's name. */
  readonly name: string;
}

/** What a filter or service is handed. Everything the bundled plugins use is here: they have no private door. */
export interface Host {
  /** The name of the document, or for a filter `pipeline/filter`. */
  readonly name: string;
  /** Folder of the config: relative paths in options are resolved against it. */
  readonly folder: string;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly clock: Clock;
  /** Aborts when this instance is closed. */
  readonly signal: AbortSignal;
  /** To a proxy's subscribers, past its pipelines. Rejects for an unknown proxy or an illegal topic (`code` says which). */
  publish(proxy: string, message: Message): Promise<PublishOutcome>;
  readonly proxies: {
    get(name: string): ProxyHandle | undefined;
    list(): readonly ProxyHandle[];
  };
  readonly config: ConfigControl & {
    /** The running documents with defaults applied, secrets replaced by `***`. */
    documents(): readonly ConfigDocument[];
    /** Counts changes since start. */
    version(): number;
  };
  kinds(): readonly KindInfo[];
  /** Of every filter, service and proxy. */
  health(): readonly ObjectHealth[];
  /** Product name, version, Node version, start time in milliseconds since the epoch. */
  about(): { name: string; version: string; node: string; startedAt: number };
  /** The log level of the whole gateway: trace, debug, info, warn, error, fatal. */
  readonly logLevel: { get(): string; set(level: string): void };
  /** Resolves when every listener is bound and every service has started. */
  readonly ready: Promise<void>;
  isReady(): boolean;
  /** Asks the gateway to stop as SIGTERM does: clients are closed in turn, what is under way is finished. Returns at once. */
  drain(): void;
}
