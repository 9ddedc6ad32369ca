/**
 * One session's way through a cluster's log. It *reads* what was appended while its client was away or slow, page by page
 * as the session has room, and then *follows* the node's tail. Where a follower has no room the log keeps the rest, and it
 * reads again: a slow client costs its node nothing and loses nothing.
 *
 * Its cursor is the place up to which nothing is left to do for this session; above it `settled` says what is done.
 */
import type {
  ClusterLog,
  ClusterMessage,
  ClusterSelector,
  LogPage,
  LogPosition,
  LogPositions,
} from "./cluster-engine.ts";
import { messageOf } from "./errors.ts";
import { keyOf, type LogTail } from "./log-tail.ts";
import type { Logger } from "./plugin.ts";

/** What a session has behind it: what is written down, and what one node tells the next. */
export interface LogCursor {
  /** By shard: up to here all is settled, or was not wanted. */
  readonly upTo: LogPositions;
  /** Places above it that are settled: {@link placeOf}. */
  readonly settled: readonly number[];
}

export interface LogReaderOwner {
  readonly log: ClusterLog;
  readonly tail: LogTail;
  readonly logger: Logger;
  /** Above QoS 0. */
  selectors(): readonly ClusterSelector[];
  /** Messages that it has room for; where that is none `resume` is called when there is some. */
  room(): number;
  /** Queues it, unless the session does not want it. Answers whether it has to be settled. */
  take(message: ClusterMessage, position: LogPosition): boolean;
  /** It has come to the log's end. */
  caughtUp(): void;
  gap(): void;
}

/** A class because there are as many as sessions. */
export class LogReader {
  private readonly owner: LogReaderOwner;
  /** Of the shards that it reaches: everything up to here was taken or not wanted, while it reads and before it did. */
  private readonly taken = new Map<number, number>();
  private readonly settled = new Set<number>();
  private readonly open = new Set<number>();
  private isFollowing = false;
  private isReading = false;
  private isClosed = false;
  /** What the tail has brought while it reads. */
  private aside: { message: ClusterMessage; position: LogPosition; before: number | undefined }[] | undefined;
  /** The last place of each shard that the tail has brought and it has let go of. */
  private readonly passed = new Map<number, number>();
  /** What it joined the tail with. */
  private joined: readonly ClusterSelector[] = [];
  /** Where subscriptions begin that were made since the read under way was asked for. */
  private limits: Map<number, number> | undefined;
  private retry: NodeJS.Timeout | undefined;

  constructor(owner: LogReaderOwner, cursor: LogCursor | undefined) {
    this.owner = owner;
    for (const [shard, seq] of owner.tail.handedOut) this.pass({ shard, seq });
    if (!cursor) return;
    for (const [shard, seq] of cursor.upTo) this.taken.set(shard, seq);
    for (const place of cursor.settled) this.settled.add(place);
  }

  /** It has nothing to wait for: all that comes goes by the tail. */
  get follows(): boolean {
    return this.isFollowing;
  }

  /** In flight since before: it is not read again. */
  restore(position: LogPosition): void {
    this.open.add(placeOf(position));
  }

  /** A new selector, from its place on in each shard that it reaches. */
  extend(selector: ClusterSelector, from: LogPositions): void {
    for (const [shard, seq] of from) {
      if (!this.taken.has(shard)) this.taken.set(shard, seq);
      if (this.limits) this.limits.set(shard, Math.min(this.limits.get(shard) ?? Infinity, seq));
    }
    if (this.isFollowing) {
      this.owner.tail.join([selector], from, true);
      this.joined = [...this.joined, selector];
    } else {
      this.resume();
    }
  }

  /** The session does not want it any more. */
  reduce(selector: ClusterSelector): void {
    if (!this.isFollowing) return;
    const key = keyOf(selector);
    const at = this.joined.findIndex((each) => keyOf(each) === key);
    if (at < 0) return;
    this.joined = this.joined.toSpliced(at, 1);
    this.owner.tail.leave([selector]);
  }

  /** There is room: reads on. */
  resume(): void {
    if (this.isFollowing || this.isReading || this.isClosed || !this.hasRoom()) return;
    if (this.owner.selectors().length === 0) {
      this.follow();
      return;
    }
    void this.read();
  }

  /** What the tail hands out that the session wants. @param before as {@link LogTailDeps.handOut} has it */
  offer(message: ClusterMessage, position: LogPosition, before?: number): void {
    if (this.isClosed) return;
    if (!this.isFollowing) {
      if (this.aside && this.aside.length < maxAside) {
        this.aside.push({ message, position, before });
        return;
      }
      this.letGo();
      this.pass(position);
      return;
    }
    if (this.isDone(position)) return;
    if (this.hasRoom()) this.put(message, position);
    else this.fallBack(position);
  }

  settle(position: LogPosition): void {
    const place = placeOf(position);
    this.open.delete(place);
    this.settled.add(place);
    if (this.settled.size >= pruneAt && this.settled.size % pruneAt === 0) this.prune();
  }

  /** It is somebody else's now, or the session's own again later: as if it had not been read. */
  giveUp(position: LogPosition): void {
    this.open.delete(placeOf(position));
  }

  /** What is in flight, or waits, counts as not settled. */
  cursor(): LogCursor {
    this.prune();
    const upTo = this.place();
    for (const place of this.open) {
      const { shard, seq } = positionOf(place);
      const known = upTo.get(shard);
      if (known === undefined || known >= seq) upTo.set(shard, seq - 1);
    }
    return { upTo, settled: [...this.settled].filter((place) => isAbove(place, upTo)) };
  }

  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    clearTimeout(this.retry);
    if (this.isFollowing) this.owner.tail.leave(this.joined);
    this.joined = [];
    this.aside = undefined;
  }

  /** Where it has come by now; in the shards that it reaches. */
  private place(): Map<number, number> {
    const place = new Map(this.taken);
    if (!this.isFollowing) return place;
    for (const [shard, seq] of place) {
      const verified = this.owner.tail.verified.get(shard);
      if (verified !== undefined && verified > seq) place.set(shard, verified);
    }
    return place;
  }

  private prune(): void {
    const upTo = this.place();
    for (const [shard, seq] of upTo) this.taken.set(shard, seq);
    // What is still open below its place is what holds the cursor back.
    let lowest = upTo;
    if (this.open.size > 0) {
      lowest = new Map(upTo);
      for (const place of this.open) {
        const { shard, seq } = positionOf(place);
        lowest.set(shard, Math.min(lowest.get(shard) ?? 0, seq - 1));
      }
    }
    for (const place of this.settled) if (!isAbove(place, lowest)) this.settled.delete(place);
  }

  private isDone(position: LogPosition): boolean {
    const place = placeOf(position);
    return position.seq <= (this.taken.get(position.shard) ?? 0) || this.settled.has(place) || this.open.has(place);
  }

  private put(message: ClusterMessage, position: LogPosition): void {
    const place = placeOf(position);
    this.open.add(place);
    if (!this.owner.take(message, position)) this.open.delete(place);
  }

  private hasRoom(): boolean {
    return this.settled.size < maxSettled && this.owner.room() > 0;
  }

  private pass({ shard, seq }: LogPosition): void {
    if ((this.passed.get(shard) ?? 0) < seq) this.passed.set(shard, seq);
  }

  /** The log has them, too. */
  private letGo(): void {
    for (const { position } of this.aside ?? []) this.pass(position);
    this.aside = undefined;
  }

  /** As many as there is room for. Answers, for shards in which some are left, the place in front of the first of them. */
  private putAll(messages: LogPage["messages"]): ReadonlyMap<number, number> {
    const left = new Map<number, number>();
    for (const { message, position } of messages) {
      if (this.isDone(position) || left.has(position.shard)) continue;
      if (this.hasRoom()) this.put(message, position);
      else left.set(position.shard, position.seq - 1);
    }
    return left;
  }

  private async read(): Promise<void> {
    const { owner } = this;
    this.isReading = true;
    try {
      while (!this.isClosed && !this.isFollowing && this.hasRoom()) {
        this.limits = new Map();
        this.aside ??= [];
        const page = await owner.log.read(owner.selectors(), new Map(this.taken), {
          maxMessages: Math.min(pageMessages, owner.room()),
        });
        if (this.isClosed) return;
        if (page.gaps.size > 0) owner.gap();
        const left = this.putAll(page.messages);
        let hasMoved = false;
        for (const [shard, seq] of page.upTo) {
          const known = this.taken.get(shard) ?? -1;
          const limit = Math.max(known, this.limits.get(shard) ?? Infinity);
          const next = Math.min(seq, limit, left.get(shard) ?? Infinity);
          if (next <= known) continue;
          this.taken.set(shard, next);
          hasMoved = true;
        }
        if (!page.isEnd || left.size > 0) continue;
        if (this.follow()) return;
        // The node is ahead of what a replica has told, or too much has come meanwhile.
        if (!hasMoved) await new Promise((resolve) => setTimeout(resolve, lagMs));
      }
    } catch (error) {
      if (this.isClosed) return;
      owner.logger.warn({ error: messageOf(error) }, "A session's messages could not be read; it is tried again");
      this.retry = setTimeout(() => this.resume(), retryMs);
    } finally {
      this.limits = undefined;
      this.isReading = false;
      if (!this.isFollowing) this.letGo();
    }
  }

  /** Nothing is missing in front of what the tail has brought while it read. */
  private isWhole(): boolean {
    const brought = new Set<number>();
    for (const { position, before = 0 } of this.aside ?? []) {
      const earlier = { shard: position.shard, seq: before };
      if (before > 0 && !this.isDone(position) && !this.isDone(earlier) && !brought.has(placeOf(earlier))) return false;
      brought.add(placeOf(position));
    }
    return true;
  }

  /** False: the node's tail has gone past it, or has brought what it must read now. */
  private follow(): boolean {
    for (const [shard, seq] of this.passed) if ((this.taken.get(shard) ?? Infinity) < seq) return false;
    if (!this.isWhole()) return false;
    this.passed.clear();
    const selectors = this.owner.selectors();
    if (!this.owner.tail.join(selectors, this.taken, false)) return false;
    this.joined = selectors;
    this.isFollowing = true;
    const { aside = [] } = this;
    this.aside = undefined;
    for (const { message, position } of aside) this.offer(message, position);
    this.owner.caughtUp();
    return true;
  }

  private fallBack(position: LogPosition): void {
    const { tail } = this.owner;
    this.pass(position);
    for (const [shard, seq] of this.place()) this.taken.set(shard, seq);
    this.isFollowing = false;
    tail.leave(this.joined);
    this.joined = [];
  }
}

/** Messages read at a time. */
const pageMessages = 200;

/** Live messages kept while the log is read; beyond it they are read, too. */
const maxAside = 1000;

/** Settled places after which those that no longer matter are looked for. */
const pruneAt = 512;

/** Places settled above one that is not; its client must acknowledge that one before it gets more. */
const maxSettled = 50_000;

const retryMs = 500;

/** How long a replica that lags is given. */
const lagMs = 20;

/** Shards that a place has room for. */
const maxShards = 1024;

/** A position as one number: below 2^53 for 2^43 messages a shard. */
export function placeOf({ shard, seq }: LogPosition): number {
  return seq * maxShards + shard;
}

export function positionOf(place: number): LogPosition {
  const shard = place % maxShards;
  return { shard, seq: (place - shard) / maxShards };
}

function isAbove(place: number, upTo: LogPositions): boolean {
  const { shard, seq } = positionOf(place);
  return seq > (upTo.get(shard) ?? 0);
}
