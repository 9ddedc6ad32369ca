/**
 * The partitions that the group has assigned to us: each has a lane, which gets what is fetched, and is committed as far as it
 * is done. It outlives the consumers that it is used by, one after the other; docs/adr/0027-kafka-source.md says why.
 */
import type { Clock } from "@sluice/kernel";
import type { Consumer, EachBatchPayload } from "kafkajs";
import type { SourceAdmin } from "./source-admin.ts";
import type { SourceConfig } from "./source-config.ts";
import type { SourceLane } from "./source-lane.ts";
import type { SourceRecord } from "./source-mapper.ts";
import { findStarts } from "./source-positions.ts";

export interface Partition {
  readonly topic: string;
  readonly partition: number;
  readonly lane: SourceLane;
  /** As far as the group's offset is known to be. */
  committed: bigint;
  isPaused: boolean;
  /** Offset behind the last record that Kafka has. */
  end: bigint;
}

export interface AssignmentDeps {
  readonly clock: Clock;
  readonly admin: SourceAdmin;
  /** @param after what has to be over before the lane's first record */
  openLane(start: bigint, after: Promise<void>): SourceLane;
  /** Too much waits: partitions with something to do are paused. */
  isCrowded(): boolean;
  /** A commit has failed. */
  failed(error: unknown): void;
  joined(partitions: number): void;
  paused(): void;
  committed(): void;
}

export interface Assignment {
  readonly partitions: readonly Partition[];
  readonly isJoined: boolean;
  /** Counts assignments, and ends of consumers. */
  readonly generation: number;
  /** A consumer that is about to run. */
  begin(consumer: Consumer): void;
  /** The group is being put together anew. */
  rebalance(): void;
  /**
   * The group has a new assignment. kafkajs would begin at the committed offsets and fetch again what waits here: nothing
   * is fetched until each partition has its place. A lane goes on where nobody else has committed in the meantime.
   * @param known topics that were there when the source began
   */
  place(
    made: Consumer,
    assigned: Readonly<Record<string, readonly number[]>>,
    known: ReadonlySet<string>,
  ): Promise<void>;
  /** Answers at once, so that the consumer is never too late for a heartbeat. */
  take(made: Consumer, fetched: EachBatchPayload): void;
  /** What is not fetched, as it is paused or idle, tells nothing of its end. */
  measure(topics: readonly string[]): Promise<void>;
  /** A lane has moved on: commit before long, and fetch again what was paused. */
  advanced(): void;
  /** One at a time; one that fails is made again with what has been finished by then. */
  commit(): Promise<void>;
  /** The consumer runs no more. */
  end(): void;
  /** Nothing new is begun. Resolves when what is under way is over, or after so many milliseconds. */
  close(drainMs: number): Promise<void>;
}

export function createAssignment(config: SourceConfig, deps: AssignmentDeps): Assignment {
  const { admin, clock } = deps;
  const partitions = new Map<string, Partition>();
  /** Of partitions that are others' now: what is still under way. */
  const leaving = new Map<string, Promise<void>>();
  let consumer: Consumer | undefined;
  let isJoined = false;
  let isClosing = false;
  let isClosed = false;
  let generation = 0;
  let commitTimer: { clear(): void } | undefined;
  let committing: Promise<void> = Promise.resolve();

  async function place(
    made: Consumer,
    assigned: Readonly<Record<string, readonly number[]>>,
    known: ReadonlySet<string>,
  ): Promise<void> {
    const mine = ++generation;
    const all = Object.entries(assigned).map(([topic, its]) => ({ topic, partitions: [...its] }));
    made.pause(all);
    giveUpOthers(new Set(all.flatMap(({ topic, partitions: its }) => its.map((each) => keyOf(topic, each)))));
    await committing;
    const from = { from: config.from, known };
    const starts = await admin.ask((each) => findStarts(each, config.group, assigned, from));
    if (mine !== generation || isClosing) return;
    const fresh = starts.filter(({ isCommitted }) => !isCommitted);
    if (fresh.length > 0) {
      await made.commitOffsets(fresh.map((each) => ({ ...each, offset: String(each.offset) })));
      if (mine !== generation) return;
    }
    for (const { topic, partition, offset } of starts) {
      const next = openPlace(topic, partition, offset);
      made.seek({ topic, partition, offset: String(next) });
    }
    made.resume(all);
    isJoined = true;
    deps.joined(starts.length);
    advanced();
  }

  function giveUpOthers(ours: ReadonlySet<string>): void {
    for (const [key, { lane }] of partitions) {
      if (ours.has(key)) continue;
      partitions.delete(key);
      const left = lane.close().then(() => void (leaving.get(key) === left && leaving.delete(key)));
      leaving.set(key, left);
    }
  }

  /** Returns the offset from which is fetched. */
  function openPlace(topic: string, partition: number, committed: bigint): bigint {
    const key = keyOf(topic, partition);
    const old = partitions.get(key);
    if (old?.committed === committed) {
      old.isPaused = false;
      return old.lane.next;
    }
    const lane = deps.openLane(committed, old?.lane.close() ?? leaving.get(key) ?? Promise.resolve());
    partitions.set(key, { topic, partition, lane, committed, isPaused: false, end: committed });
    return committed;
  }

  function take(made: Consumer, fetched: EachBatchPayload): void {
    const { batch } = fetched;
    const { topic, partition } = batch;
    const its = partitions.get(keyOf(topic, partition));
    // It was fetched for a place that is no longer ours.
    if (!its || made !== consumer || fetched.isStale()) return;
    const records = batch.messages.map(({ key, value, headers, offset, timestamp }): SourceRecord => ({
      topic,
      partition,
      offset: BigInt(offset),
      timestamp: Number(timestamp),
      key,
      value,
      headers: headers ?? {},
    }));
    its.end = max(BigInt(batch.highWatermark), its.end);
    its.lane.push(records, BigInt(batch.lastOffset()) + 1n);
    if (!its.isPaused && (its.lane.queued > config.maxInFlightPerPartition || deps.isCrowded())) {
      its.isPaused = true;
      consumer?.pause([{ topic, partitions: [partition] }]);
      deps.paused();
    }
    // Whether or not it has records: the position may have moved past what are none.
    advanced();
  }

  async function measure(topics: readonly string[]): Promise<void> {
    for (const topic of topics) {
      const found = await admin.ask((each) => each.fetchTopicOffsets(topic));
      for (const { partition, high } of found) {
        const its = partitions.get(keyOf(topic, partition));
        if (its) its.end = max(BigInt(high), its.end);
      }
    }
  }

  function advanced(): void {
    for (const its of partitions.values()) {
      if (!its.isPaused || !isJoined || its.lane.isHeld || deps.isCrowded()) continue;
      if (its.lane.queued > config.maxInFlightPerPartition / 2) continue;
      its.isPaused = false;
      consumer?.resume([{ topic: its.topic, partitions: [its.partition] }]);
    }
    if (isClosed) return;
    commitTimer ??= clock.setTimeout(() => {
      commitTimer = undefined;
      void commit();
    }, config.commitIntervalMs);
  }

  function commit(): Promise<void> {
    const earlier = committing;
    return (committing = (async () => {
      await earlier;
      const behind = [...partitions.values()].filter(({ lane, committed }) => lane.position > committed);
      if (!consumer || behind.length === 0) return;
      const offsets = behind.map(({ topic, partition, lane }) => ({ topic, partition, offset: String(lane.position) }));
      try {
        await consumer.commitOffsets(offsets);
      } catch (error) {
        // Of a group that is being put together anew: its next assignment tells what holds.
        if (!isRebalance(error)) deps.failed(error);
        if (isJoined && !isClosing) advanced();
        return;
      }
      for (const [at, its] of behind.entries()) its.committed = BigInt(offsets[at]?.offset ?? its.committed);
      deps.committed();
    })());
  }

  function forgetTimer(): void {
    commitTimer?.clear();
    commitTimer = undefined;
  }

  return {
    get partitions() {
      return [...partitions.values()];
    },
    get isJoined() {
      return isJoined;
    },
    get generation() {
      return generation;
    },
    begin(made) {
      consumer = made;
    },
    rebalance() {
      isJoined = false;
      void commit();
    },
    place,
    take,
    measure,
    advanced,
    commit,
    end() {
      generation++;
      isJoined = false;
      consumer = undefined;
      forgetTimer();
    },
    async close(drainMs) {
      isClosing = true;
      const drained = Promise.all([...partitions.values()].map(({ lane }) => lane.close()));
      const deadline = Promise.withResolvers<void>();
      const timer = clock.setTimeout(deadline.resolve, drainMs);
      await Promise.race([drained, deadline.promise]);
      timer.clear();
      isClosed = true;
      forgetTimer();
    },
  };
}

function keyOf(topic: string, partition: number): string {
  return `${partition} ${topic}`;
}

function max(a: bigint, b: bigint): bigint {
  return a > b ? a : b;
}

const rebalances = new Set([
  "REBALANCE_IN_PROGRESS",
  "ILLEGAL_GENERATION",
  "UNKNOWN_MEMBER_ID",
  "NOT_COORDINATOR_FOR_GROUP",
]);

function isRebalance(error: unknown): boolean {
  for (let cause = error, depth = 0; cause instanceof Error && depth < 8; cause = cause.cause, depth++) {
    if ("type" in cause && typeof cause.type === "string" && rebalances.has(cause.type)) return true;
  }
  return false;
}
