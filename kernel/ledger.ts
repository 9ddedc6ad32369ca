/**
 * What is written down of one proxy's sessions and messages: the records, their keys, and how they are read back. Keys are
 * parts joined by U+0000, which none of them contains: the proxy, a letter for the kind of record, and what identifies it.
 */
import { SluiceError } from "./errors.ts";
import type { JournalWriter } from "./journal.ts";
import type { Message, MessageProperties, QoS, SubscriptionOptions } from "./plugin.ts";
import { costOf, type Entry, type KeptMessage, type Session } from "./session.ts";

/** The version of the records, under the key `format`. */
export const format = "1";

export interface Ledger {
  session(session: Session, o: Omit<SessionRecord, "expirySec">): void;
  /** With its subscriptions and inbound ids; its deliveries are forgotten one by one. */
  forgetSession(session: Session): void;
  subscription(session: Session, topicFilter: string, options: SubscriptionOptions): void;
  forgetSubscription(session: Session, topicFilter: string): void;
  /** A new delivery, or one that has changed: it has a packet id, or was released. Its message is written with it. */
  delivery(session: Session, entry: Entry): void;
  forgetDelivery(session: Session, entry: Entry): void;
  retained(message: KeptMessage): void;
  /** @param replaced another message of this topic has been written meanwhile */
  forgetRetained(message: KeptMessage, replaced: boolean): void;
  inbound(session: Session, packetId: number): void;
  forgetInbound(session: Session, packetId: number): void;
  /** Deletes a record that belongs to nothing. */
  forgetStray(key: string): void;
  commit(): Promise<void> | undefined;
  /** @throws SluiceError STORE_FAILED where nothing can be made safe now */
  check(): void;
}

export function createLedger(proxy: string, writer: JournalWriter): Ledger {
  const keyOf = (kind: string, ...parts: (string | number)[]): string => [proxy, kind, ...parts].join("\0");
  const json = (value: unknown) => (): Buffer => Buffer.from(JSON.stringify(value));

  function hold(message: KeptMessage): void {
    if (message.records++ > 0) return;
    writer.put(keyOf("m", message.seq), () => encodeMessage(message), true);
  }

  function letGo(message: KeptMessage): void {
    if (--message.records === 0) writer.delete(keyOf("m", message.seq));
  }

  return {
    session({ clientId, expirySec }, { absentSince, connectedAt, username }) {
      const record: SessionRecord = { expirySec, absentSince, connectedAt, username };
      writer.put(keyOf("s", clientId), json(record), false);
    },
    forgetSession({ clientId, subscriptions, inbound }) {
      writer.delete(keyOf("s", clientId));
      for (const topicFilter of subscriptions.keys()) writer.delete(keyOf("u", clientId, topicFilter));
      for (const packetId of inbound ?? []) writer.delete(keyOf("i", clientId, packetId));
    },
    subscription({ clientId }, topicFilter, options) {
      writer.put(keyOf("u", clientId, topicFilter), json(options), false);
    },
    forgetSubscription({ clientId }, topicFilter) {
      writer.delete(keyOf("u", clientId, topicFilter));
    },
    delivery({ clientId }, entry) {
      const isNew = !entry.recorded;
      if (isNew) hold(entry.message);
      entry.recorded = true;
      writer.put(keyOf("q", clientId, entry.seq), () => encodeDelivery(entry), isNew);
    },
    forgetDelivery({ clientId }, entry) {
      if (!entry.recorded) return;
      entry.recorded = false;
      writer.delete(keyOf("q", clientId, entry.seq));
      letGo(entry.message);
    },
    retained(message) {
      hold(message);
      writer.put(keyOf("r", message.topic), json({ message: message.seq } satisfies RetainedRecord), false);
    },
    forgetRetained(message, replaced) {
      if (!replaced) writer.delete(keyOf("r", message.topic));
      letGo(message);
    },
    inbound({ clientId }, packetId) {
      writer.put(keyOf("i", clientId, packetId), json({}), true);
    },
    forgetInbound({ clientId }, packetId) {
      writer.delete(keyOf("i", clientId, packetId));
    },
    forgetStray(key) {
      writer.delete(key);
    },
    commit: () => writer.commit(),
    check() {
      if (writer.failure !== undefined) {
        throw new SluiceError("STORE_FAILED", `the journal can't be written: ${writer.failure}; nothing was accepted`);
      }
    },
  };
}

/** Times in milliseconds since the epoch. */
interface SessionRecord {
  readonly expirySec: number;
  /** 0 = its client is connected. */
  readonly absentSince: number;
  readonly connectedAt: number;
  readonly username: string | undefined;
}

interface DeliveryRecord {
  readonly message: number;
  readonly qos: QoS;
  readonly retain: boolean;
  readonly identifiers: readonly number[];
  readonly packetId: number;
  readonly released: boolean;
  readonly sharedBy: string | undefined;
}

interface RetainedRecord {
  readonly message: number;
}

interface MessageRecord {
  readonly topic: string;
  readonly qos: QoS;
  readonly retain: boolean;
  readonly expiresAt: number;
  readonly from: string | undefined;
  readonly properties:
    | (Omit<MessageProperties, "correlationData"> & { correlationData: string | undefined })
    | undefined;
}

/** What was found of one session. */
export interface SessionState extends SessionRecord {
  readonly clientId: string;
  readonly subscriptions: Map<string, SubscriptionOptions>;
  readonly inbound: Set<number>;
  /** In their order. */
  readonly entries: Entry[];
}

/** What was found of one proxy. */
export interface ProxyState {
  readonly sessions: SessionState[];
  readonly retained: KeptMessage[];
  /** The highest that was used. */
  readonly messageSeq: number;
  readonly entrySeq: number;
  /** Keys of records that belong to nothing, such as a message that nobody waits for. */
  readonly strays: string[];
}

/** All of a journal, by proxy. @throws SluiceError STORE_FAILED for records that can't be read */
export function readRecords(records: Iterable<readonly [key: string, value: Buffer]>): Map<string, ProxyState> {
  const proxies = new Map<string, Found>();
  for (const [key, value] of records) {
    const [proxy = "", kind = "", ...id] = key.split("\0");
    let found = proxies.get(proxy);
    if (!found) proxies.set(proxy, (found = { sessions: new Map(), messages: new Map(), later: [] }));
    try {
      read(found, { key, kind, id, value });
    } catch (error) {
      throw new SluiceError("STORE_FAILED", `the journal has a record that can't be read, of ${proxy} (${kind})`, {
        cause: error,
      });
    }
  }
  return new Map([...proxies].map(([proxy, found]) => [proxy, assemble(found)]));
}

interface RawRecord {
  readonly key: string;
  readonly kind: string;
  readonly id: readonly string[];
  readonly value: Buffer;
}

interface Found {
  readonly sessions: Map<string, SessionState>;
  readonly messages: Map<number, { key: string; message: KeptMessage }>;
  /** What refers to sessions and messages, which may come after it. */
  readonly later: (RawRecord & { readonly record: unknown })[];
}

function read(found: Found, raw: RawRecord): void {
  const { kind, id, value, key } = raw;
  if (kind === "s") {
    const record = JSON.parse(value.toString()) as SessionRecord;
    const clientId = id[0] ?? "";
    found.sessions.set(clientId, { ...record, clientId, subscriptions: new Map(), inbound: new Set(), entries: [] });
  } else if (kind === "m") {
    const seq = Number(id[0]);
    found.messages.set(seq, { key, message: decodeMessage(value, seq) });
  } else {
    found.later.push({ ...raw, record: JSON.parse(value.toString()) });
  }
}

function assemble({ sessions, messages, later }: Found): ProxyState {
  const strays: string[] = [];
  const retained: KeptMessage[] = [];
  let entrySeq = 0;
  for (const { key, kind, id, record } of later) {
    const session = sessions.get(id[0] ?? "");
    const message = messages.get((record as { message?: number }).message ?? 0)?.message;
    if (kind === "r" && message) {
      message.records++;
      retained.push(message);
    } else if (kind === "u" && session) {
      session.subscriptions.set(id.slice(1).join("\0"), record as SubscriptionOptions);
    } else if (kind === "i" && session) {
      session.inbound.add(Number(id[1]));
    } else if (kind === "q" && session && message) {
      const seq = Number(id[1]);
      entrySeq = Math.max(entrySeq, seq);
      message.records++;
      session.entries.push({ ...toEntry(record as DeliveryRecord, message), seq });
    } else {
      strays.push(key);
    }
  }
  for (const { entries } of sessions.values()) entries.sort((a, b) => a.seq - b.seq);
  let messageSeq = 0;
  for (const [seq, { key, message }] of messages) {
    messageSeq = Math.max(messageSeq, seq);
    if (message.records === 0) strays.push(key);
  }
  return { sessions: [...sessions.values()], retained, messageSeq, entrySeq, strays };
}

function toEntry(record: DeliveryRecord, message: KeptMessage): Omit<Entry, "seq"> {
  const { qos, retain, identifiers, packetId, released, sharedBy } = record;
  return {
    message,
    qos,
    retain,
    identifiers,
    packetId,
    released,
    sharedBy,
    receipts: undefined,
    withdrawn: false,
    recorded: true,
    isSafe: packetId !== 0,
    sentBefore: false,
  };
}

function encodeDelivery(entry: Entry): Buffer {
  const { message, qos, retain, identifiers, packetId, released, sharedBy } = entry;
  const record: DeliveryRecord = { message: message.seq, qos, retain, identifiers, packetId, released, sharedBy };
  return Buffer.from(JSON.stringify(record));
}

/** Four bytes with the length of what follows as JSON; then the payload. */
function encodeMessage({ topic, payload, qos, retain, expiresAt, from, properties }: KeptMessage): Buffer {
  const record: MessageRecord = {
    topic,
    qos,
    retain,
    expiresAt,
    from,
    properties: properties && { ...properties, correlationData: properties.correlationData?.toString("base64") },
  };
  const head = Buffer.from(JSON.stringify(record));
  const bytes = Buffer.allocUnsafe(4 + head.length + payload.length);
  bytes.writeUInt32BE(head.length, 0);
  head.copy(bytes, 4);
  payload.copy(bytes, 4 + head.length);
  return bytes;
}

function decodeMessage(bytes: Buffer, seq: number): KeptMessage {
  const end = 4 + bytes.readUInt32BE(0);
  const { properties, ...record } = JSON.parse(bytes.toString("utf8", 4, end)) as MessageRecord;
  const correlationData = properties?.correlationData;
  const message: Message = {
    ...record,
    payload: bytes.subarray(end),
    properties: properties && {
      ...properties,
      correlationData: correlationData === undefined ? undefined : Buffer.from(correlationData, "base64"),
    },
  };
  return {
    topic: message.topic,
    payload: message.payload,
    qos: message.qos,
    retain: message.retain,
    properties: message.properties,
    expiresAt: record.expiresAt,
    from: record.from,
    frames: undefined,
    seq,
    bytes: costOf(message),
    holders: 0,
    records: 0,
  };
}
