/** The sessions of one proxy on one node of a cluster. */
import type { ClusterEngine, ClusterMessage, ClusterPeer, ClusterProxy, LogPosition } from "./cluster-engine.ts";
import { type ClusterSession, createClusterSession, type Claim, directGrant } from "./cluster-session.ts";
import { createCensus } from "./cluster-census.ts";
import { type Answers, createClusterPublisher, type Matching } from "./cluster-publisher.ts";
import { createDeliveries } from "./deliveries.ts";
import { createDepartures, isNode } from "./departures.ts";
import { messageOf, SluiceError } from "./errors.ts";
import { createExpiries } from "./expiries.ts";
import { type Grant, grantOf, mergeGrants } from "./grant.ts";
import type { HybridClock } from "./hybrid-clock.ts";
import { placeOf } from "./log-reader.ts";
import { createLogTail } from "./log-tail.ts";
import type { Logger, SessionInfo, SubscriptionOptions } from "./plugin.ts";
import { createOrphanedWills } from "./orphaned-wills.ts";
import { createOwnershipCheck } from "./ownership-check.ts";
import { createReceiptRelay } from "./receipt-relay.ts";
import { costOf, type Entry, type KeptMessage, neverExpires } from "./session.ts";
import { createHandle, type MemoryHandle } from "./session-handle.ts";
import {
  decodeOwnership,
  decodeSubscriptions,
  encodeCursor,
  hasExpired,
  type KeptCursor,
  type KeptDelivery,
  type KeptSession,
} from "./session-records.ts";
import { createSessionOwners, type Kick } from "./session-owners.ts";
import { createSessionSweep } from "./session-sweep.ts";
import { createSharedMembers, isGroup } from "./shared-members.ts";
import type {
  Acquisition,
  Awaitable,
  LostReason,
  ProxyStore,
  SessionExpiry,
  SessionHandle,
  StoreOptions,
} from "./store.ts";
import { createTopicIndex, parseShared } from "./topics.ts";

export interface ClusterProxyStore extends ProxyStore {
  reopen(options: StoreOptions): void;
  /** Requests of other nodes, by kind. */
  answer(kind: ControlKind, body: Buffer, from: string): Awaitable<Buffer | void>;
  /** The engine could not be reached for too long: clients whose sessions may be another node's by now are closed. */
  graceOver(): void;
  /** The engine is back. */
  revived(): void;
  /** Of {@link ClusterHealth}: from when it is false, sessions held here may become another node's. */
  reachedChanged(reached: boolean): void;
  peerChanged(peer: ClusterPeer): void;
  readonly interests: number;
  /** Messages handed out that are not verified yet. */
  readonly unverified: number;
  close(): Promise<void>;
}

export const controlKinds = ["kick", "here", "match", "count", "receipt", "direct", "sessions", "shared"] as const;
export type ControlKind = (typeof controlKinds)[number];

export interface ClusterMeters {
  takenOver(): void;
  conflict(): void;
  missed(count: number): void;
  gap(): void;
  uncounted(): void;
  expired(): void;
  forwarded(): void;
}

export interface ClusterProxyDeps {
  readonly engine: ClusterEngine;
  readonly clock: HybridClock;
  readonly logger: Logger;
  readonly meters: ClusterMeters;
  readonly auditMs: number;
  readonly checkpointMs: number;
  readonly sweepMs: number;
  readonly silenceMs: number;
  check(): void;
}

/** How long a CONNECT waits for what is still being done with its session. */
const busyMs = 10_000;

/** How often sessions are looked at that have something to write, or to read. */
const tickMs = 1000;

/** Sessions that end soon, and are not left to the next look at all of them. */
const maxExpiring = 100_000;

/** Clean sessions whose persistent predecessors could not be removed yet. */
const maxPurges = 100_000;

export function createClusterProxyStore(
  proxy: string,
  initial: StoreOptions,
  deps: ClusterProxyDeps,
): ClusterProxyStore {
  const { engine, clock, logger, meters } = deps;
  let options = initial;
  const now = (): number => options.now();
  const sessions = new Map<string, ClusterSession>();
  /** What is done with a session one after the other. */
  const busy = new Map<string, Promise<unknown>>();
  const arriving = new Map<string, Arrival>();
  /** What the last owner knows of sessions that are being written. */
  const leaving = new Map<string, KeptCursor>();
  const expiries = createExpiries(now);
  /** What is in there: revision and client id. */
  const expiring = new Set<string>();
  /** By client, the connection whose predecessors are to go. */
  const purges = new Map<string, number>();
  const index = createTopicIndex<ClusterSession, Grant>({ prefer: mergeGrants, cacheSize: options.topicCacheSize });
  const byHandle = new WeakMap<SessionHandle, ClusterSession>();
  let messageSeq = 0;
  let last: { message: ClusterMessage; kept: KeptMessage } | undefined;
  let subscriptions = 0;
  let isPurging = false;

  const cluster: ClusterProxy = engine.open(proxy, {
    onMessage(message, position, previous) {
      if (position) tail.message(message, position, previous);
      else handOut(message, undefined);
    },
    onInterrupted: () => void tail.audit(),
  });
  const tail = createLogTail({
    log: cluster.log,
    logger,
    auditMs: deps.auditMs,
    handOut,
    missed: (count) => meters.missed(count),
    gap: () => meters.gap(),
  });
  const deliveries = createDeliveries(
    {
      ledger: {
        delivery(_, entry) {
          entry.recorded = entry.qos === 2 && entry.message.position !== undefined;
        },
        // Its record goes with the cursor.
        forgetDelivery: () => undefined,
      },
      onDropped: (reason, count) => options.onDropped(reason, count),
      now,
    },
    { messageSeq: 0, entrySeq: 0 },
  );
  const relay = createReceiptRelay(proxy, engine);
  const shared = createSharedMembers({
    proxy,
    engine,
    cluster,
    tail,
    deliveries,
    logger,
    clock,
    now,
    kept,
    receiptsOf: relay.of,
    gap: () => meters.gap(),
    conflict: () => meters.conflict(),
  });
  const check = createOwnershipCheck<ClusterSession & { readonly claim: Claim }>({
    held: () => [...sessions.values()].filter(isOwned),
    isReached: () => engine.health().reached,
    owner: ({ claim }) => cluster.records.owner(claim.ownership.clientId, true),
    revision: ({ claim }) => claim.revision,
    lost(session) {
      // Else this node itself has moved the record on meanwhile, and its client may be coming back.
      if (sessions.get(session.session.clientId) === session) loseTo(session, "takenOver");
    },
    kept: (session) => session.reader.resume(),
  });
  const wills = createOrphanedWills({
    engine,
    cluster,
    logger,
    async connected(clientIds) {
      const { answers } = await askAll("here", { clientIds });
      const elsewhere = answers.flatMap((answer) => JSON.parse(answer.toString()) as string[]);
      return new Set([...clientIds.filter(isHere), ...elsewhere]);
    },
    now,
    publish: async (will, dueAt) => await options.onOrphanedWill?.(will, dueAt),
  });
  const departures = createDepartures({
    engine,
    cluster,
    now,
    silenceMs: deps.silenceMs,
    doubted() {
      check.begin();
      check.retry();
    },
  });
  const owners = createSessionOwners({
    proxy,
    engine,
    cluster,
    clock,
    departures,
    logger,
    now,
    takenOver: () => meters.takenOver(),
    conflict: () => meters.conflict(),
    leaveShared: (clientId, topicFilters) => shared.forget(clientId, topicFilters),
  });
  const sweep = createSessionSweep({
    engine,
    cluster,
    departures,
    logger,
    now,
    everyMs: deps.sweepMs,
    isOther: isGroup,
    expire,
    expireAt,
  });
  const publisher = createClusterPublisher({
    proxy,
    engine,
    cluster,
    relay,
    meters,
    get options() {
      return options;
    },
    check: () => deps.check(),
    handOut,
    matching,
    askAll,
    census: createCensus(proxy, engine),
    sharedBy: (topic) => shared.matching(topic),
    sessionOf,
    madeFor: (handle) => byHandle.get(handle),
    session: (clientId) => sessions.get(clientId),
    find: (clientId) => owners.find(clientId),
    onDropped: (reason) => options.onDropped(reason, 1),
  });
  const timer = setInterval(tick, tickMs).unref();
  let checkpointAt = now() + deps.checkpointMs;

  function kept(message: ClusterMessage, position: LogPosition | undefined): KeptMessage {
    if (last?.message === message) return last.kept;
    const { topic, payload, qos, retain, properties, expiresAt, from } = message;
    const made: KeptMessage = {
      topic,
      payload,
      qos,
      retain,
      properties,
      expiresAt,
      from,
      frames: undefined,
      seq: ++messageSeq,
      bytes: costOf(message),
      holders: 0,
      records: 0,
      position,
    };
    last = { message, kept: made };
    return made;
  }

  /** Connected sessions here that get it, by their own subscriptions. */
  function matching(topic: string, from: string | undefined): { session: ClusterSession; grant: Grant }[] {
    return index.match(topic).flatMap(({ key, value }) => {
      const grant = from !== undefined && key.session.clientId === from ? value.own : value;
      return grant && key.handle ? [{ session: key, grant }] : [];
    });
  }

  function handOut(message: ClusterMessage, position: LogPosition | undefined, before?: number): void {
    if (message.to !== undefined) {
      const session = sessions.get(message.to);
      if (session) hand(session, directGrant(message), message, position, before);
      return;
    }
    for (const { key, value } of index.match(message.topic)) {
      const isOwn = message.from !== undefined && key.session.clientId === message.from;
      const grant = isOwn ? value.own : value;
      if (grant) hand(key, grant, message, position, before);
    }
    shared.handOut(message, position, before);
  }

  function hand(
    session: ClusterSession,
    grant: Grant,
    message: ClusterMessage,
    position: LogPosition | undefined,
    before: number | undefined,
  ): void {
    if (position && grant.qos > 0 && message.qos > 0) {
      session.reader.offer(message, position, before);
      return;
    }
    if (!session.handle) return;
    if (session.isInDoubt && engine.health().reached) {
      options.onDropped("cluster_away", 1);
      return;
    }
    const retain = message.retain && grant.retainAsPublished;
    deliveries.give({ key: session, value: grant }, kept(message, position), retain, relay.of(message));
  }

  function isHere(clientId: string): boolean {
    return sessions.get(clientId)?.handle !== undefined;
  }

  /** What those answer that do, of the nodes that are up; `isWhole` = all of them. */
  async function askAll(kind: ControlKind, question: object): Promise<Answers> {
    const body = Buffer.from(JSON.stringify({ proxy, ...question }));
    const peers = engine.peers().filter(({ isUp }) => isUp);
    const answers = await Promise.allSettled(peers.map(({ id }) => engine.control.request(id, kind, body, askMs)));
    const given = answers.flatMap((answer) => (answer.status === "fulfilled" ? [answer.value] : []));
    return { answers: given, isWhole: given.length === peers.length && engine.health().live };
  }

  /** Undefined where it has ended. */
  function sessionOf(handle: SessionHandle): ClusterSession | undefined {
    const session = byHandle.get(handle);
    return session && sessions.get(session.session.clientId) === session ? session : undefined;
  }

  /** One after the other for each client. */
  async function alone<T>(clientId: string, act: () => Promise<T>): Promise<T> {
    const before = busy.get(clientId);
    const mine = (async () => {
      await before?.catch(() => undefined);
      return await act();
    })();
    busy.set(clientId, mine);
    try {
      return await mine;
    } finally {
      if (busy.get(clientId) === mine) busy.delete(clientId);
    }
  }

  const sessionDeps = {
    log: cluster.log,
    tail,
    interest: cluster.interest,
    index,
    deliveries,
    shared,
    logger,
    get queue() {
      return options.queue;
    },
    now,
    isLive: () => engine.health().live,
    kept,
    receiptsOf: relay.of,
    gap: () => meters.gap(),
  };

  function take(session: ClusterSession): void {
    wills.back(session.session.clientId);
    sessions.set(session.session.clientId, session);
    subscriptions += session.session.subscriptions.size;
  }

  /** It is no longer on this node. */
  function unload(session: ClusterSession, reason: "passedOn" | "ended"): KeptCursor {
    const { clientId } = session.session;
    subscriptions -= session.session.subscriptions.size;
    if (sessions.get(clientId) === session) sessions.delete(clientId);
    return session.unload(reason);
  }

  function loseTo(session: ClusterSession, why: LostReason): KeptCursor {
    session.handle?.lose(why);
    const isPassedOn = why !== "removed" && session.claim !== undefined;
    session.claim?.writer.close();
    return unload(session, isPassedOn ? "passedOn" : "ended");
  }

  function fenced(claim: Claim): void {
    const session = sessions.get(claim.ownership.clientId);
    const arrival = arriving.get(claim.ownership.clientId);
    if (session?.claim === claim) {
      loseTo(session, "takenOver");
      options.onElsewhere?.(claim.ownership.clientId, true);
    } else if (arrival) arrival.isLost = true;
  }

  function handleOf(session: ClusterSession, present: boolean, onLost: Acquisition["onLost"]): MemoryHandle {
    const { session: inner, connection } = session;
    const local = createHandle(inner, {
      present,
      async subscribe(topicFilter, wanted) {
        const before = inner.subscriptions.size;
        const answer = await session.subscribe(topicFilter, wanted);
        if (sessions.get(inner.clientId) === session) subscriptions += inner.subscriptions.size - before;
        return answer;
      },
      unsubscribe(topicFilter) {
        const before = inner.subscriptions.size;
        const answer = session.unsubscribe(topicFilter);
        subscriptions += inner.subscriptions.size - before;
        return answer;
      },
      deliverRetained: (topicFilter, isNew) => deliverRetained(session, topicFilter, isNew),
      inbound: publisher.inboundOf(session),
      now,
      stirred() {
        session.settledAt = now();
      },
      delivered(entry) {
        deliveries.delivered(inner, entry);
        session.done(entry);
      },
      record: (entries) => session.record(entries),
      closed: (expirySec) => closed(session, expirySec),
      willDone: () => wills.done(inner.clientId, connection),
      lost(why) {
        session.handle = undefined;
        inner.release();
        onLost(why);
      },
      attached() {
        void session.routed.then(() => session.reader.resume());
        shared.here(session);
      },
    });
    const handle: MemoryHandle = Object.assign(local, { ordinal: connection });
    byHandle.set(handle, session);
    return handle;
  }

  function closed(session: ClusterSession, expirySec?: SessionExpiry): Awaitable<void> {
    const { session: inner, claim } = session;
    session.handle = undefined;
    inner.release();
    const { clientId } = inner;
    if (expirySec !== undefined) inner.expirySec = expirySec;
    wills.wait(clientId, inner.expirySec);
    if (!claim) {
      unload(session, "ended");
      return;
    }
    if (inner.expirySec === 0) {
      unload(session, "ended");
      claim.writer.close();
      return alone(clientId, async () => void (await cluster.records.remove(clientId, claim.revision)));
    }
    for (const entry of inner.extract(({ qos }) => qos === 0)) deliveries.lost(inner, entry, "qos0_offline");
    deliveries.queued(inner);
    const cursor = unload(session, "passedOn");
    leaving.set(clientId, cursor);
    return alone(clientId, async () => {
      try {
        const revision = await owners.release(claim, cursor, inner.expirySec);
        if (revision !== undefined) expireLater(clientId, revision, inner.expirySec);
      } finally {
        if (leaving.get(clientId) === cursor) leaving.delete(clientId);
      }
    });
  }

  function expireLater(clientId: string, revision: number, expirySec: SessionExpiry): void {
    const at = now() + expirySec * 1000;
    if (expirySec !== neverExpires && at <= now() + sweep.reachMs) expireAt(at, clientId, revision);
  }

  /** Guarded by its revision: if its client has been back meanwhile, nothing happens. */
  function expireAt(at: number, clientId: string, revision: number): void {
    const key = `${revision} ${clientId}`;
    if (expiring.has(key) || expiring.size >= maxExpiring) return;
    expiring.add(key);
    expiries.add(at, () => {
      expiring.delete(key);
      // What fails is left to the next look at all sessions.
      expire(clientId, revision).catch(() => undefined);
    });
  }

  async function expire(clientId: string, revision: number): Promise<void> {
    if (await owners.expire(clientId, revision)) meters.expired();
  }

  async function deliverRetained(session: ClusterSession, topicFilter: string, isNew: boolean): Promise<void> {
    const wanted = session.session.subscriptions.get(topicFilter);
    if (!wanted || parseShared(topicFilter)) return;
    if (wanted.retainHandling === 2 || (wanted.retainHandling === 1 && !isNew)) return;
    const { handle } = session;
    const given = new Set<string>();
    for (;;) {
      try {
        await giveAllRetained(session, topicFilter, wanted, given);
        return;
      } catch (error) {
        logger.warn({ topicFilter, error: messageOf(error) }, "Retained messages could not be read");
        if (session.claim) {
          throw new SluiceError("STORE_FAILED", "the cluster did not answer with its retained messages", {
            cause: error,
          });
        }
      }
      // A client that needs nothing else of the cluster stays: they come once they can be read.
      do await new Promise((resolve) => setTimeout(resolve, tickMs).unref());
      while (session.handle === handle && !engine.health().durable);
      if (session.handle !== handle || session.session.subscriptions.get(topicFilter) !== wanted) return;
    }
  }

  /** @param given topics of those that it has; added to */
  async function giveAllRetained(
    session: ClusterSession,
    topicFilter: string,
    wanted: SubscriptionOptions,
    given: Set<string>,
  ): Promise<void> {
    const { handle } = session;
    const grant = grantOf(wanted);
    for await (const found of publisher.retained(topicFilter)) {
      for (const message of found) {
        if (session.handle !== handle || !handle) return;
        if (given.has(message.topic) || (wanted.noLocal && message.from === session.session.clientId)) continue;
        given.add(message.topic);
        giveRetained(session, message, grant);
        if (session.session.isCrowded() || session.session.isBusy) await session.session.room();
      }
    }
  }

  function giveRetained(session: ClusterSession, message: ClusterMessage, grant: Grant): void {
    deliveries.give({ key: session, value: grant }, kept({ ...message }, undefined), true, undefined);
  }

  function acquire(client: Acquisition): Awaitable<SessionHandle> {
    deps.check();
    const { clientId, cleanStart, expirySec } = client;
    if (cleanStart && expirySec === 0) return acquireClean(client);
    return acquirePersistent(client, clientId);
  }

  /** Nothing is waited for: what other nodes have of this client they let go of when they hear of it. */
  function acquireClean(client: Acquisition): SessionHandle {
    const { clientId } = client;
    const arrival = arriving.get(clientId);
    if (arrival) arrival.isLost = true;
    const old = sessions.get(clientId);
    if (old) loseTo(old, "takenOver");
    const connection = clock.next(old?.connection);
    const session = createClusterSession(
      {
        ...client,
        sent: [],
        connection,
        claim: undefined,
        subscriptions: new Map(),
        cursor: undefined,
        inbound: new Map(),
      },
      sessionDeps,
    );
    take(session);
    const handle = handleOf(session, false, client.onLost);
    session.handle = handle;
    if (client.will) wills.keep(client.will, connection, client.expirySec);
    announce({ clientId, revision: 0, connection, why: "takenOver", resumes: false });
    if (purges.size < maxPurges) purges.set(clientId, connection);
    void purge();
    return handle;
  }

  function announce(kick: Omit<Kick, "proxy">): void {
    engine.control.broadcast("kick", Buffer.from(JSON.stringify({ proxy, ...kick } satisfies Kick)));
  }

  /** A clean session ends the one that there was, wherever that is [MQTT-3.1.2-4]. */
  async function purge(): Promise<void> {
    if (isPurging || !engine.health().live) return;
    isPurging = true;
    try {
      for (const [clientId, connection] of purges) {
        await owners.remove(clientId, connection);
        if (purges.get(clientId) === connection) purges.delete(clientId);
      }
    } catch {
      // Once more when the engine is back, or at the next tick.
    } finally {
      isPurging = false;
    }
  }

  async function acquirePersistent(client: Acquisition, clientId: string): Promise<SessionHandle> {
    const inFront = busy.get(clientId);
    if (inFront && !(await settledWithin(inFront, busyMs))) {
      throw new SluiceError("STORE_FAILED", `the session of ${clientId} can't be written; its client has to wait`);
    }
    return await alone(clientId, async () => {
      purges.delete(clientId);
      const old = sessions.get(clientId);
      if (old?.claim && !client.cleanStart && old.session.expirySec > 0) return resumeHere(old, client);
      if (old) loseTo(old, "takenOver");
      const arrival: Arrival = { isLost: false, revision: 0, connection: 0 };
      arriving.set(clientId, arrival);
      try {
        const { claim, kept: found, sentUpTo } = await owners.take(client, fenced);
        const { connection } = claim.ownership;
        announce({
          clientId,
          revision: claim.revision,
          connection,
          why: "takenOver",
          resumes: found !== undefined,
        });
        const unanswered = found ? unansweredOf(found, claim) : { sent: [], begun: [] };
        const session = createClusterSession(
          {
            ...client,
            connection,
            claim,
            subscriptions: found?.subscriptions ?? new Map(),
            cursor: found?.cursor,
            sent: unanswered.sent,
            sentUpTo,
            inbound: found?.inbound ?? new Map(),
          },
          sessionDeps,
        );
        await restore(session, unanswered.begun);
        for (const topicFilter of session.session.subscriptions.keys()) {
          const wanted = session.session.subscriptions.get(topicFilter);
          if (wanted && parseShared(topicFilter)) await shared.join(session, topicFilter, wanted);
        }
        const handle = handleOf(session, found !== undefined, client.onLost);
        session.handle = handle;
        if (arrival.isLost || arrival.revision > claim.revision || arrival.connection > connection) {
          loseTo(session, "takenOver");
          // A clean session may have come, which ends this one.
          if (sessions.has(clientId)) await cluster.records.remove(clientId, claim.revision);
          return handle;
        }
        take(session);
        if (client.will) wills.keep(client.will, connection, client.expirySec);
        for (const topic of found?.cursor?.retained ?? []) void again(session, topic);
        return handle;
      } catch (error) {
        if (error instanceof SluiceError) throw error;
        throw new SluiceError("STORE_FAILED", `the cluster did not hand over the session of ${clientId}`, {
          cause: error,
        });
      } finally {
        if (arriving.get(clientId) === arrival) arriving.delete(clientId);
      }
    });
  }

  function resumeHere(session: ClusterSession, client: Acquisition): SessionHandle {
    session.handle?.lose("takenOver");
    session.session.expirySec = client.expirySec;
    session.info = client.info;
    session.connection = clock.next(session.connection);
    session.connectedAt = session.settledAt = now();
    const handle = handleOf(session, true, client.onLost);
    session.handle = handle;
    if (client.will) wills.keep(client.will, session.connection, client.expirySec);
    else wills.forget(client.clientId);
    return handle;
  }

  /** What goes on where it was: PUBREL, and deliveries of shared subscriptions, which no session reads from the log. */
  async function restore(session: ClusterSession, begun: readonly KeptDelivery[]): Promise<void> {
    const entries: Entry[] = [];
    for (const each of begun) {
      const message = await cluster.log.get(each.position);
      if (!message) {
        meters.gap();
        options.onDropped("expired", 1);
        continue;
      }
      const grant = session.grantFor(message, each.position);
      entries.push(entryOf(each, kept(message, each.position), grant));
      if (each.sharedBy === undefined) session.reader.restore(each.position);
    }
    session.session.restore(entries);
    deliveries.restored(entries);
  }

  /** A retained message that the client had not acknowledged: what is retained now. */
  async function again(session: ClusterSession, topic: string): Promise<void> {
    const grant = matching(topic, undefined).find((each) => each.session === session)?.grant;
    if (!grant) return;
    try {
      for await (const found of publisher.retained(topic)) {
        for (const message of found) if (session.handle) giveRetained(session, message, grant);
      }
    } catch (error) {
      logger.warn({ topic, error: messageOf(error) }, "A retained message could not be read");
    }
  }

  function kicked({ clientId, revision, connection, why, resumes }: Kick): Buffer | undefined {
    clock.seen(connection);
    if (why === "takenOver") wills.back(clientId);
    const arrival = arriving.get(clientId);
    const session = sessions.get(clientId);
    if (!session) {
      if (arrival) heardOf(arrival, { revision, connection, why });
      options.onElsewhere?.(clientId, why === "takenOver" && resumes);
      const cursor = leaving.get(clientId);
      return cursor && encodeCursor(cursor);
    }
    if (session.claim) {
      // Without a revision it comes from a clean session, which takes nothing over.
      if (revision === 0 ? session.connection >= connection : session.claim.revision >= revision) return undefined;
      const cursor = loseTo(session, why);
      // Its will may have begun to wait just now.
      options.onElsewhere?.(clientId, why === "takenOver" && resumes);
      if (revision === 0) leaving.set(clientId, cursor);
      if (revision === 0) setTimeout(() => leaving.delete(clientId), 5000).unref();
      return encodeCursor(cursor);
    }
    if (why === "removed" || session.connection < connection) {
      loseTo(session, why);
      options.onElsewhere?.(clientId, false);
      return wasHere;
    }
    announce({ clientId, revision: 0, connection: session.connection, why: "takenOver", resumes: false });
    return undefined;
  }

  function tick(): void {
    const isDue = now() >= checkpointAt;
    if (isDue) checkpointAt = now() + deps.checkpointMs;
    let owns = false;
    for (const session of sessions.values()) {
      owns ||= session.claim !== undefined;
      if (isDue) session.checkpoint();
      if (!session.reader.follows && session.handle) session.reader.resume();
    }
    if (isDue) shared.checkpoint();
    if (isDue) wills.retry();
    if (purges.size > 0) void purge();
    // What fails is tried again in a second.
    if (owns && engine.health().durable) departures.beat().catch(() => undefined);
    check.retry();
    shared.check.retry();
  }

  function info({ session, handle, info: known, connectedAt, claim }: ClusterSession): SessionInfo {
    return {
      clientId: session.clientId,
      connected: handle !== undefined,
      clean: claim === undefined || session.expirySec === 0,
      username: known.username,
      address: handle ? known.address : undefined,
      connectedAt,
      subscriptions: [...session.subscriptions].map(([topicFilter, { qos }]) => ({ topicFilter, qos })),
      queued: session.queued,
      inflight: session.inflight.size,
      expiresAt: undefined,
    };
  }

  async function query(): Promise<readonly SessionInfo[]> {
    const found = new Map<string, SessionInfo>();
    for (const answer of (await askAll("sessions", {})).answers) {
      for (const each of JSON.parse(answer.toString()) as SessionInfo[]) found.set(each.clientId, each);
    }
    for (const session of sessions.values()) found.set(session.session.clientId, info(session));
    for await (const listed of cluster.records.list(["sub"])) {
      for (const { owner, records } of listed) {
        const ownership = decodeOwnership(owner.value);
        const { clientId, expirySec, username, connectedAt } = ownership;
        if (found.has(clientId) || isGroup(clientId) || isNode(clientId) || expirySec === 0) continue;
        const absentSince = await departures.lookUp(ownership);
        if (hasExpired({ ...ownership, absentSince }, now())) continue;
        found.set(clientId, {
          clientId,
          connected: false,
          clean: false,
          username,
          address: undefined,
          connectedAt,
          subscriptions: [...decodeSubscriptions(records.get("sub"))].map(
            ([
              topicFilter,
              {
                options: { qos },
              },
            ]) => ({
              topicFilter,
              qos,
            }),
          ),
          queued: 0,
          inflight: 0,
          expiresAt: absentSince > 0 && expirySec !== neverExpires ? absentSince + expirySec * 1000 : undefined,
        });
      }
    }
    return [...found.values()].toSorted((a, b) => (a.clientId < b.clientId ? -1 : 1));
  }

  async function remove(clientId: string): Promise<boolean> {
    purges.delete(clientId);
    const local = sessions.get(clientId);
    if (local) loseTo(local, "removed");
    const connection = clock.next(local?.connection);
    const wasKept = await alone(clientId, () => owners.remove(clientId));
    const kick: Omit<Kick, "proxy"> = { clientId, revision: 0, connection, why: "removed", resumes: false };
    const { answers } = await askAll("kick", kick);
    return local !== undefined || wasKept || answers.some((answer) => answer.length > 0);
  }

  return {
    reopen(next) {
      options = next;
    },
    keepsOrder: true,
    publish: (message, o = {}) => publisher.publish(message, o),
    publishTo: (clientId, message, o = {}) => publisher.publishTo(clientId, message, o),
    acquire,
    get passesWillsOn() {
      return engine.health().durable && engine.peers().some(({ isUp }) => isUp);
    },
    query,
    remove,
    get counts() {
      const { messages, bytes } = cluster.retained.counts;
      return {
        sessions: sessions.size,
        subscriptions,
        queued: deliveries.count,
        queuedBytes: deliveries.bytes,
        retained: messages + publisher.ownRetained,
        retainedBytes: bytes,
      };
    },
    get interests() {
      return cluster.interest.size;
    },
    get unverified() {
      return tail.unverified;
    },
    answer(kind, body, from) {
      switch (kind) {
        case "kick":
          return kicked(JSON.parse(body.toString()) as Kick);
        case "here": {
          const { clientIds } = JSON.parse(body.toString()) as { clientIds: string[] };
          return Buffer.from(JSON.stringify(clientIds.filter(isHere)));
        }
        case "match": {
          const { topic, publisher: by } = JSON.parse(body.toString()) as { topic: string; publisher?: string };
          const clientIds = matching(topic, by).map(({ session }) => session.session.clientId);
          return Buffer.from(JSON.stringify({ clientIds, shared: shared.matching(topic) } satisfies Matching));
        }
        case "count": {
          const { topics } = JSON.parse(body.toString()) as { topics: string[] };
          return Buffer.from(
            JSON.stringify(topics.map((topic) => matching(topic, undefined).length + shared.matching(topic).length)),
          );
        }
        case "receipt":
          return relay.told(body);
        case "direct":
          return publisher.direct(body);
        case "sessions":
          return Buffer.from(JSON.stringify([...sessions.values()].map(info)));
        default:
          return shared.answer(body, from);
      }
    },
    graceOver() {
      for (const session of sessions.values()) {
        if (!session.claim || !session.handle) continue;
        session.handle.lose("storeLost");
        // Written when the engine is back, if it is still ours then.
        void closed(session);
      }
    },
    reachedChanged(reached) {
      for (const each of [check, shared.check]) {
        if (reached) each.retry();
        else each.begin();
      }
    },
    revived() {
      departures.revived();
      wills.retry();
      void tail.audit();
      void purge();
    },
    peerChanged(peer) {
      shared.peerChanged();
      wills.look();
      if (!peer.isUp) sweep.peerGone();
    },
    async close() {
      clearInterval(timer);
      for (const session of sessions.values()) if (session.handle) void session.handle.close();
      owners.close();
      await Promise.allSettled([...busy.values(), sweep.close()]);
      if (engine.health().durable) await wills.flush();
      if (engine.health().durable) await departures.leave().catch(() => undefined);
      await shared.close();
      expiries.close();
      tail.close();
    },
  };
}

/** A CONNECT under way, and who else has taken its client meanwhile. */
interface Arrival {
  isLost: boolean;
  /** The latest revision of the owner record that another has told of. */
  revision: number;
  /** The latest clean session's number. */
  connection: number;
}

/** Who has told of it may have claimed the session before this CONNECT did, and be the one that has lost it. */
function heardOf(arrival: Arrival, { revision, connection, why }: Pick<Kick, "revision" | "connection" | "why">): void {
  if (why === "removed") arrival.isLost = true;
  else if (revision > 0) arrival.revision = Math.max(arrival.revision, revision);
  else arrival.connection = Math.max(arrival.connection, connection);
}

function isOwned(session: ClusterSession): session is ClusterSession & { readonly claim: Claim } {
  return session.claim !== undefined;
}

/** The answer of a node that had the client, and has nothing to hand over. */
const wasHere = Buffer.from("1");

/** How long other nodes have for an answer. */
const askMs = 2000;

function entryOf(
  { packetId, qos, released, sharedBy }: KeptDelivery,
  message: KeptMessage,
  grant: Grant | undefined,
): Entry {
  return {
    message,
    qos,
    retain: message.retain && grant?.retainAsPublished === true,
    identifiers: grant?.identifiers ?? [],
    packetId,
    released,
    seq: 0,
    sharedBy,
    receipts: undefined,
    withdrawn: false,
    recorded: qos === 2,
    isSafe: true,
    sentBefore: false,
  };
}

/** Of QoS 1 and 2; what the cursor has behind it needs nothing any more. */
function unansweredOf(
  { cursor, deliveries }: KeptSession,
  { writer }: Claim,
): { readonly sent: KeptDelivery[]; readonly begun: KeptDelivery[] } {
  const settled = new Set(cursor?.settled);
  const isBehind = ({ position, sharedBy }: KeptDelivery): boolean =>
    sharedBy === undefined &&
    (position.seq <= (cursor?.upTo.get(position.shard) ?? 0) || settled.has(placeOf(position)));
  // First the cursor, which another node may have handed over: without the record nothing else says that it is settled.
  if (cursor) writer.put("cur", encodeCursor(cursor));
  for (const each of deliveries) if (isBehind(each)) writer.put(`o.${each.packetId}`, undefined);
  const exactlyOnce = deliveries.filter((each) => !isBehind(each));
  const ids = new Set(exactlyOnce.map(({ packetId }) => packetId));
  const atLeastOnce = (cursor?.inflight ?? []).filter(({ packetId }) => !ids.has(packetId));
  const isBegun = ({ released, sharedBy }: KeptDelivery): boolean => released || sharedBy !== undefined;
  return {
    sent: [...atLeastOnce, ...exactlyOnce.filter((each) => !isBegun(each))],
    begun: exactlyOnce.filter(isBegun),
  };
}

async function settledWithin(work: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => (timer = setTimeout(() => resolve(false), ms)));
  try {
    return await Promise.race([
      work.then(
        () => true,
        () => true,
      ),
      late,
    ]);
  } finally {
    clearTimeout(timer);
  }
}
