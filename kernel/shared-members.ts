/**
 * The members of shared subscriptions on this node, and the shared subscriptions that it owns. Each is owned by one node of
 * the cluster, as a session is, so that a message goes to one member wherever they are; another node takes it over when the
 * owner is gone.
 */
import { randomUUID } from "node:crypto";
import type { ClusterEngine, ClusterMessage, ClusterProxy, LogPosition } from "./cluster-engine.ts";
import type { Claim, ClusterSession, SharedMemberships } from "./cluster-session.ts";
import { hearMessage } from "./cluster-words.ts";
import type { Deliveries } from "./deliveries.ts";
import { messageOf, SluiceError } from "./errors.ts";
import { type Grant, grantOf } from "./grant.ts";
import type { HybridClock } from "./hybrid-clock.ts";
import type { LogTail } from "./log-tail.ts";
import { placeOf } from "./log-reader.ts";
import { createOwnershipCheck, type OwnershipCheck } from "./ownership-check.ts";
import type { Logger } from "./plugin.ts";
import type { KeptMessage } from "./session.ts";
import { neverExpires } from "./session.ts";
import {
  createRecordWriter,
  decodeCursor,
  decodeOwnership,
  encodeOwnership,
  type Ownership,
} from "./session-records.ts";
import { createSharedGroup, type MemberState, type SharedGroup, type SharedWord } from "./shared-group.ts";
import { createSharedSubscription, type SharedSubscription } from "./shared-subscription.ts";
import type { PublishOptions } from "./store.ts";
import { createTopicIndex, parseShared } from "./topics.ts";

export interface SharedMembers extends SharedMemberships {
  /** Owned here, with connected members, that a message matches: their topic filters. */
  matching(topic: string): string[];
  handOut(message: ClusterMessage, position: LogPosition | undefined, before: number | undefined): void;
  /** The client's session has ended, whichever node it was on: it is a member of these no more. @throws SluiceError STORE_FAILED */
  forget(clientId: string, topicFilters: readonly string[]): Promise<void>;
  answer(body: Buffer, from: string): Buffer | undefined;
  peerChanged(): void;
  checkpoint(): void;
  /** Of those that are owned here. */
  readonly check: OwnershipCheck;
  close(): Promise<void>;
}

export interface SharedMembersDeps {
  readonly proxy: string;
  readonly engine: ClusterEngine;
  readonly cluster: ClusterProxy;
  readonly tail: LogTail;
  readonly deliveries: Deliveries;
  readonly logger: Logger;
  readonly clock: HybridClock;
  now(): number;
  kept(message: ClusterMessage, position: LogPosition | undefined): KeptMessage;
  receiptsOf(message: ClusterMessage, sharedBy: string): PublishOptions["receipts"];
  gap(): void;
  conflict(): void;
}

/** One shared subscription as this node's members see it. */
interface Local {
  readonly topicFilter: string;
  readonly members: SharedSubscription<ClusterSession, Grant>;
  /** Given to members here and not settled. */
  readonly pending: Set<number>;
  /** Undefined: to be found. */
  owner: { readonly node: string; readonly incarnation: string } | undefined;
  finding: Promise<void> | undefined;
}

const askMs = 2000;
const retryMs = 300;

/** How often the owner of a shared subscription is looked for. */
const maxTries = 20;

/** How often it is told that a member has ended. */
const maxForgetTries = 5;

/** No client id has U+0000 in it. */
const prefix = "\u0000";

/** Is this the owner record of a shared subscription? */
export function isGroup(clientId: string): boolean {
  return clientId.startsWith(prefix);
}

export function createSharedMembers(deps: SharedMembersDeps): SharedMembers {
  const { proxy, engine, cluster, deliveries } = deps;
  const { records, log } = cluster;
  const { node } = engine;
  const locals = new Map<string, Local>();
  const groups = new Map<string, SharedGroup>();
  const index = createTopicIndex<SharedGroup, true>({ prefer: () => true, cacheSize: 100 });
  let closed = false;

  function localOf(topicFilter: string): Local {
    let known = locals.get(topicFilter);
    if (!known) {
      const members = createSharedSubscription<ClusterSession, Grant>(topicFilter, ({ session, handle }) => ({
        connected: handle !== undefined,
        full: session.isCrowded(),
        load: session.queued + session.inflight.size,
      }));
      known = { topicFilter, members, pending: new Set(), owner: undefined, finding: undefined };
      locals.set(topicFilter, known);
    }
    return known;
  }

  function giveHere(topicFilter: string, message: ClusterMessage, position: LogPosition | undefined): boolean {
    const local = locals.get(topicFilter);
    const member = local?.members.pick(({ session, handle }) => handle !== undefined && !session.isCrowded());
    const grant = member && local?.members.members.get(member);
    if (!local || !member || !grant) return false;
    if (position) local.pending.add(placeOf(position));
    const retain = message.retain && grant.retainAsPublished;
    const target = { key: member, value: grant, sharedBy: topicFilter };
    const { qos } = deliveries.give(
      target,
      deps.kept(message, position),
      retain,
      deps.receiptsOf(message, topicFilter),
    );
    // Nobody acknowledges it.
    if (qos === 0 && position) settle(topicFilter, position, "done");
    return true;
  }

  /** Tells the owner, as long as it is the one who gave it. */
  function settle(topicFilter: string, position: LogPosition, op: "done" | "returned"): void {
    const local = locals.get(topicFilter);
    if (!local?.pending.delete(placeOf(position))) return;
    const group = groups.get(topicFilter);
    if (group) {
      if (op === "done") group.done(position);
      else group.returned(position);
      return;
    }
    if (local.owner) void tellOwner(local.owner, { proxy, topicFilter, op, position });
  }

  async function tellOwner(owner: { node: string; incarnation: string }, word: SharedWord): Promise<boolean> {
    const body = Buffer.from(JSON.stringify(word));
    for (let tries = 0; tries < maxTries && !closed; tries++) {
      const isUp = engine.peers().some(({ incarnation, isUp: up }) => incarnation === owner.incarnation && up);
      if (!isUp) return false;
      try {
        return (await engine.control.request(owner.node, "shared", body, askMs)).length > 0;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, retryMs));
      }
    }
    return false;
  }

  async function announce(local: Local, member: ClusterSession, state: MemberState): Promise<boolean> {
    const { topicFilter, owner } = local;
    const { clientId } = member.session;
    const lasts = member.claim !== undefined;
    const group = groups.get(topicFilter);
    if (group) {
      group.member(clientId, node.id, state, lasts);
      if (state === "gone" && group.isEmpty) await end(group);
      return true;
    }
    if (!owner) return false;
    return await tellOwner(owner, { proxy, topicFilter, op: "member", clientId, state, lasts });
  }

  /** Nobody is left, connected or absent: what is published from now on is for nobody. */
  async function end(group: SharedGroup): Promise<void> {
    drop(group);
    try {
      await records.remove(prefix + group.topicFilter, group.claim.revision);
    } catch (error) {
      deps.logger.warn(
        { error: messageOf(error) },
        "A shared subscription could not be removed; it stays without members",
      );
    }
  }

  function drop(group: SharedGroup): void {
    if (groups.get(group.topicFilter) !== group) return;
    groups.delete(group.topicFilter);
    const selector = selectorOf(group.topicFilter);
    index.delete(selector.topicFilter, group);
    cluster.interest.delete(selector);
    group.close();
    group.claim.writer.close();
  }

  /** Finds or becomes the owner, and tells it of all members here. */
  function find(local: Local): Promise<void> {
    return (local.finding ??= findOnce(local).finally(() => (local.finding = undefined)));
  }

  async function findOnce(local: Local): Promise<void> {
    const key = prefix + local.topicFilter;
    for (let tries = 0; tries < maxTries && !closed; tries++) {
      if (!groups.has(local.topicFilter)) {
        const found = await records.owner(key);
        const prior = found && decodeOwnership(found.value);
        const isMine = prior?.incarnation === node.incarnation;
        const isUp = engine.peers().some(({ incarnation, isUp: up }) => incarnation === prior?.incarnation && up);
        if (prior && isUp && !isMine && prior.absentSince === 0) {
          local.owner = { node: prior.node, incarnation: prior.incarnation };
        } else {
          local.owner = undefined;
          await claim(local, found?.revision ?? 0, prior);
        }
      }
      const told = await Promise.all(
        [...local.members.members.keys()].map((each) => announce(local, each, stateOf(each))),
      );
      if (told.every(Boolean)) return;
      local.owner = undefined;
      await new Promise((resolve) => setTimeout(resolve, retryMs));
    }
    if (!closed) throw new SluiceError("STORE_FAILED", `nobody in the cluster owns ${local.topicFilter} now`);
  }

  function stateOf({ handle }: ClusterSession): MemberState {
    return handle ? "here" : "away";
  }

  async function claim({ topicFilter }: Local, expected: number, prior: Ownership | undefined): Promise<void> {
    const clientId = prefix + topicFilter;
    const selector = selectorOf(topicFilter);
    const begin = prior ? undefined : await log.end([selector]);
    const ownership: Ownership = {
      clientId,
      node: node.id,
      incarnation: node.incarnation,
      session: prior?.session ?? randomUUID(),
      expirySec: neverExpires,
      connectedAt: deps.now(),
      connection: deps.clock.next(prior?.connection),
      absentSince: 0,
      username: undefined,
      address: "",
      // Where it began: until there is a cursor.
      direct: prior?.direct ?? [...(begin ?? [])],
    };
    const outcome = await records.claim(clientId, encodeOwnership(ownership), expected);
    if ("taken" in outcome) {
      deps.conflict();
      return;
    }
    const { revision } = outcome;
    const stored = await records.load(clientId, revision);
    if (stored === "fenced") {
      deps.conflict();
      return;
    }
    const held: Claim = {
      ownership,
      revision,
      writer: createRecordWriter({
        records,
        clientId,
        revision,
        fenced() {
          deps.conflict();
          lost(topicFilter, held);
        },
        failed: (error) =>
          deps.logger.warn({ topicFilter, error: messageOf(error) }, "A shared subscription could not be written"),
      }),
    };
    const written = stored.get("cur");
    const members = stored.get("mem");
    const group = createSharedGroup(
      {
        topicFilter,
        selector,
        claim: held,
        cursor: written ? decodeCursor(written) : { upTo: new Map(ownership.direct), settled: [] },
        members: members ? (JSON.parse(members.toString()) as string[]) : [],
      },
      {
        log,
        tail: deps.tail,
        logger: deps.logger,
        gap: () => deps.gap(),
        proxy,
        node: node.id,
        control: engine.control,
        isLive: () => engine.health().live,
        giveHere,
      },
    );
    groups.set(topicFilter, group);
    index.set(selector.topicFilter, group, true);
    await cluster.interest.add(selector).catch(() => undefined);
  }

  function lost(topicFilter: string, held: Claim): void {
    const group = groups.get(topicFilter);
    if (group?.claim !== held) return;
    drop(group);
    findLater(locals.get(topicFilter));
  }

  const check = createOwnershipCheck<SharedGroup>({
    held: () => groups.values(),
    isReached: () => engine.health().reached,
    owner: ({ topicFilter }) => records.owner(prefix + topicFilter, true),
    revision: ({ claim: held }) => held.revision,
    lost({ topicFilter, claim: held }) {
      deps.conflict();
      lost(topicFilter, held);
    },
    kept: (group) => group.resume(),
  });

  function findLater(local: Local | undefined): void {
    if (!local || closed || local.members.members.size === 0) return;
    find(local).catch((error: unknown) => {
      deps.logger.warn(
        { error: messageOf(error) },
        "The owner of a shared subscription could not be found; it is tried again",
      );
      setTimeout(() => findLater(local), retryMs * 10).unref();
    });
  }

  return {
    check,
    async join(member, topicFilter, options) {
      const local = localOf(topicFilter);
      local.members.set(member, grantOf(options));
      const isKnown = groups.has(topicFilter) || local.owner !== undefined;
      if (isKnown && (await announce(local, member, stateOf(member)))) {
        await groups.get(topicFilter)?.claim.writer.commit();
        return;
      }
      // One that has begun without this member does not tell of it.
      await local.finding;
      try {
        await find(local);
      } catch (error) {
        // Nobody is told of the failure: it is for this node to go on.
        if (!member.claim) findLater(local);
        throw error;
      }
      await groups.get(topicFilter)?.claim.writer.commit();
    },
    leave(member, topicFilter, isGone) {
      const local = locals.get(topicFilter);
      if (!local?.members.members.has(member)) return;
      local.members.delete(member);
      void announce(local, member, isGone ? "gone" : "away");
      if (local.members.members.size === 0 && local.pending.size === 0) locals.delete(topicFilter);
    },
    here(member) {
      for (const topicFilter of member.session.subscriptions.keys()) {
        const local = locals.get(topicFilter);
        if (local?.members.members.has(member)) void announce(local, member, "here");
      }
    },
    settled(_, { sharedBy, message }) {
      if (sharedBy !== undefined && message.position) settle(sharedBy, message.position, "done");
    },
    returned(_, { sharedBy, message }) {
      if (sharedBy !== undefined && message.position) settle(sharedBy, message.position, "returned");
    },
    async forget(clientId, topicFilters) {
      for (const topicFilter of topicFilters) await forgetOne(clientId, topicFilter);
    },
    matching: (topic) =>
      index.match(topic).flatMap(({ key: { hasConnected, topicFilter } }) => (hasConnected ? [topicFilter] : [])),
    handOut(message, position, before) {
      if (message.to !== undefined) return;
      for (const { key } of index.match(message.topic)) {
        if (position && message.qos > 0) key.offer(message, position, before);
        else key.offer(message, undefined, undefined);
      }
    },
    answer(body, from) {
      const word = JSON.parse(body.toString()) as SharedWord;
      const { topicFilter } = word;
      if (word.op === "give") {
        const isTaken = giveHere(topicFilter, hearMessage(word.message), word.position);
        return isTaken ? yes : undefined;
      }
      const group = groups.get(topicFilter);
      // The one who asks looks for the owner anew.
      if (!group) return undefined;
      if (word.op === "ended") {
        if (!group.ended(word.clientId)) return undefined;
        if (group.isEmpty) void end(group);
      } else if (word.op === "member") {
        group.member(word.clientId, from, word.state, word.lasts);
        if (word.state === "gone" && group.isEmpty) void end(group);
      } else if (word.op === "done") {
        group.done(word.position);
      } else {
        group.returned(word.position);
      }
      return yes;
    },
    peerChanged() {
      const up = new Set(engine.peers().flatMap(({ id, isUp }) => (isUp ? [id] : [])));
      const incarnations = new Set(engine.peers().flatMap(({ incarnation, isUp }) => (isUp ? [incarnation] : [])));
      for (const group of groups.values()) for (const { id } of engine.peers()) if (!up.has(id)) group.nodeDown(id);
      for (const local of locals.values()) {
        if (groups.has(local.topicFilter) || !local.owner || incarnations.has(local.owner.incarnation)) continue;
        local.owner = undefined;
        findLater(local);
      }
    },
    checkpoint() {
      for (const group of groups.values()) {
        group.checkpoint();
        group.resume();
      }
    },
    async close() {
      closed = true;
      await Promise.allSettled([...groups.values()].map((group) => release(group)));
    },
  };

  async function forgetOne(clientId: string, topicFilter: string): Promise<void> {
    const local = localOf(topicFilter);
    try {
      for (let tries = 0; tries < maxForgetTries && !closed; tries++) {
        const group = groups.get(topicFilter);
        if (group?.ended(clientId)) {
          if (group.isEmpty) await end(group);
          else await group.claim.writer.commit();
          return;
        }
        if (!group) {
          if (!local.owner && !(await records.owner(prefix + topicFilter))) return;
          if (!local.owner) await find(local);
          const { owner } = local;
          if (owner && (await tellOwner(owner, { proxy, topicFilter, op: "ended", clientId }))) return;
          local.owner = undefined;
          if (groups.has(topicFilter)) continue;
        }
        await new Promise((resolve) => setTimeout(resolve, retryMs));
      }
    } finally {
      if (local.members.members.size === 0 && local.pending.size === 0) locals.delete(topicFilter);
    }
    throw new SluiceError("STORE_FAILED", `the owner of ${topicFilter} did not hear that a member has ended`);
  }

  /** Another node may have it. */
  async function release(group: SharedGroup): Promise<void> {
    const { claim: held, topicFilter } = group;
    group.checkpoint();
    const written = held.writer.commit();
    groups.delete(topicFilter);
    group.close();
    if (!engine.health().durable) return;
    await written;
    const value = encodeOwnership({ ...held.ownership, absentSince: deps.now() });
    await records.claim(prefix + topicFilter, value, held.revision);
  }
}

const yes = Buffer.from("1");

function selectorOf(topicFilter: string): { readonly topicFilter: string } {
  return { topicFilter: parseShared(topicFilter)?.topicFilter ?? topicFilter };
}
