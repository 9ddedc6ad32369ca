/** Validated options -> the spec's types. Only called where no problem was found, so that each cast is what a schema has checked. */
import { availableParallelism } from "node:os";
import { resolve } from "node:path";
import { flowOf, type FilterEntry, type PipelineEntry } from "./checks.ts";
import { isMap, type Entry } from "./entry.ts";
import { trustAll, type Trust } from "./plugin-trust.ts";
import type { ConfigDocument, FilterKind, PacketType } from "./plugin.ts";
import type { KindSource } from "./plugin-code.ts";
import { redact } from "./schema-walk.ts";
import type {
  FlowNode,
  GatewaySpec,
  IsolationSpec,
  KindOrigin,
  ListenerSpec,
  PipelineSpec,
  ProxySpec,
} from "./spec.ts";

/** As the schema has checked them: what the spec holds, but for rules by packet type and times in milliseconds. */
type ProxyOptions = Omit<
  ProxySpec,
  "name" | "listeners" | "rules" | "connectTimeoutMs" | "handshakeTimeoutMs" | "faultGraceMs"
> & {
  readonly rules: readonly { readonly when: { readonly packetType: PacketType }; readonly pipeline: string }[];
  readonly connectTimeout: number;
  readonly handshakeTimeout: number;
  readonly faultGrace: number;
};

export function toProxySpec(entry: Entry, listeners: readonly ListenerSpec[]): ProxySpec {
  const options = entry.options as unknown as ProxyOptions;
  return {
    name: entry.name,
    listeners,
    topicCacheSize: options.topicCacheSize,
    maxAllowedConnection: options.maxAllowedConnection,
    connectionLimit: options.connectionLimit,
    clientPublishLimit: options.clientPublishLimit,
    rules: Object.fromEntries(options.rules.map((rule) => [rule.when.packetType, rule.pipeline])),
    presence: options.presence,
    onPoison: options.onPoison,
    deadLetter: options.deadLetter,
    brokerMode: options.brokerMode,
    sysInterval: options.sysInterval,
    retryInterval: options.retryInterval,
    maxPacketBytes: options.maxPacketBytes,
    maxInWork: options.maxInWork,
    maxInWorkBytes: options.maxInWorkBytes,
    maxInflight: options.maxInflight,
    maxQos: options.maxQos,
    maxSessionExpiry: options.maxSessionExpiry,
    maxKeepAlive: options.maxKeepAlive,
    topicAliasMaximum: options.topicAliasMaximum,
    checkPayloadFormat: options.checkPayloadFormat,
    v5FaultAck: options.v5FaultAck,
    responseInformation: options.responseInformation,
    queue: options.queue,
    retained: options.retained,
    connectTimeoutMs: options.connectTimeout * 1000,
    handshakeTimeoutMs: options.handshakeTimeout * 1000,
    faultGraceMs: options.faultGrace * 1000,
  };
}

export function toPipelineSpec(entry: PipelineEntry, originOf: (kind: string) => KindOrigin): PipelineSpec {
  const { timeout, data } = entry.options as { timeout: number; data: Record<string, unknown> };
  const steps: readonly FlowNode[] = flowOf(entry).map(({ filter, alias, jumpIf }) => ({ filter, alias, jumpIf }));
  const all = entry.filters.map(({ name }) => ({ filter: name, alias: name, jumpIf: {} }));
  return {
    name: entry.name,
    flow: steps.length === 0 ? all : steps,
    filters: entry.filters.map((filter) => ({
      name: filter.name,
      kind: codeOf(filter),
      from: originOf(filter.kind),
      options: filter.options,
      ...(filter.isolation && { isolation: filter.isolation }),
    })),
    data,
    timeoutMs: timeout * 1000,
  };
}

function codeOf(filter: FilterEntry): FilterKind {
  if (filter.code === undefined) throw new Error(`${filter.where()} has no code, and no problem says so`);
  return filter.code;
}

/** Of what `isolate` of a filter says; undefined for nothing. */
export function toIsolationSpec(isolate: unknown, source: KindSource): IsolationSpec | undefined {
  if (isolate === undefined) return undefined;
  const limits = (isMap(isolate) ? isolate : {}) as { [limit: string]: number | undefined };
  const { heapMb = 128, deadline = 5, maxPackets = 10_000, maxBytes = 64 * 2 ** 20 } = limits;
  return { source, heapMb, deadlineMs: deadline * 1000, maxPackets, maxBytes };
}

interface GatewayOptions {
  readonly log: { readonly level: string };
  readonly plugins: { readonly dirs: readonly string[] } & Partial<Trust>;
  readonly drain: { readonly timeout: number; readonly rate: number; readonly serverReference?: string };
  readonly workers: number | "auto";
  readonly history: number;
  readonly hints: readonly string[];
}

/** Of the Gateway document's options, or the defaults where there is none or it has problems. */
export function toGatewaySpec(options: Readonly<Record<string, unknown>> | undefined, folder: string): GatewaySpec {
  const { log, plugins, drain, workers, history, hints } = (options ?? {}) as Partial<GatewayOptions>;
  return {
    log: { level: log?.level ?? "info" },
    plugins: { ...trustAll, ...plugins, dirs: (plugins?.dirs ?? []).map((dir) => resolve(folder, dir)) },
    drain: {
      timeoutMs: (drain?.timeout ?? 10) * 1000,
      rate: drain?.rate ?? 1000,
      serverReference: drain?.serverReference,
    },
    workers: workers === "auto" ? availableParallelism() : (workers ?? 1),
    history: history ?? 20,
    hints: hints ?? [],
  };
}

/** A document for showing: defaults applied, secrets hidden. `schemaOf` gives the schema of a kind. */
export function showDocument(
  entry: Entry | PipelineEntry,
  schemaOf: (kind: string) => object | undefined,
): ConfigDocument {
  const options = showOptions(entry, schemaOf);
  if (!("filters" in entry)) return { kind: entry.kind, name: entry.name, ...options };
  const filters = entry.filters.map((filter) => ({
    name: filter.name,
    kind: filter.kind,
    ...(filter.isolate !== undefined && { isolate: filter.isolate }),
    ...showOptions(filter, schemaOf),
  }));
  return { kind: entry.kind, name: entry.name, ...options, filters };
}

function showOptions(entry: Entry, schemaOf: (kind: string) => object | undefined): Record<string, unknown> {
  const secret = (path: readonly (string | number)[]) => entry.raw.isFromFile([...entry.base, ...path]);
  return redact(entry.options, schemaOf(entry.kind) ?? {}, secret) as Record<string, unknown>;
}
