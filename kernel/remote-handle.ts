/** One connection's hold on a session that another process has. */
import type { Acquisition, Delivery, LostReason, SessionHandle } from "./store.ts";
import type { SubscriptionOptions } from "./plugin.ts";
import type { Request } from "./remote-store.ts";
import { ask, window, writeSubscription } from "./store-wire.ts";
import type { WireWriter } from "./wire.ts";

export interface RemoteHandle {
  readonly clientId: string;
  /** The number of its proxy. */
  readonly proxy: number;
  readonly handle: SessionHandle & { readonly id: number; cameIn(packetId: number): void };
  /** Before the handle is used. */
  acquired(session: {
    readonly present: boolean;
    readonly ordinal: number;
    readonly subscriptions: readonly (readonly [string, SubscriptionOptions])[];
    readonly inbound: readonly number[];
  }): void;
  deliver(delivery: Delivery, again: boolean): void;
  lost(why: LostReason): void;
  /** Also where an earlier connection brought it. */
  cameIn(packetId: number): void;
}

export interface RemoteHandleDeps {
  readonly id: number;
  readonly proxy: number;
  readonly clientId: string;
  readonly onLost: Acquisition["onLost"];
  readonly request: Request;
  post(kind: number, write: () => void): void;
  readonly out: WireWriter;
  /** Nothing comes for it any more. */
  ended(): void;
  writeUnderWay(): void;
}

const nothing = (): void => undefined;

export function createRemoteHandle(deps: RemoteHandleDeps): RemoteHandle {
  const { id, out, request } = deps;
  const post = (kind: number, write: () => void): void => deps.post(kind, write);
  const subscriptions = new Map<string, SubscriptionOptions>();
  const inbound = new Set<number>();
  /** Above QoS 0, handed to the connection and not settled. */
  const inflight = new Map<number, Delivery>();
  /** Came, and did not fit yet; at most `window`. */
  const waiting: { readonly delivery: Delivery; readonly again: boolean }[] = [];
  let present = false;
  let ordinal: number | undefined;
  let open = true;
  let send: ((delivery: Delivery, again: boolean) => boolean) | undefined;
  let taken = 0;
  let takenBytes = 0;
  let pumping = false;

  function pump(): void {
    // What is sent may make room, which asks for more in the middle of this.
    if (pumping) return;
    pumping = true;
    for (let next = waiting[0]; next && send; next = waiting[0]) {
      const { delivery, again } = next;
      if (delivery.qos > 0) inflight.set(delivery.packetId, delivery);
      if (!send(delivery, again)) {
        inflight.delete(delivery.packetId);
        break;
      }
      waiting.shift();
      took(delivery);
    }
    pumping = false;
  }

  function took({ message }: Delivery): void {
    taken++;
    takenBytes += message.payload.length;
    // Half of it: the other side has the rest to go on with until it hears of these.
    if (!open || (taken < window.count / 2 && takenBytes < window.bytes / 2)) return;
    const [count, bytes] = [taken, takenBytes];
    taken = takenBytes = 0;
    post(ask.taken, () => {
      out.number(id);
      out.number(count);
      out.number(bytes);
    });
  }

  function end(): void {
    open = false;
    send = undefined;
    waiting.length = 0;
    inflight.clear();
    deps.ended();
  }

  const writeId = (): void => out.number(id);
  const withPacketId = (packetId: number) => (): void => {
    out.number(id);
    out.number(packetId);
  };

  const handle: RemoteHandle["handle"] = {
    id,
    get present() {
      return present;
    },
    get ordinal() {
      return ordinal;
    },
    subscriptions,
    subscribe(topicFilter, options) {
      if (!open) return { isNew: false };
      const write = (): void => {
        writeId();
        writeSubscription(out, topicFilter, options);
      };
      return request(ask.subscribe, write, (answer) => {
        subscriptions.set(topicFilter, options);
        return { isNew: answer.byte() === 1 };
      });
    },
    deliverRetained(topicFilter, isNew) {
      // None by what the client has asked for: that need not be asked of the other side.
      const { retainHandling = 2 } = subscriptions.get(topicFilter) ?? {};
      if (!open || retainHandling === 2 || (retainHandling === 1 && !isNew)) return;
      const write = (): void => {
        writeId();
        out.text(topicFilter);
        out.byte(isNew ? 1 : 0);
      };
      return request(ask.deliverRetained, write, nothing);
    },
    unsubscribe(topicFilter) {
      if (!open) return false;
      const write = (): void => {
        writeId();
        out.text(topicFilter);
      };
      return request(ask.unsubscribe, write, (answer) => {
        subscriptions.delete(topicFilter);
        return answer.byte() === 1;
      });
    },
    attach(to, credit) {
      if (!open) return;
      send = to;
      post(ask.attach, () => {
        writeId();
        out.number(credit);
      });
    },
    resume() {
      if (open) pump();
    },
    settle(delivery) {
      const { packetId } = delivery;
      if (!open || inflight.get(packetId) !== delivery) return;
      inflight.delete(packetId);
      post(ask.settle, withPacketId(packetId));
    },
    release(delivery) {
      const { packetId } = delivery;
      if (!open || inflight.get(packetId) !== delivery) return;
      delivery.released = true;
      return request(ask.release, withPacketId(packetId), nothing);
    },
    inbound: {
      has: (packetId) => open && inbound.has(packetId),
      // Also late: a pipeline may take longer than the connection lasts.
      add: (packetId) => request(ask.inboundAdd, withPacketId(packetId), () => void inbound.add(packetId)),
      delete(packetId) {
        if (!open) return;
        inbound.delete(packetId);
        return request(ask.inboundDelete, withPacketId(packetId), nothing);
      },
    },
    close(expirySec) {
      if (!open) return;
      end();
      const write = (): void => {
        writeId();
        out.number(expirySec === undefined ? 0 : expirySec + 1);
        deps.writeUnderWay();
      };
      return request(ask.close, write, nothing);
    },
    willDone: () => post(ask.willDone, writeId),
    cameIn: (packetId) => void inbound.add(packetId),
  };

  return {
    clientId: deps.clientId,
    proxy: deps.proxy,
    handle,
    cameIn: (packetId) => void inbound.add(packetId),
    acquired(session) {
      present = session.present;
      ordinal = session.ordinal;
      for (const [topicFilter, options] of session.subscriptions) subscriptions.set(topicFilter, options);
      for (const packetId of session.inbound) inbound.add(packetId);
    },
    deliver(delivery, again) {
      if (!open) return;
      waiting.push({ delivery, again });
      if (waiting.length === 1) pump();
    },
    lost(why) {
      if (!open) return;
      end();
      deps.onLost(why);
    },
  };
}
