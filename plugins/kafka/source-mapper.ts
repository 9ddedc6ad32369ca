/** From a Kafka record, whoever wrote it, to an MQTT message. */
import type { Message, MessageProperties, QoS } from "@sluice/kernel";
import type { SourceConfig } from "./source-config.ts";
import { compileTemplate, parseJson, type Template } from "./template.ts";

/** As kafkajs hands it over, with where it comes from. */
export interface SourceRecord {
  readonly topic: string;
  readonly partition: number;
  readonly offset: bigint;
  /** Milliseconds since the epoch. */
  readonly timestamp: number;
  readonly key: Buffer | null;
  /** Null: a tombstone. */
  readonly value: Buffer | null;
  readonly headers: RecordHeaders;
}

/** A name that comes more than once has a list. */
export type RecordHeaders = Readonly<Record<string, Buffer | string | (Buffer | string)[] | undefined>>;

/**
 * `template`: a template names what the record does not have, or can't be rendered. `invalidJson`: it asks for a field of a
 * value that is no JSON. `illegalTopic`, `properties`: MQTT does not allow what was rendered. `qos`, `retain`: it is no
 * quality of service, neither true nor false. `tooLarge`: the value is over `maxPayloadBytes`.
 */
export type UnmappedReason = "template" | "invalidJson" | "illegalTopic" | "properties" | "qos" | "retain" | "tooLarge";

export interface Mapped {
  readonly message: Message;
  /** The one client that gets it. */
  readonly clientId: string | undefined;
}

export interface Unmapped {
  readonly reason: UnmappedReason;
  /** One line, without payloads. */
  readonly detail: string;
}

/** What `{{ ... }}` can name. */
interface RecordScope {
  readonly topic: string;
  readonly partition: number;
  readonly offset: string;
  readonly timestamp: number;
  readonly key: string | undefined;
  readonly headers: Readonly<Record<string, string>>;
  /** The value as JSON; undefined where it is none. */
  readonly value: unknown;
}

type PropertyName = keyof MessageProperties & keyof SourceConfig["mqtt"]["properties"];

const empty = Buffer.alloc(0);

export function createMapper({ mqtt, maxPayloadBytes }: SourceConfig): (record: SourceRecord) => Mapped | Unmapped {
  const topicOf = compileTemplate<RecordScope>(mqtt.topic, "throws");
  const clientIdOf = mqtt.clientID === undefined ? undefined : compileTemplate<RecordScope>(mqtt.clientID, "throws");
  const qosOf = compileTemplate<RecordScope>(String(mqtt.qos));
  const retainOf = compileTemplate<RecordScope>(String(mqtt.retain));
  const propertiesOf = Object.entries(mqtt.properties).map(([name, text]): [PropertyName, Template<RecordScope>] => [
    name as PropertyName,
    compileTemplate<RecordScope>(String(text)),
  ]);
  const { userProperties } = mqtt;
  const namedOf = (typeof userProperties === "object" ? Object.entries(userProperties) : []).map(
    ([name, text]): [string, Template<RecordScope>] => [name, compileTemplate<RecordScope>(text)],
  );

  function userPropertiesOf(scope: RecordScope, headers: RecordHeaders): [string, string][] {
    if (userProperties === "headers") {
      return Object.entries(headers).flatMap(([name, value]) =>
        (Array.isArray(value) ? value : [value]).flatMap((each): [string, string][] =>
          each === undefined ? [] : [[name, each.toString()]],
        ),
      );
    }
    return namedOf.flatMap(([name, render]): [string, string][] => {
      const value = render(scope);
      return value === "" ? [] : [[name, value]];
    });
  }

  function properties(scope: RecordScope, headers: RecordHeaders): MessageProperties | Unmapped | undefined {
    const found: Record<string, unknown> = {};
    for (const [name, render] of propertiesOf) {
      const text = render(scope).trim();
      if (text === "") continue;
      const isNumber = name === "messageExpiry" || name === "payloadFormat";
      if (isNumber && !/^\d{1,10}$/.test(text)) return { reason: "properties", detail: `${name} is not a number` };
      found[name] = isNumber ? Number(text) : name === "correlationData" ? Buffer.from(text) : text;
    }
    const named = userPropertiesOf(scope, headers);
    if (named.length > 0) found["userProperties"] = named;
    return Object.keys(found).length === 0 ? undefined : found;
  }

  function map(record: SourceRecord, scope: RecordScope): Mapped | Unmapped {
    const { value, headers } = record;
    const topic = topicOf(scope);
    const clientId = clientIdOf?.(scope);
    if (clientId === "") return { reason: "template", detail: "mqtt.clientID renders empty" };
    const qos = qosOf(scope).trim();
    if (!/^[012]$/.test(qos)) return { reason: "qos", detail: `mqtt.qos renders neither 0, 1 nor 2` };
    const retain = retainOf(scope).trim();
    if (retain !== "true" && retain !== "false") {
      return { reason: "retain", detail: "mqtt.retain renders neither true nor false" };
    }
    const found = properties(scope, headers);
    if (found && "reason" in found) return found;
    const message: Message = {
      topic,
      payload: value ?? empty,
      qos: Number(qos) as QoS,
      // Kafka's way of deleting, in MQTT's words: a retained message without a payload clears what was retained.
      retain: value === null || retain === "true",
      ...(found ? { properties: found } : {}),
    };
    return { message, clientId };
  }

  return (record) => {
    const bytes = record.value?.length ?? 0;
    if (bytes > maxPayloadBytes) {
      return { reason: "tooLarge", detail: `the value has ${bytes} bytes, over maxPayloadBytes (${maxPayloadBytes})` };
    }
    const { scope, isInvalidJson } = createScope(record);
    try {
      return map(record, scope);
    } catch (error) {
      if (isInvalidJson()) {
        return { reason: "invalidJson", detail: "a template asks for a field, and the value is no JSON" };
      }
      const [line = ""] = (error instanceof Error ? error.message : String(error)).split("\n");
      return { reason: "template", detail: line };
    }
  };
}

/** The value is parsed where a template asks for it, once a record. */
function createScope(record: SourceRecord): { scope: RecordScope; isInvalidJson: () => boolean } {
  const { topic, partition, offset, timestamp, key, value, headers } = record;
  let parsed: { value: unknown } | undefined;
  const scope: RecordScope = {
    topic,
    partition,
    offset: String(offset),
    timestamp,
    key: key?.toString(),
    headers: textOf(headers),
    get value() {
      parsed ??= { value: value === null ? undefined : parseJson(value) };
      return parsed.value;
    },
  };
  return { scope, isInvalidJson: () => parsed !== undefined && parsed.value === undefined };
}

/** The last of equal names. */
function textOf(headers: RecordHeaders): Record<string, string> {
  const texts: Record<string, string> = {};
  for (const [name, value] of Object.entries(headers)) {
    const last = Array.isArray(value) ? value.at(-1) : value;
    if (last !== undefined) texts[name] = last.toString();
  }
  return texts;
}
