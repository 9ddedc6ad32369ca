/** What is sent, as bytes: CONNACK, acks, DISCONNECT, AUTH, and PUBLISH by templates that many subscribers share. */
import { writePacket } from "./codec.ts";
import { bodyStart, type ConnackCode } from "./frame.ts";
import type { ProtocolVersion } from "./packet.ts";
import type { Message, QoS } from "./plugin.ts";
import { generatorProperties } from "./properties.ts";

const connacks = new Map<ConnackCode, Buffer>(
  ([0, 1, 2, 3, 4, 5] as const).map((code) => [
    code,
    writePacket({ cmd: "connack", returnCode: code, sessionPresent: false }),
  ]),
);
const connackPresent = writePacket({ cmd: "connack", returnCode: 0, sessionPresent: true });
const connackAbsent = writePacket({ cmd: "connack", returnCode: 0, sessionPresent: false });

/** A shared buffer: do not change it. A refusal never says that a session is present [MQTT-3.2.2-4]. */
export function encodeConnack(code: ConnackCode, sessionPresent: boolean): Buffer {
  if (code === 0 && sessionPresent) return connackPresent;
  return connacks.get(code) ?? connackAbsent;
}

/** MQTT 5. A refusal never says that a session is present [MQTT-3.2.2-6]. */
export interface ConnackV5 {
  readonly reasonCode: number;
  readonly sessionPresent: boolean;
  readonly assignedClientId?: string | undefined;
  /** Seconds. */
  readonly sessionExpiry?: number | undefined;
  readonly serverKeepAlive?: number | undefined;
  readonly receiveMaximum?: number | undefined;
  readonly maximumPacketSize?: number | undefined;
  readonly topicAliasMaximum?: number | undefined;
  readonly maximumQos?: 0 | 1 | undefined;
  readonly retainAvailable?: false | undefined;
  readonly responseInformation?: string | undefined;
  readonly serverReference?: string | undefined;
  readonly reasonString?: string | undefined;
  readonly authenticationMethod?: string | undefined;
  readonly authenticationData?: Buffer | undefined;
}

export function encodeConnackV5(connack: ConnackV5): Buffer {
  const { reasonCode, sessionPresent } = connack;
  const properties = {
    assignedClientIdentifier: connack.assignedClientId,
    sessionExpiryInterval: connack.sessionExpiry,
    serverKeepAlive: connack.serverKeepAlive,
    receiveMaximum: connack.receiveMaximum,
    maximumPacketSize: connack.maximumPacketSize,
    topicAliasMaximum: connack.topicAliasMaximum,
    maximumQoS: connack.maximumQos,
    retainAvailable: connack.retainAvailable,
    responseInformation: connack.responseInformation,
    serverReference: connack.serverReference,
    reasonString: connack.reasonString,
    authenticationMethod: connack.authenticationMethod,
    authenticationData: connack.authenticationData,
  };
  return writeV5({ cmd: "connack", reasonCode, sessionPresent: sessionPresent && reasonCode === 0, properties });
}

/** MQTT 5. `reasonString` is for people. */
export function encodeDisconnect(reasonCode: number, o: { reasonString?: string; serverReference?: string }): Buffer {
  return writeV5({ cmd: "disconnect", reasonCode, properties: { ...o } });
}

/** MQTT 5. @param reasonCode 0 = authenticated anew, 0x18 = go on */
export function encodeAuth(reasonCode: number, method: string, data: Buffer | undefined): Buffer {
  const properties = { authenticationMethod: method, authenticationData: data };
  return writeV5({ cmd: "auth", reasonCode, properties });
}

/** A shared buffer: do not change it. */
export const pingresp: Buffer = writePacket({ cmd: "pingresp" });

const acks = {
  puback: writePacket({ cmd: "puback", messageId: 0 }),
  pubrec: writePacket({ cmd: "pubrec", messageId: 0 }),
  pubrel: writePacket({ cmd: "pubrel", messageId: 0 }),
  pubcomp: writePacket({ cmd: "pubcomp", messageId: 0 }),
  unsuback: writePacket({ cmd: "unsuback", messageId: 0, granted: [] }),
};

/**
 * `packetId`: 1-65535. `reasonCode` is of MQTT 5; with 0, which it leaves out, a packet is the same in every version,
 * save for UNSUBACK, which {@link encodeUnsubackV5} writes. `reasonString` is for people.
 */
export function encodeAck(cmd: keyof typeof acks, packetId: number, reasonCode = 0, reasonString?: string): Buffer {
  if (reasonCode === 0 && reasonString === undefined) return withPacketId(acks[cmd], 2, packetId);
  return writeV5({
    cmd,
    messageId: packetId,
    reasonCode,
    ...(reasonString !== undefined && { properties: { reasonString } }),
  });
}

/**
 * An ack without a reason code as a number, which costs no object: its first byte and its packet id. The same in every
 * version, see {@link encodeAck}; {@link writeShortAck} makes bytes of it.
 */
export type ShortAck = number;

/** Bytes that a {@link ShortAck} has. */
export const shortAckBytes = 4;

export function shortAck(cmd: keyof typeof acks, packetId: number): ShortAck {
  return acks[cmd].readUInt8(0) * 0x1_0000 + packetId;
}

export function writeShortAck(ack: ShortAck, bytes: Buffer, at: number): void {
  bytes[at] = ack >> 16;
  bytes[at + 1] = 2;
  bytes[at + 2] = (ack >> 8) & 0xff;
  bytes[at + 3] = ack & 0xff;
}

/** One code for each topic filter of the SUBSCRIBE, in its order [MQTT-3.8.4-5]: the granted QoS, or 0x80. */
export function encodeSuback(packetId: number, codes: readonly number[]): Buffer {
  return writePacket({ cmd: "suback", messageId: packetId, granted: [...codes] });
}

/** One code for each topic filter of the SUBSCRIBE, in its order [MQTT-3.8.4-6]. */
export function encodeSubackV5(packetId: number, codes: readonly number[], reasonString?: string): Buffer {
  return writeV5({ cmd: "suback", messageId: packetId, granted: [...codes], properties: { reasonString } });
}

/** One code for each topic filter of the UNSUBSCRIBE, in its order [MQTT-3.11.3-1]. */
export function encodeUnsubackV5(packetId: number, codes: readonly number[]): Buffer {
  return writeV5({ cmd: "unsuback", messageId: packetId, granted: [...codes] });
}

/** An encoded PUBLISH whose packet id is left open. */
export interface PublishTemplate {
  readonly bytes: Buffer;
  /** Where the packet id goes; -1 at QoS 0. */
  readonly idAt: number;
  /** Where the seconds of the message expiry are; -1 = it has none. */
  readonly expiryAt: number;
  /** Where the topic alias goes; -1 = none. */
  readonly aliasAt: number;
}

/** How a message is written for a group of subscribers; all else is the message's own. */
export interface PublishForm {
  readonly qos: QoS;
  readonly retain: boolean;
  readonly protocolVersion: ProtocolVersion;
  /** Subscription identifiers; none before MQTT 5. */
  readonly identifiers: readonly number[];
  /** `define` has topic and alias, `use` the alias alone. */
  readonly alias: "none" | "define" | "use";
}

/** Encodes a message once for all its subscribers that get it in this form. */
export function encodePublishTemplate(message: Message, form: PublishForm): PublishTemplate {
  const { payload, properties } = message;
  const { qos, retain, alias } = form;
  const topic = alias === "use" ? "" : message.topic;
  const packet = { cmd: "publish", topic, payload, qos, retain, dup: false, messageId: 0 } as const;
  if (form.protocolVersion !== 5) {
    const bytes = writePacket(packet);
    return { bytes, idAt: qos === 0 ? -1 : bytes.length - payload.length - 2, expiryAt: -1, aliasAt: -1 };
  }
  const expiry = properties?.messageExpiry;
  const first = {
    ...(expiry !== undefined && { messageExpiryInterval: expiry }),
    ...(alias !== "none" && { topicAlias: 1 }),
  };
  const bytes = writeV5({ ...packet, properties: generatorProperties(properties, first, form.identifiers) });
  const idAt = bodyStart(bytes, 0) + 2 + Buffer.byteLength(topic);
  const propertiesAt = qos === 0 ? idAt : idAt + 2;
  // Behind the property length, whose own length is that of the other properties'.
  let at = propertiesAt;
  while (bytes.readUInt8(at) >= 0x80) at++;
  at++;
  const expiryAt = expiry === undefined ? -1 : at + 1;
  const aliasAt = alias === "none" ? -1 : at + (expiry === undefined ? 1 : 6);
  return { bytes, idAt: qos === 0 ? -1 : idAt, expiryAt, aliasAt };
}

/** What differs from one subscriber to the next. */
export interface PublishFields {
  /** 1-65535; undefined at QoS 0. */
  readonly packetId: number | undefined;
  readonly dup: boolean;
  /** Seconds left, where the template has an expiry. */
  readonly messageExpiry?: number | undefined;
  /** Where the template has an alias. */
  readonly alias?: number | undefined;
}

/** The PUBLISH for one subscriber. Where nothing differs, the template's own bytes: do not change them. */
export function publishFromTemplate(template: PublishTemplate, fields: PublishFields): Buffer {
  const { bytes, idAt, expiryAt, aliasAt } = template;
  if (idAt < 0 && expiryAt < 0 && aliasAt < 0) return bytes;
  const { packetId, dup, messageExpiry, alias } = fields;
  if (idAt >= 0 && packetId === undefined) throw new TypeError("a PUBLISH above QoS 0 needs a packet id");
  const packet = Buffer.allocUnsafe(bytes.length);
  bytes.copy(packet);
  if (idAt >= 0 && packetId !== undefined) packet.writeUInt16BE(packetId, idAt);
  if (expiryAt >= 0 && messageExpiry !== undefined) packet.writeUInt32BE(messageExpiry, expiryAt);
  if (aliasAt >= 0 && alias !== undefined) packet.writeUInt16BE(alias, aliasAt);
  if (dup) packet.writeUInt8(packet.readUInt8(0) | 0x08, 0); // [MQTT-3.3.1-1]
  return packet;
}

function withPacketId(template: Buffer, at: number, packetId: number): Buffer {
  const packet = Buffer.allocUnsafe(template.length);
  template.copy(packet);
  packet.writeUInt16BE(packetId, at);
  return packet;
}

function writeV5(packet: object): Buffer {
  return writePacket(packet, 5);
}
