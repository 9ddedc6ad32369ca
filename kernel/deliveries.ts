/** The messages that a proxy holds, and the deliveries of its sessions: who holds what, how much it is, who waits for it. */
import type { Target } from "./audience.ts";
import type { Ledger } from "./ledger.ts";
import type { Message, MessageProperties } from "./plugin.ts";
import type { Entry, KeptMessage, Session } from "./session.ts";
import type { PublishOptions, Receipt } from "./store.ts";

export interface Deliveries {
  /** Of all sessions. */
  readonly count: number;
  /** Of messages that are held, each once. */
  readonly bytes: number;
  /** Takes a message in; nobody holds it yet. @param from the publishing client @param bytes what it costs */
  keep(message: Message, from: string | undefined, bytes: number): KeptMessage;
  hold(message: KeptMessage): void;
  letGo(message: KeptMessage): void;
  /**
   * To one session: sent at once, queued, or lost.
   * @param packetId of a delivery that another node has sent before
   * @param mayBeSent another node may have sent it
   */
  give(
    target: Target,
    message: KeptMessage,
    retain: boolean,
    receipts: PublishOptions["receipts"],
    packetId?: number,
    mayBeSent?: boolean,
  ): Entry;
  /** The same delivery, to another session. What is left of it in this one is the caller's to free. */
  pass(from: Session, entry: Entry, target: Target): void;
  /** The session has it back from an earlier process. */
  restored(entries: readonly Entry[]): void;
  /** The client has it. */
  delivered(session: Session, entry: Entry): void;
  /** It is not this session's any more. */
  free(session: Session, entry: Entry): void;
  lost(session: Session, entry: Entry, reason: string): void;
  /** Its client is away: whoever waits for these deliveries is told. */
  queued(session: Session): void;
}

export interface DeliveriesOwner {
  readonly ledger: Pick<Ledger, "delivery" | "forgetDelivery"> | undefined;
  onDropped(reason: string, count: number): void;
  now(): number;
}

/** @param last the highest numbers that an earlier process has used */
export function createDeliveries(owner: DeliveriesOwner, last: { messageSeq: number; entrySeq: number }): Deliveries {
  const { ledger } = owner;
  let { messageSeq, entrySeq } = last;
  let count = 0;
  let bytes = 0;
  /** Deliveries that somebody waits for. */
  let awaited = 0;

  function hold(message: KeptMessage): void {
    if (message.holders++ === 0) bytes += message.bytes;
  }

  function letGo(message: KeptMessage): void {
    if (--message.holders === 0) bytes -= message.bytes;
  }

  function tell(session: Session, entry: Entry, outcome: Receipt): void {
    const { receipts } = entry;
    if (!receipts) return;
    entry.receipts = undefined;
    awaited--;
    receipts(session.clientId, outcome);
  }

  /** It is not this session's any more. */
  function free(session: Session, entry: Entry): void {
    count--;
    if (entry.recorded) ledger?.forgetDelivery(session, entry);
    letGo(entry.message);
  }

  function lost(session: Session, entry: Entry, reason: string): void {
    owner.onDropped(reason, 1);
    tell(session, entry, "refused");
    free(session, entry);
  }

  function keep(message: Message, from: string | undefined, cost: number): KeptMessage {
    const { topic, payload, qos, retain, properties } = message;
    const expiry = properties?.messageExpiry;
    return {
      topic,
      payload: unpinned(payload),
      qos,
      retain,
      properties: properties && unpinnedProperties(properties),
      expiresAt: expiry === undefined ? 0 : owner.now() + expiry * 1000,
      from,
      frames: undefined,
      seq: ++messageSeq,
      bytes: cost,
      holders: 0,
      records: 0,
    };
  }

  function give(
    { key: held, value: grant, sharedBy }: Target,
    message: KeptMessage,
    retain: boolean,
    receipts: PublishOptions["receipts"],
    packetId = 0,
    mayBeSent = false,
  ): Entry {
    const { session } = held;
    const entry: Entry = {
      message,
      qos: grant.qos < message.qos ? grant.qos : message.qos,
      retain,
      identifiers: grant.identifiers,
      packetId,
      released: false,
      seq: ++entrySeq,
      sharedBy,
      receipts,
      withdrawn: false,
      recorded: false,
      isSafe: packetId > 0,
      sentBefore: packetId > 0 || mayBeSent,
    };
    count++;
    hold(message);
    if (receipts) {
      awaited++;
      receipts(session.clientId, "waiting");
    }
    if (entry.qos > 0 && session.expirySec > 0) ledger?.delivery(session, entry);
    if (held.handle) {
      held.handle.offer(entry);
    } else if (entry.qos === 0) {
      lost(session, entry, "qos0_offline");
    } else {
      session.push(entry);
      tell(session, entry, "queued");
    }
    return entry;
  }

  return {
    get count() {
      return count;
    },
    get bytes() {
      return bytes;
    },
    keep,
    hold,
    letGo,
    give,
    pass(from, entry, target) {
      const { receipts } = entry;
      tell(from, entry, "passedOn");
      give(target, entry.message, entry.retain, receipts);
    },
    restored(entries) {
      count += entries.length;
      for (const { message } of entries) hold(message);
    },
    delivered(session, entry) {
      tell(session, entry, "delivered");
      free(session, entry);
    },
    free,
    lost,
    queued(session) {
      if (awaited > 0) for (const entry of session.entries()) tell(session, entry, "queued");
    },
  };
}

/** A payload is a view on all the bytes that were read with it; a queue must not keep those alive. */
function unpinned(payload: Buffer): Buffer {
  return payload.buffer.byteLength > 2 * payload.length + 64 ? Buffer.from(payload) : payload;
}

function unpinnedProperties(properties: MessageProperties): MessageProperties {
  const { correlationData } = properties;
  return correlationData ? { ...properties, correlationData: unpinned(correlationData) } : properties;
}
