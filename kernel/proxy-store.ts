/** The sessions of one proxy, in memory: who is here, who is away, what ends when; what has to last is in a ledger too. */
import { createAbsences } from "./absences.ts";
import { createAudience } from "./audience.ts";
import { createDeliveries } from "./deliveries.ts";
import { SluiceError } from "./errors.ts";
import type { Expiries } from "./expiries.ts";
import { createFanOut } from "./fan-out.ts";
import { grantOf } from "./grant.ts";
import { HeldOwner, type HeldOwnerDeps } from "./held-owner.ts";
import { createInboundIds } from "./inbound-ids.ts";
import type { Ledger, ProxyState } from "./ledger.ts";
import type { SubscriptionOptions } from "./plugin.ts";
import { createRetained } from "./retained.ts";
import { type Entry, Session } from "./session.ts";
import { createHandle, type Held, type MemoryHandle } from "./session-handle.ts";
import type { Acquisition, Awaitable, ProxyStore, SessionHandle, StoreOptions } from "./store.ts";
import { parseShared } from "./topics.ts";

/** Sessions that nobody is connected to; a CONNECT that would add one beyond is refused. */
const maxAbsentSessions = 1_000_000;

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
  const absences = createAbsences({ expiries, ledger });
  const audience = createAudience(options.topicCacheSize);
  const inbound = createInboundIds(ledger);
  const deliveries = createDeliveries(
    { ledger, onDropped: (reason, count) => options.onDropped(reason, count), now },
    { messageSeq: state?.messageSeq ?? 0, entrySeq: state?.entrySeq ?? 0 },
  );
  const retained = createRetained({
    get limits() {
      return options.retained;
    },
    expiries,
    now,
    kept(message) {
      deliveries.hold(message);
      ledger?.retained(message);
    },
    dropped(message, isReplaced) {
      ledger?.forgetRetained(message, isReplaced);
      deliveries.letGo(message);
    },
  });
  const owner = {
    get queue() {
      return options.queue;
    },
    lost: (session: Session, entry: Entry, reason: string): void => deliveries.lost(session, entry, reason),
  };
  const fanOut = createFanOut({
    proxy,
    get options() {
      return options;
    },
    audience,
    deliveries,
    retained,
    inbound,
    ledger,
    sessionOf,
    check: () => deps.check(),
  });
  const byHandle = new WeakMap<SessionHandle, Session>();
  let subscriptions = 0;

  function persists(session: Session): boolean {
    return ledger !== undefined && session.expirySec > 0;
  }

  /** Undefined where it has ended. */
  function sessionOf(handle: SessionHandle): Session | undefined {
    const session = byHandle.get(handle);
    return session && sessions.get(session.clientId)?.session === session ? session : undefined;
  }

  function subscribe(held: Held, topicFilter: string, wanted: SubscriptionOptions): { isNew: boolean } {
    const isNew = !held.session.subscriptions.has(topicFilter);
    if (isNew) subscriptions++;
    held.session.subscriptions.set(topicFilter, wanted);
    audience.set(held, topicFilter, wanted);
    return { isNew };
  }

  /** It is no longer found by a message; what it has already is untouched. */
  function detach(held: Held, topicFilter: string): void {
    subscriptions--;
    audience.delete(held, topicFilter);
  }

  /**
   * What a member of shared subscriptions has not settled goes to another, save a QoS 2 delivery that has begun: that
   * stays with its session [MQTT-4.8.2-4] [MQTT-4.8.2-5].
   */
  function passOn(from: Held, fits: (member: Held) => boolean): void {
    const { session } = from;
    const moved = new Set<Entry>();
    for (const entry of session.entries()) {
      if (entry.sharedBy === undefined || entry.qos === 0 || (entry.qos === 2 && session.inflight.has(entry))) continue;
      const to = audience.another(
        entry.sharedBy,
        (member) => member !== from && !member.session.isCrowded() && fits(member),
      );
      if (!to) continue;
      moved.add(entry);
      deliveries.pass(session, entry, to);
    }
    for (const entry of session.extract((each) => moved.has(each))) deliveries.free(session, entry);
  }

  function forget(held: Held): void {
    const { session } = held;
    if (held.recorded) ledger?.forgetSession(session);
    held.recorded = false;
    passOn(held, () => true);
    for (const topicFilter of session.subscriptions.keys()) detach(held, topicFilter);
    if (sessions.get(session.clientId) === held) sessions.delete(session.clientId);
    session.release();
    for (const entry of session.extract(() => true)) deliveries.lost(session, entry, "session_ended");
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
        deliveries.give({ key: held, value: grant }, message, true, undefined);
        if (session.isCrowded() || session.isBusy) return session.room().then(go);
      }
    };
    return go();
  }

  function away(held: Held): void {
    const { session } = held;
    for (const entry of session.extract(({ qos }) => qos === 0)) deliveries.lost(session, entry, "qos0_offline");
    passOn(held, ({ handle }) => handle !== undefined);
    deliveries.queued(session);
    const since = now();
    absences.record(held, since);
    absences.begin(held, since);
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
        absences.end(held);
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

  const heldOwnerDeps: HeldOwnerDeps = {
    ledger,
    deliveries,
    inbound,
    now,
    persists,
    isCurrent: (held) => sessions.get(held.session.clientId) === held,
    afterCommit,
    subscribe,
    detach,
    deliverRetained,
    forget,
    away,
  };

  function handleOf(held: Held, present: boolean, onLost: Acquisition["onLost"]): MemoryHandle {
    const handle = createHandle(held.session, new HeldOwner(held, present, onLost, heldOwnerDeps));
    byHandle.set(handle, held.session);
    return handle;
  }

  async function afterSafe(safe: Promise<void>, handle: MemoryHandle): Promise<MemoryHandle> {
    try {
      await safe;
      return handle;
    } catch (error) {
      // Its client is refused, and must not count as here.
      await handle.close();
      throw error;
    }
  }

  /** What an earlier process has left. A client that was connected when it ended counts as absent from now on. */
  function restore({ sessions: found, retained: messages, strays }: ProxyState): void {
    for (const key of strays) ledger?.forgetStray(key);
    for (const message of messages) {
      deliveries.hold(message);
      retained.restore(message);
    }
    for (const { clientId, expirySec, absentSince, connectedAt, username, ...had } of found) {
      const held = createHeld({ clientId, expirySec, info: { username, address: "" } });
      const { session } = held;
      held.recorded = true;
      held.connectedAt = connectedAt;
      sessions.set(clientId, held);
      session.inbound = had.inbound.size > 0 ? had.inbound : undefined;
      for (const [topicFilter, wanted] of had.subscriptions) subscribe(held, topicFilter, wanted);
      session.restore(had.entries);
      deliveries.restored(had.entries);
      const since = absentSince === 0 ? now() : absentSince;
      if (absentSince === 0) absences.record(held, since);
      if (expirySec === 0) forget(held);
      else absences.begin(held, since);
    }
  }

  if (state) restore(state);

  return {
    reopen(next) {
      options = next;
    },
    publish: (message, o = {}) => fanOut.publish(message, o),
    publishTo: (clientId, message, o = {}) => fanOut.publishTo(sessions.get(clientId), message, o),
    acquire(client) {
      deps.check();
      const { clientId, cleanStart, expirySec, info } = client;
      const old = sessions.get(clientId);
      if (!old && expirySec > 0 && absences.count >= maxAbsentSessions) {
        throw new SluiceError("QUEUE_FULL", `${proxy} keeps ${absences.count} sessions of absent clients, its limit`);
      }
      if (old?.handle) old.handle.lose("takenOver");
      else if (old) absences.end(old);
      const wasRecorded = old?.recorded;
      const resumed = old && !cleanStart && old.session.expirySec > 0 ? old : undefined;
      if (old && !resumed) forget(old);
      const held = resumed ?? createHeld(client);
      held.session.expirySec = expirySec;
      held.info = info;
      held.connectedAt = held.settledAt = now();
      sessions.set(clientId, held);
      absences.record(held, 0);
      const handle = handleOf(held, resumed !== undefined, client.onLost);
      held.handle = handle;
      // What was forgotten must not come back, and the client be told of a session that it has ended.
      const safe = wasRecorded && !resumed ? ledger?.commit() : undefined;
      return safe ? afterSafe(safe, handle) : handle;
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
      if (!handle) absences.end(held);
      forget(held);
      handle?.lose("removed");
      const safe = wasRecorded ? ledger?.commit() : undefined;
      return safe ? safe.then(() => true) : true;
    },
    get counts() {
      return {
        sessions: sessions.size,
        subscriptions,
        queued: deliveries.count,
        queuedBytes: deliveries.bytes,
        retained: retained.count,
        retainedBytes: retained.bytes,
      };
    },
  };
}
