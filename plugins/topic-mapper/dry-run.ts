/** What a pipeline would make of a topic, worked out from its loaded config (defaults applied) alone. */
import type { ConfigDocument } from "@sluice/kernel";
import { createMapper, describeUnmapped, isEmpty } from "./mapper.ts";
import type { Config, Mapped } from "./mapper.ts";

/** A record that a sink would write; what only a real packet knows is in angle brackets. */
export interface PlannedRecord {
  /** The sink's name; undefined where no sink stands behind the mapper. */
  readonly filter: string | undefined;
  readonly topic: string;
  readonly key: string | null;
  readonly headers: Readonly<Record<string, string>>;
}

export interface DryRun {
  readonly pipeline: string;
  readonly records: readonly PlannedRecord[];
  /** Why there is no mapping, or no record. */
  readonly notes: readonly string[];
  /** True where a mapping was found and reaches every sink. */
  readonly mapped: boolean;
}

interface FilterDocument {
  readonly name: string;
  readonly kind: string;
  readonly [option: string]: unknown;
}

interface FlowEntry {
  readonly filter: string;
  readonly alias?: string;
  readonly jumpIf?: Readonly<Record<string, string>>;
}

/** The options by which a sink is known, whatever its kind: where the topic, key and headers come from. */
interface SinkOptions {
  readonly topic?: { readonly default?: string };
  readonly mqtt?: { readonly topicKey?: string; readonly headerKey?: string };
  readonly key?: unknown;
}

const mapperKind = "TopicMapper";

/** The pipelines that have a mapper in their flow. */
export function pipelinesWithMapper(documents: readonly ConfigDocument[]): ConfigDocument[] {
  return documents.filter((document) => {
    if (document.kind !== "Pipeline") return false;
    const filters = filtersOf(document);
    return flowOf(document).some((entry) => filters.get(entry.filter)?.kind === mapperKind);
  });
}

/** Follows the flow from its first filter, jumpIf included, through every mapper to every sink behind the first of them. */
export function dryRun(document: ConfigDocument, mqttTopic: string): DryRun {
  const filters = filtersOf(document);
  const flow = flowOf(document);
  const data = new Map<string, unknown>();
  const records: PlannedRecord[] = [];
  const notes: string[] = [];
  let mapping: Mapped | undefined;
  let mappers = 0;
  let sinks = 0;

  /** Returns the filter's result; undefined for a fault. */
  function runMapper(filter: FilterDocument): string | undefined {
    mappers++;
    const config = filter as unknown as Config & FilterDocument;
    if (isEmpty(config)) {
      notes.push(`${filter.name}: maps nothing, since it has no route`);
      return "";
    }
    const found = createMapper(config, () => {}).map(mqttTopic);
    if (found.topic !== undefined) mapping = found;
    else notes.push(`${filter.name}: ${describeUnmapped(found)} (${consequences[config.onUnmatched]})`);
    if (found.topic === undefined && config.onUnmatched === "fault") return undefined;
    if (found.topic === undefined && config.onUnmatched === "discard") return "MQTTTopicMapFailed";
    if (config.setKV?.topic !== undefined) data.set(config.setKV.topic, found.topic);
    if (config.setKV?.headers !== undefined)
      data.set(config.setKV.headers, found.topic === undefined ? {} : found.headers);
    return "";
  }

  function runSink(filter: FilterDocument): void {
    sinks++;
    const planned = planRecord(filter, mqttTopic, data);
    if (typeof planned === "string") notes.push(planned);
    else records.push(planned);
  }

  let position = 0;
  while (position < flow.length) {
    const filter = filters.get(flow[position]?.filter ?? "");
    // END, since the config has been checked for filters that don't exist.
    if (!filter) break;
    let result: string | undefined = "";
    if (filter.kind === mapperKind) result = runMapper(filter);
    else if (mappers > 0 && isSink(filter)) runSink(filter);
    position = next(flow, position, result);
  }
  if (sinks === 0 && mapping) {
    records.push({ filter: undefined, topic: mapping.topic, key: null, headers: mapping.headers });
  }
  return { pipeline: document.name, records, notes, mapped: mapping !== undefined && records.length >= sinks };
}

/** Where the flow goes on; its length for the end. */
function next(flow: readonly FlowEntry[], position: number, result: string | undefined): number {
  if (result === undefined) return flow.length;
  const target = flow[position]?.jumpIf?.[result];
  if (target === undefined) return result === "" ? position + 1 : flow.length;
  const found = flow.findIndex((each, index) => index > position && (each.alias ?? each.filter) === target);
  return found < 0 ? flow.length : found;
}

const consequences: Readonly<Record<Config["onUnmatched"], string>> = {
  discard: "onUnmatched: discard: result MQTTTopicMapFailed",
  default: "onUnmatched: default: goes on without a mapping",
  fault: "onUnmatched: fault: not acknowledged",
};

/** A text is why the sink finds nothing to write. */
function planRecord(
  filter: FilterDocument,
  mqttTopic: string,
  data: ReadonlyMap<string, unknown>,
): PlannedRecord | string {
  const { topic, mqtt, key } = filter as SinkOptions;
  for (const option of ["topicKey", "headerKey"] as const) {
    const name = mqtt?.[option];
    if (name !== undefined && !data.has(name)) {
      return `${filter.name}: no mapper stores anything under ${JSON.stringify(name)} (mqtt.${option})`;
    }
  }
  const mappedTopic = mqtt?.topicKey === undefined ? undefined : data.get(mqtt.topicKey);
  const mappedHeaders = mqtt?.headerKey === undefined ? undefined : data.get(mqtt.headerKey);
  return {
    filter: filter.name,
    topic: typeof mappedTopic === "string" ? mappedTopic : (topic?.default ?? "<no topic: topic.default is not set>"),
    key: plannedKey(key ?? "clientId", mqttTopic),
    headers: {
      clientID: "<client id>",
      username: "<user name>",
      mqttTopic,
      ...(mappedHeaders as Record<string, string> | undefined),
    },
  };
}

function plannedKey(key: unknown, mqttTopic: string): string | null {
  if (key === "clientId") return "<client id>";
  if (key === "username") return "<user name>";
  if (key === "topic") return mqttTopic;
  return key === "none" ? null : `<key: ${JSON.stringify(key)}>`;
}

function isSink(filter: FilterDocument): boolean {
  const { topic, mqtt } = filter as SinkOptions;
  const hasDefault = typeof topic === "object" && topic !== null && typeof topic.default === "string";
  const hasKeys = typeof mqtt === "object" && mqtt !== null;
  return hasDefault || hasKeys;
}

function filtersOf(document: ConfigDocument): Map<string, FilterDocument> {
  const filters = (document["filters"] ?? []) as readonly FilterDocument[];
  return new Map(filters.map((filter) => [filter.name, filter]));
}

function flowOf(document: ConfigDocument): readonly FlowEntry[] {
  const flow = document["flow"] as readonly FlowEntry[] | undefined;
  if (flow && flow.length > 0) return flow;
  return [...filtersOf(document).keys()].map((filter) => ({ filter }));
}
