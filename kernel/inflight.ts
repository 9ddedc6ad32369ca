/** One connection's deliveries above QoS 0 that the client has not settled: their bytes, their acks, their resends. */
import { encodeAck } from "./encoder.ts";
import type { AckIn, ProtocolVersion } from "./packet.ts";
import { codes, firstError } from "./reasons.ts";
import { encodeDelivery, templateOf } from "./delivery-frame.ts";
import type { Awaitable, Delivery } from "./store.ts";

/** What an ack of the client comes to. */
export interface Inflight {
  /** The delivery has been sent, or is about to be; QoS 1 and 2 only. */
  add(delivery: Delivery): void;
  /** PUBACK, PUBREC or PUBCOMP: settles or releases the delivery that it is for, and answers a PUBREC. */
  acknowledge(ack: AckIn): Awaitable<void>;
  /** PUBLISHes that have not been settled; a PUBREL that was resent on a new connection is not among them. */
  readonly size: number;
  close(): void;
}

export interface InflightDeps {
  readonly protocolVersion: ProtocolVersion;
  /** How long a delivery stays unacknowledged before it is sent again; MQTT 5 does that on a new connection alone [MQTT-4.4.0-1]. */
  retryMs(): number;
  /** Is there room for a resend? */
  hasRoom(): boolean;
  send(frame: Buffer, cmd: "publish" | "pubrel", again: boolean): void;
  settle(delivery: Delivery): void;
  release(delivery: Delivery): Awaitable<void>;
}

interface Sent {
  readonly delivery: Delivery;
  at: number;
  /** Its PUBLISH was sent on this connection: it counts towards the client's receive maximum. */
  readonly counts: boolean;
}

export function createInflight(o: InflightDeps): Inflight {
  // In the order of their last sending.
  const byId = new Map<number, Sent>();
  let size = 0;
  let timer: NodeJS.Timeout | undefined;
  let dueAt = 0;
  let open = true;

  /** A timer that runs is left running, unless the interval has become shorter since. */
  function watch(now: number): void {
    if (o.protocolVersion === 5) return;
    const wait = o.retryMs();
    if (timer !== undefined && dueAt <= now + wait) return;
    clearTimeout(timer);
    setTimer(now, wait);
  }

  function setTimer(now: number, wait: number): void {
    dueAt = now + wait;
    timer = setTimeout(retry, wait);
  }

  function retry(): void {
    timer = undefined;
    const now = performance.now();
    for (const [packetId, sent] of byId) {
      const wait = sent.at + o.retryMs() - now;
      if (wait > 0) {
        setTimer(now, wait);
        return;
      }
      byId.delete(packetId);
      byId.set(packetId, sent);
      sent.at = now;
      if (!o.hasRoom()) continue;
      if (sent.delivery.released) o.send(encodeAck("pubrel", packetId), "pubrel", true);
      else {
        const template = templateOf(sent.delivery, o.protocolVersion);
        o.send(encodeDelivery(sent.delivery, template, { dup: true }), "publish", true);
      }
    }
    if (byId.size > 0) watch(now);
  }

  function settle(packetId: number, sent: Sent): void {
    byId.delete(packetId);
    if (sent.counts) size--;
    // The timer goes on: the next message needs it again, and one in `retryMs` costs less than one a message.
    o.settle(sent.delivery);
  }

  function received(packetId: number, sent: Sent | undefined, reasonCode: number): Awaitable<void> {
    if (!sent) {
      // The client waits for an answer all the same.
      const unknown = o.protocolVersion === 5 ? codes.packetIdentifierNotFound : 0;
      if (reasonCode < firstError) o.send(encodeAck("pubrel", packetId, unknown), "pubrel", false);
      return;
    }
    const { delivery } = sent;
    if (delivery.qos !== 2) return;
    // The client won't take it, and has forgotten the id [MQTT-4.3.3-4].
    if (reasonCode >= firstError) return settle(packetId, sent);
    const again = delivery.released;
    const go = (): void => {
      if (!open) return;
      sent.at = performance.now();
      o.send(encodeAck("pubrel", packetId), "pubrel", again);
    };
    // From the PUBREL on the PUBLISH must not be sent again [MQTT-4.3.3-6], so that is made safe first.
    const released = again ? undefined : o.release(delivery);
    return released instanceof Promise ? released.then(go) : go();
  }

  return {
    add(delivery) {
      const counts = !delivery.released;
      if (counts) size++;
      const at = performance.now();
      byId.set(delivery.packetId, { delivery, at, counts });
      watch(at);
    },
    acknowledge({ cmd, packetId, reasonCode }) {
      const sent = byId.get(packetId);
      if (cmd === "pubrec") return received(packetId, sent, reasonCode);
      if (!sent) return;
      const { delivery } = sent;
      if (cmd === "puback" ? delivery.qos === 1 : delivery.released) settle(packetId, sent);
    },
    get size() {
      return size;
    },
    close() {
      open = false;
      clearTimeout(timer);
      timer = undefined;
      byId.clear();
    },
  };
}
