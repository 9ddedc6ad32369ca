/** Pure: (running, wanted) -> what is kept, built, changed and dropped. */
import { isDeepStrictEqual } from "node:util";
import type { Plan, PlanItem } from "./plugin.ts";
import type { FilterSpec, KindOrigin, ListenerSpec, PipelineSpec, ProxySpec, ServiceSpec, Spec } from "./spec.ts";

/** Proxy options that connections which are open already don't get. */
const forNewConnections = [
  "maxPacketBytes",
  "maxInflight",
  "maxSessionExpiry",
  "maxKeepAlive",
  "topicAliasMaximum",
  "responseInformation",
  "connectTimeoutMs",
  "handshakeTimeoutMs",
];

/** Proxy options that are only read at the start. */
const atStart = ["topicCacheSize"];

/** @throws never; `running` is undefined at the start */
export function makePlan(running: Spec | undefined, wanted: Spec): Plan {
  const items = [
    ...gatewayItems(running, wanted),
    ...serviceItems(running, wanted),
    ...compare(filtersOf(running), filtersOf(wanted), compareFilters),
    ...compare(running?.pipelines ?? [], wanted.pipelines, (old, next) => ({
      kind: "Pipeline",
      fields: differing(shapeOf(old), shapeOf(next)),
    })),
    ...compare(running?.proxies ?? [], wanted.proxies, (old, next) => ({
      kind: "MQTTProxy",
      fields: [
        ...listenerChanges(old, next).flatMap(({ fields }) => fields),
        ...differing({ ...old, listeners: [] }, { ...next, listeners: [] }),
      ].toSorted(),
      notes: proxyNotes(old, next),
    })),
  ];
  return { items, isEmpty: items.every(({ action }) => action === "keep") };
}

type Difference = { kind: string; fields: readonly string[]; notes?: readonly string[]; isUpgrade?: boolean };

/** Whether an instance of `next` may take over from one of `old`: the same kind of the same package, of any version. */
export function isSuccessor(old: Instance, next: Instance): boolean {
  return old.kind.kind === next.kind.kind && old.from.package === next.from.package;
}

interface Instance {
  readonly kind: { readonly kind: string };
  readonly from: KindOrigin;
}

function compareInstances(old: FilterSpec | ServiceSpec, next: FilterSpec | ServiceSpec): Difference {
  const { kind } = next.kind;
  if (!isSuccessor(old, next)) return { kind, fields: ["kind"] };
  const fields = differing(old.options, next.options);
  if (old.kind === next.kind) return { kind, fields };
  const [before, after] = [old.from.version, next.from.version];
  const what =
    before === after
      ? `new code of ${next.from.package} ${after}`
      : `upgrade ${next.from.package} ${before} -> ${after}`;
  return { kind, fields, notes: [what], isUpgrade: true };
}

function compareFilters(old: FilterSpec, next: FilterSpec): Difference {
  if (!old.isolation && !next.isolation) return compareInstances(old, next);
  return { kind: next.kind.kind, fields: filterChanges(old, next) };
}

function serviceItems(running: Spec | undefined, wanted: Spec): PlanItem[] {
  const items = compare(running?.services ?? [], wanted.services, compareInstances);
  if (!running) return items;
  const stores = new Set(
    [...running.services, ...wanted.services].filter(({ kind }) => kind.role === "store").map(({ name }) => name),
  );
  return items.map((item) => {
    if (item.action === "keep" || !stores.has(item.name)) return item;
    const isUpgrade = item.action === "change" && item.fields.length === 0;
    const note = isUpgrade ? "after a restart" : "refused while the gateway runs: restart it for this change";
    return { ...item, notes: [...item.notes, note] };
  });
}

interface Named {
  readonly name: string;
  readonly kind?: { readonly kind: string };
}

function compare<T extends Named>(
  running: readonly T[],
  wanted: readonly T[],
  diff: (old: T, next: T) => Difference,
): PlanItem[] {
  const old = new Map(running.map((each) => [each.name, each]));
  const names = new Set(wanted.map(({ name }) => name));
  const items = wanted.map((next): PlanItem => {
    const previous = old.get(next.name);
    const { kind, fields, notes = [], isUpgrade = false } = diff(previous ?? next, next);
    const action = !previous ? "build" : fields.length > 0 || isUpgrade ? "change" : "keep";
    return { kind, name: next.name, action, fields, notes };
  });
  const dropped = running
    .filter(({ name }) => !names.has(name))
    .map((each): PlanItem => ({ kind: diff(each, each).kind, name: each.name, action: "drop", fields: [], notes: [] }));
  return [...items, ...dropped];
}

/** The filters of all pipelines, each by `pipeline/filter`. */
export function filtersOf(spec: Spec | undefined): FilterSpec[] {
  return (spec?.pipelines ?? []).flatMap((pipeline) =>
    pipeline.filters.map((filter) => ({ ...filter, name: `${pipeline.name}/${filter.name}` })),
  );
}

/** What makes `next` another filter than `old`; nothing: it is kept. */
export function filterChanges(
  old: Pick<FilterSpec, "kind" | "options" | "isolation">,
  next: Pick<FilterSpec, "kind" | "options" | "isolation">,
): string[] {
  // What stands for an isolated kind is made anew at each reading; where its code comes from is part of its isolation.
  const isSameKind = next.isolation ? old.kind.kind === next.kind.kind : old.isolation || old.kind === next.kind;
  if (!isSameKind) return ["kind"];
  const isolate = isDeepStrictEqual(old.isolation, next.isolation) ? [] : ["isolate"];
  return [...differing(old.options, next.options), ...isolate];
}

/** What a pipeline is beside its filters' options. */
function shapeOf({ flow, filters, data, timeoutMs }: PipelineSpec): object {
  return { flow, filters: filters.map(({ name, kind }) => `${name}: ${kind.kind}`), data, timeoutMs };
}

function proxyNotes(old: ProxySpec, next: ProxySpec): string[] {
  const listeners = listenerChanges(old, next);
  const fields = differing({ ...old, listeners: [] }, { ...next, listeners: [] });
  const late = [
    ...listeners.flatMap((each) => each.late),
    ...fields.filter((field) => forNewConnections.includes(field)),
  ].toSorted();
  const restart = fields.filter((field) => atStart.includes(field));
  return [
    ...listeners.flatMap(({ note }) => note ?? []),
    ...(late.length > 0 ? [`for new connections: ${late.join(", ")}`] : []),
    ...(restart.length > 0 ? [`after a restart: ${restart.join(", ")}`] : []),
  ];
}

interface ListenerChange {
  /** As the options are called: those of `default` are the proxy's own. */
  readonly fields: readonly string[];
  /** Those that connections which are open don't get. */
  readonly late: readonly string[];
  readonly note?: string;
}

function listenerChanges(old: ProxySpec, next: ProxySpec): ListenerChange[] {
  const names = [...new Set([...old.listeners, ...next.listeners].map(({ name }) => name))];
  return names.flatMap((name): ListenerChange[] => {
    const [before, after] = [old, next].map(({ listeners }) => listeners.find((each) => each.name === name));
    if (isDeepStrictEqual(before, after)) return [];
    const isOwn = name === "default";
    const label = isOwn ? "" : `listeners.${name} `;
    if (!before || !after) {
      const field = isOwn ? "port" : `listeners.${name}`;
      // One by another name may take its address over: then nobody's connection ends.
      const isMoved = next.listeners.some(
        (each) =>
          isDeepStrictEqual(each.address, before?.address) &&
          !old.listeners.some((known) => known.name === each.name && isDeepStrictEqual(known.address, each.address)),
      );
      const note = after || isMoved ? {} : { note: `${label || "its own port "}is closed with its connections` };
      return [{ fields: [field], late: [], ...note }];
    }
    const address = differing(before.address, after.address);
    const rest = differing(optionsOf(before), optionsOf(after));
    const named = (fields: readonly string[]): string[] =>
      isOwn || fields.length === 0 ? [...fields] : [`listeners.${name}`];
    return [
      {
        fields: named([...address, ...rest]),
        late: named(rest),
        ...(address.length > 0 ? { note: `${label}binds its new address; connections of the old one stay` } : {}),
      },
    ];
  });
}

/** As they are written; without the address. */
function optionsOf({ proxyProtocol, tls, webSocket }: ListenerSpec): object {
  return { proxyProtocol, webSocket, useTLS: tls !== undefined, ...tls };
}

function gatewayItems(running: Spec | undefined, wanted: Spec): PlanItem[] {
  if (!running) return [];
  const fields = differing(running.gateway, wanted.gateway);
  if (fields.length === 0) return [];
  const [now, next] = [running.gateway.workers, wanted.gateway.workers];
  const notes = now === next ? [] : [`refused without a restart: workers, ${now} now and ${next} then`];
  return [{ kind: "Gateway", name: "gateway", action: "change", fields, notes }];
}

/** The names of the members that differ; `value` where the two are no objects. */
function differing(old: unknown, next: unknown): string[] {
  if (isDeepStrictEqual(old, next)) return [];
  if (typeof old !== "object" || typeof next !== "object" || old === null || next === null) return ["value"];
  const [a, b] = [old as Record<string, unknown>, next as Record<string, unknown>];
  return [...new Set([...Object.keys(a), ...Object.keys(b)])]
    .filter((key) => !isDeepStrictEqual(a[key], b[key]))
    .toSorted();
}
