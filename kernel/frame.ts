/**
 * What is judged on a packet's raw bytes, before it is parsed: the fixed header, as soon as it is there, and in the body
 * whatever is gone once strings are decoded. The bodies' layout and rules are those of MQTT 3.1 and 3.1.1; MQTT 5 has its
 * own reader (reader-v5.ts).
 */
import { isUtf8 } from "node:buffer";
import type { Code } from "./errors.ts";
import type { ProtocolVersion } from "./packet.ts";
import type { Reason } from "./plugin.ts";

/** What a CONNACK of MQTT 3.1 and 3.1.1 may say. */
export type ConnackCode = 0 | 1 | 2 | 3 | 4 | 5;

/** Why a connection must be closed. */
export interface Refusal {
  readonly code: Extract<Code, "MALFORMED_PACKET" | "PROTOCOL_ERROR" | "PACKET_TOO_LARGE" | "UNSUPPORTED_VERSION">;
  /** Without anything that the client sent, so that it may be logged. */
  readonly message: string;
  /** The CONNACK to send before closing, from 0x80 on in MQTT 5's form; undefined = none. */
  readonly connack?: number;
  /** What an MQTT 5 client is told, where it is more exact than `code`. */
  readonly reason?: Reason;
}

/** The type in the upper half of a packet's first byte. */
export const packetTypes = {
  connect: 1,
  publish: 3,
  puback: 4,
  pubrec: 5,
  pubrel: 6,
  pubcomp: 7,
  subscribe: 8,
  unsubscribe: 10,
  pingreq: 12,
  disconnect: 14,
  auth: 15,
} as const;

interface FixedHeader {
  readonly name: string;
  readonly flags: number | undefined;
  /** Before MQTT 5, which has a fixed one for PINGREQ alone. */
  readonly length: number | undefined;
}

/** The lower half of the first byte, and the body's length where it is fixed, of the packets that a client may send. */
const fixedHeaders: readonly (FixedHeader | undefined)[] = [
  undefined,
  { name: "CONNECT", flags: 0, length: undefined },
  undefined,
  { name: "PUBLISH", flags: undefined, length: undefined },
  { name: "PUBACK", flags: 0, length: 2 },
  { name: "PUBREC", flags: 0, length: 2 },
  { name: "PUBREL", flags: 2, length: 2 }, // [MQTT-3.6.1-1]
  { name: "PUBCOMP", flags: 0, length: 2 },
  { name: "SUBSCRIBE", flags: 2, length: undefined }, // [MQTT-3.8.1-1]
  undefined,
  { name: "UNSUBSCRIBE", flags: 2, length: undefined }, // [MQTT-3.10.1-1]
  undefined,
  { name: "PINGREQ", flags: 0, length: 0 },
  undefined,
  { name: "DISCONNECT", flags: 0, length: 0 }, // [MQTT-3.14.1-1]
  { name: "AUTH", flags: 0, length: undefined }, // [MQTT-3.15.1-1]
];

const dupFlag = 0x08;

export function malformed(message: string): Refusal {
  return { code: "MALFORMED_PACKET", message };
}

export function protocolError(message: string): Refusal {
  return { code: "PROTOCOL_ERROR", message };
}

/** Judges a packet's first byte; `version` is 0 until CONNECT has been accepted. */
export function firstByteProblem(first: number, version: ProtocolVersion | 0): Refusal | undefined {
  const type = first >> 4;
  if (version === 0 && type !== packetTypes.connect) {
    return protocolError("the first packet must be CONNECT [MQTT-3.1.0-1]");
  }
  if (version !== 0 && type === packetTypes.connect) {
    return protocolError("a second CONNECT on one connection [MQTT-3.1.0-2]");
  }
  const header = fixedHeaders[type];
  if (header === undefined || (type === packetTypes.auth && version !== 5)) {
    return protocolError(`packet type ${type} must not come from a client [MQTT-4.8.0-1]`);
  }
  const flags = first & 0x0f;
  if (type === packetTypes.publish) {
    const qos = (flags >> 1) & 3;
    if (qos === 3) return malformed("PUBLISH with QoS 3 [MQTT-3.3.1-4]");
    if (qos === 0 && (flags & dupFlag) !== 0) return malformed("PUBLISH with DUP at QoS 0 [MQTT-3.3.1-2]");
    return undefined;
  }
  if (flags === header.flags || (allowsDup(type, version) && (flags & ~dupFlag) === header.flags)) return undefined;
  return malformed(`${header.name} with reserved flags 0x${flags.toString(16)} [MQTT-2.2.2-2]`);
}

/** MQTT 3.1 (section 2.1) sets DUP on what is sent again, where 3.1.1 reserves the flag. */
export function allowsDup(type: number, version: ProtocolVersion | 0): boolean {
  return (
    version === 3 && (type === packetTypes.pubrel || type === packetTypes.subscribe || type === packetTypes.unsubscribe)
  );
}

/** Judges the remaining length, which took `digits` bytes, against what the packet type allows. */
export function lengthProblem(
  first: number,
  length: number,
  digits: number,
  version: ProtocolVersion | 0,
): Refusal | undefined {
  if (version === 5 && digits > 1 && length < 2 ** (7 * (digits - 1))) {
    return malformed("a remaining length of more bytes than it needs [MQTT-1.5.5-1]");
  }
  const header = fixedHeaders[first >> 4];
  if (header?.length === undefined || header.length === length) return undefined;
  if (version === 5 && header.length > 0) return undefined;
  if (version === 5 && first >> 4 === packetTypes.disconnect) return undefined;
  return malformed(`${header.name} with a body of ${length} bytes instead of ${header.length}`);
}

/**
 * Judges what parsing would hide in the body from `at` to `end`: strings that are not UTF-8 (decoded, they hold U+FFFD),
 * bytes left over, flags that contradict each other, lists without an entry.
 */
export function bodyProblem(type: number, bytes: Buffer, at: number, end: number): Refusal | undefined {
  switch (type) {
    case packetTypes.connect:
      return connectProblem(bytes, at, end);
    case packetTypes.subscribe:
      return filtersProblem("SUBSCRIBE", 1, bytes, at, end);
    case packetTypes.unsubscribe:
      return filtersProblem("UNSUBSCRIBE", 0, bytes, at, end);
    default:
      return undefined;
  }
}

/** Protocol name and level, which say how the rest of a CONNECT is to be read. */
export function protocolProblem(bytes: Buffer, start: number, end: number): Refusal | undefined {
  const at = fieldEnd(bytes, start, end);
  if (at < 0 || at === end) return malformed("CONNECT ends before its protocol level");
  const name = bytes.toString("latin1", start + 2, at);
  // Not answered with a CONNACK: whoever speaks another protocol would not understand it [MQTT-3.1.2-1].
  if (name !== "MQTT" && name !== "MQIsdp")
    return protocolError("CONNECT for another protocol than MQTT [MQTT-3.1.2-1]");
  const level = bytes.readUInt8(at);
  if (name === "MQTT" ? level === 4 || level === 5 : level === 3) return undefined;
  const message = `CONNECT with protocol level ${level}, which is not served [MQTT-3.1.2-2]`;
  // Told in the form of the nearest version; the highest bit is that of a bridge.
  const connack = name === "MQTT" && (level & 0x7f) > 4 ? 0x84 : 1;
  return { code: "UNSUPPORTED_VERSION", message, connack };
}

/** The flags of a CONNECT that no version allows. */
export function connectFlagsProblem(flags: number): Refusal | undefined {
  const willQos = (flags >> 3) & 3;
  if ((flags & 0x01) !== 0) return malformed("CONNECT with its reserved flag set [MQTT-3.1.2-3]");
  if (willQos === 3) return malformed("CONNECT with will QoS 3 [MQTT-3.1.2-14]");
  const hasWill = (flags & 0x04) !== 0;
  if (!hasWill && willQos !== 0) return malformed("CONNECT with a will QoS, but no will [MQTT-3.1.2-13]");
  if (!hasWill && (flags & 0x20) !== 0) return malformed("CONNECT with will retain, but no will [MQTT-3.1.2-15]");
  return undefined;
}

function connectProblem(bytes: Buffer, start: number, end: number): Refusal | undefined {
  let at = fieldEnd(bytes, start, end);
  if (at + 4 > end) return malformed("CONNECT ends before its keep alive");
  const flags = bytes.readUInt8(at + 1);
  const problem = connectFlagsProblem(flags);
  if (problem !== undefined) return problem;
  const hasWill = (flags & 0x04) !== 0;
  const hasUsername = (flags & 0x80) !== 0;
  const hasPassword = (flags & 0x40) !== 0;
  if (hasPassword && !hasUsername) return malformed("CONNECT with a password, but no user name [MQTT-3.1.2-22]");

  // Client id, will topic, will message, user name, password, in this order [MQTT-3.1.3-1].
  const fields: readonly [present: boolean, name: string, text: boolean][] = [
    [true, "client id", true], // [MQTT-3.1.3-4]
    [hasWill, "will topic", true], // [MQTT-3.1.3-10]
    [hasWill, "will message", false],
    [hasUsername, "user name", true], // [MQTT-3.1.3-11]
    [hasPassword, "password", false],
  ];
  at += 4;
  for (const [present, field, text] of fields) {
    if (!present) continue;
    const next = fieldEnd(bytes, at, end);
    if (next < 0) return malformed(`CONNECT ends within its ${field}`);
    const fault = text ? textProblem(bytes, at + 2, next) : undefined;
    if (fault !== undefined) return malformed(`CONNECT with a ${field} that ${fault}`);
    at = next;
  }
  return at === end ? undefined : malformed(`CONNECT with ${end - at} bytes left over`);
}

/** A packet id and then topic filters, each with `optionBytes` (its QoS) behind it. */
function filtersProblem(
  name: string,
  optionBytes: 0 | 1,
  bytes: Buffer,
  start: number,
  end: number,
): Refusal | undefined {
  let at = start + 2;
  if (at >= end) return malformed(`${name} without a topic filter [MQTT-3.8.3-3] [MQTT-3.10.3-2]`);
  while (at < end) {
    const next = fieldEnd(bytes, at, end);
    if (next < 0) return malformed(`${name} ends within a topic filter`);
    const problem = textProblem(bytes, at + 2, next);
    if (problem !== undefined) return malformed(`${name} with a topic filter that ${problem}`);
    if (next === at + 2) return malformed(`${name} with an empty topic filter [MQTT-4.7.3-1]`);
    at = next + optionBytes;
    if (at > end) return malformed(`${name} ends before the QoS of a topic filter`);
    if (optionBytes === 1 && bytes.readUInt8(next) > 2) {
      return malformed(`${name} with a QoS above 2 or reserved bits set [MQTT-3-8.3-4]`);
    }
  }
  return undefined;
}

/** Where a whole packet's body begins. */
export function bodyStart(bytes: Buffer, at: number): number {
  let last = at + 1;
  while (bytes.readUInt8(last) >= 0x80) last++;
  return last + 1;
}

/** The version that a CONNECT speaks, once {@link protocolProblem} has nothing against it. */
export function connectVersion(bytes: Buffer, at: number): ProtocolVersion {
  const name = bodyStart(bytes, at);
  return bytes.readUInt8(name + 2 + bytes.readUInt16BE(name)) as ProtocolVersion;
}

/** Where the length-prefixed field at `at` ends; -1 = beyond `end`. */
export function fieldEnd(bytes: Buffer, at: number, end: number): number {
  if (at + 2 > end) return -1;
  const next = at + 2 + bytes.readUInt16BE(at);
  return next > end ? -1 : next;
}

/** What is wrong with the string from `at` to `end`, without its length. */
export function textProblem(bytes: Buffer, at: number, end: number): string | undefined {
  const text = bytes.subarray(at, end);
  // Surrogates are ill-formed in UTF-8 too [MQTT-1.5.3-1].
  if (!isUtf8(text)) return "is not well-formed UTF-8 [MQTT-1.5.3-1]";
  if (text.includes(0)) return "contains U+0000 [MQTT-1.5.3-2]";
  return undefined;
}
