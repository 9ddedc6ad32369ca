/** The QoS 1 deliveries of one connection that wait for their PUBACK: packet ids and resends. */
import { encodePublishTemplate, publishFromTemplate } from "./codec.ts";
import type { Delivery } from "./session.ts";

/** What a message's `frames` hold: its encoded forms, made by the first subscriber that needs each. */
interface Frames {
  qos0: Buffer | undefined;
  qos1: ReturnType<typeof encodePublishTemplate> | undefined;
}

export interface Inflight {
  /** The bytes to send; at QoS 1 a packet id is taken, or the delivery's own is kept where it was sent before. */
  encode(delivery: Delivery, again: boolean): Buffer;
  /** PUBACK: the delivery it settles; nothing for an id that is not in flight. */
  settle(packetId: number): Delivery | undefined;
  readonly size: number;
  close(): void;
}

interface Sent {
  readonly delivery: Delivery;
  at: number;
}

/** @param retryMs how long a delivery stays unacknowledged before `resend` gets it again, with DUP set */
export function createInflight(o: { retryMs: () => number; resend: (frame: Buffer) => void }): Inflight {
  // In the order of their last sending.
  const byId = new Map<number, Sent>();
  let lastId = 0;
  let timer: NodeJS.Timeout | undefined;

  /** 1 to 65535, never one that is in flight [MQTT-2.3.1-2], [MQTT-2.3.1-4]. */
  function nextId(): number {
    do lastId = lastId === 65_535 ? 1 : lastId + 1;
    while (byId.has(lastId));
    return lastId;
  }

  function retry(): void {
    timer = undefined;
    const now = performance.now();
    for (const [packetId, sent] of byId) {
      const wait = sent.at + o.retryMs() - now;
      if (wait > 0) {
        timer = setTimeout(retry, wait);
        return;
      }
      byId.delete(packetId);
      byId.set(packetId, sent);
      sent.at = now;
      o.resend(encodeQos1(sent.delivery, true));
    }
    if (byId.size > 0) timer ??= setTimeout(retry, o.retryMs());
  }

  return {
    encode(delivery, again) {
      if (delivery.qos === 0) {
        const frames = framesOf(delivery);
        return (frames.qos0 ??= encodePublishTemplate(delivery.message, { ...plain, qos: 0 }).bytes);
      }
      if (delivery.packetId === 0) delivery.packetId = nextId();
      byId.set(delivery.packetId, { delivery, at: performance.now() });
      timer ??= setTimeout(retry, o.retryMs());
      return encodeQos1(delivery, again);
    },
    settle(packetId) {
      const sent = byId.get(packetId);
      if (!sent) return undefined;
      byId.delete(packetId);
      if (byId.size === 0) {
        clearTimeout(timer);
        timer = undefined;
      }
      return sent.delivery;
    },
    get size() {
      return byId.size;
    },
    close() {
      clearTimeout(timer);
      timer = undefined;
      byId.clear();
    },
  };
}

function framesOf({ message }: Delivery): Frames {
  return (message.frames ??= { qos0: undefined, qos1: undefined }) as Frames;
}

function encodeQos1(delivery: Delivery, dup: boolean): Buffer {
  const frames = framesOf(delivery);
  frames.qos1 ??= encodePublishTemplate(delivery.message, { ...plain, qos: 1 });
  return publishFromTemplate(frames.qos1, { packetId: delivery.packetId, dup });
}

const plain = { retain: false, protocolVersion: 4, identifiers: [], alias: "none" } as const;
