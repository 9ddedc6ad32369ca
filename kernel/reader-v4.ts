/**
 * Reads from their raw bytes those packets of MQTT 3.1 and 3.1.1 that come once a message: PUBLISH and its acks. All
 * others go through mqtt-packet (codec.ts). The fixed header has been judged before (framing.ts).
 */
import { fieldEnd, malformed, type Refusal } from "./frame.ts";
import type { AckIn, PublishIn } from "./packet.ts";
import type { QoS } from "./plugin.ts";
import { readTopicName } from "./topic-reader.ts";

/** The PUBLISH of `size` bytes with the first byte `first`, whose body lies from `body` to `end`. */
export function readPublish(
  bytes: Buffer,
  first: number,
  body: number,
  end: number,
  size: number,
): PublishIn | Refusal {
  const topicEnd = fieldEnd(bytes, body, end);
  if (topicEnd < 0) return malformed("PUBLISH ends within its topic name");
  const topic = readTopicName(bytes, body + 2, topicEnd);
  if (typeof topic !== "string") return topic;
  const qos = ((first >> 1) & 3) as QoS;
  let at = topicEnd;
  let packetId: number | undefined;
  if (qos > 0) {
    packetId = packetIdAt(bytes, at, end);
    if (packetId === 0) return noPacketId("PUBLISH");
    at += 2;
  }
  return {
    cmd: "publish",
    topic,
    payload: bytes.subarray(at, end),
    qos,
    retain: (first & 0x01) !== 0,
    dup: (first & 0x08) !== 0,
    packetId,
    properties: undefined,
    topicAlias: 0,
    bytes: size,
  };
}

/** A body of two bytes: the fixed header says so. */
export function readAck(cmd: AckIn["cmd"], bytes: Buffer, body: number, end: number): AckIn | Refusal {
  const packetId = packetIdAt(bytes, body, end);
  return packetId === 0 ? noPacketId(cmd.toUpperCase()) : { cmd, packetId, reasonCode: 0 };
}

/** 0 where it is missing too: both are forbidden. */
export function packetIdAt(bytes: Buffer, at: number, end: number): number {
  return at + 2 <= end ? bytes.readUInt16BE(at) : 0;
}

export function noPacketId(name: string): Refusal {
  return malformed(`${name} with the packet id missing or 0 [MQTT-2.3.1-1]`);
}
