/** What a worker and the process that holds the store say to each other, and how messages are written down for that. */
import type { Message, MessageProperties, PublishOutcome, QoS, SubscriptionOptions, Will } from "./plugin.ts";
import type { LastWords } from "./siblings.ts";
import type { StoredMessage } from "./store.ts";
import type { WireReader, WireWriter } from "./wire.ts";

/** From the worker. Those with a request number get one answer. */
export const ask = {
  /** A number for a proxy's name. */
  open: 1,
  publish: 2,
  acquire: 3,
  subscribe: 4,
  deliverRetained: 5,
  unsubscribe: 6,
  attach: 7,
  settle: 8,
  release: 9,
  inboundAdd: 10,
  inboundDelete: 11,
  close: 12,
  /** How many deliveries its connection has taken, and their bytes. */
  taken: 13,
  /** Nobody in the worker can use this handle any more. */
  forget: 14,
  query: 15,
  remove: 16,
  /** The answer to `lost`. */
  gaveUp: 17,
  /** A client of this worker has a will that waits, or has none any more. */
  will: 18,
  /** What became of a QoS 2 message that the client's next worker was told of. */
  workEnded: 19,
  /** Is this connection within the one limit of all workers? */
  admit: 20,
  /** The worker's part of a proxy runs. */
  ready: 21,
  /** The will of a connection is seen to. */
  willDone: 22,
  /** What `speakFor` brought is about to enter the pipelines; and it has left them. */
  begun: 23,
  said: 24,
} as const;

/** To the worker. */
export const tell = {
  answer: 1,
  failure: 2,
  /** A message that the deliveries behind it in the same frame refer to, by its number in the frame. */
  message: 3,
  deliver: 4,
  lost: 5,
  receipt: 6,
  counts: 7,
  /** A packet id of the session that came in by an earlier connection. */
  inbound: 8,
  /** A client that this worker knows is here again, at another one; or its session has ended. */
  back: 9,
  workEnded: 10,
  /** For a client of a worker that has ended. */
  speakFor: 11,
} as const;

/** Deliveries that a connection's side is handed before it says that it took them: their number and bytes. */
export const window = { count: 128, bytes: 1024 * 1024 } as const;

export const lostReasons = ["takenOver", "removed", "storeLost"] as const;

/** What `uncounted` of a publish's outcome may be, by its number. */
const uncountedSets: readonly PublishOutcome["uncounted"][] = [
  undefined,
  ["absent"],
  ["otherNodes"],
  ["absent", "otherNodes"],
];

export function numberOfUncounted(uncounted: PublishOutcome["uncounted"]): number {
  return (uncounted?.includes("absent") ? 1 : 0) | (uncounted?.includes("otherNodes") ? 2 : 0);
}

export function uncountedOf(number: number): PublishOutcome["uncounted"] {
  return uncountedSets[number & 3];
}

export const receiptNames = ["waiting", "delivered", "queued", "refused", "passedOn"] as const;

const has = { retain: 4, properties: 8, from: 16, expiry: 32 } as const;
const property = { format: 1, expiry: 2, contentType: 4, responseTopic: 8, correlation: 16, user: 32 } as const;

export function writeMessage(out: WireWriter, message: Message, from: string | undefined, expiresAt: number): void {
  const { topic, payload, qos, retain, properties } = message;
  out.byte(
    qos |
      (retain ? has.retain : 0) |
      (properties ? has.properties : 0) |
      (from === undefined ? 0 : has.from) |
      (expiresAt === 0 ? 0 : has.expiry),
  );
  out.text(topic);
  out.bytes(payload);
  if (from !== undefined) out.text(from);
  if (expiresAt !== 0) out.double(expiresAt);
  if (properties) writeProperties(out, properties);
}

/** A message with who published it; its payload is a view on the frame. */
export function readMessage(frame: WireReader): StoredMessage {
  const flags = frame.byte();
  const topic = frame.text();
  const payload = frame.bytes();
  const from = (flags & has.from) === 0 ? undefined : frame.text();
  const expiresAt = (flags & has.expiry) === 0 ? 0 : frame.double();
  return {
    topic,
    payload,
    qos: (flags & 3) as QoS,
    retain: (flags & has.retain) !== 0,
    properties: (flags & has.properties) === 0 ? undefined : readProperties(frame),
    from,
    expiresAt,
    frames: undefined,
  };
}

export function writeWill(out: WireWriter, will: Will): void {
  out.double(will.delaySec);
  writeMessage(out, will, undefined, 0);
}

/** It is kept for long, and does not hold the frame that it came in. */
export function readWill(frame: WireReader): Will {
  const delaySec = frame.double();
  const { topic, payload, qos, retain, properties } = readMessage(frame);
  return { topic, payload: Buffer.from(payload), qos, retain, properties, delaySec };
}

export function writeLastWords(out: WireWriter, { client, will, connection }: LastWords): void {
  const { id, username, address, protocolVersion } = client;
  out.byte((username === undefined ? 0 : 1) | (will ? 2 : 0) | (connection === undefined ? 0 : 4));
  out.text(id);
  if (username !== undefined) out.text(username);
  out.text(address);
  out.byte(protocolVersion);
  if (will) writeWill(out, will);
  if (connection !== undefined) out.number(connection);
}

export function readLastWords(frame: WireReader): LastWords {
  const flags = frame.byte();
  const id = frame.text();
  const username = (flags & 1) === 0 ? undefined : frame.text();
  const address = frame.text();
  const protocolVersion = frame.byte();
  const will = (flags & 2) === 0 ? undefined : readWill(frame);
  const connection = (flags & 4) === 0 ? undefined : frame.number();
  return { client: { id, username, address, protocolVersion }, will, connection };
}

function writeProperties(out: WireWriter, properties: MessageProperties): void {
  const { payloadFormat, messageExpiry, contentType, responseTopic, correlationData, userProperties } = properties;
  out.byte(
    (payloadFormat === undefined ? 0 : property.format) |
      (messageExpiry === undefined ? 0 : property.expiry) |
      (contentType === undefined ? 0 : property.contentType) |
      (responseTopic === undefined ? 0 : property.responseTopic) |
      (correlationData === undefined ? 0 : property.correlation) |
      (userProperties === undefined ? 0 : property.user),
  );
  if (payloadFormat !== undefined) out.byte(payloadFormat);
  if (messageExpiry !== undefined) out.number(messageExpiry);
  if (contentType !== undefined) out.text(contentType);
  if (responseTopic !== undefined) out.text(responseTopic);
  if (correlationData !== undefined) out.bytes(correlationData);
  if (userProperties === undefined) return;
  out.number(userProperties.length);
  for (const [name, value] of userProperties) {
    out.text(name);
    out.text(value);
  }
}

function readProperties(frame: WireReader): MessageProperties {
  const flags = frame.byte();
  const { format, expiry, contentType, responseTopic, correlation, user } = property;
  return {
    payloadFormat: (flags & format) === 0 ? undefined : (frame.byte() as 0 | 1),
    messageExpiry: (flags & expiry) === 0 ? undefined : frame.number(),
    contentType: (flags & contentType) === 0 ? undefined : frame.text(),
    responseTopic: (flags & responseTopic) === 0 ? undefined : frame.text(),
    correlationData: (flags & correlation) === 0 ? undefined : Buffer.from(frame.bytes()),
    userProperties:
      (flags & user) === 0
        ? undefined
        : Array.from({ length: frame.number() }, () => [frame.text(), frame.text()] as const),
  };
}

export function writeSubscription(out: WireWriter, topicFilter: string, options: SubscriptionOptions): void {
  out.text(topicFilter);
  const { qos, noLocal, retainAsPublished, retainHandling, identifier } = options;
  out.byte(qos | (noLocal ? 4 : 0) | (retainAsPublished ? 8 : 0) | (retainHandling << 4));
  out.number(identifier);
}

export function readSubscription(frame: WireReader): [topicFilter: string, options: SubscriptionOptions] {
  const topicFilter = frame.text();
  const flags = frame.byte();
  return [
    topicFilter,
    {
      qos: (flags & 3) as QoS,
      noLocal: (flags & 4) !== 0,
      retainAsPublished: (flags & 8) !== 0,
      retainHandling: (flags >> 4) as SubscriptionOptions["retainHandling"],
      identifier: frame.number(),
    },
  ];
}
