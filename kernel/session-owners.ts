/**
 * Which node owns a session, moved by compare-and-set. Whoever has won the owner record asks the last owner to let go and
 * to tell what it had not written down; one that does not answer can't write any more, whatever it believes.
 */
import { randomUUID } from "node:crypto";
import type { ClusterEngine, ClusterProxy, LogPositions, OwnerRecord } from "./cluster-engine.ts";
import { messageOf, SluiceError } from "./errors.ts";
import type { Departures } from "./departures.ts";
import type { HybridClock } from "./hybrid-clock.ts";
import type { Logger } from "./plugin.ts";
import {
  createRecordWriter,
  decodeCursor,
  decodeOwnership,
  decodeSession,
  decodeSubscriptions,
  encodeCursor,
  encodeOwnership,
  hasExpired,
  type KeptCursor,
  type KeptSession,
  type Ownership,
} from "./session-records.ts";
import type { Claim } from "./cluster-session.ts";
import type { Acquisition, SessionExpiry } from "./store.ts";
import { parseShared } from "./topics.ts";

export interface SessionOwners {
  /**
   * The session is this node's: fenced against all others once it answers.
   * @throws SluiceError STORE_FAILED
   */
  take(client: Acquisition, fenced: (claim: Claim) => void): Promise<Taken>;
  /**
   * Its client has gone: the cursor is written, and anybody may take the session. Goes on until it has succeeded, the
   * session is another's, or the store stops. Answers the revision that its end is to be guarded by; undefined = another's.
   */
  release(claim: Claim, cursor: KeptCursor, expirySec: SessionExpiry): Promise<number | undefined>;
  /** Ends it, whoever has it. @param newest it is left alone where a later connection has it */
  remove(clientId: string, newest?: number): Promise<boolean>;
  /** Ends it if its time is over, and it has not been claimed since. Answers whether it was ended here. */
  expire(clientId: string, revision: number): Promise<boolean>;
  /** Of it that which anybody may know; undefined = there is none. */
  find(clientId: string): Promise<Ownership | undefined>;
  close(): void;
}

export interface Taken {
  readonly claim: Claim;
  /** Undefined: it begins anew. */
  readonly kept: KeptSession | undefined;
  /** The last owner is gone without a word: it may have sent whatever is in the log up to here. */
  readonly sentUpTo: LogPositions | undefined;
}

export interface SessionOwnersDeps {
  readonly proxy: string;
  readonly engine: ClusterEngine;
  readonly cluster: ClusterProxy;
  readonly clock: HybridClock;
  readonly departures: Departures;
  readonly logger: Logger;
  now(): number;
  /** Another node was asked for the session. */
  takenOver(): void;
  /** Somebody else was quicker, or has taken it since. */
  conflict(): void;
  /** A session that had these subscriptions has ended: it is no member any more. */
  leaveShared(clientId: string, topicFilters: readonly string[]): Promise<void>;
}

/** What a node asks of another: to let go of a client. */
export interface Kick {
  readonly proxy: string;
  readonly clientId: string;
  /** Of the owner record that the one who asks has; 0 = of a session without one. */
  readonly revision: number;
  readonly connection: number;
  readonly why: "takenOver" | "removed";
  /** The session goes on where the one who asks is. */
  readonly resumes: boolean;
}

/** How often a session is claimed that others claim at the same time. */
const maxTries = 20;

export function createSessionOwners(deps: SessionOwnersDeps): SessionOwners {
  const { proxy, engine, cluster, clock, departures } = deps;
  const { records, log } = cluster;
  const { node } = engine;
  let closed = false;

  async function isOver(ownership: Ownership): Promise<boolean> {
    return hasExpired({ ...ownership, absentSince: await departures.lookUp(ownership) }, deps.now());
  }

  /** What it says, as long as the session has not expired. */
  async function living(found: OwnerRecord | undefined): Promise<Ownership | undefined> {
    const ownership = found && decodeOwnership(found.value);
    return ownership && !(await isOver(ownership)) ? ownership : undefined;
  }

  /** What the last owner has not written down; undefined = it does not say, or all is written. */
  async function letGo(
    { node: id, incarnation, absentSince, clientId }: Ownership,
    kick: Omit<Kick, "proxy" | "clientId">,
  ): Promise<KeptCursor | undefined> {
    if (absentSince > 0 || incarnation === node.incarnation) return undefined;
    const peer = engine.peers().find((each) => each.id === id && each.incarnation === incarnation);
    if (!peer?.isUp) return undefined;
    deps.takenOver();
    try {
      const body = Buffer.from(JSON.stringify({ proxy, clientId, ...kick } satisfies Kick));
      const answer = await engine.control.request(id, "kick", body, engine.caps.kickMs);
      // One byte: it was there, and there is nothing to hand over.
      return answer.length > 1 ? decodeCursor(answer) : undefined;
    } catch (error) {
      deps.logger.info({ node: id, error: messageOf(error) }, "The last owner of a session did not answer");
      return undefined;
    }
  }

  async function take(client: Acquisition, fenced: (claim: Claim) => void): Promise<Taken> {
    const { clientId, cleanStart, expirySec, info } = client;
    let [found, direct] = await Promise.all([records.owner(clientId), log.end([{ clientId }])]);
    for (let tries = 0; tries < maxTries; tries++) {
      const before = found && decodeOwnership(found.value);
      const prior = await living(found);
      const resumes = prior !== undefined && !cleanStart && prior.expirySec > 0;
      const ownership: Ownership = {
        clientId,
        node: node.id,
        incarnation: node.incarnation,
        session: resumes ? prior.session : randomUUID(),
        expirySec,
        connectedAt: deps.now(),
        connection: clock.next(before?.connection),
        absentSince: 0,
        username: info.username,
        address: info.address,
        direct: resumes ? prior.direct : [...direct],
      };
      const outcome = await records.claim(clientId, encodeOwnership(ownership), found?.revision ?? 0);
      if ("taken" in outcome) {
        deps.conflict();
        found = outcome.by;
        continue;
      }
      const { revision } = outcome;
      const kick = { revision, connection: ownership.connection, why: "takenOver", resumes } as const;
      const cursor = before && (await letGo(before, kick));
      const stored = before ? await records.load(clientId, revision) : new Map<string, Buffer>();
      if (stored === "fenced") {
        deps.conflict();
        throw new SluiceError("STORE_FAILED", `another node has taken the session of ${clientId} meanwhile`);
      }
      const claim: Claim = {
        ownership,
        revision,
        writer: createRecordWriter({
          records,
          clientId,
          revision,
          fenced() {
            deps.conflict();
            fenced(claim);
          },
          failed: (error) =>
            deps.logger.warn(
              { clientId, error: messageOf(error) },
              "A session could not be written; it is tried again",
            ),
        }),
      };
      if (resumes) {
        const isCutOff = prior.absentSince === 0 && !cursor;
        const sentUpTo = isCutOff ? await mayHaveSent(prior.incarnation) : undefined;
        return { claim, kept: decodeSession(stored, cursor), sentUpTo };
      }
      await leaveShared(clientId, stored).catch((error: unknown) => {
        deps.logger.warn({ clientId, error: messageOf(error) }, "A session that has ended is still a member");
      });
      for (const key of stored.keys()) claim.writer.put(key, undefined);
      await claim.writer.commit();
      return { claim, kept: undefined, sentUpTo: undefined };
    }
    throw new SluiceError("STORE_FAILED", `too many connections claim the session of ${clientId} at the same time`);
  }

  async function mayHaveSent(incarnation: string): Promise<LogPositions> {
    return (await departures.logEndOf(incarnation)) ?? (await log.end([{ topicFilter: "#" }]));
  }

  async function leaveShared(clientId: string, stored: ReadonlyMap<string, Buffer>): Promise<void> {
    const shared = [...decodeSubscriptions(stored.get("sub")).keys()].filter((each) => parseShared(each));
    if (shared.length > 0) await deps.leaveShared(clientId, shared);
  }

  async function release(
    { ownership, revision, writer }: Claim,
    cursor: KeptCursor,
    expirySec: SessionExpiry,
  ): Promise<number | undefined> {
    writer.put("cur", encodeCursor(cursor));
    const value = encodeOwnership({ ...ownership, expirySec, absentSince: deps.now() });
    for (let isWritten = false; ;) {
      try {
        if (!isWritten) await writer.commit();
        isWritten = true;
        const outcome = await records.claim(ownership.clientId, value, revision);
        writer.close();
        return "taken" in outcome ? undefined : outcome.revision;
      } catch {
        if (closed || !(await stillMine(ownership))) {
          writer.close();
          return undefined;
        }
        await new Promise((resolve) => setTimeout(resolve, retryMs));
      }
    }
  }

  /** After a failure: is there still something to do? Also where nobody can say. */
  async function stillMine({ clientId, incarnation, connection }: Ownership): Promise<boolean> {
    try {
      const found = await records.owner(clientId);
      const now = found && decodeOwnership(found.value);
      return now?.incarnation === incarnation && now.connection === connection && now.absentSince === 0;
    } catch {
      return true;
    }
  }

  async function remove(clientId: string, newest = Infinity): Promise<boolean> {
    let found = await records.owner(clientId);
    const wasThere = (await living(found)) !== undefined;
    for (let tries = 0; found && tries < maxTries; tries++) {
      const prior = decodeOwnership(found.value);
      if (prior.connection > newest) return false;
      const connection = clock.next(prior.connection);
      const outcome = await records.claim(clientId, tombstoneOf(prior, connection), found.revision);
      if ("taken" in outcome) {
        found = outcome.by;
        continue;
      }
      const why = newest === Infinity ? "removed" : "takenOver";
      await letGo(prior, { revision: outcome.revision, connection, why, resumes: false });
      if (await bury(clientId, outcome.revision)) return wasThere;
      found = await records.owner(clientId);
    }
    return wasThere;
  }

  /** With it in place the session has ended for everybody, and whoever had it is fenced. */
  function tombstoneOf(prior: Ownership, connection: number): Buffer {
    const { id, incarnation } = node;
    return encodeOwnership({ ...prior, node: id, incarnation, connection, expirySec: 0, absentSince: 1 });
  }

  /** Deletes what is behind a tombstone. Where it fails the tombstone is left, by which a later pass finds it. */
  async function bury(clientId: string, revision: number): Promise<boolean> {
    const stored = await records.load(clientId, revision);
    if (stored === "fenced") return false;
    await leaveShared(clientId, stored);
    return (await records.remove(clientId, revision)) === "written";
  }

  async function expire(clientId: string, revision: number): Promise<boolean> {
    const found = await records.owner(clientId);
    if (found?.revision !== revision) return false;
    const prior = decodeOwnership(found.value);
    if (!(await isOver(prior))) return false;
    const tombstone = tombstoneOf(prior, clock.next(prior.connection));
    const outcome = await records.claim(clientId, tombstone, revision);
    return "revision" in outcome && (await bury(clientId, outcome.revision));
  }

  return {
    take,
    release,
    remove,
    expire,
    find: async (clientId) => await living(await records.owner(clientId)),
    close() {
      closed = true;
    },
  };
}

const retryMs = 500;
