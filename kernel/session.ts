/** What outlives a connection: subscriptions, the queue, and deliveries that wait for their PUBACK. */
import type { Message, QoS } from "./plugin.ts";

/** A message shared by all its subscribers; `frames` is where the sending side keeps its encoded form, once for all. */
export interface SharedMessage extends Message {
  frames: unknown;
}

/** One message to one session. It is its own token: `settle` takes it back. */
export interface Delivery {
  readonly message: SharedMessage;
  /** min(publish, subscription) [MQTT-3.8.4-6]. */
  readonly qos: QoS;
  /** 0 until it is first sent; a session that resumes sends it again under the same id [MQTT-4.4.0-1]. */
  packetId: number;
}

export interface QueueLimits {
  readonly maxMessages: number;
  readonly maxBytes: number;
  /** `fault`: the publisher gets no ack. `dropOldest`: the session loses its oldest message, counted. */
  readonly onFull: "dropOldest" | "fault";
}

/** Beyond this share of its bound a connected session slows its publishers down. */
const highWater = 0.8;
const lowWater = 0.5;

/** What a message costs beside its payload: the topic, the objects around it. An estimate. */
const overheadBytes = 128;

/** The QoS 0 messages that may wait for a connection that is busy; more are dropped and counted. */
const maxQos0 = 1000;

/**
 * The in-memory session. Messages wait in `queue`, oldest first; `take` moves them to `inflight` (QoS 1) until settled.
 * A class, because there are as many as clients.
 */
export class Session {
  readonly clientId: string;
  readonly clean: boolean;
  readonly subscriptions = new Map<string, QoS>();
  /** In the order they were sent. */
  readonly inflight = new Set<Delivery>();
  private readonly owner: { readonly queue: QueueLimits };
  private queue: (Delivery | undefined)[] = [];
  private head = 0;
  private bytes = 0;
  private qos0 = 0;
  private waiters: (() => void)[] = [];

  /** @param owner whose `queue` are the limits of now */
  constructor(clientId: string, clean: boolean, owner: { readonly queue: QueueLimits }) {
    this.clientId = clientId;
    this.clean = clean;
    this.owner = owner;
  }

  get queued(): number {
    return this.queue.length - this.head;
  }

  /** Would one more message go over the bound? */
  isFull(message: Message): boolean {
    return (
      this.queued + this.inflight.size >= this.owner.queue.maxMessages ||
      this.bytes + cost(message) > this.owner.queue.maxBytes
    );
  }

  isCrowded(): boolean {
    return this.over(highWater);
  }

  private over(share: number): boolean {
    return (
      this.queued + this.inflight.size > this.owner.queue.maxMessages * share ||
      this.bytes > this.owner.queue.maxBytes * share
    );
  }

  /** Queues it, and answers how many messages were dropped for that: the oldest, or itself at QoS 0. */
  push(delivery: Delivery): number {
    if (delivery.qos === 0) {
      if (this.qos0 >= maxQos0 || this.isFull(delivery.message)) return 1;
      this.qos0++;
    }
    let lost = 0;
    while (this.isFull(delivery.message) && this.queued > 0) {
      this.shift();
      lost++;
    }
    // Larger than the whole bound, or all of it in flight: nothing older is left to give way.
    if (this.isFull(delivery.message)) return lost + 1;
    this.queue.push(delivery);
    this.bytes += cost(delivery.message);
    return lost;
  }

  /** The next message to send; at QoS 1 it counts as in flight from here on. */
  take(): Delivery | undefined {
    const delivery = this.shift();
    if (delivery && delivery.qos > 0) {
      this.inflight.add(delivery);
      this.bytes += cost(delivery.message);
    }
    return delivery;
  }

  peek(): Delivery | undefined {
    return this.queue[this.head];
  }

  settle(delivery: Delivery): boolean {
    if (!this.inflight.delete(delivery)) return false;
    this.bytes -= cost(delivery.message);
    this.relieve();
    return true;
  }

  /** QoS 0 messages don't wait for a client that is away. */
  dropQos0(): number {
    const kept = this.queue.slice(this.head).filter((delivery) => delivery && delivery.qos > 0);
    const lost = this.queued - kept.length;
    if (lost > 0) {
      this.queue = kept;
      this.head = 0;
      this.qos0 = 0;
      this.bytes = [...this.inflight, ...kept].reduce((sum, each) => sum + (each ? cost(each.message) : 0), 0);
    }
    return lost;
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

  private shift(): Delivery | undefined {
    const delivery = this.queue[this.head];
    if (!delivery) return undefined;
    this.queue[this.head++] = undefined;
    if (this.head === this.queue.length) {
      this.queue = [];
      this.head = 0;
    } else if (this.head >= 1024 && this.head * 2 >= this.queue.length) {
      this.queue = this.queue.slice(this.head);
      this.head = 0;
    }
    this.bytes -= cost(delivery.message);
    if (delivery.qos === 0) this.qos0--;
    this.relieve();
    return delivery;
  }

  private relieve(): void {
    if (this.waiters.length > 0 && !this.over(lowWater)) this.release();
  }
}

function cost(message: Message): number {
  return message.payload.length + message.topic.length + overheadBytes;
}
