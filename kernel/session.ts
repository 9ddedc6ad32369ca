/** What outlives a connection: subscriptions, the queue, deliveries in flight, and the packet ids of both directions. */
import type { LogPosition } from "./cluster-engine.ts";
import type { Message, SubscriptionOptions } from "./plugin.ts";
import type { Delivery, PublishOptions, QueueLimits, SessionExpiry, StoredMessage } from "./store.ts";

/** The subscriptions of one session; the SUBSCRIBE that goes beyond gets 0x80. */
export const maxSubscriptions = 10_000;

/** It does not expire [MQTT-3.1.2.11.2]. */
export const neverExpires: SessionExpiry = 0xffff_ffff;

/** A message and how many hold it: deliveries of sessions, and the retained messages. */
export interface KeptMessage extends StoredMessage {
  /** Unique in the proxy. */
  readonly seq: number;
  /** {@link costOf} it. */
  readonly bytes: number;
  holders: number;
  /** Records in the journal that refer to it. */
  records: number;
  /** Where it is in a cluster's log. */
  readonly position?: LogPosition | undefined;
}

/** A delivery with what the store knows of it. */
export interface Entry extends Delivery {
  readonly message: KeptMessage;
  /** Unique in the proxy, growing: the order of a session's deliveries. */
  readonly seq: number;
  /** The topic filter of the shared subscription that it came by. */
  readonly sharedBy: string | undefined;
  receipts: PublishOptions["receipts"];
  /** Its publisher was told that it failed: it is not sent. */
  withdrawn: boolean;
  /** It is, or is about to be, in the journal. */
  recorded: boolean;
  /** QoS 2: its packet id is durable, so that it may be sent. */
  isSafe: boolean;
  /** Another node has sent it under its packet id, or, at QoS 1, may have sent it: whoever knew is gone. */
  readonly sentBefore: boolean;
}

/** What a session lets go of goes here. */
export interface SessionOwner {
  /** Of now. */
  readonly queue: QueueLimits;
  lost(session: Session, entry: Entry, reason: string): void;
}

/** Beyond this share of its bound a connected session slows its publishers down. */
const highWater = 0.8;
const lowWater = 0.5;

/** What a message costs beside its payload: the topic, the objects around it. An estimate. */
const overheadBytes = 128;

/** The QoS 0 messages that may wait for a connection that is busy; more are dropped and counted. */
const maxQos0 = 1000;

const nothing: ReadonlySet<Entry> = new Set();

/**
 * The in-memory session. Messages wait in `queue`, oldest first; `take` moves them to `inflight` (QoS 1 and 2) until they
 * are settled. A class, because there are as many as clients.
 */
export class Session {
  readonly clientId: string;
  expirySec: SessionExpiry;
  readonly subscriptions = new Map<string, SubscriptionOptions>();
  /** Of deliveries in flight; not before the first: most clients only publish. */
  private sending: Set<Entry> | undefined;
  /** Of QoS 2 messages that the client sends. */
  inbound: Set<number> | undefined;
  /** Those of them that are not durable yet: they don't count. */
  unsafeInbound: Set<number> | undefined;
  private readonly owner: SessionOwner;
  /** QoS 2 deliveries whose release is not durable yet: no PUBREL leaves for them, on whatever connection. */
  unsafeReleases: WeakSet<Entry> | undefined;
  /** Of entries queued and in flight. */
  private packetIds: Set<number> | undefined;
  private lastPacketId = 0;
  private queue: (Entry | undefined)[] = [];
  private head = 0;
  private bytes = 0;
  private qos0 = 0;
  private waiters: (() => void)[] = [];

  constructor(clientId: string, expirySec: SessionExpiry, owner: SessionOwner) {
    this.clientId = clientId;
    this.expirySec = expirySec;
    this.owner = owner;
  }

  /** In the order they were sent. */
  get inflight(): ReadonlySet<Entry> {
    return this.sending ?? nothing;
  }

  get queued(): number {
    return this.queue.length - this.head;
  }

  /** Would one more message go over the bound? */
  isFull(bytes: number): boolean {
    const { maxMessages, maxBytes } = this.owner.queue;
    return this.queued + this.inflight.size >= maxMessages || this.bytes + bytes > maxBytes;
  }

  isCrowded(): boolean {
    return this.over(highWater);
  }

  /** Messages that it takes before it is crowded. */
  get spare(): number {
    return this.isCrowded()
      ? 0
      : Math.floor(this.owner.queue.maxMessages * highWater) + 1 - this.queued - this.inflight.size;
  }

  /** Would one more QoS 0 message be dropped before long? */
  get isBusy(): boolean {
    return this.qos0 > maxQos0 * highWater;
  }

  private over(share: number): boolean {
    const { maxMessages, maxBytes } = this.owner.queue;
    return this.queued + this.inflight.size > maxMessages * share || this.bytes > maxBytes * share;
  }

  /** Queues it. Where there is no room the oldest goes for it; at QoS 0 it goes itself. */
  push(entry: Entry): void {
    const { bytes } = entry.message;
    let isFull = this.isFull(bytes);
    if (entry.qos === 0) {
      if (this.qos0 >= maxQos0 || isFull) {
        this.owner.lost(this, entry, "qos0_busy");
        return;
      }
      this.qos0++;
    }
    while (isFull && this.queued > 0) {
      this.drop("queue_full");
      isFull = this.isFull(bytes);
    }
    // Larger than the whole bound, or all of it in flight: nothing older is left to give way.
    if (isFull) {
      this.owner.lost(this, entry, "queue_full");
      return;
    }
    this.queue.push(entry);
    this.bytes += bytes;
  }

  /** It was sent past the queue, in which nothing waits. */
  sent(entry: Entry): void {
    if (entry.qos === 0) return;
    (this.sending ??= new Set()).add(entry);
    this.bytes += entry.message.bytes;
  }

  peek(): Entry | undefined {
    return this.queue[this.head];
  }

  /** What is in flight, then what waits, as it is at the call. */
  entries(): readonly Entry[] {
    return [...this.inflight, ...this.queue.slice(this.head).filter((entry) => entry !== undefined)];
  }

  /** The next `count` entries that wait, without taking them. */
  ahead(count: number): readonly (Entry | undefined)[] {
    return this.queue.slice(this.head, this.head + count);
  }

  /** The next message has been sent; above QoS 0 it counts as in flight from here on. */
  take(): void {
    const entry = this.shift();
    if (!entry || entry.qos === 0) return;
    (this.sending ??= new Set()).add(entry);
    this.bytes += entry.message.bytes;
  }

  /** The next message goes unsent. */
  drop(reason: string): void {
    const entry = this.shift();
    if (!entry) return;
    this.packetIds?.delete(entry.packetId);
    this.owner.lost(this, entry, reason);
  }

  /** Gives it the id that it will be sent with: 1 to 65535, none that is in use [MQTT-2.2.1-3]. */
  number(entry: Entry): void {
    if (entry.qos === 0 || entry.packetId !== 0) return;
    const used = (this.packetIds ??= new Set());
    do this.lastPacketId = this.lastPacketId === 65_535 ? 1 : this.lastPacketId + 1;
    while (used.has(this.lastPacketId));
    entry.packetId = this.lastPacketId;
    used.add(entry.packetId);
  }

  /** The id is given to no delivery until `unreserve`. */
  reserve(packetId: number): void {
    (this.packetIds ??= new Set()).add(packetId);
  }

  unreserve(packetId: number): void {
    this.packetIds?.delete(packetId);
  }

  /** False: it is not, or no longer, in flight. */
  settle(entry: Entry): boolean {
    if (!this.sending?.delete(entry)) return false;
    this.packetIds?.delete(entry.packetId);
    this.bytes -= entry.message.bytes;
    this.relieve();
    return true;
  }

  /** Takes those out that `which` names, in their order: what was in flight first. */
  extract(which: (entry: Entry, inFlight: boolean) => boolean): Entry[] {
    const taken = [...this.inflight].filter((entry) => which(entry, true));
    for (const entry of taken) this.settle(entry);
    const kept: Entry[] = [];
    for (const entry of this.queue.slice(this.head)) {
      if (!entry) continue;
      if (!which(entry, false)) {
        kept.push(entry);
        continue;
      }
      taken.push(entry);
      this.packetIds?.delete(entry.packetId);
      this.bytes -= entry.message.bytes;
      if (entry.qos === 0) this.qos0--;
    }
    if (kept.length < this.queued) {
      this.queue = kept;
      this.head = 0;
      this.relieve();
    }
    return taken;
  }

  /** Takes over what an earlier process has left, in its order. What has a packet id counts as sent. */
  restore(entries: readonly Entry[]): void {
    for (const entry of entries) {
      this.bytes += entry.message.bytes;
      if (entry.packetId === 0) {
        this.queue.push(entry);
        continue;
      }
      (this.sending ??= new Set()).add(entry);
      (this.packetIds ??= new Set()).add(entry.packetId);
      this.lastPacketId = entry.packetId;
    }
  }

  /** Resolves when there is room again, or when `release` gives up on it. */
  room(): Promise<void> {
    return new Promise((resolve) => this.waiters.push(resolve));
  }

  release(): void {
    const { waiters } = this;
    this.waiters = [];
    for (const go of waiters) go();
  }

  private shift(): Entry | undefined {
    const entry = this.queue[this.head];
    if (!entry) return undefined;
    this.queue[this.head++] = undefined;
    if (this.head === this.queue.length) {
      this.queue = [];
      this.head = 0;
    } else if (this.head >= 1024 && this.head * 2 >= this.queue.length) {
      this.queue = this.queue.slice(this.head);
      this.head = 0;
    }
    this.bytes -= entry.message.bytes;
    if (entry.qos === 0) this.qos0--;
    this.relieve();
    return entry;
  }

  private relieve(): void {
    if (this.waiters.length > 0 && !this.over(lowWater) && this.qos0 <= maxQos0 * lowWater) this.release();
  }
}

/** Bytes that a message takes in memory, estimated. */
export function costOf({ payload, topic, properties }: Message): number {
  return payload.length + topic.length + overheadBytes + (properties ? costOfProperties(properties) : 0);
}

function costOfProperties(properties: NonNullable<Message["properties"]>): number {
  const { contentType, responseTopic, correlationData, userProperties } = properties;
  let bytes = (contentType?.length ?? 0) + (responseTopic?.length ?? 0) + (correlationData?.length ?? 0);
  for (const [name, value] of userProperties ?? []) bytes += name.length + value.length;
  return bytes;
}
