/** What a pipeline would make of a topic, worked out from its config alone, with no system outside. */
import type { ConfigDocument } from "@sluice/kernel";
import { createMapper, describeUnmapped, isEmpty } from "./mapper.ts";
import type { Config } from "./mapper.ts";

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
  /** What the mappers said, where they did not map. */
  readonly notes: readonly string[];
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
  let mapped = false;
  let pastMapper = false;
  let last: PlannedRecord | undefined;

  let position = 0;
  while (position < flow.length) {
    const entry = flow[position];
    const filter = entry && filters.get(entry.filter);
    // A missing filter is END: the config has been checked.
    if (!entry || !filter) break;
    let result = "";
    if (filter.kind === mapperKind) {
      pastMapper = true;
      const config = mapperConfig(filter);
      const found = isEmpty(config) ? undefined : createMapper(config, () => {}).map(mqttTopic);
      if (found === undefined) {
        notes.push(`${filter.name}: maps nothing, since it has no route`);
      } else if (found.topic === undefined) {
        notes.push(`${filter.name}: ${describeUnmapped(found)} (${consequences[config.onUnmatched]})`);
        if (config.onUnmatched === "fault") break;
        if (config.onUnmatched === "discard") result = "MQTTTopicMapFailed";
      } else {
        mapped = true;
        if (config.setKV?.topic !== undefined) data.set(config.setKV.topic, found.topic);
        if (config.setKV?.headers !== undefined) data.set(config.setKV.headers, found.headers);
        last = { filter: undefined, topic: found.topic, key: "<client id>", headers: found.headers };
      }
    } else if (pastMapper && isSink(filter)) {
      records.push(planRecord(filter, mqttTopic, data));
    }
    const target = entry.jumpIf?.[result];
    if (target !== undefined) {
      const next = flow.findIndex((each, index) => index > position && (each.alias ?? each.filter) === target);
      if (next < 0) break;
      position = next;
    } else if (result === "") {
      position++;
    } else {
      break;
    }
  }
  if (records.length === 0 && last) records.push(last);
  return { pipeline: document.name, records, notes, mapped };
}

const consequences: Readonly<Record<Config["onUnmatched"], string>> = {
  discard: "onUnmatched: discard: result MQTTTopicMapFailed",
  default: "onUnmatched: default: goes on without a mapping",
  fault: "onUnmatched: fault: not acknowledged",
};

function planRecord(filter: FilterDocument, mqttTopic: string, data: ReadonlyMap<string, unknown>): PlannedRecord {
  const { topic, mqtt, key } = filter as SinkOptions;
  const fromData = mqtt?.topicKey === undefined ? undefined : data.get(mqtt.topicKey);
  const mappedHeaders = mqtt?.headerKey === undefined ? undefined : data.get(mqtt.headerKey);
  return {
    filter: filter.name,
    topic: typeof fromData === "string" ? fromData : (topic?.default ?? "<no topic: the sink has no topic.default>"),
    key: plannedKey(key, mqttTopic),
    headers: {
      clientID: "<client id>",
      username: "<user name>",
      mqttTopic,
      ...(mappedHeaders as Record<string, string> | undefined),
    },
  };
}

function plannedKey(key: unknown, mqttTopic: string): string | null {
  switch (key) {
    case undefined:
    case "clientId":
    case "clientID":
      return "<client id>";
    case "username":
      return "<user name>";
    case "mqttTopic":
    case "topic":
      return mqttTopic;
    case null:
    case "none":
      return null;
    default:
      return typeof key === "string" ? key : JSON.stringify(key);
  }
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

/** The loaded config has the schema's defaults applied already. */
function mapperConfig(filter: FilterDocument): Config {
  return filter as unknown as Config;
}
