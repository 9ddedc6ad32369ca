/** The config's documents once validated: what the gateway is built from. Types only. */
import type { ConfigDocument, FilterKind, PacketType, ServiceKind } from "./plugin.ts";

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

export interface ProxySpec {
  readonly name: string;
  /** Bind address; undefined = all interfaces, IPv6 and IPv4. */
  readonly host: string | undefined;
  readonly port: number;
  readonly useTLS: boolean;
  readonly certificate: readonly CertificatePair[];
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
  readonly brokerMode: boolean;
  /** Seconds between resends of an unacknowledged delivery. */
  readonly retryInterval: number;
  /** Bytes of a whole packet, fixed header included. */
  readonly maxPacketBytes: number;
  /** PUBLISH packets of one connection in work, beyond which its socket is paused. */
  readonly maxInWork: number;
  /** Their bytes, likewise. */
  readonly maxInWorkBytes: number;
  /** QoS 1 deliveries a client may leave unacknowledged before more are sent. */
  readonly maxInflight: number;
  /** A session's bound. */
  readonly queue: { readonly maxMessages: number; readonly maxBytes: number; readonly onFull: "dropOldest" | "fault" };
  readonly connectTimeoutMs: number;
  readonly handshakeTimeoutMs: number;
  /** After a fault (no ack), how long the connection stays open so that other acks can leave. */
  readonly faultGraceMs: number;
}

export interface FilterSpec {
  readonly name: string;
  readonly kind: FilterKind;
  /** Without `name` and `kind`, defaults applied. */
  readonly options: unknown;
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
  readonly options: unknown;
}

/** How a proxy, or the gateway, stops. */
export interface DrainSpec {
  /** How long packets under way and clients may take; what is left is closed at once. */
  readonly timeoutMs: number;
  /** Clients closed a second, so that they don't all come back, here or to another node, at one moment; 0 = all at once. */
  readonly rate: number;
}

export interface GatewaySpec {
  readonly log: { readonly level: string };
  readonly plugins: { readonly dirs: readonly string[] };
  readonly drain: DrainSpec;
  /** Applied configs that are remembered. */
  readonly history: number;
  /** Lines that the banner ends with: what a newcomer can try. */
  readonly hints: readonly string[];
}

/** An object of a spec; a filter's name is `pipeline/filter`. */
export interface ObjectRef {
  readonly family: "proxy" | "filter" | "service";
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
  where(object: ObjectRef, field?: readonly (string | number)[]): string;
  /** Every document with defaults applied and secrets replaced by `***`, for showing. */
  readonly documents: readonly ConfigDocument[];
}
