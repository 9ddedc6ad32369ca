/** What the store in memory does for one connection's hold on a session. */
import type { Deliveries } from "./deliveries.ts";
import type { InboundIds } from "./inbound-ids.ts";
import type { Ledger } from "./ledger.ts";
import type { SubscriptionOptions } from "./plugin.ts";
import type { Entry, Session } from "./session.ts";
import type { HandleOwner, Held, MemoryHandle } from "./session-handle.ts";
import type { Acquisition, Awaitable, LostReason, SessionExpiry, SessionHandle } from "./store.ts";

/** Shared by all of a proxy. */
export interface HeldOwnerDeps {
  readonly ledger: Ledger | undefined;
  readonly deliveries: Deliveries;
  readonly inbound: InboundIds;
  now(): number;
  /** Is it written to the ledger? */
  persists(session: Session): boolean;
  /** Is this still the session of its client? */
  isCurrent(held: Held): boolean;
  /** The answer, once what was written for this session is durable. */
  afterCommit<T>(session: Session, answer: T): Awaitable<T>;
  subscribe(held: Held, topicFilter: string, wanted: SubscriptionOptions): { readonly isNew: boolean };
  /** It is no longer found by a message. */
  detach(held: Held, topicFilter: string): void;
  deliverRetained(held: Held, handle: MemoryHandle, topicFilter: string, isNew: boolean): Awaitable<void>;
  /** Its client has gone, and the session ends with that, or does not. */
  forget(held: Held): void;
  away(held: Held): void;
}

/** A class because there are as many as clients, and each closure of its own costs as much as the rest of it. */
export class HeldOwner implements HandleOwner {
  readonly held: Held;
  readonly deps: HeldOwnerDeps;
  readonly present: boolean;
  readonly inbound: SessionHandle["inbound"];
  private readonly onLost: Acquisition["onLost"];
  private retaining: Promise<void> | undefined;

  constructor(held: Held, present: boolean, onLost: Acquisition["onLost"], deps: HeldOwnerDeps) {
    this.held = held;
    this.deps = deps;
    this.present = present;
    this.onLost = onLost;
    this.inbound = new HeldInbound(this);
  }

  now(): number {
    return this.deps.now();
  }

  subscribe(topicFilter: string, wanted: SubscriptionOptions): Awaitable<{ readonly isNew: boolean }> {
    const { held, deps } = this;
    const granted = deps.subscribe(held, topicFilter, wanted);
    if (deps.persists(held.session)) deps.ledger?.subscription(held.session, topicFilter, wanted);
    return deps.afterCommit(held.session, granted);
  }

  unsubscribe(topicFilter: string): Awaitable<boolean> {
    const { held, deps } = this;
    if (!held.session.subscriptions.delete(topicFilter)) return false;
    deps.detach(held, topicFilter);
    if (deps.persists(held.session)) deps.ledger?.forgetSubscription(held.session, topicFilter);
    return deps.afterCommit(held.session, true);
  }

  deliverRetained(topicFilter: string, isNew: boolean): Awaitable<void> {
    const { held, deps } = this;
    const { handle } = held;
    if (!handle) return;
    const go = (): Awaitable<void> => deps.deliverRetained(held, handle, topicFilter, isNew);
    // One after the other, so that what a busy client is to get is found only when its turn comes.
    const done = this.retaining ? this.retaining.then(go) : go();
    if (!done) return;
    const last = done.finally(() => {
      if (this.retaining === last) this.retaining = undefined;
    });
    this.retaining = last;
    return last;
  }

  stirred(): void {
    this.held.settledAt = this.deps.now();
  }

  delivered(entry: Entry): void {
    this.deps.deliveries.delivered(this.held.session, entry);
  }

  record(changed: readonly Entry[]): Promise<void> | undefined {
    const { ledger } = this.deps;
    for (const entry of changed) if (entry.recorded) ledger?.delivery(this.held.session, entry);
    return changed.some(({ recorded }) => recorded) ? ledger?.commit() : undefined;
  }

  closed(expirySec: SessionExpiry | undefined): void {
    const { held, deps } = this;
    const { session } = held;
    held.handle = undefined;
    session.release();
    if (expirySec !== undefined) session.expirySec = expirySec;
    if (session.expirySec === 0) deps.forget(held);
    else deps.away(held);
  }

  lost(why: LostReason): void {
    this.held.handle = undefined;
    this.held.session.release();
    this.onLost(why);
  }
}

/** {@link SessionHandle.inbound}. */
class HeldInbound {
  private readonly owner: HeldOwner;

  constructor(owner: HeldOwner) {
    this.owner = owner;
  }

  has(packetId: number): boolean {
    const { held, deps } = this.owner;
    return deps.inbound.has(held.session, packetId);
  }

  add(packetId: number): Awaitable<void> {
    const { held, deps } = this.owner;
    const { session } = held;
    if (!deps.isCurrent(held)) return;
    deps.inbound.add(session, packetId);
    const safe = deps.afterCommit(session, undefined);
    return safe ? safe.then(() => deps.inbound.settle(session, packetId)) : deps.inbound.settle(session, packetId);
  }

  delete(packetId: number): Awaitable<void> {
    const { held, deps } = this.owner;
    deps.inbound.delete(held.session, packetId);
    return deps.afterCommit(held.session, undefined);
  }

  ids(): Iterable<number> {
    const { held, deps } = this.owner;
    return deps.inbound.ids(held.session);
  }
}
