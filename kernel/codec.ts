/**
 * Bytes to packets and back; the only importer of mqtt-packet. The stream is split into packets here (framing.ts), since
 * mqtt-packet would buffer whatever length is claimed. Those of MQTT 3.1 and 3.1.1 are judged (frame.ts), since it lets
 * much pass, and then parsed by it; those of MQTT 5 have their own reader (reader-v5.ts). It also writes what is sent.
 */
import { generate, parser as createParser, writeToStream } from "mqtt-packet";
import type { Packet, Parser } from "mqtt-packet";
import {
  allowsDup,
  bodyProblem,
  bodyStart,
  connectVersion,
  malformed,
  packetTypes,
  protocolProblem,
  textProblem,
} from "./frame.ts";
import type { ConnackCode, Refusal } from "./frame.ts";
import { createFraming } from "./framing.ts";
import type { Framing } from "./framing.ts";
import type { InPacket, ProtocolVersion } from "./packet.ts";
import type { Message, QoS } from "./plugin.ts";
import { generatorProperties, variableBytes } from "./properties.ts";
import { readV5 } from "./reader-v5.ts";
import { reasonCodes } from "./reasons.ts";
import { topicNameProblem } from "./topics.ts";

export type { ConnackCode, Refusal } from "./frame.ts";
export type { InPacket } from "./packet.ts";

/** One connection's decoder: what was sent to it comes out as packets. */
export type Decoder = Framing;

/**
 * `maxPacketBytes` counts whole packets, fixed header included; a longer one is refused as soon as its length is known.
 * `onPacket` returns false to be called no more before `resume`.
 */
export function createDecoder(options: { maxPacketBytes: number; onPacket: (packet: InPacket) => boolean }): Decoder {
  const { maxPacketBytes, onPacket } = options;
  return createFraming(maxPacketBytes, (bytes, at, end, version) => {
    const packet = decode(bytes, at, end, version);
    return "code" in packet ? packet : onPacket(packet);
  });
}

/** One whole packet, whose fixed header has been judged. */
function decode(bytes: Buffer, at: number, end: number, version: ProtocolVersion | 0): InPacket | Refusal {
  const type = bytes.readUInt8(at) >> 4;
  const body = bodyStart(bytes, at);
  if (version === 5) return readV5(bytes, at, body, end);
  if (type === packetTypes.connect) {
    const fault = protocolProblem(bytes, body, end);
    if (fault !== undefined) return fault;
    if (connectVersion(bytes, at) === 5) {
      if (variableBytes(end - body) === body - at - 1) return readV5(bytes, at, body, end);
      const wasteful = malformed("a remaining length of more bytes than it needs [MQTT-1.5.5-1]");
      return { ...wasteful, connack: reasonCodes.malformedPacket };
    }
  }
  const problem = bodyProblem(type, bytes, body, end);
  if (problem !== undefined) return problem;
  // mqtt-packet knows 3.1.1's rule alone; these bytes are ours to change.
  if (allowsDup(type, version)) bytes.writeUInt8(bytes.readUInt8(at) & 0xf7, at);

  const packet = parseFrame(bytes, at, end, version);
  if (packet instanceof Error) return malformed(`not a valid packet: ${packet.message}`);
  switch (packet.cmd) {
    case "publish": {
      const { topic, qos } = packet;
      // U+FFFD stands for what was not UTF-8, unless the client sent it.
      const fault = topic.includes("\uFFFD")
        ? (textProblem(bytes, body + 2, body + 2 + bytes.readUInt16BE(body)) ?? topicNameProblem(topic))
        : topicNameProblem(topic);
      if (fault !== undefined) return malformed(`PUBLISH with a wrong topic name: ${fault}`);
      const packetId = qos === 0 ? undefined : packet.messageId;
      if (qos !== 0 && !isPacketId(packetId)) return noPacketId("PUBLISH");
      const payload = packet.payload as Buffer;
      const { retain, dup } = packet;
      const none = { properties: undefined, topicAlias: 0 };
      return { cmd: "publish", topic, payload, qos, retain, dup, packetId, ...none, bytes: end - at };
    }
    case "puback":
    case "pubrec":
    case "pubrel":
    case "pubcomp": {
      const packetId = packet.messageId;
      return isPacketId(packetId) ? { cmd: packet.cmd, packetId, reasonCode: 0 } : noPacketId(packet.cmd.toUpperCase());
    }
    case "connect": {
      const { clientId, clean = true, keepalive = 0, username, password, will } = packet;
      const fault = will && topicNameProblem(will.topic);
      if (fault !== undefined) return malformed(`CONNECT with a wrong will topic: ${fault}`);
      return {
        cmd: "connect",
        protocolVersion: packet.protocolVersion === 3 ? 3 : 4,
        clientId,
        clean,
        keepalive,
        username,
        password,
        will: will && {
          topic: will.topic,
          // Kept as long as the connection, so not a view: that would keep the password's bytes too.
          payload: Buffer.from(will.payload),
          qos: will.qos ?? 0,
          retain: will.retain ?? false,
          properties: undefined,
          delaySec: 0,
        },
        properties: undefined,
      };
    }
    case "subscribe": {
      const packetId = packet.messageId;
      if (!isPacketId(packetId)) return noPacketId("SUBSCRIBE");
      const subscriptions = packet.subscriptions.map(({ topic, qos }) => ({
        topicFilter: topic,
        qos,
        ...plainOptions,
      }));
      return { cmd: "subscribe", packetId, subscriptions, identifier: 0, userProperties: undefined };
    }
    case "unsubscribe": {
      const packetId = packet.messageId;
      if (!isPacketId(packetId)) return noPacketId("UNSUBSCRIBE");
      return { cmd: "unsubscribe", packetId, topicFilters: packet.unsubscriptions, userProperties: undefined };
    }
    case "pingreq":
      return { cmd: "pingreq" };
    case "disconnect":
      return { cmd: "disconnect", reasonCode: 0, sessionExpiry: undefined, userProperties: undefined };
    default:
      return malformed(`${packet.cmd} must not come from a client`);
  }
}

/** What a subscription is like before MQTT 5. */
const plainOptions = { noLocal: false, retainAsPublished: false, retainHandling: 0 } as const;

/** mqtt-packet reads -1 where the id is missing. [MQTT-2.3.1-1] */
function isPacketId(id: number | undefined): id is number {
  return id !== undefined && id > 0;
}

function noPacketId(name: string): Refusal {
  return malformed(`${name} with the packet id missing or 0 [MQTT-2.3.1-1]`);
}

type FrameParser = (bytes: Buffer, at: number, end: number, version: 0 | 3 | 4) => Packet | Error;

/** What the types of mqtt-packet leave out. */
type OpenParser = Parser & { settings: object };

const settingsOf: Record<0 | 3 | 4, object> = {
  0: {},
  3: { protocolVersion: 3 },
  4: { protocolVersion: 4 },
};

/**
 * Parses whole packets one after the other. One parser serves all connections: handed whole packets, it holds no state
 * between two, save the protocol version, which is set each time (and without which it would keep the last CONNECT with
 * its password).
 */
function createFrameParser(): FrameParser {
  let outcome: Packet | Error | undefined;
  let parser = createOpenParser();

  function createOpenParser(): OpenParser {
    const created = createParser() as OpenParser;
    created.on("packet", (packet) => (outcome = packet));
    created.on("error", (error: Error) => (outcome = error));
    return created;
  }

  function takeOutcome(): Packet | Error | undefined {
    const taken = outcome;
    outcome = undefined;
    return taken;
  }

  return (bytes, at, end, version) => {
    parser.settings = settingsOf[version];
    const left = parser.parse(bytes.subarray(at, end));
    parser.settings = settingsOf[version];
    const parsed = takeOutcome();
    if (parsed !== undefined && !(parsed instanceof Error) && left === 0) return parsed;
    // Whatever state this one was left in, the next packet gets a new parser.
    parser = createOpenParser();
    return parsed instanceof Error ? parsed : new Error("its length does not fit its content");
  };
}

const parseFrame = createFrameParser();

// 65,536 little Buffers that gain nothing here.
writeToStream.cacheNumbers = false;

const connacks = new Map<ConnackCode, Buffer>(
  ([0, 1, 2, 3, 4, 5] as const).map((code) => [
    code,
    generate({ cmd: "connack", returnCode: code, sessionPresent: false }),
  ]),
);
const connackPresent = generate({ cmd: "connack", returnCode: 0, sessionPresent: true });
const connackAbsent = generate({ cmd: "connack", returnCode: 0, sessionPresent: false });

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

const v5 = { protocolVersion: 5 } as const;

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
  return write({ cmd: "connack", reasonCode, sessionPresent: sessionPresent && reasonCode === 0, properties });
}

/** MQTT 5. `reasonString` is for people. */
export function encodeDisconnect(reasonCode: number, o: { reasonString?: string; serverReference?: string }): Buffer {
  return write({ cmd: "disconnect", reasonCode, properties: { ...o } });
}

/** MQTT 5. @param reasonCode 0 = authenticated anew, 0x18 = go on */
export function encodeAuth(reasonCode: number, method: string, data: Buffer | undefined): Buffer {
  const properties = { authenticationMethod: method, authenticationData: data };
  return write({ cmd: "auth", reasonCode, properties });
}

/** In MQTT 5's form. mqtt-packet's types want fewer `undefined`s than its code does. */
function write(packet: object): Buffer {
  return generate(packet as Packet, v5);
}

/** A shared buffer: do not change it. */
export const pingresp: Buffer = generate({ cmd: "pingresp" });

const acks = {
  puback: generate({ cmd: "puback", messageId: 0 }),
  pubrec: generate({ cmd: "pubrec", messageId: 0 }),
  pubrel: generate({ cmd: "pubrel", messageId: 0 }),
  pubcomp: generate({ cmd: "pubcomp", messageId: 0 }),
  unsuback: generate({ cmd: "unsuback", messageId: 0, granted: [] }),
};

/**
 * `packetId`: 1-65535. `reasonCode` is of MQTT 5; with 0, which it leaves out, a packet is the same in every version,
 * save for UNSUBACK, which {@link encodeUnsubackV5} writes. `reasonString` is for people.
 */
export function encodeAck(cmd: keyof typeof acks, packetId: number, reasonCode = 0, reasonString?: string): Buffer {
  if (reasonCode === 0 && reasonString === undefined) return withPacketId(acks[cmd], 2, packetId);
  return write({
    cmd,
    messageId: packetId,
    reasonCode,
    ...(reasonString !== undefined && { properties: { reasonString } }),
  });
}

/** One code for each topic filter of the SUBSCRIBE, in its order [MQTT-3.8.4-5]: the granted QoS, or 0x80. */
export function encodeSuback(packetId: number, codes: readonly number[]): Buffer {
  return generate({ cmd: "suback", messageId: packetId, granted: [...codes] });
}

/** One code for each topic filter of the SUBSCRIBE, in its order [MQTT-3.8.4-6]. */
export function encodeSubackV5(packetId: number, codes: readonly number[], reasonString?: string): Buffer {
  return write({ cmd: "suback", messageId: packetId, granted: [...codes], properties: { reasonString } });
}

/** One code for each topic filter of the UNSUBSCRIBE, in its order [MQTT-3.11.3-1]. */
export function encodeUnsubackV5(packetId: number, codes: readonly number[]): Buffer {
  return write({ cmd: "unsuback", messageId: packetId, granted: [...codes] });
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
    const bytes = generate(packet);
    return { bytes, idAt: qos === 0 ? -1 : bytes.length - payload.length - 2, expiryAt: -1, aliasAt: -1 };
  }
  const expiry = properties?.messageExpiry;
  const first = {
    ...(expiry !== undefined && { messageExpiryInterval: expiry }),
    ...(alias !== "none" && { topicAlias: 1 }),
  };
  const bytes = write({ ...packet, properties: generatorProperties(properties, first, form.identifiers) });
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
