/** The options of KafkaSource once they have passed source.schema.json, and what a schema can't say about them. */
import type { FieldProblem } from "@sluice/kernel";
import { judgeAccess, problemAt, type Access } from "./config.ts";
import { templateProblem } from "./template.ts";

export interface SourceConfig extends Access {
  readonly group: string;
  /** Names, and expressions between slashes. */
  readonly topics: readonly string[];
  readonly from: "latest" | "earliest";
  readonly proxy: string;
  readonly mqtt: MqttOptions;
  readonly commit: "stored" | "acknowledged";
  readonly acknowledgeTimeoutMs: number;
  readonly commitIntervalMs: number;
  readonly deadLetter?: string;
  readonly onUnmapped: "skip" | "stop";
  readonly maxPayloadBytes: number;
  readonly maxInFlight: number;
  readonly maxInFlightPerPartition: number;
  readonly maxQueuedBytes: number;
  readonly sessionTimeoutMs: number;
  readonly refreshIntervalMs: number;
}

/** Texts are templates. */
export interface MqttOptions {
  readonly topic: string;
  readonly clientID?: string;
  readonly qos: number | string;
  readonly retain: boolean | string;
  readonly properties: MqttProperties;
  /** Every header, or name -> template. */
  readonly userProperties: "headers" | Readonly<Record<string, string>>;
}

export interface MqttProperties {
  readonly payloadFormat?: string | number;
  readonly messageExpiry?: string | number;
  readonly contentType?: string;
  readonly responseTopic?: string;
  readonly correlationData?: string;
}

/** Which of the cluster's topics are meant; what begins with `__` is Kafka's own and never matches an expression. */
export function selectTopics(topics: readonly string[], existing: readonly string[]): string[] {
  const names = new Set(topics.filter((each) => !isExpression(each)));
  const expressions = topics.filter(isExpression).map((each) => new RegExp(each.slice(1, -1)));
  const fits = (topic: string): boolean =>
    names.has(topic) || (!topic.startsWith("__") && expressions.some((expression) => expression.test(topic)));
  return existing.filter(fits).toSorted();
}

/** Of those that are named outright, the ones that the cluster does not have. */
export function missingTopics(topics: readonly string[], existing: readonly string[]): string[] {
  return topics.filter((each) => !isExpression(each) && !existing.includes(each));
}

function isExpression(topic: string): boolean {
  return topic.length > 2 && topic.startsWith("/") && topic.endsWith("/");
}

export function validateSource(config: SourceConfig): FieldProblem[] {
  return [
    ...judgeAccess(config),
    ...config.topics.flatMap(judgeTopic),
    ...judgeDeadLetter(config),
    ...judgeMqtt(config),
  ];
}

function judgeTopic(topic: string, index: number): FieldProblem[] {
  const field = ["topics", index];
  if (!isExpression(topic)) {
    const isName = /^[a-zA-Z0-9._-]{1,249}$/.test(topic) && topic !== "." && topic !== "..";
    const message = `"${topic}" is no name of a Kafka topic: use a-z A-Z 0-9 . _ -, or an expression between slashes`;
    return problemAt(field, isName ? undefined : message);
  }
  try {
    RegExp(topic.slice(1, -1));
    return [];
  } catch (error) {
    return problemAt(field, `the expression can't be read: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function judgeDeadLetter({ deadLetter, topics }: SourceConfig): FieldProblem[] {
  const readable = topics.filter((each, index) => judgeTopic(each, index).length === 0);
  if (deadLetter === undefined || selectTopics(readable, [deadLetter]).length === 0) return [];
  const message = `${deadLetter} is one of the topics that are read, so that its records would come round for ever`;
  return problemAt(["deadLetter"], `${message}: name another, or write the expression so that it does not match it`);
}

function judgeMqtt({ mqtt }: SourceConfig): FieldProblem[] {
  const { topic, clientID, qos, retain, properties, userProperties } = mqtt;
  const named = typeof userProperties === "object" ? Object.entries(userProperties) : [];
  const fields: [FieldProblem["field"], unknown][] = [
    [["mqtt", "topic"], topic],
    [["mqtt", "clientID"], clientID],
    [["mqtt", "qos"], qos],
    [["mqtt", "retain"], retain],
    ...Object.entries(properties).map(([name, text]): [string[], unknown] => [["mqtt", "properties", name], text]),
    ...named.map(([name, text]): [string[], string] => [["mqtt", "userProperties", name], text]),
  ];
  return fields.flatMap(([field, text]) =>
    problemAt(field, typeof text === "string" ? templateProblem(text) : undefined),
  );
}
