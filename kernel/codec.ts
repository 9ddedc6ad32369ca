/**
 * Bytes to packets and back; the only importer of mqtt-packet. The stream is split into packets here (framing.ts), since
 * mqtt-packet would buffer whatever length is claimed, and judged (frame.ts), since it lets much pass; then mqtt-packet
 * parses each whole packet. It also writes what is sent.
 */
import { generate, parser as createParser, writeToStream } from "mqtt-packet";
import type { Packet, Parser } from "mqtt-packet";
import { allowsDup, bodyProblem, bodyStart, malformed, textProblem } from "./frame.ts";
import type { ConnackCode, ProtocolVersion, Refusal } from "./frame.ts";
import { createFraming } from "./framing.ts";
import type { Framing } from "./framing.ts";
import type { Message, QoS } from "./plugin.ts";
import { topicNameProblem } from "./topics.ts";

export type { ConnackCode, Refusal } from "./frame.ts";

interface AckPacket {
  cmd: "puback" | "pubrec" | "pubrel" | "pubcomp";
  packetId: number;
}

interface ConnectPacket {
  cmd: "connect";
  protocolVersion: ProtocolVersion;
  /** May be empty: whether that is allowed depends on `clean`, and is the connection's to judge. */
  clientId: string;
  clean: boolean;
  /** Seconds; 0 = none. */
  keepalive: number;
  username: string | undefined;
  password: Buffer | undefined;
  will: Message | undefined;
}

interface PublishPacket {
  cmd: "publish";
  /** A valid topic name. */
  topic: string;
  payload: Buffer;
  qos: QoS;
  retain: boolean;
  dup: boolean;
  /** 1-65535; undefined at QoS 0. */
  packetId: number | undefined;
  /** The size of the whole packet. */
  bytes: number;
}

interface SubscribePacket {
  cmd: "subscribe";
  packetId: number;
  /** At least one. Not empty and free of U+0000, but wildcards may be misplaced. */
  subscriptions: { topicFilter: string; qos: QoS }[];
}

interface UnsubscribePacket {
  cmd: "unsubscribe";
  packetId: number;
  topicFilters: string[];
}

/**
 * What a client may send, well-formed. Buffers are views on the bytes that came: copy what is to be kept for long, since
 * a view keeps the whole chunk that was read from the socket.
 */
export type InPacket =
  | ConnectPacket
  | PublishPacket
  | SubscribePacket
  | UnsubscribePacket
  | AckPacket
  | { cmd: "pingreq" }
  | { cmd: "disconnect" };

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
      return { cmd: "publish", topic, payload, qos, retain: packet.retain, dup: packet.dup, packetId, bytes: end - at };
    }
    case "puback":
    case "pubrec":
    case "pubrel":
    case "pubcomp": {
      const packetId = packet.messageId;
      return isPacketId(packetId) ? { cmd: packet.cmd, packetId } : noPacketId(packet.cmd.toUpperCase());
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
        },
      };
    }
    case "subscribe": {
      const packetId = packet.messageId;
      if (!isPacketId(packetId)) return noPacketId("SUBSCRIBE");
      const subscriptions = packet.subscriptions.map(({ topic, qos }) => ({ topicFilter: topic, qos }));
      return { cmd: "subscribe", packetId, subscriptions };
    }
    case "unsubscribe": {
      const packetId = packet.messageId;
      if (!isPacketId(packetId)) return noPacketId("UNSUBSCRIBE");
      return { cmd: "unsubscribe", packetId, topicFilters: packet.unsubscriptions };
    }
    case "pingreq":
    case "disconnect":
      return { cmd: packet.cmd };
    default:
      return malformed(`${packet.cmd} must not come from a client`);
  }
}

/** mqtt-packet reads -1 where the id is missing. [MQTT-2.3.1-1] */
function isPacketId(id: number | undefined): id is number {
  return id !== undefined && id > 0;
}

function noPacketId(name: string): Refusal {
  return malformed(`${name} with the packet id missing or 0 [MQTT-2.3.1-1]`);
}

type FrameParser = (bytes: Buffer, at: number, end: number, version: ProtocolVersion | 0) => Packet | Error;

/** What the types of mqtt-packet leave out. */
type OpenParser = Parser & { settings: object };

const settingsOf: Record<ProtocolVersion | 0, object> = {
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

/** A shared buffer: do not change it. */
export const pingresp: Buffer = generate({ cmd: "pingresp" });

const acks = {
  puback: generate({ cmd: "puback", messageId: 0 }),
  pubrec: generate({ cmd: "pubrec", messageId: 0 }),
  pubrel: generate({ cmd: "pubrel", messageId: 0 }),
  pubcomp: generate({ cmd: "pubcomp", messageId: 0 }),
  unsuback: generate({ cmd: "unsuback", messageId: 0, granted: [] }),
};

/** `packetId`: 1-65535. */
export function encodeAck(cmd: keyof typeof acks, packetId: number): Buffer {
  return withPacketId(acks[cmd], 2, packetId);
}

/** One code for each topic filter of the SUBSCRIBE, in its order [MQTT-3.8.4-5]: the granted QoS, or 0x80. */
export function encodeSuback(packetId: number, codes: readonly number[]): Buffer {
  return generate({ cmd: "suback", messageId: packetId, granted: [...codes] });
}

/** An encoded PUBLISH whose packet id is left open. */
export interface PublishTemplate {
  readonly bytes: Buffer;
  /** Where the packet id goes; -1 at QoS 0. */
  readonly idAt: number;
}

/** Encodes a message once for all its subscribers at one QoS. */
export function encodePublishTemplate(message: Message): PublishTemplate {
  const { topic, payload, qos, retain } = message;
  const bytes = generate({ cmd: "publish", topic, payload, qos, retain, dup: false, messageId: 0 });
  return { bytes, idAt: qos === 0 ? -1 : bytes.length - payload.length - 2 };
}

/** The PUBLISH for one subscriber. At QoS 0, which has no packet id, the template's own bytes: do not change them. */
export function publishFromTemplate(template: PublishTemplate, packetId: number | undefined, dup: boolean): Buffer {
  const { bytes, idAt } = template;
  if (idAt < 0) return bytes;
  if (packetId === undefined) throw new TypeError("a PUBLISH above QoS 0 needs a packet id");
  const packet = withPacketId(bytes, idAt, packetId);
  if (dup) packet.writeUInt8(packet.readUInt8(0) | 0x08, 0); // [MQTT-3.3.1-1]
  return packet;
}

/** `packetId`: 1-65535, undefined at QoS 0. */
export function encodePublish(message: Message & { dup: boolean }, packetId: number | undefined): Buffer {
  return publishFromTemplate(encodePublishTemplate(message), packetId, message.dup);
}

function withPacketId(template: Buffer, at: number, packetId: number): Buffer {
  const packet = Buffer.allocUnsafe(template.length);
  template.copy(packet);
  packet.writeUInt16BE(packetId, at);
  return packet;
}
