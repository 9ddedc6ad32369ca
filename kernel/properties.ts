/**
 * MQTT 5's properties (section 2.2.2), read from raw bytes and judged while reading. mqtt-packet's reading of them can't
 * be used: it loses the order of user properties, and takes what a packet must not have, what comes twice and what runs
 * over the end (docs/adr/0014-mqtt-5-reader.md).
 */
import { fieldEnd, malformed, protocolError, type Refusal, textProblem } from "./frame.ts";
import type { MessageProperties, UserProperties } from "./plugin.ts";
import { topicNameProblem } from "./topics.ts";

/** What carries properties and comes from a client; bits, for the table below. */
const connect = 1;
const will = 2;
const publish = 4;
const ack = 8;
const subscribe = 16;
const unsubscribe = 32;
const disconnect = 64;
const auth = 128;

/** A packet, or the will in a CONNECT, that properties are read for; `name` is for messages. */
export interface Carrier {
  readonly bit: number;
  readonly name: string;
}

export const carriers = {
  connect: { bit: connect, name: "CONNECT" },
  will: { bit: will, name: "CONNECT's will" },
  publish: { bit: publish, name: "PUBLISH" },
  puback: { bit: ack, name: "PUBACK" },
  pubrec: { bit: ack, name: "PUBREC" },
  pubrel: { bit: ack, name: "PUBREL" },
  pubcomp: { bit: ack, name: "PUBCOMP" },
  subscribe: { bit: subscribe, name: "SUBSCRIBE" },
  unsubscribe: { bit: unsubscribe, name: "UNSUBSCRIBE" },
  disconnect: { bit: disconnect, name: "DISCONNECT" },
  auth: { bit: auth, name: "AUTH" },
} as const satisfies Record<string, Carrier>;

/** What was read; a field that is missing was not there. */
export interface Properties {
  /** Where the bytes behind the properties begin. */
  readonly end: number;
  payloadFormat?: number;
  messageExpiry?: number;
  contentType?: string;
  responseTopic?: string;
  correlationData?: Buffer;
  subscriptionIdentifier?: number;
  sessionExpiry?: number;
  authenticationMethod?: string;
  authenticationData?: Buffer;
  requestProblemInformation?: number;
  willDelay?: number;
  requestResponseInformation?: number;
  reasonString?: string;
  receiveMaximum?: number;
  topicAliasMaximum?: number;
  topicAlias?: number;
  maximumPacketSize?: number;
  userProperties?: UserProperties;
}

interface Definition {
  readonly name: Exclude<keyof Properties, "end">;
  readonly type: "flag" | "two" | "four" | "variable" | "text" | "binary" | "pair";
  /** Which {@link Carrier}s may have it. */
  readonly in: number;
  readonly notZero?: true;
}

/** By identifier (section 2.2.2.2). What only a server sends is not here. */
const definitions = new Map<number, Definition>([
  [1, { name: "payloadFormat", type: "flag", in: publish | will }],
  [2, { name: "messageExpiry", type: "four", in: publish | will }],
  [3, { name: "contentType", type: "text", in: publish | will }],
  [8, { name: "responseTopic", type: "text", in: publish | will }],
  [9, { name: "correlationData", type: "binary", in: publish | will }],
  [11, { name: "subscriptionIdentifier", type: "variable", in: subscribe, notZero: true }],
  [17, { name: "sessionExpiry", type: "four", in: connect | disconnect }],
  [21, { name: "authenticationMethod", type: "text", in: connect | auth }],
  [22, { name: "authenticationData", type: "binary", in: connect | auth }],
  [23, { name: "requestProblemInformation", type: "flag", in: connect }],
  [24, { name: "willDelay", type: "four", in: will }],
  [25, { name: "requestResponseInformation", type: "flag", in: connect }],
  [31, { name: "reasonString", type: "text", in: ack | disconnect | auth }],
  [33, { name: "receiveMaximum", type: "two", in: connect, notZero: true }],
  [34, { name: "topicAliasMaximum", type: "two", in: connect }],
  [35, { name: "topicAlias", type: "two", in: publish }],
  [38, { name: "userProperties", type: "pair", in: 255 }],
  [39, { name: "maximumPacketSize", type: "four", in: connect, notZero: true }],
]);

/**
 * Reads the property length at `at` and the properties behind it, which must not go beyond `end`. A subscription
 * identifier in a PUBLISH counts as one that must not be there [MQTT-3.3.4-6].
 */
export function readProperties(bytes: Buffer, at: number, end: number, carrier: Carrier): Properties | Refusal {
  const { name: packet } = carrier;
  const size = readVariable(bytes, at, end);
  if (size < 0) return malformed(`${packet} with a property length that is not valid [MQTT-1.5.5-1]`);
  let next = at + variableBytes(size);
  const last = next + size;
  if (last > end) return malformed(`${packet} ends within its properties`);
  const properties: Properties = { end: last };
  const pairs: (readonly [string, string])[] = [];
  while (next < last) {
    const id = bytes.readUInt8(next++);
    const definition = definitions.get(id);
    if (definition === undefined || (definition.in & carrier.bit) === 0) {
      return malformed(`${packet} with property ${id}, which it must not have`);
    }
    const { name, type } = definition;
    if (type !== "pair" && properties[name] !== undefined) {
      return protocolError(`${packet} with property ${id} twice`);
    }
    let value: number | string | Buffer;
    switch (type) {
      case "flag":
        if (next + 1 > last) return truncated(packet, id);
        value = bytes.readUInt8(next++);
        if (value > 1) return protocolError(`${packet} with property ${id} neither 0 nor 1`);
        break;
      case "two":
        if (next + 2 > last) return truncated(packet, id);
        value = bytes.readUInt16BE(next);
        next += 2;
        break;
      case "four":
        if (next + 4 > last) return truncated(packet, id);
        value = bytes.readUInt32BE(next);
        next += 4;
        break;
      case "variable":
        value = readVariable(bytes, next, last);
        if (value < 0) return malformed(`${packet} with property ${id} not valid [MQTT-1.5.5-1]`);
        next += variableBytes(value);
        break;
      case "binary": {
        const after = fieldEnd(bytes, next, last);
        if (after < 0) return truncated(packet, id);
        // A copy: it may be kept for long, and a view would keep all that was read with it.
        value = Buffer.from(bytes.subarray(next + 2, after));
        next = after;
        break;
      }
      case "text": {
        const after = fieldEnd(bytes, next, last);
        if (after < 0) return truncated(packet, id);
        const problem = textProblem(bytes, next + 2, after);
        if (problem !== undefined) return malformed(`${packet} with property ${id} that ${problem}`);
        value = bytes.toString("utf8", next + 2, after);
        next = after;
        break;
      }
      case "pair": {
        const middle = fieldEnd(bytes, next, last);
        const after = middle < 0 ? -1 : fieldEnd(bytes, middle, last);
        if (after < 0) return truncated(packet, id);
        const problem = textProblem(bytes, next + 2, middle) ?? textProblem(bytes, middle + 2, after);
        if (problem !== undefined) return malformed(`${packet} with a user property that ${problem}`);
        pairs.push([bytes.toString("utf8", next + 2, middle), bytes.toString("utf8", middle + 2, after)]);
        next = after;
        continue;
      }
    }
    if (definition.notZero && value === 0) return protocolError(`${packet} with property ${id} of 0`);
    (properties as unknown as Record<string, unknown>)[name] = value;
  }
  if (pairs.length > 0) properties.userProperties = pairs;
  return properties;
}

function truncated(packet: string, id: number): Refusal {
  return malformed(`${packet} ends within property ${id}`);
}

/** A variable byte integer, which must take no more bytes than it needs [MQTT-1.5.5-1]; -1 = it is none. */
export function readVariable(bytes: Buffer, at: number, end: number): number {
  let value = 0;
  for (let digits = 0; digits < 4; digits++) {
    if (at + digits >= end) return -1;
    const digit = bytes.readUInt8(at + digits);
    value |= (digit & 0x7f) << (7 * digits);
    if (digit < 0x80) return variableBytes(value) === digits + 1 ? value : -1;
  }
  return -1;
}

/** How many bytes a variable byte integer takes. */
export function variableBytes(value: number): number {
  if (value < 0x80) return 1;
  if (value < 0x4000) return 2;
  return value < 0x20_0000 ? 3 : 4;
}

/** Why what a filter or a backend has set can't be sent; undefined = it can. */
export function propertiesProblem(properties: MessageProperties): string | undefined {
  const { payloadFormat, messageExpiry, contentType, responseTopic, correlationData, userProperties } = properties;
  if (payloadFormat !== undefined && payloadFormat !== 0 && payloadFormat !== 1)
    return "payloadFormat is neither 0 nor 1";
  if (messageExpiry !== undefined && !isFourBytes(messageExpiry)) return "messageExpiry is not a number of seconds";
  if (contentType !== undefined && !isText(contentType)) return "contentType is not a text of up to 65,535 bytes";
  if (responseTopic !== undefined) {
    const problem = isText(responseTopic) ? topicNameProblem(responseTopic) : "it is not a text";
    if (problem !== undefined) return `responseTopic: ${problem}`;
  }
  if (correlationData !== undefined && !(Buffer.isBuffer(correlationData) && correlationData.length <= maxField)) {
    return "correlationData is not a Buffer of up to 65,535 bytes";
  }
  if (userProperties === undefined) return undefined;
  const isPairs =
    Array.isArray(userProperties) &&
    userProperties.every((pair: unknown) => Array.isArray(pair) && pair.length === 2 && pair.every(isText));
  return isPairs ? undefined : "userProperties is not a list of pairs of texts";
}

/** The length of a field is sent in two bytes. */
const maxField = 65_535;

function isFourBytes(value: unknown): boolean {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= 0xffff_ffff;
}

function isText(value: unknown): boolean {
  if (typeof value !== "string" || value.length > maxField) return false;
  return value.isWellFormed() && !value.includes("\0") && Buffer.byteLength(value) <= maxField;
}

/** Those that travel with a message, which mqtt-packet's generator takes; user properties keep their order as a list. */
export function generatorProperties(
  properties: MessageProperties | undefined,
  first: { messageExpiryInterval?: number; topicAlias?: number },
  identifiers: readonly number[],
): object {
  const { payloadFormat, contentType, responseTopic, correlationData, userProperties } = properties ?? {};
  return {
    // In front, so that their place is known.
    ...first,
    ...(payloadFormat !== undefined && { payloadFormatIndicator: payloadFormat === 1 }),
    ...(contentType !== undefined && { contentType }),
    ...(responseTopic !== undefined && { responseTopic }),
    ...(correlationData !== undefined && { correlationData }),
    ...(identifiers.length > 0 && { subscriptionIdentifier: identifiers }),
    ...(userProperties !== undefined && { userProperties: pairsOf(userProperties) }),
  };
}

/** One object a pair: in a single object the generator would group the pairs by name. */
function pairsOf(userProperties: UserProperties): Record<string, string>[] {
  return userProperties.map(([name, value]) => ({ [name]: value }));
}
