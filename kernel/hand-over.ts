/** Deliveries on their way to a worker's connections: each in turn, a message once a frame, none beyond what is taken there. */
import type { Channel } from "./channel.ts";
import type { Delivery, StoredMessage } from "./store.ts";
import type { Holder } from "./store-parties.ts";
import { tell, window, writeMessage } from "./store-wire.ts";

export interface HandOver {
  /** False where the connection has taken too little of what it was handed: it goes on when it has. */
  deliver(holder: Holder, delivery: Delivery, again: boolean): boolean;
  /** The connection has taken so many, of so many bytes. */
  taken(holder: Holder, count: number, bytes: number): void;
  /** The stream has room again. */
  resume(): void;
  forget(holder: Holder): void;
  /** The next delivery is in another frame. */
  flushed(): void;
}

/** @param channelOf what they go by; it is there before the first delivery */
export function createHandOver(channelOf: () => Channel): HandOver {
  const blocked = new Set<Holder>();
  /** Those that the frame has already, by their number in it. */
  let inFrame = new Map<StoredMessage, number>();

  function deliver(holder: Holder, delivery: Delivery, again: boolean): boolean {
    const { message, qos, retain, identifiers, packetId, released } = delivery;
    const { length } = message.payload;
    const isOverBytes = holder.untaken > 0 && holder.untakenBytes + length > window.bytes;
    const channel = channelOf();
    const { out } = channel;
    if (holder.untaken >= window.count || isOverBytes || channel.isFull) {
      holder.isBlocked = true;
      blocked.add(holder);
      return false;
    }
    holder.untaken++;
    holder.untakenBytes += length;
    if (qos > 0) holder.inflight.set(packetId, delivery);
    let index = inFrame.get(message);
    if (index === undefined) {
      index = inFrame.size;
      inFrame.set(message, index);
      out.byte(tell.message);
      writeMessage(out, message, message.from, message.expiresAt);
    }
    out.byte(tell.deliver);
    out.number(holder.id);
    out.number(index);
    out.byte(qos | (retain ? 4 : 0) | (released ? 8 : 0) | (again ? 16 : 0));
    out.number(packetId);
    out.number(identifiers.length);
    for (const identifier of identifiers) out.number(identifier);
    channel.sent();
    return true;
  }

  function unblock(holder: Holder): void {
    if (!holder.isBlocked || holder.untaken >= window.count || channelOf().isFull) return;
    holder.isBlocked = false;
    blocked.delete(holder);
    holder.handle?.resume();
  }

  return {
    deliver,
    taken(holder, count, bytes) {
      holder.untaken -= count;
      holder.untakenBytes -= bytes;
      unblock(holder);
    },
    resume() {
      for (const holder of blocked) unblock(holder);
    },
    forget: (holder) => void blocked.delete(holder),
    flushed() {
      inFrame = new Map();
    },
  };
}
