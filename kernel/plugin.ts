/**
 * The plugin API: types only, so that a plugin needs no runtime import of the kernel and two copies of it can't clash.
 * Its version, which `engines.sluice` of a plugin's package.json is matched against, is {@link apiVersion} in registry.ts.
 * What has no `@since` has been there from 1.0.0; docs/plugin-api.md says which change needs which version.
 */
import type { X509Certificate } from "node:crypto";

/** The packets that a rule can route to a pipeline. `Disconnect` also runs for a connection that ends without one. */
export type PacketType = "Connect" | "Publish" | "Subscribe" | "Unsubscribe" | "Disconnect";

export type QoS = 0 | 1 | 2;

/** In their order; a name may come again [MQTT-3.3.2-17]. */
export type UserProperties = readonly (readonly [name: string, value: string])[];

/** The MQTT 5 properties that travel with a message [MQTT-3.3.2]. A publisher of 3.1.1 sets none, its subscriber gets none. */
export interface MessageProperties {
  /** 1 = the payload is UTF-8 text. */
  readonly payloadFormat?: 0 | 1 | undefined;
  /** Seconds that the message is worth delivering; passed on less the time that it waited [MQTT-3.3.2-6]. */
  readonly messageExpiry?: number | undefined;
  readonly contentType?: string | undefined;
  /** A topic name. */
  readonly responseTopic?: string | undefined;
  readonly correlationData?: Buffer | undefined;
  readonly userProperties?: UserProperties | undefined;
}

/** An application message: what is delivered to subscribers. */
export interface Message {
  /** A topic name: 1 to 65,535 bytes of UTF-8, no wildcards, no U+0000. */
  topic: string;
  payload: Buffer;
  qos: QoS;
  retain: boolean;
  properties?: MessageProperties | undefined;
}

/** What a client left to be published when its connection breaks. */
export interface Will extends Message {
  /** Seconds between the end of the connection and the will [MQTT-3.1.3-9]; 0 in 3.1.1. */
  readonly delaySec: number;
}

/** How a client wants to get what matches a topic filter [MQTT-3.8.3.1]; in 3.1.1 all but `qos` are at their zero. */
export interface SubscriptionOptions {
  readonly qos: QoS;
  /** Not what it has published itself. */
  readonly noLocal: boolean;
  /** Messages keep the RETAIN flag that they were published with; else it is cleared. */
  readonly retainAsPublished: boolean;
  /** Retained messages: 0 at each SUBSCRIBE, 1 only where the subscription is new, 2 never. */
  readonly retainHandling: 0 | 1 | 2;
  /** Sent with each message that matches; 0 = none. */
  readonly identifier: number;
}

/** Why a filter refuses. The camelCase names are MQTT 5's; the kernel maps them to what the client's version knows. */
export type Reason =
  | "unspecifiedError"
  | "malformedPacket"
  | "protocolError"
  | "implementationSpecificError"
  | "unsupportedProtocolVersion"
  | "clientIdentifierNotValid"
  | "badUserNameOrPassword"
  | "notAuthorized"
  | "serverUnavailable"
  | "serverBusy"
  | "banned"
  | "serverShuttingDown"
  | "badAuthenticationMethod"
  | "keepAliveTimeout"
  | "sessionTakenOver"
  | "topicFilterInvalid"
  | "topicNameInvalid"
  | "packetIdentifierInUse"
  | "receiveMaximumExceeded"
  | "topicAliasInvalid"
  | "packetTooLarge"
  | "messageRateTooHigh"
  | "quotaExceeded"
  | "administrativeAction"
  | "payloadFormatInvalid"
  | "retainNotSupported"
  | "qosNotSupported"
  | "useAnotherServer"
  | "serverMoved"
  | "sharedSubscriptionsNotSupported"
  | "connectionRateExceeded"
  | "maximumConnectTime"
  | "subscriptionIdentifiersNotSupported"
  | "wildcardSubscriptionsNotSupported";

/** The MQTT 5 properties of a CONNECT [MQTT-3.1.2.11]; a client of 3.1.1 has none. */
export interface ConnectProperties {
  /** Seconds that the session outlives its connection; 0xFFFFFFFF = it does not expire. */
  readonly sessionExpiry?: number | undefined;
  /** QoS 1 and 2 deliveries that the client takes without having acknowledged them. */
  readonly receiveMaximum?: number | undefined;
  /** Bytes of the largest packet that the client takes. */
  readonly maximumPacketSize?: number | undefined;
  readonly topicAliasMaximum?: number | undefined;
  readonly requestResponseInformation?: boolean | undefined;
  readonly requestProblemInformation?: boolean | undefined;
  readonly userProperties?: UserProperties | undefined;
  readonly authenticationMethod?: string | undefined;
  readonly authenticationData?: Buffer | undefined;
}

export interface ConnectPacket {
  readonly clientId: string;
  readonly username: string | undefined;
  readonly password: Buffer | undefined;
  readonly clean: boolean;
  /** Seconds; 0 = none. */
  readonly keepalive: number;
  readonly will: Will | undefined;
  readonly properties?: ConnectProperties | undefined;
}

/** `topic`, `payload`, `qos` and `properties` may be replaced; in brokerMode subscribers get what the pipeline left. */
export interface PublishPacket {
  topic: string;
  payload: Buffer;
  qos: QoS;
  readonly retain: boolean;
  readonly dup: boolean;
  /** 1-65535; undefined at QoS 0, for a will and for presence. */
  readonly packetId: number | undefined;
  properties?: MessageProperties | undefined;
}

export interface SubscribePacket {
  readonly packetId: number;
  readonly subscriptions: SubscriptionRequest[];
  readonly userProperties?: UserProperties | undefined;
}

/** One topic filter of a SUBSCRIBE, and how the client wants to get what matches it: see {@link SubscriptionOptions}. */
export interface SubscriptionRequest {
  readonly topicFilter: string;
  /** May be lowered. */
  qos: QoS;
  /** Set it to refuse this topic filter alone: a reason, which an MQTT 5 client is told, or true for `notAuthorized`. */
  refused: boolean | Reason;
  readonly noLocal?: boolean;
  readonly retainAsPublished?: boolean;
  readonly retainHandling?: 0 | 1 | 2;
}

export interface UnsubscribePacket {
  readonly packetId: number;
  readonly topicFilters: readonly string[];
  readonly userProperties?: UserProperties | undefined;
}

export interface DisconnectPacket {
  /** False where the connection ended without a DISCONNECT: lost, timed out, taken over, removed or refused. */
  readonly graceful: boolean;
  /** What the client's DISCONNECT said; 0 where it said nothing, and where there was none. */
  readonly reasonCode?: number;
  readonly userProperties?: UserProperties | undefined;
}

/** The remote party of one connection; the same object for all its packets. */
export interface Client {
  readonly id: string;
  /** By its CONNECT, or by its certificate where the listener takes user names from there (`usernameFrom`). */
  readonly username: string | undefined;
  /** The client's IP address, by the PROXY protocol where a listener has it switched on; `unix` for a unix socket. */
  readonly address: string;
  /** 3 = MQTT 3.1, 4 = MQTT 3.1.1, 5 = MQTT 5. */
  readonly protocolVersion: number;
  /** The client's TLS certificate, verified, where one was asked for and shown. */
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
  /**
   * A verdict that no retry can change. An MQTT 5 client finds the reason in the ack, and `text`, for people, where it
   * wants that; before MQTT 5 a Connect gets CONNACK 2 to 5, a Publish is acked, a Subscribe gets 0x80.
   */
  reject(reason: Reason, text?: string): void;
  /** Close the connection without an ack (Connect: refuse with the reason). An MQTT 5 client is told the reason. */
  disconnect(reason: Reason, text?: string): void;
}

/** MQTT 5's enhanced authentication: the client named a method in its CONNECT, or authenticates anew. */
export interface Authentication {
  readonly method: string;
  readonly data: Buffer | undefined;
  /** The client is connected, and this is no CONNECT: its outcome decides whether it stays. */
  readonly reauth: boolean;
  /**
   * The filter knows the method and the client has passed. Where no filter says so, the client is refused with
   * `badAuthenticationMethod`. @param data sent along with the success
   */
  accept(data?: Buffer): void;
  /**
   * Sends an AUTH packet and waits for the client's next one, whose data it answers. Rejects where the connection ends,
   * or the client sends anything else. The pipeline's `timeout` bounds the wait.
   */
  challenge(data?: Buffer): Promise<Buffer | undefined>;
}

export interface ConnectContext extends ContextOf<"Connect", ConnectPacket> {
  /** Undefined where the client named no authentication method. */
  readonly auth?: Authentication | undefined;
}
export type PublishContext = ContextOf<"Publish", PublishPacket>;
export type SubscribeContext = ContextOf<"Subscribe", SubscribePacket>;
export type UnsubscribeContext = ContextOf<"Unsubscribe", UnsubscribePacket>;
export type DisconnectContext = ContextOf<"Disconnect", DisconnectPacket>;

/** What a filter is given; `ctx.type` tells which packet it holds. */
export type FilterContext = ConnectContext | PublishContext | SubscribeContext | UnsubscribeContext | DisconnectContext;

/** Nothing (go on), or the name of a declared result (`jumpIf` decides; without one the pipeline ends as design.md's table says). */
export type FilterResult = string | void | undefined;

/**
 * What an error that `handle` throws may say of itself. Each part may be left out, and any error will do. Where the proxy
 * has a `deadLetter`, a packet that faults again and again goes there; what is away must not send it there.
 * @since 1.1.0
 */
export interface Fault extends Error {
  /** What a program can rely on; a dead letter's header `error`. */
  readonly code?: string;
  /**
   * True: it is about this packet, and will be so each time it comes. False: about something else, such as a system that
   * is away, so that the packet waits for as long as that takes. Without it a fault counts as the packet's own where
   * others passed since it faulted last.
   */
  readonly poison?: boolean;
}

/**
 * An answer that comes later: a promise, or, for a filter that settles many packets at once, an object of its own, which
 * costs a fraction of a promise. The gateway calls `then` once; the object then calls one of the two functions, once, and
 * may do so synchronously, though not before `handle` has returned. They don't throw.
 * @since 1.1.0
 */
export interface PendingResult {
  then(answer: (result: FilterResult) => void, fail: (error: unknown) => void): unknown;
}

/** An instance of a filter kind: one use of it in one pipeline of the config. */
export interface Filter {
  /**
   * Called in the order a connection's packets came. *Return* what a retry can't mend (a declared result), *throw* (or
   * reject) what it can: a throw withholds the ack; {@link Fault} is what an error can tell. Answer synchronously where
   * possible, which costs no promise.
   */
  handle(ctx: FilterContext): FilterResult | PendingResult;
  /**
   * A config change replaces `previous`, of the same kind and name, by this instance: take over what need not be opened
   * anew. Called once all that is new is built, before the first `handle`; packets under way still finish in `previous`,
   * which is closed after them. After an upgrade `previous` is an object of the package's earlier version: rely on what
   * both know. A throw is logged and changes nothing.
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

/** One change of a journal; without a value the key is deleted. */
export interface JournalEntry {
  /** Up to some 70,000 bytes of UTF-8, U+0000 among them. */
  readonly key: string;
  readonly value: Buffer | undefined;
}

/**
 * Where the kernel writes its sessions and messages down, so that they outlive the process: a durable map from keys to
 * bytes. The kernel holds everything in memory too, so that it reads the map only once.
 */
export interface Journal {
  /** What a write that has resolved survives: the end of the process alone, or the loss of power too. */
  readonly durability: "process" | "fsync";
  /** All there is, in any order and in pieces of any size; called once, before the first write. */
  read(): AsyncIterable<readonly { readonly key: string; readonly value: Buffer }[]>;
  /**
   * All of the changes or none, even where the process is killed meanwhile. Not called again before it has settled. A
   * rejection says that they may not be safe: the kernel acknowledges nothing, and tries again after a while.
   */
  write(changes: readonly JournalEntry[]): Promise<void>;
}

/** An instance of a service kind: what runs beside the pipelines. */
export interface Service {
  /** Of a kind in role `store`: used from when `start` has resolved until `stop` is called. */
  readonly journal?: Journal;
  /**
   * A config change replaces `previous`, of the same kind and name: note what this instance will take over when `previous`
   * is stopped, which is after the change has been made. Called before `start`; the change may still be given up, and then
   * this instance is stopped and `previous` goes on. After an upgrade `previous` is an object of the package's earlier
   * version: rely on what both know.
   */
  adopt?(previous: Service): void;
  start?(): void | Promise<void>;
  stop?(): void | Promise<void>;
  health?(): Health;
}

/** The default export of a service's entry. */
export interface ServiceKind<C = unknown> {
  readonly kind: string;
  /**
   * What the service does for the kernel. `store`: it brings the journal, starts before everything else and stops last; a
   * config has one of them at most, and a change of it needs a restart.
   */
  readonly role?: "store";
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
/** @since 1.1.0 */
export interface GaugeOptions {
  /**
   * What the values of several workers come to where one is shown: `sum` (the default) of what adds up, such as what waits;
   * `max` of what the worst one tells, such as an age; `min` of what holds only where it holds in every worker, such as 1
   * for connected.
   */
  readonly merge?: "sum" | "max" | "min";
}
export interface Histogram {
  observe(labels: Record<string, string>, value: number): void;
  with(labels: Record<string, string>): { observe(value: number): void };
}

/** Asking again for a name returns the metric that exists. Names: `sluice_<noun>_<unit>_total`. */
export interface Metrics {
  counter(name: string, help: string, labels?: readonly string[]): Counter;
  /** `collect` is called at each scrape, to set what is cheaper to read than to keep; it ends with the host's signal. */
  gauge(
    name: string,
    help: string,
    labels?: readonly string[],
    collect?: (gauge: Gauge) => void,
    options?: GaugeOptions,
  ): Gauge;
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

export interface PublishRequest {
  /** To the session of this client, whatever it has subscribed to; the topic is what the message says then. */
  readonly clientId?: string | undefined;
  /** Milliseconds to wait until it is known what became of the message at each session; `receipts` tell. */
  readonly waitMs?: number | undefined;
  /**
   * In a cluster, ask the other nodes too how many of their clients it matches; the answer waits for them, a
   * second at most. Without it (and without `waitMs`, which asks too) `uncounted` says that they are left out. @since 1.1.0
   */
  readonly countAll?: boolean | undefined;
}

/** What became of a message at one session. */
export interface PublishReceipt {
  readonly clientId: string;
  /**
   * `delivered`: its client has acknowledged it (of a subscription at QoS 0: it was sent). `queued`: the client is away,
   * and gets it when it returns. `refused`: it will not get it (the queue was full, the message expired, its session
   * ended, it answered with an error). `timeout`: not known yet; the client may still get it.
   */
  readonly outcome: "delivered" | "queued" | "refused" | "timeout";
}

export interface PublishOutcome {
  /** Sessions that get it, connected or not; of a shared subscription one. At least so many, if some are `uncounted`. */
  readonly matched: number;
  readonly connected: number;
  /**
   * Who is not in the numbers, in a cluster. `absent`: sessions whose clients are away, which nobody looks through; above
   * QoS 0 they find the message when they return. `otherNodes`: clients connected to other nodes, which were not asked or
   * did not all answer. Undefined: nobody, the numbers are exact. @since 1.1.0
   */
  readonly uncounted?: readonly ("absent" | "otherNodes")[] | undefined;
  /** True once the message is as safe as the store makes it. */
  readonly durable: boolean;
  /** Where it was waited for: of each session, 10,000 at most. */
  readonly receipts?: readonly PublishReceipt[];
  /** How many sessions each outcome had, those that are not listed included. */
  readonly receiptCounts?: Readonly<Record<PublishReceipt["outcome"], number>>;
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
  /** Milliseconds since the epoch at which the session of an absent client ends; undefined = it does not, or not yet. */
  readonly expiresAt?: number | undefined;
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
  /**
   * In words: what does not take effect at once ("for new connections: maxInflight"), and the code that was upgraded
   * ("upgrade sluice-stamp 1.0.0 -> 1.1.0").
   */
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
  /** In a cluster, what each of the other nodes has made of the change, by name. */
  readonly nodes?: readonly NodeConfigResult[];
}

/**
 * `accepted`: of a dry run. `refused`: the node keeps its config, as `problem` says. `unreached`: whether it has the change
 * is not known.
 */
export interface NodeConfigResult {
  readonly node: string;
  readonly outcome: "applied" | "accepted" | "refused" | "unreached";
  /** The node's own; each counts for itself. */
  readonly version?: number;
  readonly plan?: Plan;
  readonly problem?: string;
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

/**
 * One node of a cluster as seen from another. `silent`: it is there, and did not answer. `left`: it said goodbye. `down`: it
 * did not.
 */
export interface MemberInfo {
  readonly node: string;
  /** Another at every start. */
  readonly incarnation: string;
  readonly isSelf: boolean;
  readonly state: "up" | "silent" | "down" | "left";
  /** What it says of itself; undefined unless it is `up`. */
  readonly report: MemberReport | undefined;
}

export interface MemberReport {
  /** Of the product. */
  readonly version: string;
  /** Milliseconds since the epoch. */
  readonly startedAt: number;
  readonly ready: boolean;
  readonly unhealthy: readonly { readonly name: string; readonly detail?: string }[];
  /** The digest is the same where the documents are, as they are written: `${...}` may mean something else on each node. */
  readonly config: { readonly version: number; readonly digest: string };
  readonly connections: number;
  readonly sessions: number;
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
  publish(proxy: string, message: Message, request?: PublishRequest): Promise<PublishOutcome>;
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
  /**
   * Which of the gateway's processes this one is, from 0, and how many there are (`workers` of the Gateway document). Each
   * has an instance of every filter; a filter that owns a folder or a port needs one for each. A service has one instance,
   * with index 0.
   */
  readonly worker: { readonly index: number; readonly count: number };
  readonly cluster: {
    /** False: this gateway is alone. */
    readonly isJoined: boolean;
    /** This node first; alone, it is the only one. Waits some seconds at most for those that don't answer. */
    members(): Promise<readonly MemberInfo[]>;
  };
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
