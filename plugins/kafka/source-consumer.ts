/**
 * One kafkajs consumer after the other: joins the group, hands over what it fetches, commits what is over with, and is
 * replaced where it fails or the topics change. It never waits for the records: docs/adr/0027-kafka-source.md says why.
 */
import type { Clock } from "@sluice/kernel";
import type { Admin, Consumer, EachBatchPayload, Kafka } from "kafkajs";
import { acceptCodecs } from "./client.ts";
import { judgeError, type Failure } from "./failure.ts";
import { missingTopics, selectTopics, type SourceConfig } from "./source-config.ts";
import { findStarts } from "./source-positions.ts";
import type { SourceRecord } from "./source-mapper.ts";
import type { SourceLane } from "./source-lane.ts";

/** Milliseconds between consumers, after one that failed. */
const restartMs = { from: 200, to: 5000 };
/** Milliseconds that a fetch waits for records: as long a partition that goes on may wait for one that is idle. */
const fetchWaitMs = 200;
/** Milliseconds for leaving the group and closing, so that a hanging broker holds nobody up. */
const leaveMs = 3000;
const heartbeatMs = 1000;
const maxBytesPerPartition = 1_048_576;
const maxBytesPerFetch = 8_388_608;

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

export interface ConsumerDeps {
  readonly kafka: Kafka;
  readonly clock: Clock;
  /** @param after what has to be over before the lane's first record */
  openLane(start: bigint, after: Promise<void>): SourceLane;
  /** Too much waits: partitions with something to do are paused. */
  isCrowded(): boolean;
  failed(failure: Failure): void;
  missing(topics: readonly string[]): void;
  joined(partitions: number): void;
  paused(): void;
  committed(): void;
}

export interface SourceConsumer {
  readonly partitions: readonly Partition[];
  readonly isJoined: boolean;
  /** A lane has moved on: commit before long, and fetch again what was paused. */
  advanced(): void;
  /** Lets what is under way finish for so long, commits and leaves the group. */
  stop(drainMs: number): Promise<void>;
}

export function startConsumer(config: SourceConfig, deps: ConsumerDeps): SourceConsumer {
  const { kafka, clock } = deps;
  acceptCodecs();
  const partitions = new Map<string, Partition>();
  /** Of partitions that are others' now: what is still under way. */
  const leaving = new Map<string, Promise<void>>();
  /** Topics of the first look; undefined before it. */
  let known: ReadonlySet<string> | undefined;
  let admin: Promise<Admin> | undefined;
  let consumer: Consumer | undefined;
  let isJoined = false;
  let generation = 0;
  let commitTimer: { clear(): void } | undefined;
  let committing: Promise<void> = Promise.resolve();
  const stopping = Promise.withResolvers<"stop">();
  let isStopping = false;

  function fail(error: unknown): void {
    const failure = judgeError(error);
    const { reason, message } = failure;
    // kafkajs stumbles over what it no longer has.
    deps.failed(
      reason === "internal" ? { ...failure, message: `the connection was lost (kafkajs: ${message})` } : failure,
    );
  }

  async function pause(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = clock.setTimeout(resolve, ms);
    await Promise.race([promise, stopping.promise]);
    timer.clear();
  }

  async function ask<T>(question: (admin: Admin) => Promise<T>): Promise<T> {
    admin ??= (async () => {
      const made = kafka.admin({ retry: { retries: 2 } });
      await made.connect();
      return made;
    })();
    const asked = admin;
    try {
      return await question(await asked);
    } catch (error) {
      // kafkajs' admin does not get over a connection that is no longer good.
      if (admin === asked) admin = undefined;
      void asked.then((each) => each.disconnect()).catch(() => undefined);
      throw error;
    }
  }

  async function findTopics(): Promise<string[]> {
    const existing = await ask((each) => each.listTopics());
    deps.missing(missingTopics(config.topics, existing));
    const topics = selectTopics(config.topics, existing);
    known ??= new Set(topics);
    return topics;
  }

  /** One consumer's life. Resolves where the topics have changed, or with the stop; rejects where it fails. */
  async function consume(): Promise<void> {
    const topics = await findTopics();
    if (topics.length === 0) return pause(Math.min(config.refreshIntervalMs, 1000));
    const made = kafka.consumer({
      groupId: config.group,
      sessionTimeout: config.sessionTimeoutMs,
      heartbeatInterval: Math.min(heartbeatMs, config.sessionTimeoutMs / 3),
      maxWaitTimeInMs: fetchWaitMs,
      maxBytesPerPartition,
      maxBytes: maxBytesPerFetch,
      metadataMaxAge: config.refreshIntervalMs,
      // Its default makes the topics that it does not find.
      allowAutoTopicCreation: false,
      // A rebalance takes a few attempts; what goes on for longer is for a new consumer, at a pace of ours.
      retry: { retries: 5, initialRetryTime: 100, maxRetryTime: 1000, restartOnFailure: async () => false },
    });
    const ended = Promise.withResolvers<never>();
    ended.promise.catch(() => undefined);
    made.on(made.events.CRASH, ({ payload }) => ended.reject(payload.error));
    made.on(made.events.REBALANCING, () => {
      isJoined = false;
      void commit();
    });
    made.on(made.events.GROUP_JOIN, ({ payload }) => {
      place(made, payload.memberAssignment as Record<string, number[]>).catch((error: unknown) => ended.reject(error));
    });
    try {
      await made.connect();
      // Where Kafka has deleted what comes next, it goes on with the oldest that there is.
      await made.subscribe({ topics, fromBeginning: true });
      consumer = made;
      await made.run({ autoCommit: false, eachBatch: (fetched) => take(made, fetched) });
      await Promise.race([ended.promise, stopping.promise, watch(topics)]);
      // Not of one that has crashed: kafkajs would resolve without having committed anything.
      await commit();
    } finally {
      generation++;
      isJoined = false;
      consumer = undefined;
      const left = made.disconnect().catch(() => undefined);
      await Promise.race([left, new Promise<void>((resolve) => void clock.setTimeout(resolve, leaveMs))]);
    }
  }

  /** Resolves when other topics are there than these. */
  async function watch(topics: readonly string[]): Promise<void> {
    while (!isStopping) {
      await pause(config.refreshIntervalMs);
      if (isStopping) return;
      try {
        const now = await findTopics();
        if (now.join() !== topics.join()) return;
        await measure(now);
      } catch (error) {
        fail(error);
      }
    }
  }

  /** What is not fetched, as it is paused or idle, tells nothing of its end. */
  async function measure(topics: readonly string[]): Promise<void> {
    for (const topic of topics) {
      const found = await ask((each) => each.fetchTopicOffsets(topic));
      for (const { partition, high } of found) {
        const its = partitions.get(keyOf(topic, partition));
        if (its) its.end = max(BigInt(high), its.end);
      }
    }
  }

  /**
   * The group has a new assignment. kafkajs would begin at the committed offsets and fetch again what waits here: nothing
   * is fetched until each partition has its place. A lane goes on where nobody else has committed in the meantime.
   */
  async function place(made: Consumer, assignment: Readonly<Record<string, readonly number[]>>): Promise<void> {
    const mine = ++generation;
    const all = Object.entries(assignment).map(([topic, its]) => ({ topic, partitions: [...its] }));
    made.pause(all);
    const assigned = new Set(all.flatMap(({ topic, partitions: its }) => its.map((each) => keyOf(topic, each))));
    for (const [key, { lane }] of partitions) {
      if (assigned.has(key)) continue;
      partitions.delete(key);
      const left = lane.close().then(() => void (leaving.get(key) === left && leaving.delete(key)));
      leaving.set(key, left);
    }
    await committing;
    const from = { from: config.from, known: known ?? new Set<string>() };
    const starts = await ask((each) => findStarts(each, config.group, assignment, from));
    if (mine !== generation || isStopping) return;
    const fresh = starts.filter(({ isCommitted }) => !isCommitted);
    if (fresh.length > 0) {
      await made.commitOffsets(fresh.map((each) => ({ ...each, offset: String(each.offset) })));
      if (mine !== generation) return;
    }
    for (const { topic, partition, offset } of starts) {
      const key = keyOf(topic, partition);
      const old = partitions.get(key);
      if (old?.committed === offset) {
        old.isPaused = false;
        made.seek({ topic, partition, offset: String(old.lane.next) });
        continue;
      }
      const lane = deps.openLane(offset, old?.lane.close() ?? leaving.get(key) ?? Promise.resolve());
      partitions.set(key, { topic, partition, lane, committed: offset, isPaused: false, end: offset });
      made.seek({ topic, partition, offset: String(offset) });
    }
    made.resume(all);
    isJoined = true;
    deps.joined(starts.length);
    advanced();
  }

  /** Answers at once, so that the consumer is never too late for a heartbeat. */
  async function take(made: Consumer, fetched: EachBatchPayload): Promise<void> {
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

  function advanced(): void {
    for (const its of partitions.values()) {
      if (!its.isPaused || !isJoined || its.lane.isHeld || deps.isCrowded()) continue;
      if (its.lane.queued > config.maxInFlightPerPartition / 2) continue;
      its.isPaused = false;
      consumer?.resume([{ topic: its.topic, partitions: [its.partition] }]);
    }
    commitTimer ??= clock.setTimeout(() => {
      commitTimer = undefined;
      void commit();
    }, config.commitIntervalMs);
  }

  /** One at a time; one that fails is made again with what has been finished by then. */
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
        if (!isRebalance(error)) fail(error);
        if (isJoined && !isStopping) advanced();
        return;
      }
      for (const [at, its] of behind.entries()) its.committed = BigInt(offsets[at]?.offset ?? its.committed);
      deps.committed();
    })());
  }

  const running = (async () => {
    for (let delayMs = restartMs.from; !isStopping;) {
      const before = generation;
      try {
        await consume();
        delayMs = restartMs.from;
      } catch (error) {
        if (isStopping) return;
        fail(error);
        // A consumer that had joined begins the pace anew.
        if (generation > before + 1) delayMs = restartMs.from;
        await pause(delayMs * (0.75 + Math.random() / 2));
        delayMs = Math.min(delayMs * 2, restartMs.to);
      }
    }
  })();

  return {
    get partitions() {
      return [...partitions.values()];
    },
    get isJoined() {
      return isJoined;
    },
    advanced,
    async stop(drainMs) {
      isStopping = true;
      const drained = Promise.all([...partitions.values()].map(({ lane }) => lane.close()));
      const deadline = Promise.withResolvers<void>();
      const timer = clock.setTimeout(deadline.resolve, drainMs);
      await Promise.race([drained, deadline.promise]);
      timer.clear();
      commitTimer?.clear();
      stopping.resolve("stop");
      await running;
      commitTimer?.clear();
      const open = await admin?.catch(() => undefined);
      await open?.disconnect().catch(() => undefined);
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
