/**
 * What an engine of many nodes does for the kernel, whose sessions stand on it: types only. A service in role `store`
 * brings one as `cluster`, in place of a journal. An engine knows nodes, messages, a log and small records; what a session
 * is, who gets a message and what is acknowledged when is the kernel's alone.
 *
 * Three rules hold everywhere. A promise that resolves tells the truth at that moment: what it says is durable survives
 * the loss of any minority of the engine's machines. A promise that rejects says nothing: what was asked may have happened
 * or not, and the same call again is safe. Callbacks are called in order, from a fresh stack, and do not throw.
 */
import type { Message, Service } from "./plugin.ts";

/** What `create` of a service kind in role `store` returns where it joins nodes to a cluster. */
export interface ClusterService extends Service {
  /** Used from when `start` has resolved, which does not wait for systems outside, until `stop` is called. */
  readonly cluster: ClusterEngine;
}

export interface ClusterEngine {
  readonly node: ClusterNode;
  readonly caps: ClusterCaps;
  /** Cheap: read at each `/readyz` and before each acknowledgement that depends on it. */
  health(): ClusterHealth;
  /** Called after each change of `health()`. */
  onHealth(changed: () => void): Unsubscribe;
  /** The nodes known now, without this one; those that went down are forgotten after a while. */
  peers(): readonly ClusterPeer[];
  /**
   * Called where a node comes up, goes down or comes back as another incarnation: once for each incarnation's `down`, at
   * the latest some 10 s after its end. Down is a guess: a node behind a partition may still serve its clients. Only
   * {@link ClusterRecords} can tell who owns what.
   */
  onPeer(changed: (peer: ClusterPeer) => void): Unsubscribe;
  /**
   * One proxy's share of everything, made once for each name. Messages, records and topics of two proxies never meet.
   */
  open(proxy: string, listener: ClusterListener): ClusterProxy;
  readonly control: ClusterControl;
}

export interface ClusterNode {
  /** Unique among the nodes of now, and the same after a restart. Without U+0000. */
  readonly id: string;
  /** Another at every start. */
  readonly incarnation: string;
}

export interface ClusterPeer extends ClusterNode {
  readonly isUp: boolean;
  /** It said goodbye: its clients were told, and their wills are not to be published, save those that waited already. */
  readonly hasLeft: boolean;
  /**
   * When it was last known to be there, in milliseconds since the epoch: of one that is down, a few seconds before that was
   * noticed. Undefined = this node has never heard of it.
   */
  readonly seenAt?: number | undefined;
}

export interface ClusterCaps {
  /** What an `append` that has resolved survives. */
  readonly ackDurability: "memory" | "fsync" | "quorum-fsync";
  /** Bytes of UTF-8; a longer topic is refused with a rejection and harms nothing else. */
  readonly maxTopicBytes: number;
  /** Bytes of a message as it is sent: payload, topic and properties together. */
  readonly maxMessageBytes: number;
  /** Bytes of one record's value. */
  readonly maxRecordBytes: number;
  /** How long a `dedupeId` is remembered. */
  readonly dedupeMs: number;
  /** How long a node that can't reach the engine keeps the clients whose sessions another node may have taken over. */
  readonly graceMs: number;
  /**
   * How long the last owner of a session has to let go of it, before it is taken to be away. Longer than a node takes to
   * notice that it is: its `reached` is false by then.
   */
  readonly kickMs: number;
}

export interface ClusterHealth {
  /** Messages of other nodes come in and this node's go out. */
  readonly live: boolean;
  /** `append` and records can be made durable, as far as is known. */
  readonly durable: boolean;
  /**
   * Those who decide who owns what have answered lately. False: what this node owns may become another's without its
   * hearing of it.
   */
  readonly reached: boolean;
  /** One line each, for people; no secrets. */
  readonly reasons: readonly string[];
}

export type Unsubscribe = () => void;

/** A message on its way between nodes. */
export interface ClusterMessage extends Message {
  /** Milliseconds since the epoch; 0 = never. The engine carries it and does not judge it. */
  readonly expiresAt: number;
  /** The publishing client; undefined where it came from elsewhere (HTTP, a proxy itself). */
  readonly from: string | undefined;
  /** It is for the session of this client alone, whatever its topic; no `topicFilter` selects it. */
  readonly to: string | undefined;
  /** Whom to tell what becomes of it: the kernel's own, at most 64 bytes. Usually undefined. */
  readonly receipt: string | undefined;
}

/**
 * Which messages: those whose topic a filter matches by MQTT's rules (no `$share/`), `$`-topics [MQTT-4.7.2-1] and the
 * parent level of `#` included, or those for one client.
 */
export type ClusterSelector = { readonly topicFilter: string } | { readonly clientId: string };

/** A place in the log. */
export interface LogPosition {
  /** From 0. All messages of one topic, and all for one client, are in one shard. */
  readonly shard: number;
  /** Growing in its shard, from 1; there may be holes. */
  readonly seq: number;
}

/** How far something has come, by shard; a shard that is not named: 0, before everything. */
export type LogPositions = ReadonlyMap<number, number>;

export interface ClusterListener {
  /**
   * A message that this node may want: of another node's {@link ClusterProxy.send} (then without a position), or any
   * node's `append`, this one's too. A hint: it may be lost, may come twice, and may be wanted by nobody here. Messages of
   * one shard come in the order of their positions.
   *
   * @param previous the `seq` of the message before it with the same topic (or for the same client), which this node gets
   *   too if it wants this one; 0 = it is the first that the log still has; undefined = not known
   */
  onMessage(message: ClusterMessage, position: LogPosition | undefined, previous: number | undefined): void;
  /** Messages may have been missed (the connection was lost, the node was too slow): the log has those that count. */
  onInterrupted(): void;
}

/** Everything of one proxy. */
export interface ClusterProxy {
  readonly interest: ClusterInterest;
  /**
   * At most once, to the other nodes that want it, not to this one: QoS 0. In order to each node. Answers false where it
   * could not be sent.
   */
  send(message: ClusterMessage): boolean;
  readonly log: ClusterLog;
  readonly records: ClusterRecords;
  readonly retained: ClusterRetained;
  readonly wills: ClusterWills;
}

/**
 * Which messages of others this node wants. The engine may send more (a wider filter is cheaper), never less. It counts:
 * what was added twice is to be deleted twice. It outlives lost connections, and is forgotten with the node.
 */
export interface ClusterInterest {
  /**
   * Resolves once messages sent or appended anywhere from now on come here, as far as anything comes. Where the engine is
   * away it rejects at its time-out at the latest, and takes effect when the engine is back all the same.
   */
  add(selector: ClusterSelector): Promise<void>;
  delete(selector: ClusterSelector): void;
  /** What this node has asked the engine for. */
  readonly size: number;
}

/**
 * All messages of QoS 1 and 2, each once, in shards by topic, kept for as long as the engine's retention says whether
 * anybody wants them or not.
 */
export interface ClusterLog {
  /**
   * Resolves once the message is durable. Calls made one after the other for one topic are placed in this order, also
   * where the first has not resolved; if one of them rejects, later ones may have been placed without it.
   *
   * @param o.dedupeId a second append with it within {@link ClusterCaps.dedupeMs}, by whatever node, adds nothing and
   *   answers the position of the first
   */
  append(message: ClusterMessage, o?: { readonly dedupeId?: string | undefined }): Promise<LogPosition>;
  /**
   * Where the log ends, in every shard that the selectors can reach (for a filter without wildcards that is one). Not
   * beyond the true end at the moment it resolves; it may be short of it.
   */
  end(selectors: readonly ClusterSelector[]): Promise<LogPositions>;
  /**
   * The messages that any of the selectors wants, each once, after the given positions. A shard that `after` does not name
   * is read from its beginning, and one that no selector can reach is not read at all.
   *
   * @param o.maxMessages the page ends at about so many; an engine may set less
   */
  read(
    selectors: readonly ClusterSelector[],
    after: LogPositions,
    o: { readonly maxMessages: number },
  ): Promise<LogPage>;
  /** One message; undefined = retention has removed it. */
  get(position: LogPosition): Promise<ClusterMessage | undefined>;
}

export interface LogPage {
  /** In each shard by growing `seq`; between shards in any order. */
  readonly messages: readonly { readonly message: ClusterMessage; readonly position: LogPosition }[];
  /**
   * Verified: of the positions after `after` up to and including these every message that is wanted is on this page. Of
   * each shard that was read, never before `after`. An engine must not claim what it has not seen itself: an answer of a
   * replica that lags counts up to where that replica has come.
   */
  readonly upTo: LogPositions;
  /** False: another page follows after `upTo`. True: whoever was asked had nothing more, which a replica that lags may say. */
  readonly isEnd: boolean;
  /**
   * Shards in which retention has removed messages after `after`, with the first `seq` that is left: something that was
   * wanted may be gone.
   */
  readonly gaps: LogPositions;
}

/**
 * Small records of sessions, each session owned by one node at a time. An *owner record* a client id is moved by
 * compare-and-set; its revision guards every other record of the session: who has lost it can't write. All bytes are the
 * kernel's, which puts the client id into the owner record too.
 */
export interface ClusterRecords {
  /**
   * The owner record as it was at some moment not before the call; unless `isExact`, it may be shortly before. `claim` is
   * what decides.
   */
  owner(clientId: string, isExact?: boolean): Promise<OwnerRecord | undefined>;
  /**
   * Takes the session over, or changes what the owner record says: writes it if its revision is `expected` (0 = there is
   * none). Verdicts are final: an engine sorts out by itself whether a write that got no answer was applied.
   */
  claim(clientId: string, value: Buffer, expected: number): Promise<ClaimOutcome>;
  /**
   * All other records of the session as they are after the claim that answered this revision: no write of an earlier owner
   * can come after what is read. `fenced` = the revision is no longer the owner record's.
   */
  load(clientId: string, revision: number): Promise<ReadonlyMap<string, Buffer> | "fenced">;
  /**
   * Applied in their order; not all or nothing: where it rejects, or `fenced` is answered, some of the first ones may have
   * been written. One call at a time for each client id.
   */
  write(clientId: string, revision: number, changes: readonly RecordChange[]): Promise<"written" | "fenced">;
  /** Deletes the session: its records first, the owner record last, so that a second call finishes what a first began. */
  remove(clientId: string, revision: number): Promise<"written" | "fenced">;
  /**
   * Every session of the proxy, in pieces and in no order, as it was at about the time of the call.
   * @param keys which of their records are wanted too
   */
  list(keys: readonly string[]): AsyncIterable<readonly ListedSession[]>;
}

export interface OwnerRecord {
  readonly value: Buffer;
  /** Growing with each claim; unique in the life of this client id's record. */
  readonly revision: number;
}

/** `taken`: the revision was another; `by` is what stands there now. */
export type ClaimOutcome =
  | { readonly revision: number }
  | { readonly taken: true; readonly by: OwnerRecord | undefined };

export interface RecordChange {
  /** Of the characters a-z, 0-9 and `.`, 32 at most: `sub`, `o.17`. */
  readonly key: string;
  /** Undefined deletes it. */
  readonly value: Buffer | undefined;
  /** The record goes by itself about so long after it was written; else it stays. */
  readonly ttlMs?: number | undefined;
}

export interface ListedSession {
  readonly owner: OwnerRecord;
  readonly records: ReadonlyMap<string, Buffer>;
}

export interface ClusterRetained {
  /**
   * Makes the message its topic's retained one, an empty payload clears it; resolves once that is durable. With a position,
   * which is the message's own in the log, it gives way to one that was set with a later position. Answers false, and the
   * topic keeps what it has, where the message may not be what it would be.
   *
   * @param o.mayAdd its topic may have none so far
   * @param o.mayGrow it may be larger than the one before it
   */
  set(
    message: ClusterMessage,
    position: LogPosition | undefined,
    o: { readonly mayAdd: boolean; readonly mayGrow: boolean },
  ): Promise<boolean>;
  /** Those that a topic filter matches, in pieces and in no order; everything that was durable before the call among them. */
  match(topicFilter: string): AsyncIterable<readonly ClusterMessage[]>;
  /**
   * About what the engine holds of this proxy: as last heard, and with what this node has set since, as if each topic were
   * new, of which `unheard` is the number. Of bytes those that it takes to store them.
   */
  readonly counts: {
    readonly messages: number;
    readonly bytes: number;
    readonly unheard: { readonly messages: number; readonly bytes: number };
  };
  /** Hears anew, unless it has just now. Rejects where nobody answers. */
  recount(): Promise<void>;
}

/** What is to be published if this node dies: kept with its incarnation, one a client id. */
export interface ClusterWills {
  put(clientId: string, value: Buffer): Promise<void>;
  delete(clientId: string): Promise<void>;
  /** Those that a node which is down has left, in pieces. */
  of(incarnation: string): AsyncIterable<readonly { readonly clientId: string; readonly value: Buffer }[]>;
  /** One of them has been seen to. */
  drop(incarnation: string, clientId: string): Promise<void>;
}

/** Words between nodes, of all proxies: at most once, in order between two nodes. Nothing of it is kept. */
export interface ClusterControl {
  /** Rejects where the node does not answer in time, is not there, or its handler failed. Answers of some MB are possible. */
  request(node: string, kind: string, body: Buffer, timeoutMs: number): Promise<Buffer>;
  /** To all other nodes. */
  broadcast(kind: string, body: Buffer): void;
  /**
   * One handler a kind, of requests and broadcasts alike; what it returns is the answer to a request. It may throw: the one
   * who asked is told that it failed.
   */
  handle(kind: string, handler: (body: Buffer, from: string) => Buffer | void | Promise<Buffer | void>): Unsubscribe;
}
