/**
 * The end of a cluster's log as one node follows it for its sessions. Live messages are hints, which may be lost; the log
 * is the truth. What has come is handed out once, in the order of its places; where a message is missing in front of one
 * that has come, the later one waits until the log was read. An audit reads what no hint has brought, and is what
 * `verified` grows by: never by a hint.
 */
import type { ClusterLog, ClusterMessage, ClusterSelector, LogPosition, LogPositions } from "./cluster-engine.ts";
import type { Logger } from "./plugin.ts";
import { messageOf } from "./errors.ts";

export interface LogTail {
  /**
   * By shard: of what those who have joined want, everything up to here has been handed out. A shard that is not named has
   * nobody who waits for anything of it.
   */
  readonly verified: LogPositions;
  /** By shard, the last place that was handed out, verified or not: who comes later has to read up to there. */
  readonly handedOut: LogPositions;
  /** Messages handed out that no audit has met yet. */
  readonly unverified: number;
  /**
   * From now on somebody counts on this node's audits. False: they have gone past what it has itself, so that it must read
   * on to `verified` first.
   *
   * @param from what it has, of each shard that the selectors reach
   * @param isNew it wants nothing that is in the log by now: then it always may
   */
  join(selectors: readonly ClusterSelector[], from: LogPositions, isNew: boolean): boolean;
  leave(selectors: readonly ClusterSelector[]): void;
  /** A hint; {@link ClusterListener.onMessage}. */
  message(message: ClusterMessage, position: LogPosition, previous: number | undefined): void;
  /** Reads the log now; resolves when everything was handed out, or the log could not be read. */
  audit(): Promise<void>;
  close(): void;
}

export interface LogTailDeps {
  readonly log: ClusterLog;
  readonly logger: Logger;
  readonly auditMs: number;
  /**
   * @param before the `seq` of the message before it of the same topic, of which nobody has looked whether it has come too;
   *   undefined = it has been handed out, or there is none
   */
  handOut(message: ClusterMessage, position: LogPosition, before: number | undefined): void;
  /** Messages were found in the log that no hint had brought. */
  missed(count: number): void;
  gap(): void;
}

interface Hint {
  readonly message: ClusterMessage;
  readonly position: LogPosition;
  readonly previous: number | undefined;
}

interface Shard {
  verified: number;
  /** Handed out, above `verified`. */
  readonly seen: Set<number>;
  /** Behind a message that is missing. */
  held: Hint[] | undefined;
}

/** Of one read. */
const pageMessages = 1000;

/** Messages of a shard that wait behind a missing one; beyond it they are left to the log. */
const maxHeld = 10_000;

/** Messages of a shard that were handed out and not verified; beyond it an audit comes early. */
const maxSeen = 20_000;

/** How often the log is read for a message that must be there before it is given up: retention may have removed it. */
const maxRepairs = 40;

const retryMs = 200;

/** Places remembered where nobody counts on the log. */
const maxRecent = 5000;

export function createLogTail(deps: LogTailDeps): LogTail {
  const { log } = deps;
  const shards = new Map<number, Shard>();
  const joined = new Map<string, { readonly selector: ClusterSelector; count: number }>();
  const verified = new Map<number, number>();
  const recent = createRecent();
  const handedOut = new Map<number, number>();
  /** Where those begin who have joined since the audit under way has begun: it says nothing about them beyond it. */
  let latecomers: Map<number, number> | undefined;
  let auditing: Promise<boolean> | undefined;
  let timer: NodeJS.Timeout | undefined;
  let closed = false;

  function join(selectors: readonly ClusterSelector[], from: LogPositions, isNew: boolean): boolean {
    if (closed) return true;
    if (!isNew) {
      for (const [at, seq] of from) if ((shards.get(at)?.verified ?? 0) > seq) return false;
    }
    for (const [at, seq] of from) {
      if (!shards.has(at)) {
        shards.set(at, { verified: seq, seen: new Set(), held: undefined });
        verified.set(at, seq);
      }
      if (latecomers) latecomers.set(at, Math.min(latecomers.get(at) ?? Infinity, seq));
    }
    for (const selector of selectors) {
      const key = keyOf(selector);
      const known = joined.get(key);
      if (known) known.count++;
      else joined.set(key, { selector, count: 1 });
    }
    timer ??= setInterval(() => void audit(), deps.auditMs).unref();
    return true;
  }

  function leave(selectors: readonly ClusterSelector[]): void {
    for (const selector of selectors) {
      const key = keyOf(selector);
      const known = joined.get(key);
      if (known && --known.count === 0) joined.delete(key);
    }
    if (joined.size > 0) return;
    shards.clear();
    verified.clear();
    clearInterval(timer);
    timer = undefined;
  }

  function message(hint: Hint): void {
    const { position, previous } = hint;
    const shard = shards.get(position.shard);
    // Nobody counts on it here: it is for those who take it at QoS 0, and for those who still read the log.
    if (!shard) {
      if (!recent.add(position)) return;
      note(position);
      // Where it is not known, the one before may be any.
      deps.handOut(hint.message, position, previous ?? position.seq - 1);
      return;
    }
    if (isKnown(shard, position.seq)) return;
    if (shard.held) {
      // What is let go of here is in the log.
      if (shard.held.length < maxHeld) shard.held.push(hint);
      return;
    }
    if (previous !== undefined && previous > 0 && !isKnown(shard, previous)) {
      shard.held = [hint];
      void repair(position.shard, shard);
      return;
    }
    handOut(shard, hint.message, position);
    if (shard.seen.size > maxSeen) void audit();
  }

  function isKnown({ verified: upTo, seen }: Shard, seq: number): boolean {
    return seq <= upTo || seen.has(seq);
  }

  function handOut(shard: Shard, what: ClusterMessage, position: LogPosition): void {
    shard.seen.add(position.seq);
    note(position);
    deps.handOut(what, position, undefined);
  }

  function note({ shard, seq }: LogPosition): void {
    if ((handedOut.get(shard) ?? 0) < seq) handedOut.set(shard, seq);
  }

  /** A message was missed: the log has it. What has come since is handed out behind it. */
  async function repair(at: number, shard: Shard): Promise<void> {
    for (let tries = 0; tries < maxRepairs && shards.get(at) === shard && !closed;) {
      if (tries > 0) await new Promise((resolve) => setTimeout(resolve, retryMs / 4));
      // One that was under way may have read before the message came.
      await auditing;
      if (await audit()) tries++;
      const first = shard.held?.find(({ position }) => !isKnown(shard, position.seq));
      if (!first || isKnown(shard, first.previous ?? 0)) break;
    }
    const { held = [] } = shard;
    shard.held = undefined;
    if (shards.get(at) !== shard) return;
    for (const [index, hint] of held.entries()) {
      if (isKnown(shard, hint.position.seq)) continue;
      // The first one's missing message is given up; a later one may wait for another.
      if (index === 0) handOut(shard, hint.message, hint.position);
      else message(hint);
    }
  }

  /** False: the log could not be read. */
  function audit(): Promise<boolean> {
    return (auditing ??= readAll().finally(() => (auditing = latecomers = undefined)));
  }

  async function readAll(): Promise<boolean> {
    const selectors = [...joined.values()].map(({ selector }) => selector);
    if (selectors.length === 0) return true;
    latecomers = new Map();
    let after: LogPositions = new Map(verified);
    try {
      for (;;) {
        const page = await log.read(selectors, after, { maxMessages: pageMessages });
        if (closed) return true;
        if (page.gaps.size > 0) deps.gap();
        let missed = 0;
        for (const { message: found, position } of page.messages) {
          const shard = shards.get(position.shard);
          if (!shard || isKnown(shard, position.seq)) continue;
          missed++;
          handOut(shard, found, position);
        }
        if (missed > 0) deps.missed(missed);
        for (const [at, seq] of page.upTo) advance(at, Math.min(seq, latecomers.get(at) ?? Infinity));
        if (page.isEnd) return true;
        after = page.upTo;
      }
    } catch (error) {
      deps.logger.warn({ error: messageOf(error) }, "The cluster's log could not be read; it is tried again");
      await new Promise((resolve) => setTimeout(resolve, retryMs).unref());
      return false;
    }
  }

  function advance(at: number, seq: number): void {
    const shard = shards.get(at);
    if (!shard || seq <= shard.verified) return;
    shard.verified = seq;
    verified.set(at, seq);
    for (const each of shard.seen) if (each <= seq) shard.seen.delete(each);
  }

  return {
    verified,
    handedOut,
    get unverified() {
      let sum = 0;
      for (const { seen } of shards.values()) sum += seen.size;
      return sum;
    },
    join,
    leave,
    message: (what, position, previous) => message({ message: what, position, previous }),
    async audit() {
      // What is asked for now must not be answered by what was read before.
      await auditing;
      await audit();
    },
    close() {
      closed = true;
      clearInterval(timer);
      shards.clear();
    },
  };
}

/** The last places of each shard, some thousands: enough to tell a hint that comes twice. */
function createRecent(): { add(position: LogPosition): boolean } {
  let young = new Map<number, Set<number>>();
  let old = young;
  let count = 0;
  return {
    add({ shard, seq }) {
      if (young.get(shard)?.has(seq) || old.get(shard)?.has(seq)) return false;
      if (++count > maxRecent) {
        old = young;
        young = new Map();
        count = 0;
      }
      const seqs = young.get(shard);
      if (seqs) seqs.add(seq);
      else young.set(shard, new Set([seq]));
      return true;
    },
  };
}

/** The same for the same selector. */
export function keyOf(selector: ClusterSelector): string {
  return "clientId" in selector ? `c ${selector.clientId}` : `t ${selector.topicFilter}`;
}
