/** The sessions and messages of one proxy, in memory. */
import { SluiceError } from "./errors.ts";
import type { Expiries } from "./expiries.ts";
import { type Grant, grantOf, mergeGrants } from "./grant.ts";
import type { Message, MessageProperties, PublishOutcome, SubscriptionOptions } from "./plugin.ts";
import { createRetained } from "./retained.ts";
import { costOf, type Entry, type KeptMessage, neverExpires, Session } from "./session.ts";
import { createHandle, type MemoryHandle } from "./session-handle.ts";
import { createSharedSubscription, type SharedSubscription } from "./shared-subscription.ts";
import type { Acquisition, Awaitable, ProxyStore, PublishOptions, Receipt, StoreOptions } from "./store.ts";
import { createTopicIndex, parseShared, type Subscriber } from "./topics.ts";

/** Sessions that nobody is connected to; a CONNECT that would add one beyond is refused. */
const maxAbsentSessions = 1_000_000;

/** A connected subscriber that settles nothing for this long counts as absent: it no longer slows its publishers down. */
const stalledAfterMs = 5000;

/** How long a publish waits for a crowded subscriber before it takes what room is left. */
const crowdedWaitMs = 10_000;

/** A session with who is connected to it. */
interface Held {
  readonly session: Session;
  handle: MemoryHandle | undefined;
  info: { readonly username: string | undefined; readonly address: string };
  connectedAt: number;
  settledAt: number;
  /** When it ends, unless its client comes back; 0 = it does not, or the client is here. */
  expiresAt: number;
  readonly expire: () => void;
}

type Shared = SharedSubscription<Held, Grant>;

/** Who gets a message: a session by its own subscriptions, or whom a shared one has picked. */
interface Target extends Subscriber<Held, Grant> {
  readonly sharedBy?: string;
}

const nobody: PublishOutcome = Object.freeze({ matched: 0, connected: 0, durable: true });

export interface MemoryProxyStore extends ProxyStore {
  reopen(options: StoreOptions): void;
}

/** @param check throws where the store takes nothing any more */
export function createProxyStore(
  proxy: string,
  initial: StoreOptions,
  { expiries, check }: { expiries: Expiries; check: () => void },
): MemoryProxyStore {
  let options = initial;
  const now = (): number => options.now();
  const sessions = new Map<string, Held>();
  const shared = new Map<string, Shared>();
  const index = createTopicIndex<Held | Shared, Grant>({
    prefer: mergeGrants,
    cacheSize: options.topicCacheSize,
  });
  const retained = createRetained({
    get limits() {
      return options.retained;
    },
    expiries,
    now,
    kept: hold,
    dropped: letGo,
  });
  const owner = {
    get queue() {
      return options.queue;
    },
    lost,
  };
  let absent = 0;
  let subscriptions = 0;
  let messageSeq = 0;
  let entrySeq = 0;
  let entries = 0;
  let bytes = 0;
  /** Deliveries that somebody waits for. */
  let awaited = 0;

  function hold(message: KeptMessage): void {
    if (message.holders++ === 0) bytes += costOf(message);
  }

  function letGo(message: KeptMessage): void {
    if (--message.holders === 0) bytes -= costOf(message);
  }

  function tell({ session }: { session: Session }, entry: Entry, outcome: Receipt): void {
    const { receipts } = entry;
    if (!receipts) return;
    entry.receipts = undefined;
    awaited--;
    receipts(session.clientId, outcome);
  }

  /** It is no session's any more. */
  function free(entry: Entry): void {
    entries--;
    letGo(entry.message);
  }

  function lost(session: Session, entry: Entry, reason: string): void {
    options.onDropped(reason, 1);
    tell({ session }, entry, "refused");
    free(entry);
  }

  function keep(message: Message, from: string | undefined): KeptMessage {
    const { topic, payload, qos, retain, properties } = message;
    const expiry = properties?.messageExpiry;
    return {
      topic,
      payload: unpinned(payload),
      qos,
      retain,
      properties: properties && unpinnedProperties(properties),
      expiresAt: expiry === undefined ? 0 : now() + expiry * 1000,
      from,
      frames: undefined,
      seq: ++messageSeq,
      holders: 0,
    };
  }

  function give(
    { key: held, value: grant, sharedBy }: Target,
    message: KeptMessage,
    retain: boolean,
    receipts: PublishOptions["receipts"],
  ): void {
    const entry: Entry = {
      message,
      qos: grant.qos < message.qos ? grant.qos : message.qos,
      retain,
      identifiers: grant.identifiers,
      packetId: 0,
      released: false,
      seq: ++entrySeq,
      sharedBy,
      receipts,
      withdrawn: false,
    };
    entries++;
    hold(message);
    if (receipts) awaited++;
    if (held.handle) {
      held.handle.offer(entry);
    } else if (entry.qos === 0) {
      lost(held.session, entry, "qos0_offline");
    } else {
      held.session.push(entry);
      tell(held, entry, "queued");
    }
  }

  function standingOf({ session, handle }: Held): { connected: boolean; full: boolean; load: number } {
    return {
      connected: handle !== undefined,
      full: session.isCrowded(),
      load: session.queued + session.inflight.size,
    };
  }

  function targetsOf(hits: readonly Subscriber<Held | Shared, Grant>[], from: string | undefined): readonly Target[] {
    // The common case, in which what the index has cached will do.
    if (shared.size === 0 && !hits.some(({ key, value }) => value.own !== value && isFrom(key, from))) {
      return hits as readonly Target[];
    }
    return hits.flatMap(({ key, value }): Target[] => {
      if (!("members" in key)) {
        const grant = isFrom(key, from) ? value.own : value;
        return grant ? [{ key, value: grant }] : [];
      }
      const held = key.pick();
      const grant = held && key.members.get(held);
      return held && grant ? [{ key: held, value: grant, sharedBy: key.topicFilter }] : [];
    });
  }

  function isFrom(key: Held | Shared, from: string | undefined): boolean {
    return from !== undefined && "session" in key && key.session.clientId === from;
  }

  function keepsUp(held: Held): boolean {
    return held.handle !== undefined && now() - held.settledAt < stalledAfterMs;
  }

  async function waitFor<T>(held: Held, again: () => Awaitable<T>): Promise<T> {
    const timer = setTimeout(() => held.session.release(), stalledAfterMs);
    await held.session.room();
    clearTimeout(timer);
    return again();
  }

  /**
   * Above QoS 0, before anybody gets it: whom to wait for; undefined = everybody has room.
   * @throws SluiceError QUEUE_FULL
   */
  function crowded(targets: readonly Target[], message: Message, o: PublishOptions, until: number): Held | undefined {
    if (bytes + costOf(message) > options.queue.maxTotalBytes) {
      throw new SluiceError(
        "QUEUE_FULL",
        `the sessions of ${proxy} hold ${bytes} bytes, as much as queue.maxTotalBytes allows; the message was not accepted`,
      );
    }
    for (const { key: held, value: grant } of targets) {
      if (grant.qos === 0 || !held.session.isCrowded()) continue;
      const waits = keepsUp(held);
      // A client that publishes to itself must not wait for acks that stand behind its own packets.
      if (waits && held.session.clientId !== o.from && (until === 0 || now() < until)) return held;
      if (held.session.isFull(message) && (waits || options.queue.onFull === "fault")) {
        throw new SluiceError(
          "QUEUE_FULL",
          `the queue of ${held.session.clientId} on ${proxy} is full; the message was not accepted`,
        );
      }
    }
    return undefined;
  }

  function publish(message: Message, o: PublishOptions, until = 0): Awaitable<PublishOutcome> {
    check();
    const hits = index.match(message.topic);
    if (hits.length === 0 && !message.retain && o.packetId === undefined) return nobody;
    const targets = targetsOf(hits, o.from);
    if (message.qos > 0 && (targets.length > 0 || message.retain)) {
      const held = crowded(targets, message, o, until);
      if (held) return waitFor(held, () => publish(message, o, until || now() + crowdedWaitMs));
    }
    return store(message, targets, o, message.retain);
  }

  function publishTo(clientId: string, message: Message, o: PublishOptions, until = 0): Awaitable<PublishOutcome> {
    check();
    const held = sessions.get(clientId);
    if (!held) return nobody;
    const grant: Grant = { qos: message.qos, retainAsPublished: false, identifiers: [], own: undefined };
    const targets: Target[] = [{ key: held, value: grant }];
    if (message.qos > 0) {
      const slow = crowded(targets, message, o, until);
      if (slow) return waitFor(slow, () => publishTo(clientId, message, o, until || now() + crowdedWaitMs));
    }
    return store(message, targets, o, false);
  }

  function store(
    message: Message,
    targets: readonly Target[],
    { from, packetId, receipts }: PublishOptions,
    retain: boolean,
  ): Awaitable<PublishOutcome> {
    if (message.qos === 0 && bytes + costOf(message) > options.queue.maxTotalBytes) {
      options.onDropped("store_full", Math.max(1, targets.length));
      return { matched: targets.length, connected: 0, durable: true };
    }
    const kept = keep(message, from);
    if (retain && !retained.set(kept)) options.onDropped("retained_full", 1);
    if (from !== undefined && packetId !== undefined) inboundOf(from)?.add(packetId);
    let connected = 0;
    for (const target of targets) {
      if (target.key.handle) connected++;
      give(target, kept, message.retain && target.value.retainAsPublished, receipts);
    }
    return { matched: targets.length, connected, durable: true };
  }

  function inboundOf(clientId: string): Set<number> | undefined {
    const session = sessions.get(clientId)?.session;
    return session && (session.inbound ??= new Set());
  }

  function subscribe(held: Held, topicFilter: string, wanted: SubscriptionOptions): { isNew: boolean } {
    const { session } = held;
    const isNew = !session.subscriptions.has(topicFilter);
    if (isNew) subscriptions++;
    session.subscriptions.set(topicFilter, wanted);
    const parts = parseShared(topicFilter);
    if (!parts) {
      index.set(topicFilter, held, grantOf(wanted));
      return { isNew };
    }
    let group = shared.get(topicFilter);
    if (!group) {
      group = createSharedSubscription(topicFilter, standingOf);
      shared.set(topicFilter, group);
      // A placeholder: what a member gets is up to the one that is picked.
      index.set(parts.topicFilter, group, grantOf(wanted));
    }
    group.set(held, grantOf(wanted));
    return { isNew };
  }

  /** It is no longer found by a message; what it has already is untouched. */
  function detach(held: Held, topicFilter: string): void {
    subscriptions--;
    const parts = parseShared(topicFilter);
    if (!parts) {
      index.delete(topicFilter, held);
      return;
    }
    const group = shared.get(topicFilter);
    group?.delete(held);
    if (!group || group.members.size > 0) return;
    shared.delete(topicFilter);
    index.delete(parts.topicFilter, group);
  }

  /**
   * What a member of shared subscriptions has not settled goes to another, save a QoS 2 delivery that has begun: that
   * stays with its session [MQTT-4.8.2-4] [MQTT-4.8.2-5].
   */
  function passOn(from: Held, fits: (member: Held) => boolean): void {
    if (![...from.session.subscriptions.keys()].some((topicFilter) => shared.has(topicFilter))) return;
    const moved = new Set<Entry>();
    for (const entry of from.session.entries()) {
      if (entry.sharedBy === undefined || entry.qos === 0 || (entry.qos === 2 && from.session.inflight.has(entry))) {
        continue;
      }
      const group = shared.get(entry.sharedBy);
      const held = group?.pick((member) => member !== from && !member.session.isCrowded() && fits(member));
      const grant = held && group?.members.get(held);
      if (!held || !grant) continue;
      moved.add(entry);
      const { receipts } = entry;
      if (receipts) awaited--;
      entry.receipts = undefined;
      give({ key: held, value: grant, sharedBy: entry.sharedBy }, entry.message, entry.retain, receipts);
    }
    for (const entry of from.session.extract((each) => moved.has(each))) free(entry);
  }

  function forget(held: Held): void {
    const { session } = held;
    expiries.delete(held.expiresAt, held.expire);
    passOn(held, () => true);
    for (const topicFilter of session.subscriptions.keys()) detach(held, topicFilter);
    if (sessions.get(session.clientId) === held) sessions.delete(session.clientId);
    session.release();
    for (const entry of session.extract(() => true)) lost(session, entry, "session_ended");
  }

  function deliverRetained(held: Held, handle: MemoryHandle, topicFilter: string, isNew: boolean): Awaitable<void> {
    const { session } = held;
    const wanted = session.subscriptions.get(topicFilter);
    if (!wanted || parseShared(topicFilter)) return;
    if (wanted.retainHandling === 2 || (wanted.retainHandling === 1 && !isNew)) return;
    const grant = grantOf(wanted);
    const found = retained.match(topicFilter);
    const go = (): Awaitable<void> => {
      for (let message = found.pop(); message; message = found.pop()) {
        if (held.handle !== handle) return;
        if (wanted.noLocal && message.from === session.clientId) continue;
        give({ key: held, value: grant }, message, true, undefined);
        if (session.isCrowded() || session.isBusy) return session.room().then(go);
      }
    };
    return go();
  }

  function away(held: Held): void {
    const { session } = held;
    for (const entry of session.extract(({ qos }) => qos === 0)) lost(session, entry, "qos0_offline");
    passOn(held, ({ handle }) => handle !== undefined);
    if (awaited > 0) for (const entry of session.entries()) tell(held, entry, "queued");
    absent++;
    if (session.expirySec === neverExpires) return;
    held.expiresAt = now() + session.expirySec * 1000;
    expiries.add(held.expiresAt, held.expire);
  }

  /** The client of an absent session is here, or never comes. */
  function noLongerAway(held: Held): void {
    absent--;
    expiries.delete(held.expiresAt, held.expire);
    held.expiresAt = 0;
  }

  function createHeld({ clientId, expirySec, info }: Acquisition): Held {
    const held: Held = {
      session: new Session(clientId, expirySec, owner),
      handle: undefined,
      info,
      connectedAt: 0,
      settledAt: 0,
      expiresAt: 0,
      expire() {
        noLongerAway(held);
        forget(held);
      },
    };
    return held;
  }

  function handleOf(held: Held, present: boolean, onLost: Acquisition["onLost"]): MemoryHandle {
    const { session } = held;
    let retaining: Promise<void> | undefined;
    const handle: MemoryHandle = createHandle(session, {
      present,
      subscribe: (topicFilter, wanted) => subscribe(held, topicFilter, wanted),
      unsubscribe(topicFilter) {
        if (!session.subscriptions.delete(topicFilter)) return false;
        detach(held, topicFilter);
        return true;
      },
      deliverRetained(topicFilter, isNew) {
        const go = (): Awaitable<void> => deliverRetained(held, handle, topicFilter, isNew);
        // One after the other, so that what a busy client is to get is found only when its turn comes.
        const done = retaining ? retaining.then(go) : go();
        if (!done) return;
        const last = done.finally(() => {
          if (retaining === last) retaining = undefined;
        });
        retaining = last;
        return last;
      },
      inbound: {
        has: (packetId) => session.inbound?.has(packetId) === true,
        add(packetId) {
          (session.inbound ??= new Set()).add(packetId);
        },
        delete(packetId) {
          session.inbound?.delete(packetId);
        },
      },
      now,
      stirred() {
        held.settledAt = now();
      },
      delivered(entry) {
        tell(held, entry, "delivered");
        free(entry);
      },
      released: () => undefined,
      closed(expirySec) {
        held.handle = undefined;
        session.release();
        if (expirySec !== undefined) session.expirySec = expirySec;
        if (session.expirySec === 0) forget(held);
        else away(held);
      },
      lost(why) {
        held.handle = undefined;
        session.release();
        onLost(why);
      },
    });
    return handle;
  }

  return {
    reopen(next) {
      options = next;
    },
    publish: (message, o = {}) => publish(message, o),
    publishTo: (clientId, message, o = {}) => publishTo(clientId, message, o),
    acquire(client) {
      check();
      const { clientId, cleanStart, expirySec, info } = client;
      const old = sessions.get(clientId);
      if (!old && expirySec > 0 && absent >= maxAbsentSessions) {
        throw new SluiceError("QUEUE_FULL", `${proxy} keeps ${absent} sessions of absent clients, its limit`);
      }
      if (old?.handle) old.handle.lose("takenOver");
      else if (old) noLongerAway(old);
      const resumed = old && !cleanStart && old.session.expirySec > 0 ? old : undefined;
      if (old && !resumed) forget(old);
      const held = resumed ?? createHeld(client);
      held.session.expirySec = expirySec;
      held.info = info;
      held.connectedAt = held.settledAt = now();
      sessions.set(clientId, held);
      held.handle = handleOf(held, resumed !== undefined, client.onLost);
      return held.handle;
    },
    query() {
      return [...sessions.values()]
        .map(({ session, handle, info, connectedAt, expiresAt }) => ({
          clientId: session.clientId,
          connected: handle !== undefined,
          clean: session.expirySec === 0,
          username: info.username,
          address: handle ? info.address : undefined,
          connectedAt,
          subscriptions: [...session.subscriptions].map(([topicFilter, { qos }]) => ({ topicFilter, qos })),
          queued: session.queued,
          inflight: session.inflight.size,
          expiresAt: expiresAt === 0 ? undefined : expiresAt,
        }))
        .toSorted((a, b) => (a.clientId < b.clientId ? -1 : 1));
    },
    remove(clientId) {
      const held = sessions.get(clientId);
      if (!held) return false;
      const { handle } = held;
      if (!handle) noLongerAway(held);
      forget(held);
      handle?.lose("removed");
      return true;
    },
    get counts() {
      return {
        sessions: sessions.size,
        subscriptions,
        queued: entries,
        queuedBytes: bytes,
        retained: retained.count,
        retainedBytes: retained.bytes,
      };
    },
  };
}

/** A payload is a view on all the bytes that were read with it; a queue must not keep those alive. */
function unpinned(payload: Buffer): Buffer {
  return payload.buffer.byteLength > 2 * payload.length + 64 ? Buffer.from(payload) : payload;
}

function unpinnedProperties(properties: MessageProperties): MessageProperties {
  const { correlationData } = properties;
  return correlationData ? { ...properties, correlationData: unpinned(correlationData) } : properties;
}
