/**
 * Nodes that are gone, and since when: by that the sessions end that they had. Each node writes down now and then that it
 * is there, so that the time is known also where all of them die; one that finds another gone writes down more exactly when
 * that was heard of last, and where the log ended then: what came later the other can't have delivered.
 */
import type {
  ClusterEngine,
  ClusterNode,
  ClusterPeer,
  ClusterProxy,
  LogPositions,
  OwnerRecord,
} from "./cluster-engine.ts";
import { neverExpires } from "./session.ts";
import { decodeOwnership, encodeOwnership, type Ownership } from "./session-records.ts";

export interface Departures {
  /** Is this node sure enough that it is not there? */
  isGone(incarnation: string): boolean;
  /** Since when the session's client is away, as far as this node has heard; 0 = it is connected, or it is not known. */
  absentSince(ownership: Ownership): number;
  /** The same, by what is written down, too. */
  lookUp(ownership: Ownership): Promise<number>;
  /** Where the log ended when it was found gone; undefined = nobody has written that down. */
  logEndOf(incarnation: string): Promise<LogPositions | undefined>;
  /** It is gone: sees to it that this is written down. Answers when it was last known to be there. */
  note(node: ClusterNode): Promise<number>;
  /** The record of a node has been met. */
  read(owner: OwnerRecord): void;
  /** Nothing of it is left. */
  forget(incarnation: string): Promise<void>;
  /** Writes down that this node is there, where that is due. */
  beat(): Promise<void>;
  /** The engine can be reached again. */
  revived(): void;
  /** This node leaves, and nothing depends on when. */
  leave(): Promise<void>;
}

export interface DeparturesDeps {
  readonly engine: ClusterEngine;
  readonly cluster: ClusterProxy;
  now(): number;
  /** How long one that nobody has introduced must have been silent to count as gone. */
  readonly silenceMs: number;
  /** Others took this node to be gone: its sessions may have been ended. */
  doubted(): void;
}

/** No client id has U+0000 in it. */
const prefix = "\u0000node/";

/** How often a node writes down that it is there. */
const beatMs = 60_000;

/** Nodes that are remembered; what is forgotten is read again. */
const maxKnown = 1000;

const maxTries = 20;

/** Is this the record of a node? */
export function isNode(clientId: string): boolean {
  return clientId.startsWith(prefix);
}

interface Written {
  readonly seenAt: number;
  readonly logEnd: LogPositions | undefined;
  readonly revision: number;
}

export function createDepartures(deps: DeparturesDeps): Departures {
  const { engine, cluster } = deps;
  const now = (): number => deps.now();
  const { node } = engine;
  const { records, log } = cluster;
  const known = new Map<string, Written>();
  let listeningSince = engine.health().live ? now() : Infinity;
  let beaten: { readonly at: number; readonly revision: number } | undefined;
  let beating: Promise<void> | undefined;
  let isLeaving = false;

  function peerOf(incarnation: string): ClusterPeer | undefined {
    return engine.peers().find((each) => each.incarnation === incarnation);
  }

  function isGone(incarnation: string): boolean {
    if (incarnation === node.incarnation || !engine.health().live) return false;
    const peer = peerOf(incarnation);
    return peer ? !peer.isUp : now() - listeningSince > deps.silenceMs;
  }

  function absentSince({ absentSince: told, incarnation }: Ownership): number {
    if (told > 0 || !isGone(incarnation)) return told;
    return Math.max(peerOf(incarnation)?.seenAt ?? 0, known.get(incarnation)?.seenAt ?? 0);
  }

  function read({ value, revision }: OwnerRecord): Written {
    const { incarnation, absentSince: seenAt, direct } = decodeOwnership(value);
    const found = { seenAt, revision, logEnd: direct.length > 0 ? new Map(direct) : undefined };
    if (known.size >= maxKnown) known.clear();
    known.set(incarnation, found);
    return found;
  }

  async function written(incarnation: string): Promise<Written | undefined> {
    const found = await records.owner(prefix + incarnation);
    return found && read(found);
  }

  function recordOf({ id, incarnation }: ClusterNode, seenAt: number, logEnd: LogPositions): Buffer {
    return encodeOwnership({
      clientId: prefix + incarnation,
      node: id,
      incarnation,
      session: "",
      expirySec: neverExpires,
      connectedAt: 0,
      connection: 0,
      absentSince: seenAt,
      username: undefined,
      address: "",
      direct: [...logEnd],
    });
  }

  async function note(gone: ClusterNode): Promise<number> {
    const { incarnation } = gone;
    const heard = peerOf(incarnation)?.seenAt ?? 0;
    let found = known.get(incarnation);
    if (found?.logEnd && found.seenAt >= heard) return found.seenAt;
    const logEnd = await log.end([everything]);
    found = await written(incarnation);
    for (let tries = 0; tries < maxTries; tries++) {
      if (found?.logEnd && found.seenAt >= heard) return found.seenAt;
      const seenAt = Math.max(heard, found?.seenAt ?? 0) || now();
      const outcome = await records.claim(
        prefix + incarnation,
        recordOf(gone, seenAt, found?.logEnd ?? logEnd),
        found?.revision ?? 0,
      );
      if (!("taken" in outcome)) {
        known.set(incarnation, { seenAt, logEnd: found?.logEnd ?? logEnd, revision: outcome.revision });
        return seenAt;
      }
      found = outcome.by && read(outcome.by);
    }
    return found?.seenAt ?? 0;
  }

  async function beat(): Promise<void> {
    if (isLeaving || (beaten && now() - beaten.at < beatMs)) return;
    const at = now();
    let expected = beaten?.revision ?? 0;
    for (let tries = 0; tries < maxTries && !isLeaving; tries++) {
      const outcome = await records.claim(prefix + node.incarnation, recordOf(node, at, nothing), expected);
      if (!("taken" in outcome)) {
        beaten = { at, revision: outcome.revision };
        return;
      }
      expected = outcome.by?.revision ?? 0;
      if (tries === 0) deps.doubted();
    }
  }

  return {
    isGone,
    absentSince,
    async lookUp(ownership) {
      const since = absentSince(ownership);
      const { incarnation } = ownership;
      if (since > 0 || ownership.expirySec === neverExpires || !isGone(incarnation)) return since;
      return (await written(incarnation))?.seenAt ?? 0;
    },
    async logEndOf(incarnation) {
      const at = known.get(incarnation) ?? (await written(incarnation));
      return isGone(incarnation) ? at?.logEnd : undefined;
    },
    note,
    read: (owner) => void read(owner),
    async forget(incarnation) {
      const found = known.get(incarnation);
      if (found && (await records.remove(prefix + incarnation, found.revision)) === "written")
        known.delete(incarnation);
    },
    beat: () => (beating ??= beat().finally(() => (beating = undefined))),
    revived() {
      listeningSince = now();
    },
    async leave() {
      isLeaving = true;
      await beating?.catch(() => undefined);
      if (beaten) await records.remove(prefix + node.incarnation, beaten.revision);
    },
  };
}

const everything = { topicFilter: "#" };

const nothing: LogPositions = new Map();
