/**
 * The engine of a cluster in memory: several nodes in one process, with faults to order. What it does is what
 * kernel/cluster-engine.ts says, no more; where nothing is wrong, what is appended has come to every node before the append
 * resolves.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type {
  ClusterEngine,
  ClusterListener,
  ClusterMessage,
  ClusterPeer,
  ClusterProxy,
  ClusterSelector,
  LogPosition,
  OwnerRecord,
} from "../../kernel/cluster-engine.ts";
import { matches } from "../../kernel/topics.ts";

/** All may be changed at any time. */
export interface Faults {
  /** Milliseconds that each step takes at most, drawn anew; 0 = none. */
  delayMs: number;
  /** Share of the live messages that get lost. */
  loseLive: number;
  /** Share of the live messages that come twice. */
  repeatLive: number;
  /** Share of the words between nodes that get lost. */
  loseControl: number;
  /** Share of the appends and writes that are done and still reject. */
  loseAnswers: number;
  /** Share of the sessions' removals that reject, with nothing done. */
  failRemovals: number;
  /** Share of the reads that are answered by a replica which lags. */
  lag: number;
  /** How long somebody who is cut off waits before a call rejects. */
  timeoutMs: number;
}

export interface MemoryNode {
  readonly engine: ClusterEngine;
  /** From now on nothing reaches it, and it reaches nothing. */
  cutOff(): void;
  /** The node stays connected, and none of those who decide answers: what it says of its health alone. */
  loseMajority(): void;
  rejoin(): void;
  /** It is gone, and nobody hears of it yet. */
  mute(): void;
  /** It is gone at once; the others hear of it. */
  kill(): void;
  /** It says goodbye. */
  leave(): void;
  readonly interests: () => number;
}

export interface MemoryCluster {
  readonly faults: Faults;
  /** A node starts; one of the same name must be gone. */
  join(id: string): MemoryNode;
  /** Retention: what is before `seq` in the shard goes. */
  trim(proxy: string, shard: number, seq: number): void;
  /** All appended messages of a proxy, in the order of their places. */
  logOf(proxy: string): readonly { message: ClusterMessage; position: LogPosition }[];
  /** Client ids that there is an owner record of, those of shared subscriptions and nodes among them. */
  owned(proxy: string): readonly string[];
  /** Keys of a session's records. */
  recordsOf(proxy: string, clientId: string): readonly string[];
  /** Counts guarded writes that were refused. */
  readonly fenced: () => number;
}

interface Shard {
  first: number;
  next: number;
  messages: Map<number, ClusterMessage>;
  /** By topic or client. */
  lastOf: Map<string, number>;
}

interface Kept {
  owner: OwnerRecord | undefined;
  /** Grows over the life of a client id, also where the record was deleted. */
  revision: number;
  records: Map<string, { value: Buffer; until: number }>;
}

interface ProxyData {
  shards: Shard[];
  dedupe: Map<string, LogPosition>;
  sessions: Map<string, Kept>;
  retained: Map<string, { message: ClusterMessage; position: LogPosition | undefined }>;
  /** By incarnation, then client id. */
  wills: Map<string, Map<string, Buffer>>;
}

interface NodeState {
  id: string;
  incarnation: string;
  reachable: boolean;
  alive: boolean;
  /** Those who decide answer. */
  hasMajority: boolean;
  left: boolean;
  /** As dead, and not known to be. */
  muted: boolean;
  /** When it was last reachable; undefined = it is. */
  seenAt: number | undefined;
  listeners: Map<
    string,
    { listener: ClusterListener; interest: Map<string, { selector: ClusterSelector; count: number }> }
  >;
  handlers: Map<string, (body: Buffer, from: string) => Buffer | void | Promise<Buffer | void>>;
  onHealth: Set<() => void>;
  onPeer: Set<(peer: ClusterPeer) => void>;
  /** What is on its way to it, in order. */
  inbox: Promise<void>;
}

export function createMemoryCluster(
  o: { shards?: number; random?: () => number; now?: () => number } = {},
): MemoryCluster {
  const { shards: shardCount = 4, random = Math.random, now = Date.now } = o;
  const faults: Faults = {
    delayMs: 0,
    loseLive: 0,
    repeatLive: 0,
    loseControl: 0,
    loseAnswers: 0,
    failRemovals: 0,
    lag: 0,
    timeoutMs: 100,
  };
  const nodes = new Map<string, NodeState>();
  const data = new Map<string, ProxyData>();
  let fenced = 0;

  function dataOf(proxy: string): ProxyData {
    let known = data.get(proxy);
    if (!known) {
      known = {
        shards: Array.from({ length: shardCount }, () => ({
          first: 1,
          next: 1,
          messages: new Map(),
          lastOf: new Map(),
        })),
        dedupe: new Map(),
        sessions: new Map(),
        retained: new Map(),
        wills: new Map(),
      };
      data.set(proxy, known);
    }
    return known;
  }

  /** One way to the engine or back. */
  async function hop(node: NodeState): Promise<void> {
    if (faults.delayMs > 0) await sleep(random() * faults.delayMs);
    else await Promise.resolve();
    if (!node.alive || node.muted) await new Promise(() => undefined);
    if (node.reachable) return;
    await sleep(faults.timeoutMs);
    throw new Error("no answer from the engine");
  }

  async function answer(node: NodeState, mayBeLost = false): Promise<void> {
    await hop(node);
    if (mayBeLost && random() < faults.loseAnswers) {
      await sleep(faults.timeoutMs);
      throw new Error("the answer was lost");
    }
  }

  /** In order; what is lost on the way is lost. */
  function post(node: NodeState, act: () => void): void {
    if (faults.delayMs === 0) {
      if (node.alive && node.reachable) act();
      return;
    }
    const before = node.inbox;
    node.inbox = (async () => {
      await sleep(random() * faults.delayMs);
      await before;
      if (node.alive && node.reachable) act();
    })();
  }

  function hint(
    proxy: string,
    message: ClusterMessage,
    position?: LogPosition,
    previous?: number,
    not?: NodeState,
  ): void {
    for (const node of nodes.values()) {
      if (node === not) continue;
      const opened = node.listeners.get(proxy);
      if (!opened || ![...opened.interest.values()].some(({ selector }) => selects(selector, message))) continue;
      if (random() < faults.loseLive) continue;
      const times = random() < faults.repeatLive ? 2 : 1;
      for (let n = 0; n < times; n++) post(node, () => opened.listener.onMessage(message, position, previous));
    }
  }

  function place(proxy: string, message: ClusterMessage, dedupeId: string | undefined): LogPosition {
    const { shards, dedupe } = dataOf(proxy);
    const known = dedupeId === undefined ? undefined : dedupe.get(dedupeId);
    if (known) return known;
    const shardAt = shardOf(message.to ?? message.topic, shardCount);
    const shard = shards[shardAt] as Shard;
    const key = keyOf(message);
    const position = { shard: shardAt, seq: shard.next++ };
    const last = shard.lastOf.get(key) ?? 0;
    shard.messages.set(position.seq, message);
    shard.lastOf.set(key, position.seq);
    if (dedupeId !== undefined) dedupe.set(dedupeId, position);
    hint(proxy, message, position, last >= shard.first ? last : 0);
    return position;
  }

  function keptOf(proxy: string, clientId: string): Kept {
    const { sessions } = dataOf(proxy);
    let known = sessions.get(clientId);
    if (!known) sessions.set(clientId, (known = { owner: undefined, revision: 0, records: new Map() }));
    return known;
  }

  function isOwner(kept: Kept, revision: number): boolean {
    const is = kept.owner?.revision === revision;
    if (!is) fenced++;
    return is;
  }

  function recordsOf(kept: Kept): Map<string, Buffer> {
    const at = now();
    return new Map([...kept.records].flatMap(([key, { value, until }]) => (until > at ? [[key, value] as const] : [])));
  }

  function proxyOf(node: NodeState, proxy: string, listener: ClusterListener): ClusterProxy {
    const interest = new Map<string, { selector: ClusterSelector; count: number }>();
    node.listeners.set(proxy, { listener, interest });
    const at = dataOf(proxy);
    return {
      interest: {
        async add(selector) {
          const key = JSON.stringify(selector);
          const known = interest.get(key);
          if (known) known.count++;
          else interest.set(key, { selector, count: 1 });
          await answer(node);
        },
        delete(selector) {
          const key = JSON.stringify(selector);
          const known = interest.get(key);
          if (known && --known.count === 0) interest.delete(key);
        },
        get size() {
          return interest.size;
        },
      },
      send(message) {
        if (!node.reachable || !node.alive) return false;
        hint(proxy, message, undefined, undefined, node);
        return true;
      },
      log: {
        async append(message, { dedupeId } = {}) {
          await hop(node);
          const position = place(proxy, message, dedupeId);
          await answer(node, true);
          return position;
        },
        async end(selectors) {
          await hop(node);
          const ends = new Map<number, number>();
          for (const [shard, { next }] of at.shards.entries()) {
            if (selectors.some((each) => reaches(each, shard, shardCount))) ends.set(shard, lagged(next - 1));
          }
          await answer(node);
          return ends;
        },
        async read(selectors, after, { maxMessages }) {
          await hop(node);
          const messages: { message: ClusterMessage; position: LogPosition }[] = [];
          const upTo = new Map<number, number>();
          const gaps = new Map<number, number>();
          let isEnd = true;
          for (const [at_, { first, next, messages: stored }] of at.shards.entries()) {
            if (!selectors.some((each) => reaches(each, at_, shardCount))) continue;
            const from = after.get(at_) ?? 0;
            const end = Math.max(from, lagged(next - 1));
            if (first > from + 1) gaps.set(at_, first);
            let seq = from;
            while (seq < end && messages.length < maxMessages) {
              const message = stored.get(++seq);
              if (message && selectors.some((each) => selects(each, message))) {
                messages.push({ message, position: { shard: at_, seq } });
              }
            }
            upTo.set(at_, seq);
            if (seq < end) isEnd = false;
          }
          await answer(node);
          return { messages, upTo, isEnd, gaps };
        },
        async get({ shard, seq }) {
          await hop(node);
          const message = at.shards[shard]?.messages.get(seq);
          await answer(node);
          return message;
        },
      },
      records: {
        async owner(clientId) {
          await hop(node);
          const { owner } = keptOf(proxy, clientId);
          await answer(node);
          return owner;
        },
        async claim(clientId, value, expected) {
          await hop(node);
          const kept = keptOf(proxy, clientId);
          const isFree = (kept.owner?.revision ?? 0) === expected;
          if (isFree) kept.owner = { value, revision: ++kept.revision };
          const outcome = isFree ? { revision: kept.revision } : ({ taken: true, by: kept.owner } as const);
          await answer(node);
          return outcome;
        },
        async load(clientId, revision) {
          await hop(node);
          const kept = keptOf(proxy, clientId);
          const found = isOwner(kept, revision) ? recordsOf(kept) : "fenced";
          await answer(node);
          return found;
        },
        async write(clientId, revision, changes) {
          await hop(node);
          const kept = keptOf(proxy, clientId);
          for (const { key, value, ttlMs } of changes) {
            if (!isOwner(kept, revision)) return "fenced";
            if (value) kept.records.set(key, { value, until: ttlMs === undefined ? Infinity : now() + ttlMs });
            else kept.records.delete(key);
          }
          await answer(node, true);
          return "written";
        },
        async remove(clientId, revision) {
          await hop(node);
          if (random() < faults.failRemovals) throw new Error("the engine is busy");
          const kept = keptOf(proxy, clientId);
          if (!isOwner(kept, revision)) return "fenced";
          kept.records.clear();
          kept.owner = undefined;
          await answer(node);
          return "written";
        },
        async *list(keys) {
          await hop(node);
          for (const kept of at.sessions.values()) {
            const { owner } = kept;
            if (!owner) continue;
            const records = new Map([...recordsOf(kept)].filter(([key]) => keys.includes(key)));
            yield [{ owner, records }];
          }
        },
      },
      retained: {
        async set(message, position, { mayAdd, mayGrow }) {
          await hop(node);
          const old = at.retained.get(message.topic);
          const isLate = position && old?.position && old.position.seq > position.seq;
          const before = old?.message.payload.length ?? 0;
          const isRefused = (!mayAdd && before === 0) || (!mayGrow && before < message.payload.length);
          if (!isLate && !isRefused) at.retained.set(message.topic, { message, position });
          await answer(node);
          return !isRefused;
        },
        async recount() {
          await hop(node);
          await answer(node);
        },
        async *match(topicFilter) {
          await hop(node);
          for (const { message } of at.retained.values()) {
            if (message.payload.length > 0 && matches(topicFilter, message.topic)) yield [message];
          }
        },
        get counts() {
          const kept = [...at.retained.values()].filter(({ message }) => message.payload.length > 0);
          const bytes = kept.reduce((sum, { message }) => sum + message.payload.length, 0);
          return { messages: kept.length, bytes, unheard: { messages: 0, bytes: 0 } };
        },
      },
      wills: {
        async put(clientId, value) {
          await hop(node);
          let wills = at.wills.get(node.incarnation);
          if (!wills) at.wills.set(node.incarnation, (wills = new Map()));
          wills.set(clientId, value);
        },
        async delete(clientId) {
          await hop(node);
          at.wills.get(node.incarnation)?.delete(clientId);
        },
        async *of(incarnation) {
          await hop(node);
          yield [...(at.wills.get(incarnation) ?? [])].map(([clientId, value]) => ({ clientId, value }));
        },
        async drop(incarnation, clientId) {
          await hop(node);
          at.wills.get(incarnation)?.delete(clientId);
        },
      },
    };
  }

  /** What a replica that lags takes for the end. */
  function lagged(end: number): number {
    return random() < faults.lag ? Math.max(0, end - Math.ceil(random() * 5)) : end;
  }

  function peerOf({ id, incarnation, alive, reachable, left, seenAt }: NodeState): ClusterPeer {
    return { id, incarnation, isUp: alive && reachable, hasLeft: left, seenAt: seenAt ?? now() };
  }

  function tellPeers(of: NodeState): void {
    for (const node of nodes.values()) {
      if (node !== of && node.alive && node.reachable) for (const tell of node.onPeer) tell(peerOf(of));
    }
  }

  function tellHealth(node: NodeState): void {
    for (const tell of node.onHealth) tell();
  }

  function engineOf(node: NodeState): ClusterEngine {
    return {
      node,
      caps: {
        ackDurability: "memory",
        maxTopicBytes: 512,
        maxMessageBytes: 1 << 20,
        maxRecordBytes: 1 << 20,
        dedupeMs: 60_000,
        graceMs: 300,
        kickMs: 1000,
      },
      health: () => ({
        live: node.reachable && node.alive,
        durable: node.reachable && node.alive && node.hasMajority,
        reached: node.reachable && node.alive && node.hasMajority,
        reasons: node.reachable ? [] : ["the engine can't be reached"],
      }),
      onHealth(changed) {
        node.onHealth.add(changed);
        return () => void node.onHealth.delete(changed);
      },
      peers: () => [...nodes.values()].filter((each) => each !== node).map(peerOf),
      onPeer(changed) {
        node.onPeer.add(changed);
        return () => void node.onPeer.delete(changed);
      },
      open: (proxy, listener) => proxyOf(node, proxy, listener),
      control: {
        async request(to, kind, body, timeoutMs) {
          await hop(node);
          const peer = nodes.get(to);
          if (!peer?.alive || !peer.reachable || random() < faults.loseControl) {
            await sleep(Math.min(timeoutMs, faults.timeoutMs));
            throw new Error(`${to} does not answer`);
          }
          const handler = peer.handlers.get(kind);
          if (!handler) throw new Error(`${to} does not know ${kind}`);
          const answered = (async () => {
            const done = (await handler(body, node.id)) ?? Buffer.alloc(0);
            await hop(peer);
            return done;
          })();
          answered.catch(() => undefined);
          // It may die before its answer has left.
          const done = await Promise.race([answered, sleep(timeoutMs, undefined, { ref: false })]);
          if (!done) throw new Error(`${to} does not answer`);
          await hop(node);
          return done;
        },
        broadcast(kind, body) {
          if (!node.alive || !node.reachable) return;
          for (const peer of nodes.values()) {
            if (peer !== node && random() >= faults.loseControl)
              post(peer, () => void peer.handlers.get(kind)?.(body, node.id));
          }
        },
        handle(kind, handler) {
          node.handlers.set(kind, handler);
          return () => void node.handlers.delete(kind);
        },
      },
    };
  }

  return {
    faults,
    fenced: () => fenced,
    join(id) {
      const state: NodeState = {
        id,
        incarnation: randomUUID(),
        reachable: true,
        alive: true,
        hasMajority: true,
        left: false,
        muted: false,
        seenAt: undefined,
        listeners: new Map(),
        handlers: new Map(),
        onHealth: new Set(),
        onPeer: new Set(),
        inbox: Promise.resolve(),
      };
      nodes.set(id, state);
      tellPeers(state);
      return {
        engine: engineOf(state),
        cutOff() {
          state.reachable = false;
          state.seenAt = now();
          tellPeers(state);
          tellHealth(state);
        },
        loseMajority() {
          state.hasMajority = false;
          tellHealth(state);
        },
        rejoin() {
          state.reachable = true;
          state.seenAt = undefined;
          tellPeers(state);
          tellHealth(state);
          for (const { listener } of state.listeners.values()) listener.onInterrupted();
        },
        mute() {
          state.muted = true;
        },
        kill() {
          state.alive = false;
          state.seenAt = now();
          tellPeers(state);
        },
        leave() {
          state.left = true;
          state.seenAt = now();
          state.alive = false;
          tellPeers(state);
        },
        interests: () => [...state.listeners.values()].reduce((sum, { interest }) => sum + interest.size, 0),
      };
    },
    trim(proxy, shardAt, seq) {
      const shard = dataOf(proxy).shards[shardAt] as Shard;
      for (let at = shard.first; at < seq; at++) shard.messages.delete(at);
      shard.first = Math.max(shard.first, seq);
    },
    owned: (proxy) => [...dataOf(proxy).sessions].flatMap(([clientId, { owner }]) => (owner ? [clientId] : [])),
    recordsOf: (proxy, clientId) => [...keptOf(proxy, clientId).records.keys()],
    logOf: (proxy) =>
      dataOf(proxy).shards.flatMap(({ messages }, shard) =>
        [...messages].map(([seq, message]) => ({ message, position: { shard, seq } })),
      ),
  };
}

function keyOf({ topic, to }: ClusterMessage): string {
  return to === undefined ? `t ${topic}` : `c ${to}`;
}

function selects(selector: ClusterSelector, { topic, to }: ClusterMessage): boolean {
  if ("clientId" in selector) return selector.clientId === to;
  return to === undefined && matches(selector.topicFilter, topic);
}

function reaches(selector: ClusterSelector, shard: number, count: number): boolean {
  if ("clientId" in selector) return shardOf(selector.clientId, count) === shard;
  return /[+#]/.test(selector.topicFilter) || shardOf(selector.topicFilter, count) === shard;
}

function shardOf(key: string, count: number): number {
  let hash = 0;
  for (let at = 0; at < key.length; at++) hash = (hash * 31 + key.charCodeAt(at)) >>> 0;
  return hash % count;
}
