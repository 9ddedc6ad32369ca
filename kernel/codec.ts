/**
 * Bytes to packets, and mqtt-packet, which it alone imports. The stream is split into packets here (framing.ts), since
 * mqtt-packet would buffer whatever length is claimed. Those of MQTT 3.1 and 3.1.1 are judged (frame.ts), since it lets
 * much pass, and then parsed by it, save for PUBLISH and its acks, which come once a message (reader-v4.ts, ADR 0029);
 * those of MQTT 5 have their own reader (reader-v5.ts). Its generator writes what is sent (encoder.ts).
 */
import { generate, parser as createParser, writeToStream } from "mqtt-packet";
import type { Packet, Parser } from "mqtt-packet";
import { allowsDup, bodyProblem, bodyStart, connectVersion, malformed, packetTypes, protocolProblem } from "./frame.ts";
import type { Refusal } from "./frame.ts";
import { createFraming } from "./framing.ts";
import type { Framing } from "./framing.ts";
import type { InPacket, ProtocolVersion } from "./packet.ts";
import { variableBytes } from "./properties.ts";
import { noPacketId, readAck, readPublish } from "./reader-v4.ts";
import { readV5 } from "./reader-v5.ts";
import { reasonCodes } from "./reasons.ts";
import { topicNameProblem } from "./topics.ts";

export type { Refusal } from "./frame.ts";
export type { InPacket } from "./packet.ts";

/** One connection's decoder: what was sent to it comes out as packets. */
export type Decoder = Framing;

/** What packets are read for. */
export interface PacketTaker {
  /** Of a whole packet, fixed header included; a longer one is refused as soon as its length is known. */
  readonly maxPacketBytes: number;
  /** Returns false to be called no more before `resume`. */
  onPacket(packet: InPacket): boolean;
}

export function createDecoder(taker: PacketTaker): Decoder {
  return createFraming(taker.maxPacketBytes, take, taker);
}

function take(
  taker: PacketTaker,
  bytes: Buffer,
  at: number,
  end: number,
  version: ProtocolVersion | 0,
): Refusal | boolean {
  const packet = decode(bytes, at, end, version);
  return "code" in packet ? packet : taker.onPacket(packet);
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
  switch (type) {
    case packetTypes.publish:
      return readPublish(bytes, bytes.readUInt8(at), body, end, end - at);
    case packetTypes.puback:
      return readAck("puback", bytes, body, end);
    case packetTypes.pubrec:
      return readAck("pubrec", bytes, body, end);
    case packetTypes.pubrel:
      return readAck("pubrel", bytes, body, end);
    case packetTypes.pubcomp:
      return readAck("pubcomp", bytes, body, end);
  }
  const problem = bodyProblem(type, bytes, body, end);
  if (problem !== undefined) return problem;
  // mqtt-packet knows 3.1.1's rule alone; these bytes are ours to change.
  if (allowsDup(type, version)) bytes.writeUInt8(bytes.readUInt8(at) & 0xf7, at);

  const packet = parseFrame(bytes, at, end, version);
  if (packet instanceof Error) return malformed(`not a valid packet: ${packet.message}`);
  switch (packet.cmd) {
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

/** mqtt-packet's generator. Its types want fewer `undefined`s than its code does. */
export function writePacket(packet: object, protocolVersion: 4 | 5 = 4): Buffer {
  return generate(packet as Packet, { protocolVersion });
}
