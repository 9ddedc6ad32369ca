/** One connection's hold on a session in memory: sends what waits, oldest first, within credit and the connection's room. */
import type { SubscriptionOptions } from "./plugin.ts";
import type { Entry, Session } from "./session.ts";
import type { Awaitable, Delivery, LostReason, SessionExpiry, SessionHandle } from "./store.ts";

export interface MemoryHandle extends SessionHandle {
  /** A new message: sent at once where nothing waits in front of it, else queued. */
  offer(entry: Entry): void;
  lose(why: LostReason): void;
}

/** A session with who is connected to it. */
export interface Held {
  readonly session: Session;
  handle: MemoryHandle | undefined;
  info: { readonly username: string | undefined; readonly address: string };
  connectedAt: number;
  settledAt: number;
  /** When it ends, unless its client comes back; 0 = it does not, or the client is here. */
  expiresAt: number;
  readonly expire: () => void;
  /** It is in the ledger. */
  recorded: boolean;
}

/** What the store does for it. */
export interface HandleOwner extends Pick<SessionHandle, "present" | "subscribe" | "unsubscribe" | "deliverRetained"> {
  readonly inbound: SessionHandle["inbound"];
  now(): number;
  /** There is something to settle from now on, or it was settled. */
  stirred(): void;
  /** The client has it: a QoS 0 message that was sent, or one that was settled. */
  delivered(entry: Entry): void;
  /** It has a packet id now, or has been released: resolves once that is safe; undefined = it is. */
  record(entries: readonly Entry[]): Promise<void> | undefined;
  /** Its deliveries have begun. */
  attached?(): void;
  closed(expirySec: SessionExpiry | undefined): Awaitable<void>;
  /** {@link SessionHandle.willDone} */
  willDone?(): void;
  lost(why: LostReason): void;
}

/** A class because there are as many as clients. */
class LocalHandle implements MemoryHandle {
  readonly present: boolean;
  readonly inbound: SessionHandle["inbound"];
  private readonly session: Session;
  private readonly owner: HandleOwner;
  private deliver: ((delivery: Delivery, again: boolean) => boolean) | undefined;
  private resend: Entry[] = none;
  private credit = 0;
  private open = true;
  private securing = false;

  constructor(session: Session, owner: HandleOwner) {
    this.session = session;
    this.owner = owner;
    this.present = owner.present;
    this.inbound = new HandleInbound(this, owner.inbound);
  }

  get isOpen(): boolean {
    return this.open;
  }

  get subscriptions(): SessionHandle["subscriptions"] {
    return this.session.subscriptions;
  }

  subscribe(topicFilter: string, options: SubscriptionOptions): Awaitable<{ readonly isNew: boolean }> {
    return this.open ? this.owner.subscribe(topicFilter, options) : { isNew: false };
  }

  unsubscribe(topicFilter: string): Awaitable<boolean> {
    return this.open && this.owner.unsubscribe(topicFilter);
  }

  deliverRetained(topicFilter: string, isNew: boolean): Awaitable<void> {
    if (this.open) return this.owner.deliverRetained(topicFilter, isNew);
  }

  attach(to: (delivery: Delivery, again: boolean) => boolean, granted: number): void {
    if (!this.open) return;
    this.resend = [...this.session.inflight];
    // Below zero where the window has shrunk since: what is in flight is resent, and nothing new until it fits again.
    this.credit = granted - this.resend.length;
    this.deliver = to;
    this.pump();
    this.owner.attached?.();
  }

  resume(): void {
    if (this.open) this.pump();
  }

  settle(delivery: Delivery): void {
    const entry = delivery as Entry;
    if (!this.open || !this.session.settle(entry)) return;
    this.owner.delivered(entry);
    this.owner.stirred();
    this.credit++;
    this.pump();
  }

  release(delivery: Delivery): Awaitable<void> {
    const entry = delivery as Entry;
    if (!this.open || !this.session.inflight.has(entry)) return;
    entry.released = true;
    this.owner.stirred();
    return this.secureRelease(entry);
  }

  /** Resolves once it may be sent that it is released; undefined = now. */
  private secureRelease(entry: Entry): Promise<void> | undefined {
    const written = this.owner.record([entry]);
    if (!written) return undefined;
    const { session } = this;
    session.unsafeReleases ??= new WeakSet();
    session.unsafeReleases.add(entry);
    return written.then(() => void session.unsafeReleases?.delete(entry));
  }

  /** It was released on the last connection, and that is not safe yet. */
  private async releaseAgain(entry: Entry): Promise<void> {
    if (this.securing) return;
    this.securing = true;
    try {
      await this.secureRelease(entry);
    } catch {
      // As where an id could not be made safe: once more.
    }
    this.securing = false;
    this.pump();
  }

  offer(entry: Entry): void {
    // Nothing in flight: from here on it has something to settle.
    if (this.session.inflight.size === 0) this.owner.stirred();
    if (this.sendAtOnce(entry)) return;
    this.session.push(entry);
    this.pump();
  }

  close(expirySec?: SessionExpiry): Awaitable<void> {
    if (!this.open) return;
    this.open = false;
    this.deliver = undefined;
    return this.owner.closed(expirySec);
  }

  willDone(): void {
    this.owner.willDone?.();
  }

  lose(why: LostReason): void {
    if (!this.open) return;
    this.open = false;
    this.deliver = undefined;
    this.owner.lost(why);
  }

  private pump(): void {
    const { session, owner } = this;
    for (;;) {
      // A connection that breaks inside `deliver` takes it away.
      if (!this.deliver) return;
      const [again] = this.resend;
      if (again) {
        if (again.released && session.unsafeReleases?.has(again)) {
          void this.releaseAgain(again);
          return;
        }
        if (!this.deliver(again, true)) return;
        this.resend.shift();
        continue;
      }
      const next = session.peek();
      if (!next) return;
      if (next.withdrawn || this.isExpired(next)) {
        session.drop(next.withdrawn ? "fault" : "expired");
        continue;
      }
      if (next.qos > 0 && this.credit <= 0) return;
      if (isUnsafe(next)) {
        void this.secure();
        return;
      }
      this.number(next);
      if (!this.deliver(next, next.sentBefore)) return;
      if (next.qos > 0) this.credit--;
      session.take();
      if (next.qos === 0) owner.delivered(next);
    }
  }

  /** Where nothing waits in front of it, a message needs no place in the queue. Answers whether it is gone. */
  private sendAtOnce(entry: Entry): boolean {
    const { session } = this;
    if (!this.deliver || this.resend.length > 0 || session.queued > 0) return false;
    if (isUnsafe(entry) || this.isExpired(entry) || session.isFull(entry.message.bytes)) return false;
    if (entry.qos > 0 && this.credit <= 0) return false;
    this.number(entry);
    if (!this.deliver(entry, entry.sentBefore)) return false;
    if (entry.qos > 0) this.credit--;
    session.sent(entry);
    if (entry.qos === 0) this.owner.delivered(entry);
    return true;
  }

  /** The ids of the QoS 2 messages that credit allows next are made safe, all of them with one write. */
  private async secure(): Promise<void> {
    if (this.securing) return;
    const next = this.session.ahead(this.credit).filter((entry) => entry !== undefined && isUnsafe(entry)) as Entry[];
    for (const entry of next) this.session.number(entry);
    const safe = this.owner.record(next);
    this.securing = true;
    try {
      await safe;
      for (const entry of next) entry.isSafe = true;
    } catch {
      // The journal is tried again after a while, and with it what `pump` puts next.
    }
    this.securing = false;
    this.pump();
  }

  private number(entry: Entry): void {
    if (entry.qos === 0 || entry.packetId !== 0) return;
    this.session.number(entry);
    if (entry.recorded) void this.owner.record([entry]);
  }

  private isExpired({ message }: Entry): boolean {
    return message.expiresAt !== 0 && message.expiresAt <= this.owner.now();
  }
}

/** {@link SessionHandle.inbound}. */
class HandleInbound {
  private readonly handle: LocalHandle;
  private readonly inner: HandleOwner["inbound"];

  constructor(handle: LocalHandle, inner: HandleOwner["inbound"]) {
    this.handle = handle;
    this.inner = inner;
  }

  has(packetId: number): boolean {
    return this.handle.isOpen && this.inner.has(packetId);
  }

  /** Also late: a pipeline may take longer than the connection lasts. */
  add(packetId: number): Awaitable<void> {
    return this.inner.add(packetId);
  }

  delete(packetId: number): Awaitable<void> {
    if (this.handle.isOpen) return this.inner.delete(packetId);
  }

  ids(): Iterable<number> {
    return this.handle.isOpen ? (this.inner.ids?.() ?? []) : [];
  }
}

/** What nothing is added to. */
const none: Entry[] = [];

function isUnsafe({ qos, recorded, isSafe }: Entry): boolean {
  return qos === 2 && recorded && !isSafe;
}

/** Its methods are the class's: copying its properties into another object leaves them behind. */
export function createHandle(session: Session, owner: HandleOwner): LocalHandle {
  return new LocalHandle(session, owner);
}
