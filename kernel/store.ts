/**
 * The port behind which sessions, messages and other nodes live, and the in-memory store. Everything is keyed by proxy and
 * client id: sessions of one proxy are never seen through another. Each method may answer at once or with a promise, so
 * that the store in memory costs none and one on disk or behind a network fits the same calls.
 */
import { SluiceError } from "./errors.ts";
import type { Message, PublishOutcome, QoS, SessionInfo } from "./plugin.ts";
import { type Delivery, type QueueLimits, Session, type SharedMessage } from "./session.ts";
import { createTopicIndex } from "./topics.ts";

type Awaitable<T> = T | Promise<T>;

export interface Store {
  /** `incarnation` changes at every start. */
  readonly node: { readonly id: string; readonly incarnation: string };
  readonly caps: {
    readonly multiNode: boolean;
    /** What an acknowledged message survives. */
    readonly ackDurability: "memory" | "fsync" | "quorum-fsync";
  };
  start(): Promise<void>;
  stop(): Promise<void>;
  /** `durable: false` = QoS 1 can't be accepted now. */
  health(): { readonly live: boolean; readonly durable: boolean; readonly reasons: readonly string[] };
  open(proxy: string, options: StoreOptions): ProxyStore;
}

export interface StoreOptions {
  /** Read at each use, so that it may change. */
  readonly queue: QueueLimits;
  readonly topicCacheSize: number;
  /** Called with what a session lost and why: `queue_full`, `qos0_busy`, `qos0_offline`. */
  onDropped(reason: string, count: number): void;
  now(): number;
}

/** The sessions and messages of one proxy. */
export interface ProxyStore {
  /**
   * To every session with a matching subscription. At QoS 1 it resolves once the message is as safe as `ackDurability`
   * says, and waits while a connected subscriber's queue is crowded. `from` is the publishing client: it never waits for
   * itself. Throws QUEUE_FULL, and no session got it, where the queue of a connected subscriber is full, or that of an
   * absent one under `onFull: fault`; else an absent one loses its oldest message.
   */
  publish(message: Message, options?: { from?: string }): Awaitable<PublishOutcome>;
  /** CONNECT: makes or resumes the session and takes it over from the connection that has it, which hears `onLost`. */
  acquire(client: {
    clientId: string;
    clean: boolean;
    info: { username: string | undefined; address: string };
    onLost: (why: "takenOver" | "removed") => void;
  }): Awaitable<SessionHandle>;
  query(): Awaitable<readonly SessionInfo[]>;
  /** Forgets the session; its connection hears `onLost`. */
  remove(clientId: string): Awaitable<boolean>;
  readonly counts: { readonly sessions: number; readonly subscriptions: number };
}

/** One connection's hold on a session. After `onLost` or `close` every call does nothing. */
export interface SessionHandle {
  /** A stored session was resumed [MQTT-3.2.2-2]. */
  readonly present: boolean;
  readonly subscriptions: ReadonlyMap<string, QoS>;
  /** In effect (and as durable as the store is) once it answers: before the SUBACK. */
  subscribe(topicFilter: string, qos: QoS): Awaitable<void>;
  unsubscribe(topicFilter: string): Awaitable<void>;
  /**
   * Starts the deliveries: those in flight when the last connection ended come first (`again`), in their order and with
   * their packet ids. `deliver` gets at most as many QoS 1 messages as there is credit, and answers false where it has no
   * room: the message was not taken, and none follows until `resume`.
   */
  attach(deliver: (delivery: Delivery, again: boolean) => boolean, credit: number): void;
  resume(): void;
  /** PUBACK: the message is the client's now; gives one credit back. */
  settle(delivery: Delivery): void;
  close(): Awaitable<void>;
}

/** The subscriptions of one session; the SUBSCRIBE that goes beyond gets 0x80. */
export const maxSubscriptions = 10_000;

/** Sessions that nobody is connected to; a CONNECT that would add one beyond is refused. */
const maxAbsentSessions = 1_000_000;

/** A connected subscriber that settles nothing for this long counts as absent: it no longer slows its publishers down. */
const stalledAfterMs = 5000;

/** How long a publish waits for a crowded subscriber before it takes what room is left. */
const crowdedWaitMs = 10_000;

interface Held {
  readonly session: Session;
  handle: MemoryHandle | undefined;
  info: { username: string | undefined; address: string };
  connectedAt: number;
  settledAt: number;
}

/** The store of a single node with nothing to keep over a restart. */
export function createMemoryStore(node: { id: string; incarnation: string }): Store {
  let closed = false;
  return {
    node,
    caps: { multiNode: false, ackDurability: "memory" },
    start: () => Promise.resolve(),
    stop() {
      closed = true;
      return Promise.resolve();
    },
    health: () => ({ live: !closed, durable: !closed, reasons: closed ? ["the store is closed"] : [] }),
    open(proxy, options) {
      return openProxy(proxy, options, () => {
        if (closed) throw new SluiceError("STORE_CLOSED", `the session store is closed; ${proxy} takes no messages`);
      });
    },
  };
}

function openProxy(proxy: string, options: StoreOptions, check: () => void): ProxyStore {
  const sessions = new Map<string, Held>();
  const index = createTopicIndex<Held, QoS>({ prefer: higher, cacheSize: options.topicCacheSize });
  let absent = 0;

  function forget(held: Held): void {
    for (const topicFilter of held.session.subscriptions.keys()) index.delete(topicFilter, held);
    if (sessions.get(held.session.clientId) === held) sessions.delete(held.session.clientId);
    held.session.release();
  }

  function keepsUp(held: Held): boolean {
    return held.handle !== undefined && options.now() - held.settledAt < stalledAfterMs;
  }

  async function waitFor(
    held: Held,
    message: Message,
    from: string | undefined,
    until: number,
  ): Promise<PublishOutcome> {
    const timer = setTimeout(() => held.session.release(), stalledAfterMs);
    await held.session.room();
    clearTimeout(timer);
    return publish(message, from, until);
  }

  function publish(message: Message, from: string | undefined, until = 0): Awaitable<PublishOutcome> {
    check();
    const hits = index.match(message.topic);
    if (hits.length === 0) return { matched: 0, connected: 0, durable: true };
    if (message.qos > 0) {
      for (const { key: held, value } of hits) {
        if (value === 0 || !held.session.isCrowded()) continue;
        const waits = keepsUp(held);
        // A client that publishes to itself must not wait for acks that stand behind its own packets.
        if (waits && held.session.clientId !== from && (until === 0 || options.now() < until)) {
          return waitFor(held, message, from, until || options.now() + crowdedWaitMs);
        }
        if (held.session.isFull(message) && (waits || options.queue.onFull === "fault")) {
          throw new SluiceError(
            "QUEUE_FULL",
            `the queue of ${held.session.clientId} on ${proxy} is full; the message was not accepted`,
          );
        }
      }
    }
    const shared: SharedMessage = { ...message, payload: unpinned(message.payload), frames: undefined };
    let connected = 0;
    for (const { key: held, value } of hits) {
      const delivery: Delivery = { message: shared, qos: value < message.qos ? value : message.qos, packetId: 0 };
      if (held.handle) {
        connected++;
        held.handle.offer(delivery);
      } else if (delivery.qos === 0) {
        options.onDropped("qos0_offline", 1);
      } else {
        const lost = held.session.push(delivery);
        if (lost > 0) options.onDropped("queue_full", lost);
      }
    }
    return { matched: hits.length, connected, durable: true };
  }

  return {
    publish: (message, { from } = {}) => publish(message, from),
    acquire({ clientId, clean, info, onLost }) {
      check();
      const old = sessions.get(clientId);
      if (!old?.handle && !clean && !old && absent >= maxAbsentSessions) {
        throw new SluiceError("QUEUE_FULL", `${proxy} keeps ${absent} sessions of absent clients, its limit`);
      }
      if (old?.handle) old.handle.lose("takenOver");
      else if (old) absent--;
      const resumed = old && !clean && !old.session.clean;
      if (old && !resumed) forget(old);
      const now = options.now();
      const held: Held = resumed
        ? old
        : {
            session: new Session(clientId, clean, options),
            handle: undefined,
            info,
            connectedAt: now,
            settledAt: now,
          };
      held.info = info;
      held.connectedAt = held.settledAt = now;
      sessions.set(clientId, held);
      const handle: MemoryHandle = createHandle(held, {
        present: resumed === true,
        subscribe(topicFilter, qos) {
          held.session.subscriptions.set(topicFilter, qos);
          index.set(topicFilter, held, qos);
        },
        unsubscribe(topicFilter) {
          if (held.session.subscriptions.delete(topicFilter)) index.delete(topicFilter, held);
        },
        dropped: (reason, count) => options.onDropped(reason, count),
        settled() {
          held.settledAt = options.now();
        },
        closed() {
          held.handle = undefined;
          held.session.release();
          if (held.session.clean) {
            forget(held);
            return;
          }
          const lost = held.session.dropQos0();
          if (lost > 0) options.onDropped("qos0_offline", lost);
          absent++;
        },
        lost(why) {
          held.handle = undefined;
          held.session.release();
          onLost(why);
        },
      });
      held.handle = handle;
      return handle;
    },
    query() {
      return [...sessions.values()]
        .map(({ session, handle, info, connectedAt }) => ({
          clientId: session.clientId,
          connected: handle !== undefined,
          clean: session.clean,
          username: info.username,
          address: handle ? info.address : undefined,
          connectedAt,
          subscriptions: [...session.subscriptions].map(([topicFilter, qos]) => ({ topicFilter, qos })),
          queued: session.queued,
          inflight: session.inflight.size,
        }))
        .toSorted((a, b) => (a.clientId < b.clientId ? -1 : 1));
    },
    remove(clientId) {
      const held = sessions.get(clientId);
      if (!held) return false;
      const { handle } = held;
      if (!handle) absent--;
      forget(held);
      handle?.lose("removed");
      return true;
    },
    get counts() {
      return { sessions: sessions.size, subscriptions: index.size };
    },
  };
}

interface MemoryHandle extends SessionHandle {
  /** A new message: sent at once where nothing waits in front of it, else queued. */
  offer(delivery: Delivery): void;
  lose(why: "takenOver" | "removed"): void;
}

function createHandle(
  { session }: Held,
  owner: {
    present: boolean;
    subscribe(topicFilter: string, qos: QoS): void;
    unsubscribe(topicFilter: string): void;
    dropped(reason: string, count: number): void;
    settled(): void;
    closed(): void;
    lost(why: "takenOver" | "removed"): void;
  },
): MemoryHandle {
  let deliver: ((delivery: Delivery, again: boolean) => boolean) | undefined;
  let resend: Delivery[] = [];
  let credit = 0;
  let open = true;

  /** Sends what waits, oldest first, as far as credit and the connection's room go. */
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
      if (!next || (next.qos > 0 && credit <= 0) || !deliver(next, false)) return;
      if (next.qos > 0) credit--;
      session.take();
    }
  }

  return {
    present: owner.present,
    subscriptions: session.subscriptions,
    subscribe(topicFilter, qos) {
      if (open) owner.subscribe(topicFilter, qos);
    },
    unsubscribe(topicFilter) {
      if (open) owner.unsubscribe(topicFilter);
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
      if (!open || !session.settle(delivery)) return;
      owner.settled();
      credit++;
      pump();
    },
    offer(delivery) {
      // Nothing in flight: from here on it has something to settle.
      if (session.inflight.size === 0) owner.settled();
      const lost = session.push(delivery);
      if (lost > 0) owner.dropped(delivery.qos === 0 ? "qos0_busy" : "queue_full", lost);
      pump();
    },
    close() {
      if (!open) return;
      open = false;
      deliver = undefined;
      owner.closed();
    },
    lose(why) {
      if (!open) return;
      open = false;
      deliver = undefined;
      owner.lost(why);
    },
  };
}

/** A payload is a view on all the bytes that were read with it; a queue must not keep those alive. */
function unpinned(payload: Buffer): Buffer {
  return payload.buffer.byteLength > 2 * payload.length + 64 ? Buffer.from(payload) : payload;
}

function higher(a: QoS, b: QoS): QoS {
  return a > b ? a : b;
}
