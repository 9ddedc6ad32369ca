/** Messages on their way into a cluster: QoS 0 to whoever is there, the others into the log before they are acknowledged. */
import type { ClusterEngine, ClusterMessage, ClusterProxy, LogPosition } from "./cluster-engine.ts";
import type { Census } from "./cluster-census.ts";
import type { ClusterMeters } from "./cluster-proxy-store.ts";
import type { ClusterSession } from "./cluster-session.ts";
import { hearMessage, tellMessage, type ToldMessage } from "./cluster-words.ts";
import { messageOf, SluiceError } from "./errors.ts";
import type { Grant } from "./grant.ts";
import { inTurn } from "./in-turn.ts";
import type { Message, PublishOutcome } from "./plugin.ts";
import type { ReceiptRelay } from "./receipt-relay.ts";
import type { Ownership } from "./session-records.ts";
import { createRetainedKeeper } from "./retained-keeper.ts";
import type { Awaitable, PublishOptions, Receipt, SessionHandle, StoreOptions } from "./store.ts";
import { sysPrefix } from "./sys-topics.ts";
import { matches } from "./topics.ts";

export interface ClusterPublisher {
  publish(message: Message, o: PublishOptions): Awaitable<PublishOutcome>;
  publishTo(clientId: string, message: Message, o: PublishOptions): Awaitable<PublishOutcome>;
  /** Another node asks for it: to a clean session here. Answers whether there is one. */
  direct(body: Buffer): Buffer;
  retained(topicFilter: string): AsyncIterable<readonly ClusterMessage[]>;
  /** Of what is retained on this node alone. */
  readonly ownRetained: number;
  inboundOf(session: ClusterSession): SessionHandle["inbound"];
}

/** Of the nodes that are up. */
export interface Answers {
  readonly answers: readonly Buffer[];
  /** All of them have answered. */
  readonly isWhole: boolean;
}

/** Whom a message matches at one node, as that tells another. */
export interface Matching {
  readonly clientIds: readonly string[];
  /** Shared subscriptions that the node owns, with a connected member somewhere. */
  readonly shared: readonly string[];
}

export interface ClusterPublisherDeps {
  readonly proxy: string;
  readonly engine: ClusterEngine;
  readonly cluster: ClusterProxy;
  readonly relay: ReceiptRelay;
  readonly meters: ClusterMeters;
  readonly options: StoreOptions;
  check(): void;
  handOut(message: ClusterMessage, position: LogPosition | undefined): void;
  matching(topic: string, from: string | undefined): { readonly session: ClusterSession; readonly grant: Grant }[];
  askAll(kind: "match" | "direct", question: object): Promise<Answers>;
  readonly census: Census;
  /** Shared subscriptions, of those that this node owns, with a connected member. */
  sharedBy(topic: string): readonly string[];
  sessionOf(handle: SessionHandle): ClusterSession | undefined;
  /** The same, also where it is no longer here. */
  madeFor(handle: SessionHandle): ClusterSession | undefined;
  session(clientId: string): ClusterSession | undefined;
  find(clientId: string): Promise<Ownership | undefined>;
  onDropped(reason: string): void;
}

/** How long a publisher that waits for receipts may be told of one. */
const receiptsMs = 10 * 60_000;

/** QoS 2 ids whose use is remembered of one session. */
const maxInbound = 70_000;

export function createClusterPublisher(deps: ClusterPublisherDeps): ClusterPublisher {
  const { proxy, engine, cluster, relay } = deps;
  const retained = createRetainedKeeper({
    engine,
    retained: cluster.retained,
    limits: () => deps.options.retained,
    refused: () => deps.options.onDropped("retained_full", 1),
  });
  /** What this node says of itself; the other nodes say it of themselves. */
  const own = new Map<string, ClusterMessage>();
  /** By publisher and topic, the last of those on their way. As many as connections may have in work. */
  const underWay = new Map<string, Promise<PublishOutcome>>();

  function clusterMessage(
    message: Message,
    o: PublishOptions,
    more: { to?: string; receipt?: string },
  ): ClusterMessage {
    const { topic, payload, qos, retain, properties } = message;
    const expiry = properties?.messageExpiry;
    return {
      topic,
      payload: unpinned(payload),
      qos,
      retain,
      properties,
      expiresAt: expiry === undefined ? 0 : deps.options.now() + expiry * 1000,
      from: o.from,
      to: more.to,
      receipt: more.receipt,
    };
  }

  /** A verdict: no retry makes it fit. @throws SluiceError TOPIC_INVALID where somebody is there to read it */
  function fits({ topic, payload }: Message, { from }: PublishOptions): boolean {
    const { maxTopicBytes, maxMessageBytes } = engine.caps;
    const topicBytes = Buffer.byteLength(topic);
    if (topicBytes <= maxTopicBytes && topicBytes + payload.length <= maxMessageBytes) return true;
    if (from === undefined) {
      throw new SluiceError(
        "TOPIC_INVALID",
        `the cluster takes topics of ${maxTopicBytes} bytes and messages of ${maxMessageBytes}; this one is longer`,
      );
    }
    deps.onDropped("cluster_limit");
    return false;
  }

  function publish(message: Message, o: PublishOptions): Awaitable<PublishOutcome> {
    deps.check();
    if (message.topic.startsWith(sysPrefix)) return publishOwn(message, o);
    if (!fits(message, o)) return nobody;
    if (o.receipts) return publishWaiting(message, o, o.receipts);
    const made = clusterMessage(message, o, {});
    const sent = inOrder(made, () => {
      const matched = deps.matching(made.topic, o.from).length + deps.sharedBy(made.topic).length;
      return send(made, o, matched, othersToo);
    });
    return o.countAll ? counted(message.topic, sent) : sent;
  }

  /**
   * What a client publishes to one topic goes out when what it published to that topic before is safe, so that its order
   * holds whatever fails. What it publishes to other topics need not wait.
   */
  function inOrder({ from, topic }: ClusterMessage, go: () => Awaitable<PublishOutcome>): Awaitable<PublishOutcome> {
    if (from === undefined) return go();
    return inTurn(underWay, `${from}\0${topic}`, go);
  }

  async function counted(topic: string, sending: Awaitable<PublishOutcome>): Promise<PublishOutcome> {
    const [sent, elsewhere] = await Promise.all([sending, deps.census.count(topic)]);
    const matched = sent.matched + elsewhere.matched;
    if (!elsewhere.isWhole) deps.meters.uncounted();
    return { ...sent, matched, connected: matched, uncounted: elsewhere.isWhole ? absentOnly : othersToo };
  }

  /** Of this node alone: what `$SYS` says is each node's own. */
  function publishOwn(message: Message, o: PublishOptions): PublishOutcome {
    const made = clusterMessage(message, o, {});
    const matched = deps.matching(message.topic, o.from).length;
    if (message.retain && message.payload.length === 0) own.delete(message.topic);
    else if (message.retain) own.set(message.topic, made);
    deps.handOut({ ...made, qos: 0 }, undefined);
    return { matched, connected: matched, durable: true };
  }

  /** Whom it goes to is asked before, so that nobody is told of before he is waited for. */
  async function publishWaiting(
    message: Message,
    o: PublishOptions,
    receipts: NonNullable<PublishOptions["receipts"]>,
  ): Promise<PublishOutcome> {
    const here = deps.matching(message.topic, o.from).map(({ session }) => session.session.clientId);
    const { answers, isWhole } = await deps.askAll("match", { topic: message.topic, publisher: o.from });
    const elsewhere = answers.map((answer) => JSON.parse(answer.toString()) as Matching);
    const everybody = new Set([...here, ...elsewhere.flatMap(({ clientIds }) => clientIds)]);
    /** Which member it is to be is not known yet: until one has it, the shared subscription is waited for by its name. */
    const shared = new Set([...deps.sharedBy(message.topic), ...elsewhere.flatMap((each) => each.shared)]);
    const matched = everybody.size + shared.size;
    const finished = new Set<string>();
    const told = (clientId: string, outcome: Receipt, sharedBy?: string): void => {
      if (sharedBy !== undefined) {
        // A member that is gone without it passes it on.
        if (outcome !== "delivered" && outcome !== "refused") return;
        if (!shared.delete(sharedBy)) return;
        receipts(clientId, "waiting");
        receipts(clientId, outcome);
        receipts(sharedBy, "passedOn");
        return;
      }
      // Each once: a message that comes again has been told of.
      if (finished.has(clientId)) return;
      const isKnown = everybody.has(clientId);
      if (outcome === "waiting") {
        if (isKnown) return;
        everybody.add(clientId);
      } else if (isKnown) {
        finished.add(clientId);
      } else {
        return;
      }
      receipts(clientId, outcome);
    };
    const { token, end } = relay.wait(told);
    setTimeout(end, receiptsMs).unref();
    for (const each of [...everybody, ...shared]) receipts(each, "waiting");
    const uncounted = isWhole ? absentOnly : othersToo;
    return await send(clusterMessage(message, o, { receipt: token }), o, matched, uncounted);
  }

  function send(
    message: ClusterMessage,
    o: PublishOptions,
    matched: number,
    uncounted: PublishOutcome["uncounted"],
  ): Awaitable<PublishOutcome> {
    const outcome: PublishOutcome = { matched, connected: matched, durable: true, uncounted };
    const isRetained = message.retain && message.to === undefined && deps.options.retained.maxMessages > 0;
    if (message.retain && message.to === undefined && !isRetained) deps.options.onDropped("retained_full", 1);
    if (message.qos > 0) return append(message, o, outcome, isRetained);
    deps.meters.forwarded();
    if (!cluster.send(message)) deps.onDropped("cluster_away");
    deps.handOut(message, undefined);
    return isRetained ? retainLive(message, outcome) : outcome;
  }

  /** At QoS 0 nobody is told of a failure. */
  async function retainLive(message: ClusterMessage, outcome: PublishOutcome): Promise<PublishOutcome> {
    try {
      await retained.keep(message, undefined);
    } catch {
      deps.onDropped("cluster_away");
    }
    return outcome;
  }

  /** @throws SluiceError STORE_FAILED: it may come all the same, and whoever sent it sends it again */
  async function append(
    message: ClusterMessage,
    { inbound }: PublishOptions,
    outcome: PublishOutcome,
    isRetained: boolean,
  ): Promise<PublishOutcome> {
    // Its connection may have ended meanwhile: the client sends it again on the next, wherever that is.
    const origin = inbound && deps.madeFor(inbound.handle);
    const packetId = inbound?.packetId ?? 0;
    const uses = origin?.inbound.get(packetId)?.uses ?? 0;
    const dedupeId = origin?.claim && `${proxy} ${origin.claim.ownership.session} ${packetId} ${uses}`;
    try {
      const position = await cluster.log.append(message, { dedupeId });
      deps.meters.forwarded();
      if (isRetained) await retained.keep(message, position);
    } catch (error) {
      throw new SluiceError(
        "STORE_FAILED",
        `the cluster did not take the message, which is not acknowledged: ${messageOf(error)}`,
        { cause: error },
      );
    }
    const session = inbound && deps.sessionOf(inbound.handle);
    if (session) await open(session, packetId);
    return outcome;
  }

  async function publishTo(clientId: string, message: Message, o: PublishOptions): Promise<PublishOutcome> {
    deps.check();
    if (!fits(message, o)) return nobody;
    const here = deps.session(clientId);
    if (here && !here.claim) {
      o.receipts?.(clientId, "waiting");
      const receipt = o.receipts && relay.wait(o.receipts).token;
      deps.handOut({ ...clusterMessage(message, o, { to: clientId }), receipt }, undefined);
      return { matched: 1, connected: 1, durable: true };
    }
    const owned = await deps.find(clientId);
    if (owned) {
      const isHere = owned.absentSince === 0;
      const connected = isHere ? 1 : 0;
      o.receipts?.(clientId, "waiting");
      if (!isHere) o.receipts?.(clientId, message.qos > 0 ? "queued" : "refused");
      if (!isHere && message.qos === 0) {
        deps.onDropped("qos0_offline");
        return { matched: 1, connected, durable: true };
      }
      const receipt = isHere && o.receipts ? relay.wait(o.receipts).token : undefined;
      const made = clusterMessage(message, o, receipt === undefined ? { to: clientId } : { to: clientId, receipt });
      await send(made, o, 1, undefined);
      return { matched: 1, connected, durable: true };
    }
    return await askForClean(clientId, message, o);
  }

  /** Clean sessions are known to their own node alone. */
  async function askForClean(clientId: string, message: Message, o: PublishOptions): Promise<PublishOutcome> {
    const wait = o.receipts && relay.wait(o.receipts);
    const made = clusterMessage(message, o, { to: clientId });
    const told = tellMessage({ ...made, receipt: wait?.token });
    o.receipts?.(clientId, "waiting");
    const { answers, isWhole } = await deps.askAll("direct", { message: told });
    if (answers.some((answer) => answer.length > 0)) return { matched: 1, connected: 1, durable: true };
    o.receipts?.(clientId, "passedOn");
    wait?.end();
    return isWhole ? nobody : nobodyKnown;
  }

  /** The id counts from when it is durable; with it the message is not taken again. */
  async function open(session: ClusterSession, packetId: number): Promise<void> {
    const { inbound, claim } = session;
    const uses = inbound.get(packetId)?.uses ?? 0;
    claim?.writer.put(`i.${packetId}`, { isOpen: true, uses });
    await claim?.writer.commit();
    inbound.set(packetId, { isOpen: true, uses });
  }

  return {
    publish,
    publishTo,
    direct(body) {
      const { message } = JSON.parse(body.toString()) as { message: ToldMessage };
      const session = deps.session(message.to ?? "");
      if (!session?.handle || session.claim) return Buffer.alloc(0);
      deps.handOut(hearMessage(message), undefined);
      return Buffer.from("1");
    },
    get ownRetained() {
      return own.size;
    },
    async *retained(topicFilter) {
      const now = deps.options.now();
      yield [...own.values()].filter(({ topic }) => matches(topicFilter, topic));
      for await (const found of cluster.retained.match(topicFilter)) {
        yield found.filter(({ expiresAt }) => expiresAt === 0 || expiresAt > now);
      }
    },
    inboundOf: (session) => ({
      has: (packetId) => session.inbound.get(packetId)?.isOpen === true,
      add(packetId) {
        if (deps.session(session.session.clientId) !== session) return;
        if (session.claim) return open(session, packetId);
        session.inbound.set(packetId, { isOpen: true, uses: 0 });
      },
      delete(packetId) {
        const { inbound, claim } = session;
        const known = inbound.get(packetId);
        if (!known) return;
        if (!claim) {
          inbound.delete(packetId);
          return;
        }
        const next = { isOpen: false, uses: known.uses + 1 };
        // A message under this id that is sent from now on must not be taken for the one before.
        claim.writer.put(`i.${packetId}`, next, engine.caps.dedupeMs * 2);
        inbound.set(packetId, next);
        if (inbound.size > maxInbound) forgetOldest(inbound);
        return claim.writer.commit();
      },
    }),
  };
}

const nobody: PublishOutcome = Object.freeze({ matched: 0, connected: 0, durable: true });

/** Whom nobody counts: a session whose client is away is what the log and its own records say, and on no node. */
const absentOnly: PublishOutcome["uncounted"] = Object.freeze(["absent"] as const);
const othersToo: PublishOutcome["uncounted"] = Object.freeze(["absent", "otherNodes"] as const);
const nobodyKnown: PublishOutcome = Object.freeze({ ...nobody, uncounted: Object.freeze(["otherNodes"] as const) });

function forgetOldest(inbound: Map<number, { readonly isOpen: boolean }>): void {
  for (const [packetId, { isOpen }] of inbound) {
    if (isOpen) continue;
    inbound.delete(packetId);
    return;
  }
}

/** A payload is a view on all the bytes that were read with it; what waits must not keep those alive. */
function unpinned(payload: Buffer): Buffer {
  return payload.buffer.byteLength > 2 * payload.length + 64 ? Buffer.from(payload) : payload;
}
