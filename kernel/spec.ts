/** The config's documents once validated: what the gateway is built from. */
import type { ConfigDocument, FilterKind, PacketType, QoS, ServiceKind } from "./plugin.ts";
import type { KindSource } from "./plugin-code.ts";
import type { Trust } from "./plugin-trust.ts";
import type { QueueLimits } from "./store.ts";

/** Windows of `timePeriod` seconds; 0 = no limit of that sort. A cost may overshoot and is paid back by later windows. */
export interface RateLimit {
  readonly requestRate: number;
  readonly bytesRate: number;
  readonly timePeriod: number;
}

export interface CertificatePair {
  readonly name: string;
  /** PEM, chain included. */
  readonly cert: string;
  /** PEM. */
  readonly key: string;
}

export interface PresenceSpec {
  readonly topic: string;
  readonly pipeline: string;
}

/** Where a PUBLISH goes that faults again and again. */
export interface DeadLetterSpec {
  readonly pipeline: string;
  /** The fault with which it goes there, counted from 1. */
  readonly faults: number;
  /** Packets whose faults are counted at a time. */
  readonly maxTracked: number;
}

export interface TcpAddress {
  /** Undefined = all interfaces, IPv6 and IPv4. */
  readonly host: string | undefined;
  /** 0 = any free one. */
  readonly port: number;
}

export interface UnixAddress {
  /** Absolute. */
  readonly socket: string;
  /** Permission bits. */
  readonly mode: number;
}

export type Address = TcpAddress | UnixAddress;

export interface TlsSpec {
  /** Never empty; the first serves clients that name no server. */
  readonly certificate: readonly CertificatePair[];
  /** PEM, one or more; undefined where no client is asked for a certificate. */
  readonly clientCA: string | undefined;
  readonly clientCertificate: "none" | "optional" | "require";
  readonly usernameFrom: "none" | "cn" | "san";
}

export interface WebSocketSpec {
  readonly path: string;
  /** Of web pages, in lower case; empty = all. */
  readonly origins: readonly string[];
}

export interface ListenerSpec {
  /** Unique in its proxy; `default` is the proxy's own host and port. */
  readonly name: string;
  readonly address: Address;
  readonly proxyProtocol: boolean;
  /** Undefined = plain. */
  readonly tls: TlsSpec | undefined;
  /** Undefined = MQTT without one. */
  readonly webSocket: WebSocketSpec | undefined;
}

export interface ProxySpec {
  readonly name: string;
  /** At least one, no two of any proxies on one address. */
  readonly listeners: readonly ListenerSpec[];
  /** Entries of the cache of topic -> matching subscriptions. */
  readonly topicCacheSize: number;
  /** 0 = no limit. */
  readonly maxAllowedConnection: number;
  readonly connectionLimit: RateLimit | undefined;
  readonly clientPublishLimit: RateLimit | undefined;
  /** The pipeline's name for each packet type that has one. */
  readonly rules: Partial<Record<PacketType, string>>;
  /** Where clients that come and go are told of. */
  readonly presence: PresenceSpec | undefined;
  /** What becomes of a QoS 1 or 2 PUBLISH that faults again and again. */
  readonly onPoison: "close" | "deadLetter";
  /** There where `onPoison` says so. */
  readonly deadLetter: DeadLetterSpec | undefined;
  readonly brokerMode: boolean;
  /** Seconds between two reports of the proxy to the subscribers of `$SYS/broker/#`; 0 = none. */
  readonly sysInterval: number;
  /** Seconds between resends of an unacknowledged delivery. */
  readonly retryInterval: number;
  /** Bytes of a whole packet, fixed header included. */
  readonly maxPacketBytes: number;
  /** PUBLISH packets of one connection in work, beyond which its socket is paused. */
  readonly maxInWork: number;
  /** Their bytes, likewise. */
  readonly maxInWorkBytes: number;
  /** QoS 1 and 2 deliveries a client may leave unacknowledged before more are sent. */
  readonly maxInflight: number;
  /** The highest QoS that is taken from clients and granted to them. */
  readonly maxQos: QoS;
  /** Seconds that a session may outlive its connection; 0xFFFFFFFF = for ever. */
  readonly maxSessionExpiry: number;
  /** Seconds; MQTT 5 clients that ask for none, or a longer one, are told this one. 0 = whatever they ask for. */
  readonly maxKeepAlive: number;
  /** MQTT 5 topic aliases of one connection, in each direction. */
  readonly topicAliasMaximum: number;
  /** Refuse payloads that are not UTF-8 where their format indicator says so. */
  readonly checkPayloadFormat: boolean;
  /** What an MQTT 5 client gets for a PUBLISH that met a fault: nothing, or an ack with a reason code. */
  readonly v5FaultAck: "none" | "reasonCode";
  /** Told to MQTT 5 clients that ask for it. */
  readonly responseInformation: string | undefined;
  /** A session's bound, and that of all of them. */
  readonly queue: QueueLimits;
  /** The bound of the retained messages; 0 = none are kept. */
  readonly retained: { readonly maxMessages: number; readonly maxBytes: number };
  readonly connectTimeoutMs: number;
  /** For what comes before MQTT: PROXY header, TLS, WebSocket. */
  readonly handshakeTimeoutMs: number;
  /** After a fault (no ack), how long the connection stays open so that other acks can leave. */
  readonly faultGraceMs: number;
}

/** A filter that runs in a thread of its own. */
export interface IsolationSpec {
  readonly source: KindSource;
  /** MiB of heap; of buffers 64 more. */
  readonly heapMb: number;
  /** How long it may compute without a pause. */
  readonly deadlineMs: number;
  /** Packets with it or waiting for it, and their payload bytes. */
  readonly maxPackets: number;
  readonly maxBytes: number;
}

/** The package that a kind comes from. */
export interface KindOrigin {
  readonly package: string;
  readonly version: string;
}

export interface FilterSpec {
  readonly name: string;
  /** Of an isolated filter: what stands for it in this thread, another object at each reading of the config. */
  readonly kind: FilterKind;
  readonly from: KindOrigin;
  /** Without `name` and `kind`, defaults applied. */
  readonly options: unknown;
  readonly isolation?: IsolationSpec | undefined;
}

export interface FlowNode {
  /** A filter's name, or `END`. */
  readonly filter: string;
  readonly alias: string;
  /** Result (`""` = none) -> alias of a later node, or `END`. */
  readonly jumpIf: Readonly<Record<string, string>>;
}

export interface PipelineSpec {
  readonly name: string;
  /** Never empty of meaning: without a `flow` in the config, the filters in their order. */
  readonly flow: readonly FlowNode[];
  readonly filters: readonly FilterSpec[];
  readonly data: Readonly<Record<string, unknown>>;
  /** The deadline of one packet's run. */
  readonly timeoutMs: number;
}

export interface ServiceSpec {
  readonly name: string;
  readonly kind: ServiceKind;
  readonly from: KindOrigin;
  readonly options: unknown;
}

/** How a proxy, or the gateway, stops. */
export interface DrainSpec {
  /** How long packets under way and clients may take; what is left is closed at once. */
  readonly timeoutMs: number;
  /** Clients closed a second, so that they don't all come back, here or to another node, at one moment; 0 = all at once. */
  readonly rate: number;
  /** Where MQTT 5 clients are sent. */
  readonly serverReference?: string | undefined;
}

export interface GatewaySpec {
  readonly log: { readonly level: string };
  readonly plugins: { readonly dirs: readonly string[] } & Trust;
  readonly drain: DrainSpec;
  /** Processes that clients are shared out among; 1 = all is done in this one. */
  readonly workers: number;
  /** Applied configs that are remembered. */
  readonly history: number;
  /** Lines that the banner ends with: what a newcomer can try. */
  readonly hints: readonly string[];
}

/** An object of a spec; a filter's name is `pipeline/filter`, a listener's `proxy/listener`. */
export interface ObjectRef {
  readonly family: "listener" | "filter" | "service";
  readonly name: string;
}

export interface Spec {
  /** Absolute: the file or folder that was read. */
  readonly path: string;
  /** Absolute: what relative paths in the config are relative to. */
  readonly folder: string;
  readonly gateway: GatewaySpec;
  readonly proxies: readonly ProxySpec[];
  readonly pipelines: readonly PipelineSpec[];
  readonly services: readonly ServiceSpec[];
  /** `file:line:column > object > field`: what the object was built from, for what goes wrong when it is. */
  where(object: ObjectRef): string;
  /** Every document with defaults applied and secrets replaced by `***`, for showing. */
  readonly documents: readonly ConfigDocument[];
}

/** Are retained messages kept? In a proxy without brokerMode the flag is the pipeline's to judge. */
export function retainAvailable({ brokerMode, retained }: ProxySpec): boolean {
  return !brokerMode || retained.maxMessages > 0;
}
