/**
 * A message as the bytes of a NATS message; its topic is the subject. The first byte is the version of this form, so that
 * a node of an older release knows what it can't read. Numbers are big-endian.
 *
 *     version u8 | flags u8 | [expires f64] | [from u16 + UTF-8] | [to u16 + UTF-8, topic u16 + UTF-8]
 *     | [receipt u16 + UTF-8] | [properties u32 + JSON] | payload
 */
import type { MessageProperties, QoS } from "@sluice/kernel";
import type { ClusterMessage } from "@sluice/kernel/cluster";

export const bodyVersion = 1;

const qosBits = 0b11;
const retainBit = 0b100;
const expiryBit = 0b1000;
const fromBit = 0b1_0000;
const propertiesBit = 0b10_0000;
/** It is for one client, whose id and the topic are not in the subject. */
const toBit = 0b100_0000;
const receiptBit = 0b1000_0000;

/** The topic is a part of it only where the subject does not have it. */
export function encodeBody(message: ClusterMessage): Buffer {
  const { payload, qos, retain, expiresAt, from, to, topic, receipt, properties } = message;
  const json = properties && Buffer.from(JSON.stringify(propertiesRecord(properties)));
  const fromBytes = from === undefined ? 0 : Buffer.byteLength(from);
  const toBytes = to === undefined ? 0 : Buffer.byteLength(to);
  const receiptBytes = receipt === undefined ? 0 : Buffer.byteLength(receipt);
  const topicBytes = to === undefined ? 0 : Buffer.byteLength(topic);
  const size =
    2 +
    (expiresAt === 0 ? 0 : 8) +
    (from === undefined ? 0 : 2 + fromBytes) +
    (to === undefined ? 0 : 4 + toBytes + topicBytes) +
    (receipt === undefined ? 0 : 2 + receiptBytes) +
    (json ? 4 + json.length : 0) +
    payload.length;
  const bytes = Buffer.allocUnsafe(size);
  bytes[0] = bodyVersion;
  bytes[1] =
    qos |
    (retain ? retainBit : 0) |
    (expiresAt === 0 ? 0 : expiryBit) |
    (from === undefined ? 0 : fromBit) |
    (to === undefined ? 0 : toBit) |
    (receipt === undefined ? 0 : receiptBit) |
    (json ? propertiesBit : 0);
  let at = 2;
  if (expiresAt !== 0) at = bytes.writeDoubleBE(expiresAt, at);
  if (from !== undefined) at = writeText(bytes, from, fromBytes, at);
  if (to !== undefined) {
    at = writeText(bytes, to, toBytes, at);
    at = writeText(bytes, topic, topicBytes, at);
  }
  if (receipt !== undefined) at = writeText(bytes, receipt, receiptBytes, at);
  if (json) {
    at = bytes.writeUInt32BE(json.length, at);
    at += json.copy(bytes, at);
  }
  payload.copy(bytes, at);
  return bytes;
}

/**
 * The payload is a copy, so that a small one does not keep what it came in.
 * @param subjectTopic what the subject says
 * @throws RangeError, SyntaxError for what {@link encodeBody} never makes
 */
export function decodeBody(bytes: Buffer, subjectTopic: string | undefined): ClusterMessage {
  if (bytes[0] !== bodyVersion) {
    throw new RangeError(`a message in form ${bytes[0]}, and this release reads ${bodyVersion}`);
  }
  const flags = bytes.readUInt8(1);
  const qos = flags & qosBits;
  if (qos === 3) throw new RangeError("a message of QoS 3");
  let at = 2;
  let expiresAt = 0;
  let topic = subjectTopic;
  let from: string | undefined;
  let to: string | undefined;
  let receipt: string | undefined;
  let properties: MessageProperties | undefined;
  if (flags & expiryBit) {
    expiresAt = bytes.readDoubleBE(at);
    at += 8;
  }
  if (flags & fromBit) {
    from = readText(bytes, at);
    at = textEnd(bytes, at);
  }
  if (flags & toBit) {
    to = readText(bytes, at);
    at = textEnd(bytes, at);
    topic = readText(bytes, at);
    at = textEnd(bytes, at);
  }
  if (flags & receiptBit) {
    receipt = readText(bytes, at);
    at = textEnd(bytes, at);
  }
  if (flags & propertiesBit) {
    const end = at + 4 + bytes.readUInt32BE(at);
    if (end > bytes.length) throw new RangeError("a message that is cut off");
    properties = toProperties(JSON.parse(bytes.toString("utf8", at + 4, end)) as PropertiesRecord);
    at = end;
  }
  if (topic === undefined) throw new RangeError("a message without a topic");
  const retain = (flags & retainBit) !== 0;
  const payload = Buffer.from(bytes.subarray(at));
  return { topic, payload, qos: qos as QoS, retain, expiresAt, from, to, receipt, properties };
}

function writeText(bytes: Buffer, text: string, length: number, at: number): number {
  bytes.writeUInt16BE(length, at);
  return at + 2 + bytes.write(text, at + 2);
}

function textEnd(bytes: Buffer, at: number): number {
  const end = at + 2 + bytes.readUInt16BE(at);
  if (end > bytes.length) throw new RangeError("a message that is cut off");
  return end;
}

function readText(bytes: Buffer, at: number): string {
  return bytes.toString("utf8", at + 2, textEnd(bytes, at));
}

type PropertiesRecord = Omit<MessageProperties, "correlationData"> & { readonly correlationData?: string | undefined };

function propertiesRecord({ correlationData, ...rest }: MessageProperties): PropertiesRecord {
  return correlationData === undefined ? rest : { ...rest, correlationData: correlationData.toString("base64") };
}

function toProperties({ correlationData, ...rest }: PropertiesRecord): MessageProperties {
  return correlationData === undefined ? rest : { ...rest, correlationData: Buffer.from(correlationData, "base64") };
}
