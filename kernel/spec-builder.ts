/** Validated options -> the spec's types. Only called where no problem was found, so that each cast is what a schema has checked. */
import { resolve } from "node:path";
import { flowOf, type FilterEntry, type PipelineEntry } from "./checks.ts";
import type { Entry } from "./entry.ts";
import type { ConfigDocument, FilterKind, PacketType } from "./plugin.ts";
import { redact } from "./schema-walk.ts";
import type { CertificatePair, FlowNode, GatewaySpec, PipelineSpec, ProxySpec } from "./spec.ts";

/** As the schema has checked them: what the spec holds, but for rules by packet type and times in milliseconds. */
type ProxyOptions = Omit<
  ProxySpec,
  "name" | "certificate" | "rules" | "connectTimeoutMs" | "handshakeTimeoutMs" | "faultGraceMs"
> & {
  readonly rules: readonly { readonly when: { readonly packetType: PacketType }; readonly pipeline: string }[];
  readonly connectTimeout: number;
  readonly handshakeTimeout: number;
  readonly faultGrace: number;
};

export function toProxySpec(entry: Entry, certificate: readonly CertificatePair[]): ProxySpec {
  const options = entry.options as unknown as ProxyOptions;
  return {
    name: entry.name,
    host: options.host,
    port: options.port,
    useTLS: options.useTLS,
    certificate,
    topicCacheSize: options.topicCacheSize,
    maxAllowedConnection: options.maxAllowedConnection,
    connectionLimit: options.connectionLimit,
    clientPublishLimit: options.clientPublishLimit,
    rules: Object.fromEntries(options.rules.map((rule) => [rule.when.packetType, rule.pipeline])),
    presence: options.presence,
    brokerMode: options.brokerMode,
    retryInterval: options.retryInterval,
    maxPacketBytes: options.maxPacketBytes,
    maxInWork: options.maxInWork,
    maxInWorkBytes: options.maxInWorkBytes,
    maxInflight: options.maxInflight,
    queue: options.queue,
    connectTimeoutMs: options.connectTimeout * 1000,
    handshakeTimeoutMs: options.handshakeTimeout * 1000,
    faultGraceMs: options.faultGrace * 1000,
  };
}

export function toPipelineSpec(entry: PipelineEntry): PipelineSpec {
  const { timeout, data } = entry.options as { timeout: number; data: Record<string, unknown> };
  const steps: readonly FlowNode[] = flowOf(entry).map(({ filter, alias, jumpIf }) => ({ filter, alias, jumpIf }));
  const all = entry.filters.map(({ name }) => ({ filter: name, alias: name, jumpIf: {} }));
  return {
    name: entry.name,
    flow: steps.length === 0 ? all : steps,
    filters: entry.filters.map((filter) => ({ name: filter.name, kind: codeOf(filter), options: filter.options })),
    data,
    timeoutMs: timeout * 1000,
  };
}

function codeOf(filter: FilterEntry): FilterKind {
  if (filter.code === undefined) throw new Error(`${filter.where()} has no code, and no problem says so`);
  return filter.code;
}

interface GatewayOptions {
  readonly log: { readonly level: string };
  readonly plugins: { readonly dirs: readonly string[] };
  readonly drain: { readonly timeout: number; readonly rate: number };
  readonly history: number;
  readonly hints: readonly string[];
}

/** Of the Gateway document's options, or the defaults where there is none or it has problems. */
export function toGatewaySpec(options: Readonly<Record<string, unknown>> | undefined, folder: string): GatewaySpec {
  const { log, plugins, drain, history, hints } = (options ?? {}) as Partial<GatewayOptions>;
  return {
    log: { level: log?.level ?? "info" },
    plugins: { dirs: (plugins?.dirs ?? []).map((dir) => resolve(folder, dir)) },
    drain: { timeoutMs: (drain?.timeout ?? 10) * 1000, rate: drain?.rate ?? 1000 },
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
    ...showOptions(filter, schemaOf),
  }));
  return { kind: entry.kind, name: entry.name, ...options, filters };
}

function showOptions(entry: Entry, schemaOf: (kind: string) => object | undefined): Record<string, unknown> {
  const secret = (path: readonly (string | number)[]) => entry.raw.isFromFile([...entry.base, ...path]);
  return redact(entry.options, schemaOf(entry.kind) ?? {}, secret) as Record<string, unknown>;
}
