/** One connection's hold on a session in memory: sends what waits, oldest first, within credit and the connection's room. */
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
  closed(expirySec: SessionExpiry | undefined): Awaitable<void>;
  lost(why: LostReason): void;
}

export function createHandle(session: Session, owner: HandleOwner): MemoryHandle {
  let deliver: ((delivery: Delivery, again: boolean) => boolean) | undefined;
  let resend: Entry[] = [];
  let credit = 0;
  let open = true;
  let securing = false;

  /** The ids of the QoS 2 messages that credit allows next are made safe, all of them with one write. */
  function secure(): void {
    if (securing) return;
    const next = session.ahead(credit).filter((entry) => entry !== undefined && isUnsafe(entry)) as Entry[];
    for (const entry of next) session.number(entry);
    const safe = owner.record(next);
    securing = true;
    void (async () => {
      try {
        await safe;
        for (const entry of next) entry.isSafe = true;
      } catch {
        // The journal is tried again after a while, and with it what `pump` puts next.
      }
      securing = false;
      pump();
    })();
  }

  function isUnsafe({ qos, recorded, isSafe }: Entry): boolean {
    return qos === 2 && recorded && !isSafe;
  }

  function pump(): void {
    for (;;) {
      // A connection that breaks inside `deliver` takes it away.
      if (!deliver) return;
      const [again] = resend;
      if (again) {
        if (!deliver(again, true)) return;
        resend.shift();
        continue;
      }
      const next = session.peek();
      if (!next) return;
      if (next.withdrawn || isExpired(next)) {
        session.drop(next.withdrawn ? "fault" : "expired");
        continue;
      }
      if (next.qos > 0 && credit <= 0) return;
      if (isUnsafe(next)) {
        secure();
        return;
      }
      if (next.qos > 0 && next.packetId === 0) {
        session.number(next);
        if (next.recorded) void owner.record([next]);
      }
      if (!deliver(next, next.sentBefore)) return;
      if (next.qos > 0) credit--;
      session.take();
      if (next.qos === 0) owner.delivered(next);
    }
  }

  function isExpired({ message }: Entry): boolean {
    return message.expiresAt !== 0 && message.expiresAt <= owner.now();
  }

  return {
    present: owner.present,
    subscriptions: session.subscriptions,
    subscribe: (topicFilter, options) => (open ? owner.subscribe(topicFilter, options) : { isNew: false }),
    unsubscribe: (topicFilter) => open && owner.unsubscribe(topicFilter),
    deliverRetained(topicFilter, isNew) {
      if (open) return owner.deliverRetained(topicFilter, isNew);
    },
    attach(to, granted) {
      if (!open) return;
      resend = [...session.inflight];
      // Below zero where the window has shrunk since: what is in flight is resent, and nothing new until it fits again.
      credit = granted - resend.length;
      deliver = to;
      pump();
    },
    resume() {
      if (open) pump();
    },
    settle(delivery) {
      const entry = delivery as Entry;
      if (!open || !session.settle(entry)) return;
      owner.delivered(entry);
      owner.stirred();
      credit++;
      pump();
    },
    release(delivery) {
      const entry = delivery as Entry;
      if (!open || !session.inflight.has(entry)) return;
      entry.released = true;
      owner.stirred();
      return owner.record([entry]);
    },
    inbound: {
      has: (packetId) => open && owner.inbound.has(packetId),
      // Also late: a pipeline may take longer than the connection lasts.
      add: (packetId) => owner.inbound.add(packetId),
      delete(packetId) {
        if (open) return owner.inbound.delete(packetId);
      },
    },
    offer(entry) {
      // Nothing in flight: from here on it has something to settle.
      if (session.inflight.size === 0) owner.stirred();
      session.push(entry);
      pump();
    },
    close(expirySec) {
      if (!open) return;
      open = false;
      deliver = undefined;
      return owner.closed(expirySec);
    },
    lose(why) {
      if (!open) return;
      open = false;
      deliver = undefined;
      owner.lost(why);
    },
  };
}
