/** One message as a caller gives it in JSON: checked, and turned into what `Host.publish` takes. */
import { isUtf8 } from "node:buffer";
import type { Message, MessageProperties, QoS, UserProperties } from "@sluice/kernel";
import { invalidJson } from "./body.ts";
import { problem } from "./problem.ts";

export interface PublishItem {
  readonly message: Message;
  /** The one client that gets it; undefined = whoever has subscribed. */
  readonly clientId: string | undefined;
}

/** What a message to one client says where its caller gives no topic: nobody can publish or subscribe to it by chance. */
const directTopic = "$direct";

const maxUint32 = 0xffff_ffff;

type Json = Readonly<Record<string, unknown>>;

/** Keys count in any case, as they do in Easegress (Go); unknown ones are ignored, `distributed` of its nodes among them. Throws 400. */
export function readPublishItem(body: Json): PublishItem {
  const clientId = read(body, "clientID", "string");
  const topic = read(body, "topic", "string") ?? (clientId === undefined ? "" : directTopic);
  const qos = read(body, "qos", "number") ?? 0;
  const text = read(body, "payload", "string") ?? "";
  const base64 = read(body, "base64", "boolean") ?? false;
  const retain = read(body, "retain", "boolean") ?? false;
  if (!Number.isInteger(qos)) throw problem(400, `${invalidJson}: qos must be an integer`);
  if (!isQoS(qos)) throw problem(400, "qos of MQTT is 0, 1, 2, and choose 1 for most cases");
  if (clientId === "") throw problem(400, "clientID is empty: name a client, or leave it out");
  if (clientId !== undefined && retain)
    throw problem(400, "retain is for subscribers to come: it can't go with clientID");
  if (!topic.isWellFormed() || !text.isWellFormed()) {
    throw problem(400, "topic and payload must not hold half a surrogate pair: send binary data as base64");
  }
  const payload = base64 ? decodeBase64(text) : Buffer.from(text);
  if (!payload) throw problem(400, "base64 set to true, but payload decode failed");
  const given = read(body, "properties", "object");
  const properties = given && readProperties(given, base64);
  if (properties?.payloadFormat === 1 && !isUtf8(payload)) {
    throw problem(400, "properties.payloadFormat is 1, but the payload is not UTF-8 text");
  }
  return { message: { topic, payload, qos, retain, properties }, clientId };
}

const isQoS = (qos: number): qos is QoS => qos === 0 || qos === 1 || qos === 2;

function readProperties(given: Json, base64: boolean): MessageProperties {
  const known = ["payloadFormat", "messageExpiry", "contentType", "responseTopic", "correlationData", "userProperties"];
  const unknown = Object.keys(given).find((key) => !known.some((each) => each.toLowerCase() === key.toLowerCase()));
  // A property that is silently left out would be a surprise at the other end.
  if (unknown !== undefined) throw problem(400, `properties has no "${unknown}": it may have ${known.join(", ")}`);
  const payloadFormat = read(given, "payloadFormat", "number");
  if (payloadFormat !== undefined && payloadFormat !== 0 && payloadFormat !== 1) {
    throw problem(400, "properties.payloadFormat must be 0 (bytes) or 1 (UTF-8 text)");
  }
  const messageExpiry = read(given, "messageExpiry", "number");
  if (
    messageExpiry !== undefined &&
    !(Number.isInteger(messageExpiry) && messageExpiry >= 0 && messageExpiry <= maxUint32)
  ) {
    throw problem(400, `properties.messageExpiry must be whole seconds, from 0 to ${maxUint32}`);
  }
  const correlation = read(given, "correlationData", "string");
  const correlationData =
    correlation === undefined ? undefined : base64 ? decodeBase64(correlation) : Buffer.from(correlation);
  if (correlation !== undefined && !correlationData) {
    throw problem(400, "base64 set to true, but properties.correlationData decode failed");
  }
  return {
    payloadFormat,
    messageExpiry,
    contentType: readText(given, "contentType"),
    responseTopic: readText(given, "responseTopic"),
    correlationData,
    userProperties: readUserProperties(given),
  };
}

/** A string as MQTT can carry one. */
function readText(given: Json, field: string): string | undefined {
  const text = read(given, field, "string");
  if (text !== undefined) checkText(text, field);
  return text;
}

function checkText(text: string, field: string): void {
  if (!text.isWellFormed() || text.includes("\0") || Buffer.byteLength(text) > 65_535) {
    throw problem(400, `properties.${field} must be at most 65,535 bytes of text without U+0000`);
  }
}

/** `{"name": "value"}`, `{"name": ["value", ...]}`, or, where the order matters, `[["name", "value"], ...]`. */
function readUserProperties(given: Json): UserProperties | undefined {
  const value = find(given, "userProperties");
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "object") throw notPairs();
  const pairs: unknown[] = Array.isArray(value)
    ? value
    : Object.entries(value).flatMap(([name, each]) => [each].flat().map((one: unknown) => [name, one]));
  return pairs.map((pair) => {
    if (!Array.isArray(pair) || pair.length !== 2) throw notPairs();
    const [name, text] = pair as unknown[];
    if (typeof name !== "string" || typeof text !== "string") throw notPairs();
    checkText(name, "userProperties");
    checkText(text, "userProperties");
    return [name, text] as const;
  });
}

function notPairs(): Error {
  return problem(400, "properties.userProperties must be a map of strings, or a list of [name, value]");
}

interface TypeOf {
  string: string;
  number: number;
  boolean: boolean;
  object: Json;
}

/** One field; undefined where it is absent or null. */
function read<T extends keyof TypeOf>(body: Json, field: string, type: T): TypeOf[T] | undefined {
  const value = find(body, field);
  if (value === undefined || value === null) return undefined;
  if (typeof value !== type || Array.isArray(value)) {
    throw problem(400, `${invalidJson}: ${field} must be ${type === "object" ? "an" : "a"} ${type}`);
  }
  return value as TypeOf[T];
}

function find(body: Json, field: string): unknown {
  if (Object.hasOwn(body, field)) return body[field];
  const lower = field.toLowerCase();
  let value: unknown;
  for (const key in body) if (key.toLowerCase() === lower) value = body[key];
  return value;
}

/** Standard alphabet with padding, line breaks allowed (`base64` prints them); undefined for anything else. */
function decodeBase64(text: string): Buffer | undefined {
  const packed = text.includes("\n") || text.includes("\r") ? text.replace(/[\r\n]/g, "") : text;
  // Buffer.from skips what it doesn't know and takes URL-safe characters, so it can't be asked whether the text is valid.
  const padding = packed.endsWith("==") ? 2 : packed.endsWith("=") ? 1 : 0;
  const digits = packed.slice(0, packed.length - padding);
  if (packed.length % 4 !== 0 || /[^A-Za-z0-9+/]/.test(digits)) return undefined;
  return Buffer.from(packed, "base64");
}
