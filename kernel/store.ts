/**
 * The port behind which sessions, messages and other nodes live: types only. Everything is keyed by proxy and client id:
 * sessions of one proxy are never seen through another. Each method may answer at once or with a promise, so that the
 * store in memory costs none and one on disk or behind a network fits the same calls.
 */
import type { Client, Message, PublishOutcome, QoS, SessionInfo, SubscriptionOptions, Will } from "./plugin.ts";

export type Awaitable<T> = T | Promise<T>;

/** A message shared by all its subscribers. */
export interface StoredMessage extends Message {
  /** Milliseconds since the epoch; 0 = never. Judged when it is delivered. */
  readonly expiresAt: number;
  /** The publishing client; undefined where it came from elsewhere (HTTP). */
  readonly from: string | undefined;
  /** Where the sending side keeps its encoded forms, once for all subscribers. */
  frames: unknown;
}

/** One message to one session. It is its own token: `settle` takes it back. */
export interface Delivery {
  readonly message: StoredMessage;
  /** min(publish, subscription) [MQTT-3.8.4-8]. */
  readonly qos: QoS;
  /** The RETAIN flag to send: retain as published, or 1 for a retained message that a SUBSCRIBE brings [MQTT-3.3.1-8]. */
  readonly retain: boolean;
  /** Of every subscription of the session that matches and has one [MQTT-3.3.4-4]. Shared: do not change it. */
  readonly identifiers: readonly number[];
  /**
   * Set by the store before the first `deliver`, unique in the session, and kept where it is sent again on another
   * connection [MQTT-4.4.0-1]; 0 at QoS 0. A QoS 2 id is as durable as the store is before `deliver` is called.
   */
  packetId: number;
  /** QoS 2: PUBREC has come, so that what is sent again is PUBREL [MQTT-4.3.3-8]. */
  released: boolean;
}

/**
 * What became of one message for one session: first `waiting`, then one of the others. `queued`: its client is away, and
 * gets it later. `passedOn`: another member of a shared subscription gets it, and is told of in its turn.
 */
export type Receipt = "waiting" | "delivered" | "queued" | "refused" | "passedOn";

export interface Store {
  /** `incarnation` changes at every start. */
  readonly node: { readonly id: string; readonly incarnation: string };
  readonly caps: {
    readonly multiNode: boolean;
    /** What an acknowledged message survives. */
    readonly ackDurability: "memory" | "process" | "fsync" | "quorum-fsync";
  };
  start(): Promise<void>;
  stop(): Promise<void>;
  /** `durable: false` = QoS 1 and 2 can't be accepted now. */
  health(): { readonly live: boolean; readonly durable: boolean; readonly reasons: readonly string[] };
  /** The proxy's sessions; of a name that was opened before, the same ones, under the new options. */
  open(proxy: string, options: StoreOptions): ProxyStore;
}

/** Read at each use, so that they may change. */
export interface StoreOptions {
  readonly queue: QueueLimits;
  /** What is kept for clients that subscribe later; beyond it a message is delivered, but not retained. 0 = none is. */
  readonly retained: { readonly maxMessages: number; readonly maxBytes: number };
  /** Read once. */
  readonly topicCacheSize: number;
  /**
   * Called with what a session lost and why: `queue_full`, `qos0_busy`, `qos0_offline`, `expired`, `session_ended`; or with
   * `retained_full`, a message that was delivered but not retained.
   */
  onDropped(reason: string, count: number): void;
  now(): number;
  /**
   * A node of the cluster is gone, and this will of one of its clients is this node's to publish, unless it comes back
   * before. Resolves when it is seen to.
   * @param dueAt when its delay is over, in milliseconds since the epoch; 0 = it is
   */
  onOrphanedWill?(will: WillOfClient, dueAt: number): Promise<void>;
  /** A client has connected to another node, or its session has ended there. @param resumed it goes on there */
  onElsewhere?(clientId: string, resumed: boolean): void;
}

/** With what a pipeline is to know of its client. */
export interface WillOfClient {
  readonly will: Will;
  readonly client: Pick<Client, "id" | "username" | "address" | "protocolVersion">;
}

export interface QueueLimits {
  /** Of one session. */
  readonly maxMessages: number;
  readonly maxBytes: number;
  /** Of all sessions and retained messages of the proxy; beyond it QoS 1 and 2 are a fault, and QoS 0 is dropped. */
  readonly maxTotalBytes: number;
  /** `fault`: the publisher gets no ack. `dropOldest`: the session loses its oldest message, counted. */
  readonly onFull: "dropOldest" | "fault";
}

export interface PublishOptions {
  /** The publishing client: it never waits for itself, and a `noLocal` subscription of its own does not match. */
  readonly from?: string | undefined;
  /**
   * QoS 2 from a client: the packet id to add to the `inbound` of its handle, durable together with the message or not at
   * all. With it neither a crash between the two nor a store that fails can lose the message or make it two. As with
   * `inbound.add`, a session that has ended meanwhile gets none.
   */
  readonly inbound?: { readonly handle: SessionHandle; readonly packetId: number } | undefined;
  /** Called with `waiting` before the publish answers, and once more for each session, when it is known what became of it. */
  readonly receipts?: ((clientId: string, outcome: Receipt) => void) | undefined;
  /** As `PublishRequest.countAll` has it. Who waits for receipts gets all counted anyway. */
  readonly countAll?: boolean | undefined;
}

/** The sessions and messages of one proxy. */
export interface ProxyStore {
  /**
   * To every session with a matching subscription, to one member of each shared one; with RETAIN set it also becomes the
   * topic's retained message, or clears it where it is empty. Above QoS 0 it resolves once the message is as safe as
   * `ackDurability` says, and waits while a connected subscriber's queue is crowded. Throws QUEUE_FULL, and no session got
   * it, where the queue of a connected subscriber is full, or that of an absent one under `onFull: fault` (else an absent
   * one loses its oldest message), or where `maxTotalBytes` are held; STORE_FAILED where it could not be made safe.
   */
  publish(message: Message, options?: PublishOptions): Awaitable<PublishOutcome>;
  /** To one session, whatever it has subscribed to, as {@link publish}; `matched` is 0 where there is none. */
  publishTo(clientId: string, message: Message, options?: PublishOptions): Awaitable<PublishOutcome>;
  /** CONNECT: makes or resumes the session and takes it over from the connection that has it, which hears `onLost`. */
  acquire(client: Acquisition): Awaitable<SessionHandle>;
  query(): Awaitable<readonly SessionInfo[]>;
  /** Forgets the session; its connection hears `onLost`. */
  remove(clientId: string): Awaitable<boolean>;
  readonly counts: StoreCounts;
  /**
   * What one client publishes to one topic takes effect in the order of the calls, whichever of them is answered first
   * [MQTT-4.6.0-6]. Without it the next is published when the one before it is answered.
   */
  readonly keepsOrder?: boolean | undefined;
  /** The wills that wait are published by others when this process has left. */
  readonly passesWillsOn?: boolean | undefined;
}

export interface Acquisition {
  readonly clientId: string;
  /** Forget the session that there is [MQTT-3.1.2-4]. */
  readonly cleanStart: boolean;
  /** Seconds that the session outlives its connection; 0 = it ends with it, {@link SessionExpiry} 0xFFFFFFFF = never. */
  readonly expirySec: SessionExpiry;
  readonly info: { readonly username: string | undefined; readonly address: string };
  readonly onLost: (why: LostReason) => void;
  /** What is to be published if the node dies: for a store whose other nodes hear of that. */
  readonly will?: WillOfClient | undefined;
  /** As {@link Client}'s. */
  readonly protocolVersion?: number | undefined;
}

/** `storeLost`: a cluster could not be reached for so long that another node may own the session by now. */
export type LostReason = "takenOver" | "removed" | "storeLost";

/** Seconds, 0 to 0xFFFFFFFF [MQTT-3.1.2.11.2]. A client of 3.1.1 has 0 with a clean session, else 0xFFFFFFFF. */
export type SessionExpiry = number;

export interface StoreCounts {
  readonly sessions: number;
  readonly subscriptions: number;
  /** Deliveries that wait or are in flight, of all sessions. */
  readonly queued: number;
  /** Bytes of messages held, each counted once however many sessions wait for it. */
  readonly queuedBytes: number;
  readonly retained: number;
  readonly retainedBytes: number;
}

export const noCounts: StoreCounts = {
  sessions: 0,
  subscriptions: 0,
  queued: 0,
  queuedBytes: 0,
  retained: 0,
  retainedBytes: 0,
};

/** One connection's hold on a session. After `onLost` or `close` every call does nothing. */
export interface SessionHandle {
  /** A stored session was resumed [MQTT-3.2.2-2]. */
  readonly present: boolean;
  /** Greater for each later connection of a client, where others than this process, or node, count them too. */
  readonly ordinal?: number | undefined;
  /** By topic filter, `$share/group/` included. */
  readonly subscriptions: ReadonlyMap<string, SubscriptionOptions>;
  /** In effect (and as durable as the store is) once it answers: before the SUBACK. */
  subscribe(topicFilter: string, options: SubscriptionOptions): Awaitable<{ readonly isNew: boolean }>;
  /**
   * After the SUBACK: delivers the retained messages that match, as the subscription's `retainHandling` says
   * [MQTT-3.3.1-9]; none for a shared one. Waits where the queue is crowded. @param isNew what `subscribe` answered
   */
  deliverRetained(topicFilter: string, isNew: boolean): Awaitable<void>;
  /** Answers whether there was such a subscription. What is queued for it is still delivered [MQTT-3.10.4-3]. */
  unsubscribe(topicFilter: string): Awaitable<boolean>;
  /**
   * Starts the deliveries: those in flight when the last connection ended come first (`again`), in their order and with
   * their packet ids; of a released one what is sent again is its PUBREL. `deliver` gets at most as many QoS 1 and 2
   * messages as there is credit, and answers false where it has no room: the message was not taken, and none follows until
   * `resume`.
   */
  attach(deliver: (delivery: Delivery, again: boolean) => boolean, credit: number): void;
  resume(): void;
  /** PUBACK, PUBCOMP, or PUBREC with an error: the message is the client's now; gives one credit back. */
  settle(delivery: Delivery): void;
  /** PUBREC: as durable as the store is once it answers, before the PUBREL is sent. */
  release(delivery: Delivery): Awaitable<void>;
  /** The ids of QoS 2 messages from the client between PUBLISH and PUBREL. They live as long as the session. */
  readonly inbound: {
    /** Of those that are as durable as the store is. */
    has(packetId: number): boolean;
    /**
     * Durable once it answers, before the PUBREC. With a message that is stored, give {@link PublishOptions.inbound}.
     * It works after `onLost` and `close` too, as long as there is the session: the pipeline may take longer than the
     * connection lasts, and the client sends the message again on its next one.
     */
    add(packetId: number): Awaitable<void>;
    /** Durable once it answers, before the PUBCOMP: the client may use the id anew after that. */
    delete(packetId: number): Awaitable<void>;
    /** All that {@link has} answers true for. Without it they are found by asking for each. */
    ids?(): Iterable<number>;
  };
  /** The connection ended. @param expirySec a new session expiry, which DISCONNECT may bring [MQTT-3.14.2-2] */
  close(expirySec?: SessionExpiry): Awaitable<void>;
  /**
   * The client's will is seen to: it has left its pipeline, or is not to be published. Also after `onLost` and `close`. Until
   * then a store that has connections in other processes publishes it where they end, and other nodes where this one does.
   */
  willDone?(): void;
}
