/**
 * Reads MQTT 5's packets from their raw bytes, and judges them while reading: nothing is left over, missing, or where it
 * must not be. The fixed header has been judged before (framing.ts). Malformed and protocol errors are told apart as
 * section 4.13 does, since the client is told which it was.
 */
import {
  connectFlagsProblem,
  fieldEnd,
  malformed,
  packetTypes,
  protocolError,
  type Refusal,
  textProblem,
} from "./frame.ts";
import type {
  AckIn,
  AuthIn,
  ConnectIn,
  DisconnectIn,
  InPacket,
  PublishIn,
  SubscribeIn,
  UnsubscribeIn,
} from "./packet.ts";
import type { MessageProperties, QoS } from "./plugin.ts";
import { carriers, type Properties, readProperties } from "./properties.ts";
import { fromClient, reasonCodes } from "./reasons.ts";
import { readTopicName } from "./topic-reader.ts";
import { topicNameProblem } from "./topics.ts";

/** The packet that begins at `at` and whose body lies from `body` to `end`. */
export function readV5(bytes: Buffer, at: number, body: number, end: number): InPacket | Refusal {
  const first = bytes.readUInt8(at);
  switch (first >> 4) {
    case packetTypes.connect: {
      const packet = readConnect(bytes, body, end);
      if (!("code" in packet)) return packet;
      // A CONNACK may say why [MQTT-3.1.4-1], [MQTT-3.1.4-2].
      const connack = packet.code === "PROTOCOL_ERROR" ? reasonCodes.protocolError : reasonCodes.malformedPacket;
      return { ...packet, connack };
    }
    case packetTypes.publish:
      return readPublish(bytes, first, body, end, end - at);
    case packetTypes.puback:
      return readAck("puback", bytes, body, end);
    case packetTypes.pubrec:
      return readAck("pubrec", bytes, body, end);
    case packetTypes.pubrel:
      return readAck("pubrel", bytes, body, end);
    case packetTypes.pubcomp:
      return readAck("pubcomp", bytes, body, end);
    case packetTypes.subscribe:
      return readSubscribe(bytes, body, end);
    case packetTypes.unsubscribe:
      return readUnsubscribe(bytes, body, end);
    case packetTypes.disconnect:
      return readDisconnect(bytes, body, end);
    case packetTypes.auth:
      return readAuth(bytes, body, end);
    default:
      // The fixed header says so: a packet without a body.
      return { cmd: "pingreq" };
  }
}

function readConnect(bytes: Buffer, body: number, end: number): ConnectIn | Refusal {
  // Protocol name and level have been judged.
  let at = body + 7;
  if (at + 3 > end) return malformed("CONNECT ends before its keep alive");
  const flags = bytes.readUInt8(at);
  const problem = connectFlagsProblem(flags);
  if (problem !== undefined) return problem;
  const keepalive = bytes.readUInt16BE(at + 1);
  const read = readProperties(bytes, at + 3, end, carriers.connect);
  if ("code" in read) return read;
  if (read.authenticationData !== undefined && read.authenticationMethod === undefined) {
    return protocolError("CONNECT with authentication data, but no method");
  }
  at = read.end;

  function field(name: string): { start: number; end: number } | Refusal {
    const next = fieldEnd(bytes, at, end);
    if (next < 0) return malformed(`CONNECT ends within its ${name}`);
    const start = at + 2;
    at = next;
    return { start, end: next };
  }
  function text(name: string): string | Refusal {
    const found = field(name);
    if ("code" in found) return found;
    const fault = textProblem(bytes, found.start, found.end);
    if (fault !== undefined) return malformed(`CONNECT with a ${name} that ${fault}`);
    return bytes.toString("utf8", found.start, found.end);
  }
  /** A copy: it is kept as long as the connection. */
  function binary(name: string): Buffer | Refusal {
    const found = field(name);
    return "code" in found ? found : Buffer.from(bytes.subarray(found.start, found.end));
  }

  const clientId = text("client id"); // [MQTT-3.1.3-4]
  if (typeof clientId !== "string") return clientId;
  let will: ConnectIn["will"];
  if ((flags & 0x04) !== 0) {
    const willRead = readProperties(bytes, at, end, carriers.will);
    if ("code" in willRead) return willRead;
    at = willRead.end;
    const topic = text("will topic"); // [MQTT-3.1.3-11]
    if (typeof topic !== "string") return topic;
    const payload = binary("will message");
    if ("code" in payload) return payload;
    const fault = topicNameProblem(topic);
    if (fault !== undefined) return malformed(`CONNECT with a wrong will topic: ${fault}`);
    const properties = messageProperties(willRead, "CONNECT's will");
    if (properties !== undefined && "code" in properties) return properties;
    will = {
      topic,
      payload,
      qos: ((flags >> 3) & 3) as QoS,
      retain: (flags & 0x20) !== 0,
      properties,
      delaySec: willRead.willDelay ?? 0,
    };
  }
  let username: string | undefined;
  if ((flags & 0x80) !== 0) {
    const found = text("user name"); // [MQTT-3.1.3-12]
    if (typeof found !== "string") return found;
    username = found;
  }
  let password: Buffer | undefined;
  if ((flags & 0x40) !== 0) {
    const found = binary("password");
    if ("code" in found) return found;
    password = found;
  }
  if (at !== end) return malformed(`CONNECT with ${end - at} bytes left over`);
  return {
    cmd: "connect",
    protocolVersion: 5,
    clientId,
    clean: (flags & 0x02) !== 0,
    keepalive,
    username,
    password,
    will,
    properties: {
      sessionExpiry: read.sessionExpiry ?? 0,
      receiveMaximum: read.receiveMaximum ?? 65_535,
      maximumPacketSize: read.maximumPacketSize ?? Infinity,
      topicAliasMaximum: read.topicAliasMaximum ?? 0,
      requestResponseInformation: read.requestResponseInformation === 1,
      requestProblemInformation: read.requestProblemInformation !== 0,
      userProperties: read.userProperties,
      authenticationMethod: read.authenticationMethod,
      authenticationData: read.authenticationData,
    },
  };
}

function readPublish(bytes: Buffer, first: number, body: number, end: number, size: number): PublishIn | Refusal {
  const qos = ((first >> 1) & 3) as QoS;
  const topicEnd = fieldEnd(bytes, body, end);
  if (topicEnd < 0) return malformed("PUBLISH ends within its topic name");
  const topic = topicEnd === body + 2 ? "" : readTopicName(bytes, body + 2, topicEnd);
  if (typeof topic !== "string") return topic;
  let at = topicEnd;
  let packetId: number | undefined;
  if (qos > 0) {
    packetId = packetIdAt(bytes, at, end);
    if (packetId === 0) return noPacketId("PUBLISH");
    at += 2;
  }
  let properties: MessageProperties | undefined;
  let topicAlias = 0;
  // No properties, as mostly.
  if (at < end && bytes.readUInt8(at) === 0) at++;
  else {
    const read = readProperties(bytes, at, end, carriers.publish);
    if ("code" in read) return read;
    at = read.end;
    if (read.topicAlias === 0) {
      return { ...protocolError("PUBLISH with topic alias 0 [MQTT-3.3.2-8]"), reason: "topicAliasInvalid" };
    }
    topicAlias = read.topicAlias ?? 0;
    const found = messageProperties(read, "PUBLISH");
    if (found !== undefined && "code" in found) return found;
    properties = found;
  }
  if (topic === "" && topicAlias === 0) return protocolError("PUBLISH with neither a topic name nor a topic alias");
  const payload = bytes.subarray(at, end);
  const retain = (first & 0x01) !== 0;
  const dup = (first & 0x08) !== 0;
  return { cmd: "publish", topic, payload, qos, retain, dup, packetId, properties, topicAlias, bytes: size };
}

/** Those that travel with a message; undefined where there are none. */
function messageProperties(read: Properties, packet: string): MessageProperties | Refusal | undefined {
  const { payloadFormat, messageExpiry, contentType, responseTopic, correlationData, userProperties } = read;
  if (responseTopic !== undefined) {
    const fault = topicNameProblem(responseTopic);
    if (fault !== undefined) return malformed(`${packet} with a wrong response topic: ${fault} [MQTT-3.3.2-14]`);
  }
  const isEmpty =
    payloadFormat === undefined &&
    messageExpiry === undefined &&
    contentType === undefined &&
    responseTopic === undefined &&
    correlationData === undefined &&
    userProperties === undefined;
  if (isEmpty) return undefined;
  return {
    payloadFormat: payloadFormat as MessageProperties["payloadFormat"],
    messageExpiry,
    contentType,
    responseTopic,
    correlationData,
    userProperties,
  };
}

function readAck(cmd: AckIn["cmd"], bytes: Buffer, body: number, end: number): AckIn | Refusal {
  const packetId = packetIdAt(bytes, body, end);
  if (packetId === 0) return noPacketId(carriers[cmd].name);
  const read = readReason(cmd, fromClient[cmd], bytes, body + 2, end);
  if ("code" in read) return read;
  return { cmd, packetId, reasonCode: read.reasonCode };
}

function readDisconnect(bytes: Buffer, body: number, end: number): DisconnectIn | Refusal {
  const read = readReason("disconnect", fromClient.disconnect, bytes, body, end);
  if ("code" in read) return read;
  const { sessionExpiry, userProperties } = read.properties ?? {};
  return { cmd: "disconnect", reasonCode: read.reasonCode, sessionExpiry, userProperties };
}

function readAuth(bytes: Buffer, body: number, end: number): AuthIn | Refusal {
  const read = readReason("auth", fromClient.auth, bytes, body, end);
  if ("code" in read) return read;
  const { authenticationMethod: method, authenticationData: data } = read.properties ?? {};
  if (method === undefined) return protocolError("AUTH without an authentication method");
  return { cmd: "auth", reasonCode: read.reasonCode, method, data };
}

/** Reason code and properties, both of which may be missing, at the end of a packet. */
function readReason(
  cmd: AckIn["cmd"] | "disconnect" | "auth",
  allowed: ReadonlySet<number>,
  bytes: Buffer,
  at: number,
  end: number,
): { reasonCode: number; properties: Properties | undefined } | Refusal {
  const carrier = carriers[cmd];
  const reasonCode = at < end ? bytes.readUInt8(at) : 0;
  if (!allowed.has(reasonCode)) {
    return protocolError(`${carrier.name} with reason code 0x${reasonCode.toString(16)}, which it must not have`);
  }
  if (at + 1 >= end) return { reasonCode, properties: undefined };
  const properties = readProperties(bytes, at + 1, end, carrier);
  if ("code" in properties) return properties;
  if (properties.end !== end) return malformed(`${carrier.name} with ${end - properties.end} bytes left over`);
  return { reasonCode, properties };
}

function readSubscribe(bytes: Buffer, body: number, end: number): SubscribeIn | Refusal {
  const packetId = packetIdAt(bytes, body, end);
  if (packetId === 0) return noPacketId("SUBSCRIBE");
  const read = readProperties(bytes, body + 2, end, carriers.subscribe);
  if ("code" in read) return read;
  const subscriptions: SubscribeIn["subscriptions"] = [];
  let at = read.end;
  if (at === end) return protocolError("SUBSCRIBE without a topic filter [MQTT-3.8.3-2]");
  while (at < end) {
    const topicFilter = topicFilterAt(bytes, at, end, "SUBSCRIBE");
    if (typeof topicFilter !== "string") return topicFilter;
    at = fieldEnd(bytes, at, end);
    if (at === end) return malformed("SUBSCRIBE ends before the options of a topic filter");
    const options = bytes.readUInt8(at++);
    const qos = options & 3;
    const retainHandling = (options >> 4) & 3;
    if ((options & 0xc0) !== 0) return malformed("SUBSCRIBE with reserved bits set [MQTT-3.8.3-5]");
    if (qos === 3) return protocolError("SUBSCRIBE with QoS 3");
    if (retainHandling === 3) return protocolError("SUBSCRIBE with retain handling 3");
    const noLocal = (options & 0x04) !== 0;
    if (noLocal && topicFilter.startsWith("$share/")) {
      return protocolError("SUBSCRIBE with No Local on a shared subscription [MQTT-3.8.3-4]");
    }
    subscriptions.push({
      topicFilter,
      qos: qos as QoS,
      noLocal,
      retainAsPublished: (options & 0x08) !== 0,
      retainHandling: retainHandling as 0 | 1 | 2,
    });
  }
  const { subscriptionIdentifier: identifier = 0, userProperties } = read;
  return { cmd: "subscribe", packetId, subscriptions, identifier, userProperties };
}

function readUnsubscribe(bytes: Buffer, body: number, end: number): UnsubscribeIn | Refusal {
  const packetId = packetIdAt(bytes, body, end);
  if (packetId === 0) return noPacketId("UNSUBSCRIBE");
  const read = readProperties(bytes, body + 2, end, carriers.unsubscribe);
  if ("code" in read) return read;
  const topicFilters: string[] = [];
  let at = read.end;
  if (at === end) return protocolError("UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]");
  while (at < end) {
    const topicFilter = topicFilterAt(bytes, at, end, "UNSUBSCRIBE");
    if (typeof topicFilter !== "string") return topicFilter;
    topicFilters.push(topicFilter);
    at = fieldEnd(bytes, at, end);
  }
  return { cmd: "unsubscribe", packetId, topicFilters, userProperties: read.userProperties };
}

function topicFilterAt(bytes: Buffer, at: number, end: number, packet: string): string | Refusal {
  const next = fieldEnd(bytes, at, end);
  if (next < 0) return malformed(`${packet} ends within a topic filter`);
  if (next === at + 2) return malformed(`${packet} with an empty topic filter [MQTT-4.7.3-1]`);
  const problem = textProblem(bytes, at + 2, next);
  if (problem !== undefined) return malformed(`${packet} with a topic filter that ${problem}`);
  return bytes.toString("utf8", at + 2, next);
}

/** 0 where it is missing too: both are forbidden. */
function packetIdAt(bytes: Buffer, at: number, end: number): number {
  return at + 2 <= end ? bytes.readUInt16BE(at) : 0;
}

function noPacketId(name: string): Refusal {
  return malformed(`${name} with the packet id missing or 0 [MQTT-2.2.1-3]`);
}
