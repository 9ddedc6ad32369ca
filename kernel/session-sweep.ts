/**
 * Ends the sessions whose time is over and whom nobody else ends: those of nodes that are gone, and those that were left
 * behind by a node that has gone since. One node looks through the records of all sessions, slowly; where two do it at
 * once the revision of each record sees to it that one of them ends it.
 */
import type { ClusterEngine, ClusterProxy, OwnerRecord } from "./cluster-engine.ts";
import { type Departures, isNode } from "./departures.ts";
import { messageOf } from "./errors.ts";
import type { Logger } from "./plugin.ts";
import { neverExpires } from "./session.ts";
import { decodeOwnership, type Ownership } from "./session-records.ts";

export interface SessionSweep {
  /** What ends within so many milliseconds is not left to the next pass. */
  readonly reachMs: number;
  /** A node is found gone: the next pass begins now. */
  peerGone(): void;
  close(): Promise<void>;
}

export interface SessionSweepDeps {
  readonly engine: ClusterEngine;
  readonly cluster: ClusterProxy;
  readonly departures: Departures;
  readonly logger: Logger;
  now(): number;
  /** The least time from the beginning of a pass to that of the next. */
  readonly everyMs: number;
  /** It is the record of a shared subscription, which has no end. */
  isOther(clientId: string): boolean;
  /** Its time is over. Does nothing where it has been claimed since. */
  expire(clientId: string, revision: number): Promise<unknown>;
  /** Its time is over at `at`, before the next pass looks at it. */
  expireAt(at: number, clientId: string, revision: number): void;
}

/** Records looked at in a second, at most: so that a million sessions are a pass of some eight minutes. */
const maxPerSec = 2000;

/** A timer is not set for less. */
const leastRestMs = 20;

/** Of a node's time, at most one part in so many goes to passes, however many sessions there are. */
const restShare = 3;

/** Sessions ended at a time: each takes some writes. */
const atOnce = 16;

export function createSessionSweep(deps: SessionSweepDeps): SessionSweep {
  const { engine, cluster, departures, logger } = deps;
  const now = (): number => deps.now();
  let timer = setTimeout(begin, deps.everyMs).unref();
  let running: Promise<void> | undefined;
  let reachMs = deps.everyMs;
  let isWanted = false;
  let closed = false;
  let wake: (() => void) | undefined;

  /** One of those that are up does it: the first by name. */
  function isMine(): boolean {
    return engine.health().durable && engine.peers().every(({ id, isUp }) => !isUp || id > engine.node.id);
  }

  function begin(): void {
    clearTimeout(timer);
    if (running || closed) return;
    isWanted = false;
    const startedAt = performance.now();
    running = pass()
      .catch((error: unknown) => {
        logger.warn({ error: messageOf(error) }, "Expired sessions could not all be removed; it is tried again");
      })
      .finally(() => {
        running = undefined;
        const took = performance.now() - startedAt;
        const restMs = Math.max(deps.everyMs - took, took * restShare);
        reachMs = took + restMs;
        if (!closed) timer = setTimeout(begin, isWanted ? 0 : restMs).unref();
      });
  }

  async function pass(): Promise<void> {
    if (!isMine()) return;
    /** Nodes that are gone, with whether there is a session that they had. */
    const gone = new Map<string, boolean>();
    let owed = 0;
    for await (const piece of cluster.records.list([])) {
      const over: Promise<unknown>[] = [];
      for (const { owner } of piece) {
        const ownership = decodeOwnership(owner.value);
        const { clientId, incarnation } = ownership;
        if (isNode(clientId)) {
          departures.read(owner);
          if (departures.isGone(incarnation) && !gone.has(incarnation)) gone.set(incarnation, false);
          continue;
        }
        if (deps.isOther(clientId)) continue;
        if (ownership.absentSince === 0 && departures.isGone(incarnation)) {
          if (!gone.get(incarnation)) await departures.note({ id: ownership.node, incarnation });
          gone.set(incarnation, true);
        }
        const ending = end(owner, ownership);
        if (ending) over.push(ending);
        if (over.length >= atOnce) await Promise.all(over.splice(0));
      }
      await Promise.all(over);
      owed += (piece.length / maxPerSec) * 1000;
      if (owed >= leastRestMs) {
        await rest(owed);
        owed = 0;
      }
      if (closed || !isMine()) return;
    }
    for (const [incarnation, isNeeded] of gone) if (!isNeeded) await departures.forget(incarnation);
  }

  /** Undefined: not now. */
  function end({ revision }: OwnerRecord, ownership: Ownership): Promise<unknown> | undefined {
    const { clientId, expirySec } = ownership;
    const since = departures.absentSince(ownership);
    if (since === 0 || expirySec === neverExpires) return undefined;
    const at = since + expirySec * 1000;
    if (at <= now()) return deps.expire(clientId, revision);
    if (at <= now() + reachMs) deps.expireAt(at, clientId, revision);
    return undefined;
  }

  async function rest(ms: number): Promise<void> {
    if (closed) return;
    await new Promise<void>((resolve) => {
      wake = resolve;
      setTimeout(resolve, ms).unref();
    });
  }

  return {
    get reachMs() {
      return reachMs;
    },
    peerGone() {
      if (!isMine()) return;
      isWanted = true;
      if (!running) begin();
    },
    async close() {
      closed = true;
      clearTimeout(timer);
      wake?.();
      await running;
    },
  };
}
