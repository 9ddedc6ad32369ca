/**
 * Which node owns a session, moved by compare-and-set. Whoever has won the owner record asks the last owner to let go and
 * to tell what it had not written down; one that does not answer can't write any more, whatever it believes.
 */
import { randomUUID } from "node:crypto";
import type { ClusterEngine, ClusterProxy, OwnerRecord } from "./cluster-engine.ts";
import { messageOf, SluiceError } from "./errors.ts";
import type { HybridClock } from "./hybrid-clock.ts";
import type { Logger } from "./plugin.ts";
import {
  createRecordWriter,
  decodeCursor,
  decodeOwnership,
  decodeSession,
  encodeCursor,
  encodeOwnership,
  hasExpired,
  type KeptCursor,
  type KeptSession,
  type Ownership,
} from "./session-records.ts";
import type { Claim } from "./cluster-session.ts";
import type { Acquisition, SessionExpiry } from "./store.ts";

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
  /** Of it that which anybody may know; undefined = there is none. */
  find(clientId: string): Promise<Ownership | undefined>;
  close(): void;
}

export interface Taken {
  readonly claim: Claim;
  /** Undefined: it begins anew. */
  readonly kept: KeptSession | undefined;
}

export interface SessionOwnersDeps {
  readonly proxy: string;
  readonly engine: ClusterEngine;
  readonly cluster: ClusterProxy;
  readonly clock: HybridClock;
  readonly logger: Logger;
  now(): number;
  /** Another node was asked for the session. */
  takenOver(): void;
  /** Somebody else was quicker, or has taken it since. */
  conflict(): void;
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
  const { proxy, engine, cluster, clock } = deps;
  const { records, log } = cluster;
  const { node } = engine;
  let closed = false;

  function expired(found: OwnerRecord | undefined): Ownership | undefined {
    const ownership = found && decodeOwnership(found.value);
    return ownership && !hasExpired(ownership, deps.now()) ? ownership : undefined;
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
      const prior = expired(found);
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
      if (resumes) return { claim, kept: decodeSession(stored, cursor) };
      for (const key of stored.keys()) claim.writer.put(key, undefined);
      await claim.writer.commit();
      return { claim, kept: undefined };
    }
    throw new SluiceError("STORE_FAILED", `too many connections claim the session of ${clientId} at the same time`);
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
    const wasThere = expired(found) !== undefined;
    for (let tries = 0; found && tries < maxTries; tries++) {
      const prior = decodeOwnership(found.value);
      if (prior.connection > newest) return false;
      const connection = clock.next(prior.connection);
      const tombstone: Ownership = {
        ...prior,
        node: node.id,
        incarnation: node.incarnation,
        connection,
        expirySec: 0,
        absentSince: 1,
      };
      const outcome = await records.claim(clientId, encodeOwnership(tombstone), found.revision);
      if ("taken" in outcome) {
        found = outcome.by;
        continue;
      }
      const why = newest === Infinity ? "removed" : "takenOver";
      await letGo(prior, { revision: outcome.revision, connection, why, resumes: false });
      if ((await records.remove(clientId, outcome.revision)) === "written") return wasThere;
      found = await records.owner(clientId);
    }
    return wasThere;
  }

  return {
    take,
    release,
    remove,
    find: async (clientId) => expired(await records.owner(clientId)),
    close() {
      closed = true;
    },
  };
}

const retryMs = 500;
