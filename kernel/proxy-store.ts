/** The sessions and messages of one proxy: in memory, and what has to outlive the process in a ledger too. */
import { SluiceError } from "./errors.ts";
import type { Expiries } from "./expiries.ts";
import { type Grant, grantOf, mergeGrants } from "./grant.ts";
import type { Ledger, ProxyState } from "./ledger.ts";
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
  /** It is in the ledger. */
  recorded: boolean;
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

export interface ProxyStoreDeps {
  readonly expiries: Expiries;
  /** Undefined: nothing outlives the process. */
  readonly ledger: Ledger | undefined;
  /** What an earlier process has left. */
  readonly state: ProxyState | undefined;
  /** Throws where the store takes nothing any more. */
  check(): void;
}

export function createProxyStore(proxy: string, initial: StoreOptions, deps: ProxyStoreDeps): MemoryProxyStore {
  const { expiries, ledger, state } = deps;
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
    kept(message) {
      hold(message);
      ledger?.retained(message);
    },
    dropped(message, isReplaced) {
      ledger?.forgetRetained(message, isReplaced);
      letGo(message);
    },
  });
  const owner = {
    get queue() {
      return options.queue;
    },
    lost,
  };
  let absent = 0;
  let subscriptions = 0;
  let messageSeq = state?.messageSeq ?? 0;
  let entrySeq = state?.entrySeq ?? 0;
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

  /** It is not this session's any more. */
  function free(session: Session, entry: Entry): void {
    entries--;
    if (entry.recorded) ledger?.forgetDelivery(session, entry);
    letGo(entry.message);
  }

  function lost(session: Session, entry: Entry, reason: string): void {
    options.onDropped(reason, 1);
    tell({ session }, entry, "refused");
    free(session, entry);
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
      records: 0,
    };
  }

  function give(
    { key: held, value: grant, sharedBy }: Target,
    message: KeptMessage,
    retain: boolean,
    receipts: PublishOptions["receipts"],
  ): Entry {
    const { session } = held;
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
      recorded: false,
      isSafe: false,
    };
    entries++;
    hold(message);
    if (receipts) {
      awaited++;
      receipts(session.clientId, "waiting");
    }
    if (entry.qos > 0 && persists(session)) ledger?.delivery(session, entry);
    if (held.handle) {
      held.handle.offer(entry);
    } else if (entry.qos === 0) {
      lost(session, entry, "qos0_offline");
    } else {
      session.push(entry);
      tell(held, entry, "queued");
    }
    return entry;
  }

  function persists(session: Session): boolean {
    return ledger !== undefined && session.expirySec > 0;
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
    deps.check();
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
    deps.check();
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
    const session = packetId === undefined || from === undefined ? undefined : sessions.get(from)?.session;
    const lasts =
      ledger !== undefined &&
      message.qos > 0 &&
      (retain ||
        (session && persists(session)) ||
        targets.some(({ key, value }) => value.qos > 0 && persists(key.session)));
    if (lasts) ledger.check();
    const kept = keep(message, from);
    if (retain && !retained.set(kept)) options.onDropped("retained_full", 1);
    if (session && packetId !== undefined) addInbound(session, packetId);
    const given: Entry[] = [];
    let connected = 0;
    for (const target of targets) {
      if (target.key.handle) connected++;
      const entry = give(target, kept, message.retain && target.value.retainAsPublished, receipts);
      if (lasts) given.push(entry);
    }
    const outcome = { matched: targets.length, connected, durable: true };
    const safe = lasts ? ledger.commit() : undefined;
    if (!safe) return outcome;
    return safe.then(
      () => outcome,
      (error: unknown) => {
        // Its publisher sends it again: who has not got it yet, need not get it twice.
        for (const [at, { key }] of targets.entries()) withdraw(key.session, given[at]);
        if (session && packetId !== undefined) deleteInbound(session, packetId);
        throw error;
      },
    );
  }

  function withdraw(session: Session, entry: Entry | undefined): void {
    if (!entry || session.inflight.has(entry)) return;
    entry.withdrawn = true;
    if (entry.recorded) ledger?.forgetDelivery(session, entry);
  }

  function addInbound(session: Session, packetId: number): void {
    (session.inbound ??= new Set()).add(packetId);
    if (persists(session)) ledger?.inbound(session, packetId);
  }

  function deleteInbound(session: Session, packetId: number): void {
    if (session.inbound?.delete(packetId) && persists(session)) ledger?.forgetInbound(session, packetId);
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
      if (receipts) {
        awaited--;
        receipts(from.session.clientId, "passedOn");
      }
      entry.receipts = undefined;
      give({ key: held, value: grant, sharedBy: entry.sharedBy }, entry.message, entry.retain, receipts);
    }
    for (const entry of from.session.extract((each) => moved.has(each))) free(from.session, entry);
  }

  function forget(held: Held): void {
    const { session } = held;
    expiries.delete(held.expiresAt, held.expire);
    if (held.recorded) ledger?.forgetSession(session);
    held.recorded = false;
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
    isAway(held, now());
  }

  function isAway(held: Held, since: number): void {
    const { session } = held;
    absent++;
    record(held, since);
    if (session.expirySec === neverExpires) return;
    held.expiresAt = since + session.expirySec * 1000;
    expiries.add(held.expiresAt, held.expire);
  }

  /** @param absentSince milliseconds since the epoch; 0 = its client is here */
  function record(held: Held, absentSince: number): void {
    if (!ledger || (held.session.expirySec === 0 && !held.recorded)) return;
    held.recorded = true;
    ledger.session(held.session, { absentSince, username: held.info.username });
  }

  /** The client of an absent session is here, or never comes. */
  function noLongerAway(held: Held): void {
    absent--;
    expiries.delete(held.expiresAt, held.expire);
    held.expiresAt = 0;
  }

  function createHeld({ clientId, expirySec, info }: Pick<Acquisition, "clientId" | "expirySec" | "info">): Held {
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
      recorded: false,
    };
    return held;
  }

  /** The answer, once what was written for this session is durable. */
  function afterCommit<T>(session: Session, answer: T): Awaitable<T> {
    const safe = persists(session) ? ledger?.commit() : undefined;
    return safe ? safe.then(() => answer) : answer;
  }

  function handleOf(held: Held, present: boolean, onLost: Acquisition["onLost"]): MemoryHandle {
    const { session } = held;
    let retaining: Promise<void> | undefined;
    const handle: MemoryHandle = createHandle(session, {
      present,
      subscribe(topicFilter, wanted) {
        const granted = subscribe(held, topicFilter, wanted);
        if (persists(session)) ledger?.subscription(session, topicFilter, wanted);
        return afterCommit(session, granted);
      },
      unsubscribe(topicFilter) {
        if (!session.subscriptions.delete(topicFilter)) return false;
        detach(held, topicFilter);
        if (persists(session)) ledger?.forgetSubscription(session, topicFilter);
        return afterCommit(session, true);
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
          // The session may have ended meanwhile.
          if (sessions.get(session.clientId)?.session !== session) return;
          addInbound(session, packetId);
          return afterCommit(session, undefined);
        },
        delete(packetId) {
          deleteInbound(session, packetId);
          return afterCommit(session, undefined);
        },
      },
      now,
      stirred() {
        held.settledAt = now();
      },
      delivered(entry) {
        tell(held, entry, "delivered");
        free(session, entry);
      },
      record(changed) {
        for (const entry of changed) if (entry.recorded) ledger?.delivery(session, entry);
        return changed.some(({ recorded }) => recorded) ? ledger?.commit() : undefined;
      },
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

  /** What an earlier process has left. A client that was connected when it ended counts as absent from now on. */
  function restore({ sessions: found, retained: messages, strays }: ProxyState): void {
    for (const key of strays) ledger?.forgetStray(key);
    for (const message of messages) {
      hold(message);
      retained.restore(message);
    }
    for (const { clientId, expirySec, absentSince, username, ...had } of found) {
      const held = createHeld({ clientId, expirySec, info: { username, address: "" } });
      const { session } = held;
      held.recorded = true;
      sessions.set(clientId, held);
      session.inbound = had.inbound.size > 0 ? had.inbound : undefined;
      for (const [topicFilter, wanted] of had.subscriptions) subscribe(held, topicFilter, wanted);
      session.restore(had.entries);
      entries += had.entries.length;
      for (const { message } of had.entries) hold(message);
      if (expirySec === 0) forget(held);
      else isAway(held, absentSince === 0 ? now() : absentSince);
    }
  }

  if (state) restore(state);

  return {
    reopen(next) {
      options = next;
    },
    publish: (message, o = {}) => publish(message, o),
    publishTo: (clientId, message, o = {}) => publishTo(clientId, message, o),
    acquire(client) {
      deps.check();
      const { clientId, cleanStart, expirySec, info } = client;
      const old = sessions.get(clientId);
      if (!old && expirySec > 0 && absent >= maxAbsentSessions) {
        throw new SluiceError("QUEUE_FULL", `${proxy} keeps ${absent} sessions of absent clients, its limit`);
      }
      if (old?.handle) old.handle.lose("takenOver");
      else if (old) noLongerAway(old);
      const wasRecorded = old?.recorded;
      const resumed = old && !cleanStart && old.session.expirySec > 0 ? old : undefined;
      if (old && !resumed) forget(old);
      const held = resumed ?? createHeld(client);
      held.session.expirySec = expirySec;
      held.info = info;
      held.connectedAt = held.settledAt = now();
      sessions.set(clientId, held);
      record(held, 0);
      const handle = handleOf(held, resumed !== undefined, client.onLost);
      held.handle = handle;
      // What was forgotten must not come back, and the client be told of a session that it has ended.
      const safe = wasRecorded && !resumed ? ledger?.commit() : undefined;
      return safe ? safe.then(() => handle) : handle;
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
      const wasRecorded = held.recorded;
      if (!handle) noLongerAway(held);
      forget(held);
      handle?.lose("removed");
      const safe = wasRecorded ? ledger?.commit() : undefined;
      return safe ? safe.then(() => true) : true;
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
