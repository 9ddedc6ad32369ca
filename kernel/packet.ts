/** What a client may send, well-formed: the packets that the decoder hands out. Types only. */
import type { MessageProperties, QoS, SubscriptionOptions, UserProperties, Will } from "./plugin.ts";

/** 3 = MQTT 3.1, 4 = MQTT 3.1.1, 5 = MQTT 5. */
export type ProtocolVersion = 3 | 4 | 5;

export interface AckIn {
  cmd: "puback" | "pubrec" | "pubrel" | "pubcomp";
  packetId: number;
  /** Of MQTT 5; 0 = success, and so for any other version. */
  reasonCode: number;
}

/** The properties of a CONNECT [MQTT-3.1.2], with their defaults where the client has not set them. */
export interface ConnectProperties {
  /** Seconds that the session outlives the connection; 0xFFFFFFFF = it never expires. */
  readonly sessionExpiry: number;
  /** QoS 1 and 2 deliveries that the client takes at a time. */
  readonly receiveMaximum: number;
  /** Bytes of a whole packet that the client takes; Infinity = any. */
  readonly maximumPacketSize: number;
  /** The highest alias that the client takes; 0 = none. */
  readonly topicAliasMaximum: number;
  readonly requestResponseInformation: boolean;
  readonly requestProblemInformation: boolean;
  readonly userProperties: UserProperties | undefined;
  readonly authenticationMethod: string | undefined;
  readonly authenticationData: Buffer | undefined;
}

export interface ConnectIn {
  cmd: "connect";
  protocolVersion: ProtocolVersion;
  /** May be empty: whether that is allowed depends on `clean`, and is the connection's to judge. */
  clientId: string;
  /** Clean session, of MQTT 5 clean start. */
  clean: boolean;
  /** Seconds; 0 = none. */
  keepalive: number;
  username: string | undefined;
  password: Buffer | undefined;
  will: Will | undefined;
  /** Undefined before MQTT 5. */
  properties: ConnectProperties | undefined;
}

export interface PublishIn {
  cmd: "publish";
  /** A valid topic name; empty where `topicAlias` stands for it. */
  topic: string;
  payload: Buffer;
  qos: QoS;
  retain: boolean;
  dup: boolean;
  /** 1-65535; undefined at QoS 0. */
  packetId: number | undefined;
  properties: MessageProperties | undefined;
  /** 0 = none. */
  topicAlias: number;
  /** The size of the whole packet. */
  bytes: number;
}

export interface SubscribeIn {
  cmd: "subscribe";
  packetId: number;
  /** At least one. Not empty and free of U+0000, but wildcards may be misplaced. */
  subscriptions: ({ topicFilter: string } & Omit<SubscriptionOptions, "identifier">)[];
  /** 0 = none. */
  identifier: number;
  userProperties: UserProperties | undefined;
}

export interface UnsubscribeIn {
  cmd: "unsubscribe";
  packetId: number;
  topicFilters: string[];
  userProperties: UserProperties | undefined;
}

export interface DisconnectIn {
  cmd: "disconnect";
  /** 0 = normal; 4 = the will is to be published. */
  reasonCode: number;
  /** Seconds; undefined = as CONNECT said. */
  sessionExpiry: number | undefined;
  userProperties: UserProperties | undefined;
}

/** Only of MQTT 5. */
export interface AuthIn {
  cmd: "auth";
  /** 0x18 continue, 0x19 re-authenticate. */
  reasonCode: number;
  method: string;
  data: Buffer | undefined;
}

/**
 * Payloads are views on the bytes that came: copy what is to be kept for long, since a view keeps the whole chunk that
 * was read from the socket.
 */
export type InPacket =
  | ConnectIn
  | PublishIn
  | SubscribeIn
  | UnsubscribeIn
  | AckIn
  | { cmd: "pingreq" }
  | DisconnectIn
  | AuthIn;
