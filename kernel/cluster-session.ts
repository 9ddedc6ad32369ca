/** A session on the node that owns it: what it subscribes to, how it reads the log, and what is written down of it. */
import type {
  ClusterInterest,
  ClusterLog,
  ClusterMessage,
  ClusterSelector,
  LogPosition,
  LogPositions,
} from "./cluster-engine.ts";
import { within } from "./deadline.ts";
import type { Deliveries } from "./deliveries.ts";
import { messageOf, SluiceError } from "./errors.ts";
import { type Grant, grantOf, mergeGrants } from "./grant.ts";
import { LogReader, placeOf } from "./log-reader.ts";
import type { LogTail } from "./log-tail.ts";
import type { Logger, SubscriptionOptions } from "./plugin.ts";
import { type Entry, type KeptMessage, Session } from "./session.ts";
import type { Held } from "./session-handle.ts";
import {
  encodeCursor,
  encodeSubscriptions,
  type KeptCursor,
  type KeptDelivery,
  type KeptInbound,
  type KeptSubscription,
  type Ownership,
  type RecordWriter,
} from "./session-records.ts";
import type { Acquisition, Awaitable, PublishOptions, QueueLimits } from "./store.ts";
import { matches, parseShared, type TopicIndex } from "./topics.ts";

/** What all sessions of a proxy share. */
export interface ClusterSessionDeps {
  readonly log: ClusterLog;
  readonly tail: LogTail;
  readonly interest: ClusterInterest;
  readonly index: TopicIndex<ClusterSession, Grant>;
  readonly deliveries: Deliveries;
  readonly shared: SharedMemberships;
  readonly logger: Logger;
  readonly queue: QueueLimits;
  now(): number;
  /** The engine answers. */
  isLive(): boolean;
  /** The same for the same message, so that many sessions hold it once. */
  kept(message: ClusterMessage, position: LogPosition | undefined): KeptMessage;
  receiptsOf(message: ClusterMessage): PublishOptions["receipts"];
  gap(): void;
}

/** What a session needs of the shared subscriptions. */
export interface SharedMemberships {
  join(member: ClusterSession, topicFilter: string, options: SubscriptionOptions): Promise<void>;
  /** @param isGone it will not come back: it has unsubscribed, or ended */
  leave(member: ClusterSession, topicFilter: string, isGone: boolean): void;
  /** Its member has it. */
  settled(member: ClusterSession, entry: Entry): void;
  /** Its member will not have it: it is for another. */
  returned(member: ClusterSession, entry: Entry): void;
  /** Its client is here from now on. */
  here(member: ClusterSession): void;
}

/** A persistent session's hold on its records. */
export interface Claim {
  readonly ownership: Ownership;
  readonly revision: number;
  readonly writer: RecordWriter;
}

export interface ClusterSession extends Held {
  readonly reader: LogReader;
  /** Undefined: nothing of it outlives its connection. */
  readonly claim: Claim | undefined;
  /** Another node may own it by now: what comes from the cluster is not for its connection here. */
  isInDoubt: boolean;
  /** Greater for each later connection of the client. */
  connection: number;
  readonly inbound: Map<number, KeptInbound>;
  /** Resolves when messages for it come to this node; at once where the engine is away. */
  readonly routed: Promise<unknown>;
  subscribe(topicFilter: string, options: SubscriptionOptions): Awaitable<{ isNew: boolean }>;
  unsubscribe(topicFilter: string): Awaitable<boolean>;
  /** What its subscriptions that match come to, those left out that were made after the message. */
  grantFor(message: ClusterMessage, position: LogPosition): Grant | undefined;
  /** Something of it has been settled, or never will be. */
  done(entry: Entry): void;
  /** What waits for a write to be sent, or to go on. */
  record(entries: readonly Entry[]): Promise<void> | undefined;
  /** Writes the cursor where it has moved. */
  checkpoint(): void;
  /** Takes it off this node: all of its deliveries are let go of. What the next owner needs is answered. */
  unload(reason: "passedOn" | "ended"): KeptCursor;
}

/** What a session begins with. */
export interface SessionStart extends Pick<Acquisition, "clientId" | "expirySec" | "info"> {
  readonly connection: number;
  readonly claim: Claim | undefined;
  readonly subscriptions: ReadonlyMap<string, KeptSubscription>;
  readonly cursor: Pick<KeptCursor, "upTo" | "settled"> | undefined;
  /** What its client was sent and has not answered: it comes again in the log's order, under the same packet ids. */
  readonly sent: readonly KeptDelivery[];
  /** Whatever is in the log up to here may have been sent by a node that nobody can ask any more [MQTT-3.3.1-1]. */
  readonly sentUpTo?: LogPositions | undefined;
  readonly inbound: ReadonlyMap<number, KeptInbound>;
}

const nothing: LogPositions = new Map();

/** How often a place in the log is asked for that could not be had. */
const retryMs = 1000;

/** How long a clean session's SUBACK waits for the engine. What it has subscribed to comes once the engine has answered. */
const soonMs = 1000;

/** QoS 2 deliveries completed before the cursor is written for their sake. */
const maxCompleted = 1000;

export function createClusterSession(start: SessionStart, deps: ClusterSessionDeps): ClusterSession {
  const { clientId, claim } = start;
  const { interest, tail, index, deliveries } = deps;
  const subscriptions = new Map<string, KeptSubscription>();
  const direct: ClusterSelector | undefined = claim && { clientId };
  let selectors: ClusterSelector[] = direct ? [direct] : [];
  let isLoaded = true;
  let isDirty = false;
  /** Packet ids of QoS 2 deliveries whose records go with the next cursor. */
  let completed: number[] = [];
  const sent = new Map(start.sent.map((each) => [placeOf(each.position), each]));

  const session = new Session(clientId, start.expirySec, {
    get queue() {
      return deps.queue;
    },
    lost(_, entry, reason) {
      deliveries.lost(session, entry, reason);
      done(entry);
    },
  });
  const reader = new LogReader(
    {
      log: deps.log,
      tail,
      logger: deps.logger,
      selectors: () => selectors,
      room: () => (deliveries.bytes < deps.queue.maxTotalBytes && !held.isInDoubt ? session.spare : 0),
      take,
      caughtUp: () => void sendUnmet(),
      gap: () => deps.gap(),
    },
    { upTo: startOf(start), settled: start.cursor?.settled ?? [] },
  );

  function take(message: ClusterMessage, position: LogPosition): boolean {
    const before = sent.get(placeOf(position));
    const grant = grantFor(message, position);
    if (before) {
      sent.delete(placeOf(position));
      give(message, position, { ...(grant ?? directGrant(before)), qos: before.qos }, before.packetId);
      return true;
    }
    if (!grant || grant.qos === 0 || message.qos === 0) return false;
    give(message, position, grant, undefined);
    return true;
  }

  function give(message: ClusterMessage, position: LogPosition, value: Grant, packetId: number | undefined): void {
    const retain = message.retain && value.retainAsPublished;
    // What is of QoS 2 was written down before it was sent: without a packet id it was not.
    const isQos1 = Math.min(message.qos, value.qos) === 1;
    const mayBeSent = isQos1 && position.seq <= (start.sentUpTo?.get(position.shard) ?? 0);
    const target = { key: held, value };
    deliveries.give(target, deps.kept(message, position), retain, deps.receiptsOf(message), packetId, mayBeSent);
  }

  /** What its client was sent and the log has not brought again: the subscription is gone, or the message. */
  async function sendUnmet(): Promise<void> {
    for (const [place, before] of sent) {
      const { position, packetId } = before;
      try {
        const message = await deps.log.get(position);
        if (!isLoaded || !sent.delete(place)) return;
        if (message) {
          reader.restore(position);
          give(message, position, { ...directGrant(before), qos: before.qos }, packetId);
          continue;
        }
        deps.gap();
        session.unreserve(packetId);
        claim?.writer.put(`o.${packetId}`, undefined);
      } catch (error) {
        deps.logger.warn({ clientId, error: messageOf(error) }, "A message in flight could not be read");
        return;
      }
    }
  }

  function grantFor(message: ClusterMessage, position: LogPosition): Grant | undefined {
    if (message.to !== undefined) return message.to === clientId ? directGrant(message) : undefined;
    let grant: Grant | undefined;
    for (const [topicFilter, { options, since }] of subscriptions) {
      if (!matches(topicFilter, message.topic) || isBefore(position, since)) continue;
      if (options.noLocal && message.from === clientId) continue;
      const own = grantOf(options);
      grant = grant ? mergeGrants(grant, own) : own;
    }
    return grant;
  }

  function done(entry: Entry): void {
    const { position } = entry.message;
    isDirty = true;
    if (entry.sharedBy !== undefined) {
      if (entry.recorded) claim?.writer.put(`o.${entry.packetId}`, undefined);
      deps.shared.settled(held, entry);
      return;
    }
    if (entry.qos === 2 && entry.recorded && entry.packetId > 0) {
      completed.push(entry.packetId);
      session.reserve(entry.packetId);
      if (completed.length >= maxCompleted) checkpoint();
    }
    if (position && entry.qos > 0) reader.settle(position);
    if (!reader.follows) reader.resume();
  }

  function cursor(): KeptCursor {
    const entries = session.entries().filter(({ qos, sharedBy }) => qos > 0 && sharedBy === undefined);
    const unanswered = entries.flatMap(({ message: { position }, qos, packetId }): KeptDelivery[] => {
      if (qos !== 1 || !position || packetId === 0) return [];
      return [{ position, packetId, qos, released: false, sharedBy: undefined }];
    });
    const inflight = [...unanswered, ...[...sent.values()].filter(({ qos }) => qos === 1)];
    const retained = entries.filter(({ message }) => !message.position).map(({ message }) => message.topic);
    const { upTo, settled } = reader.cursor();
    const before = new Map(upTo);
    for (const { position } of sent.values()) {
      before.set(position.shard, Math.min(before.get(position.shard) ?? 0, position.seq - 1));
    }
    return { upTo: before, settled, inflight, retained };
  }

  function checkpoint(): void {
    if (!claim || !isDirty) return;
    isDirty = false;
    claim.writer.put("cur", encodeCursor(cursor()));
    // Only now may their ids be used again: what the cursor has behind it is not sent twice.
    for (const packetId of completed) {
      claim.writer.put(`o.${packetId}`, undefined);
      session.unreserve(packetId);
    }
    completed = [];
  }

  function add(topicFilter: string, options: SubscriptionOptions, since: LogPositions): void {
    session.subscriptions.set(topicFilter, options);
    subscriptions.set(topicFilter, { options, since: [...since] });
    index.set(topicFilter, held, grantOf(options));
  }

  function drop(topicFilter: string): void {
    const selector = { topicFilter };
    subscriptions.delete(topicFilter);
    index.delete(topicFilter, held);
    interest.delete(selector);
    selectors = selectors.filter((each) => !("topicFilter" in each) || each.topicFilter !== topicFilter);
    reader.reduce(selector);
  }

  function follow(selector: ClusterSelector, from: LogPositions): void {
    selectors = [...selectors, selector];
    reader.extend(selector, from);
  }

  /** The engine is away: what matches comes once it is back. */
  async function followLater(topicFilter: string, selector: ClusterSelector): Promise<void> {
    for (;;) {
      try {
        const from = await deps.log.end([selector]);
        if (isLoaded && subscriptions.has(topicFilter) && !selectors.includes(selector)) follow(selector, from);
        return;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, retryMs).unref());
        if (!isLoaded) return;
      }
    }
  }

  async function subscribe(topicFilter: string, options: SubscriptionOptions): Promise<{ isNew: boolean }> {
    const known = subscriptions.get(topicFilter);
    const selector: ClusterSelector = { topicFilter };
    const isLogged = options.qos > 0 && !isSelected(topicFilter);
    let from: LogPositions = new Map(known?.since);
    try {
      const asked = Promise.all([
        known ? undefined : interest.add(selector),
        isLogged ? deps.log.end([selector]) : from,
      ]);
      [, from] = await (claim ? asked : soon(asked));
    } catch (error) {
      if (claim) {
        if (!known) interest.delete(selector);
        throw new SluiceError("STORE_FAILED", `the cluster did not take the subscription of ${clientId}`, {
          cause: error,
        });
      }
      if (isLoaded) {
        add(topicFilter, options, nothing);
        if (isLogged) void followLater(topicFilter, selector);
      }
      return { isNew: !known };
    }
    if (!isLoaded) {
      if (!known) interest.delete(selector);
      return { isNew: false };
    }
    add(topicFilter, options, from);
    if (isLogged && !isSelected(topicFilter)) follow(selector, from);
    await written();
    return { isNew: !known };
  }

  function isSelected(topicFilter: string): boolean {
    return selectors.some((each) => "topicFilter" in each && each.topicFilter === topicFilter);
  }

  async function subscribeShared(topicFilter: string, options: SubscriptionOptions): Promise<{ isNew: boolean }> {
    const isNew = !session.subscriptions.has(topicFilter);
    const joined = deps.shared.join(held, topicFilter, options);
    if (claim) await joined;
    else await soon(joined).catch(() => undefined);
    if (!isLoaded) return { isNew: false };
    session.subscriptions.set(topicFilter, options);
    await written();
    return { isNew };
  }

  async function written(): Promise<void> {
    if (!claim) return;
    const shared = [...session.subscriptions].filter(([topicFilter]) => parseShared(topicFilter));
    const all = new Map([...subscriptions, ...shared.map(([key, options]) => [key, { options, since: [] }] as const)]);
    claim.writer.put("sub", encodeSubscriptions(all));
    await claim.writer.commit();
  }

  const held: ClusterSession = {
    session,
    handle: undefined,
    info: start.info,
    connectedAt: deps.now(),
    settledAt: deps.now(),
    expiresAt: 0,
    expire: () => undefined,
    recorded: claim !== undefined,
    reader,
    claim,
    isInDoubt: false,
    connection: start.connection,
    inbound: new Map(start.inbound),
    routed: Promise.resolve(),
    subscribe(topicFilter, options) {
      if (parseShared(topicFilter)) return subscribeShared(topicFilter, options);
      if (claim || deps.isLive()) return subscribe(topicFilter, options);
      const isNew = !subscriptions.has(topicFilter);
      add(topicFilter, options, nothing);
      const selector: ClusterSelector = { topicFilter };
      if (isNew) interest.add(selector).catch(() => undefined);
      if (options.qos > 0 && !isSelected(topicFilter)) void followLater(topicFilter, selector);
      return { isNew };
    },
    unsubscribe(topicFilter) {
      if (!session.subscriptions.delete(topicFilter)) return false;
      if (parseShared(topicFilter)) deps.shared.leave(held, topicFilter, true);
      else drop(topicFilter);
      return claim ? written().then(() => true) : true;
    },
    grantFor,
    done,
    record(entries) {
      if (!claim) return undefined;
      const recorded = entries.filter((entry) => entry.recorded);
      for (const { message, packetId, qos, released, sharedBy } of recorded) {
        if (!message.position) continue;
        const delivery: KeptDelivery = { position: message.position, packetId, qos, released, sharedBy };
        claim.writer.put(`o.${packetId}`, delivery);
      }
      return recorded.length > 0 ? claim.writer.commit() : undefined;
    },
    checkpoint,
    unload(reason) {
      const left = cursor();
      isLoaded = false;
      session.release();
      for (const entry of session.extract(() => true)) {
        // A QoS 2 delivery that has begun stays with its session [MQTT-4.8.2-4] [MQTT-4.8.2-5].
        const hasBegun = entry.qos === 2 && entry.isSafe && entry.packetId > 0;
        if (entry.sharedBy !== undefined) {
          if (hasBegun) deps.shared.settled(held, entry);
          else deps.shared.returned(held, entry);
        }
        if (reason === "ended" && (entry.sharedBy === undefined || hasBegun)) {
          deliveries.lost(session, entry, "session_ended");
        } else {
          deliveries.free(session, entry);
        }
      }
      for (const topicFilter of session.subscriptions.keys()) {
        if (parseShared(topicFilter)) deps.shared.leave(held, topicFilter, reason === "ended");
      }
      reader.close();
      for (const topicFilter of subscriptions.keys()) {
        index.delete(topicFilter, held);
        interest.delete({ topicFilter });
      }
      if (direct) interest.delete(direct);
      return left;
    },
  };

  for (const { packetId } of start.sent) session.reserve(packetId);
  const routes: Promise<void>[] = direct ? [interest.add(direct)] : [];
  for (const [topicFilter, kept] of start.subscriptions) {
    if (parseShared(topicFilter)) {
      session.subscriptions.set(topicFilter, kept.options);
      continue;
    }
    add(topicFilter, kept.options, new Map(kept.since));
    const selector: ClusterSelector = { topicFilter };
    routes.push(interest.add(selector));
    if (kept.options.qos > 0) selectors = [...selectors, selector];
  }
  if (routes.length === 0) return held;
  return Object.assign(held, { routed: Promise.allSettled(routes) });
}

/** Rejects where it takes longer. */
function soon<T>(work: Promise<T>): Promise<T> {
  return within(soonMs, work, () => new Error(`no answer in ${soonMs} ms`));
}

/** Where it reads on: where the cursor is, else where what it wants began. */
function startOf({ cursor, claim, subscriptions }: SessionStart): Map<number, number> {
  const from = new Map(cursor?.upTo);
  const begin = (since: readonly (readonly [number, number])[]): void => {
    for (const [shard, seq] of since) {
      const known = begun.get(shard);
      if (known === undefined || known > seq) begun.set(shard, seq);
    }
  };
  const begun = new Map<number, number>();
  begin(claim?.ownership.direct ?? []);
  for (const { since } of subscriptions.values()) begin(since);
  for (const [shard, seq] of begun) if (!from.has(shard)) from.set(shard, seq);
  return from;
}

function isBefore({ shard, seq }: LogPosition, since: readonly (readonly [number, number])[]): boolean {
  for (const [at, from] of since) if (at === shard) return seq <= from;
  return false;
}

export function directGrant({ qos }: Pick<ClusterMessage, "qos">): Grant {
  return { qos, retainAsPublished: false, identifiers: [], own: undefined };
}
