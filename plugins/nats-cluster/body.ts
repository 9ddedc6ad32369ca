/**
 * A message as the bytes of a NATS message; its topic is the subject. The first byte is the version of this form, so that
 * a node of an older release knows what it can't read. Numbers are big-endian.
 *
 *     version u8 | flags u8 | [expires f64] | [from u16 + UTF-8] | [properties u32 + JSON] | payload
 */
import type { MessageProperties, QoS } from "@sluice/kernel";

export const bodyVersion = 1;

/** What travels beside the topic. */
export interface Body {
  readonly payload: Buffer;
  readonly qos: QoS;
  readonly retain: boolean;
  /** Milliseconds since the epoch; 0 = never. */
  readonly expiresAt: number;
  /** The publishing client; undefined where it came from elsewhere. */
  readonly from: string | undefined;
  readonly properties: MessageProperties | undefined;
}

const qosBits = 0b11;
const retainBit = 0b100;
const expiryBit = 0b1000;
const fromBit = 0b1_0000;
const propertiesBit = 0b10_0000;

export function encodeBody({ payload, qos, retain, expiresAt, from, properties }: Body): Buffer {
  const json = properties && Buffer.from(JSON.stringify(propertiesRecord(properties)));
  const fromBytes = from === undefined ? 0 : Buffer.byteLength(from);
  const size =
    2 +
    (expiresAt === 0 ? 0 : 8) +
    (from === undefined ? 0 : 2 + fromBytes) +
    (json ? 4 + json.length : 0) +
    payload.length;
  const bytes = Buffer.allocUnsafe(size);
  bytes[0] = bodyVersion;
  bytes[1] =
    qos |
    (retain ? retainBit : 0) |
    (expiresAt === 0 ? 0 : expiryBit) |
    (from === undefined ? 0 : fromBit) |
    (json ? propertiesBit : 0);
  let at = 2;
  if (expiresAt !== 0) at = bytes.writeDoubleBE(expiresAt, at);
  if (from !== undefined) {
    at = bytes.writeUInt16BE(fromBytes, at);
    at += bytes.write(from, at);
  }
  if (json) {
    at = bytes.writeUInt32BE(json.length, at);
    at += json.copy(bytes, at);
  }
  payload.copy(bytes, at);
  return bytes;
}

/** `bytes` is not copied: the payload is a part of it. @throws RangeError, SyntaxError for what {@link encodeBody} never makes */
export function decodeBody(bytes: Buffer): Body {
  if (bytes[0] !== bodyVersion) throw new RangeError(`a message in form ${bytes[0]}, and this release reads ${bodyVersion}`);
  const flags = bytes.readUInt8(1);
  const qos = flags & qosBits;
  if (qos === 3) throw new RangeError("a message of QoS 3");
  let at = 2;
  let expiresAt = 0;
  let from: string | undefined;
  let properties: MessageProperties | undefined;
  if (flags & expiryBit) {
    expiresAt = bytes.readDoubleBE(at);
    at += 8;
  }
  if (flags & fromBit) {
    const end = at + 2 + bytes.readUInt16BE(at);
    if (end > bytes.length) throw new RangeError("a message that is cut off");
    from = bytes.toString("utf8", at + 2, end);
    at = end;
  }
  if (flags & propertiesBit) {
    const end = at + 4 + bytes.readUInt32BE(at);
    if (end > bytes.length) throw new RangeError("a message that is cut off");
    properties = toProperties(JSON.parse(bytes.toString("utf8", at + 4, end)) as PropertiesRecord);
    at = end;
  }
  return { payload: bytes.subarray(at), qos: qos as QoS, retain: (flags & retainBit) !== 0, expiresAt, from, properties };
}

type PropertiesRecord = Omit<MessageProperties, "correlationData"> & { readonly correlationData?: string | undefined };

function propertiesRecord({ correlationData, ...rest }: MessageProperties): PropertiesRecord {
  return correlationData === undefined ? rest : { ...rest, correlationData: correlationData.toString("base64") };
}

function toProperties({ correlationData, ...rest }: PropertiesRecord): MessageProperties {
  return correlationData === undefined ? rest : { ...rest, correlationData: Buffer.from(correlationData, "base64") };
}
