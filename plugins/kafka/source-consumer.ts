/**
 * One kafkajs consumer after the other: joins the group, hands over what it fetches, and is replaced where it fails or the
 * topics change. It never waits for the records: docs/adr/0027-kafka-source.md says why.
 */
import type { Kafka } from "kafkajs";
import { acceptCodecs } from "./client.ts";
import { judgeError, type Failure } from "./failure.ts";
import { createSourceAdmin } from "./source-admin.ts";
import { createAssignment, type Assignment, type AssignmentDeps } from "./source-assignment.ts";
import { missingTopics, selectTopics, type SourceConfig } from "./source-config.ts";

/** Milliseconds between consumers, after one that failed. */
const restartMs = { from: 200, to: 5000 };
/** Milliseconds that a fetch waits for records: as long a partition that goes on may wait for one that is idle. */
const fetchWaitMs = 200;
/** Milliseconds for leaving the group and closing, so that a hanging broker holds nobody up. */
const leaveMs = 3000;
const heartbeatMs = 1000;
const maxBytesPerPartition = 1_048_576;
const maxBytesPerFetch = 8_388_608;

export interface ConsumerDeps extends Omit<AssignmentDeps, "admin" | "failed"> {
  readonly kafka: Kafka;
  failed(failure: Failure): void;
  missing(topics: readonly string[]): void;
}

export interface SourceConsumer extends Pick<Assignment, "partitions" | "isJoined" | "advanced"> {
  /** Lets what is under way finish for so many milliseconds, commits and leaves the group. */
  stop(drainMs: number): Promise<void>;
}

export function startConsumer(config: SourceConfig, deps: ConsumerDeps): SourceConsumer {
  const { kafka, clock } = deps;
  acceptCodecs();
  const admin = createSourceAdmin(kafka);
  const assignment = createAssignment(config, { ...deps, admin, failed: fail });
  /** Topics of the first look; undefined before it. */
  let known: ReadonlySet<string> | undefined;
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

  async function findTopics(): Promise<string[]> {
    const existing = await admin.ask((each) => each.listTopics());
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
    made.on(made.events.REBALANCING, () => assignment.rebalance());
    made.on(made.events.GROUP_JOIN, ({ payload }) => {
      const assigned = payload.memberAssignment as Record<string, number[]>;
      assignment.place(made, assigned, known ?? new Set()).catch((error: unknown) => ended.reject(error));
    });
    try {
      await made.connect();
      // Where Kafka has deleted what comes next, it goes on with the oldest that there is.
      await made.subscribe({ topics, fromBeginning: true });
      assignment.begin(made);
      await made.run({ autoCommit: false, eachBatch: async (fetched) => assignment.take(made, fetched) });
      await Promise.race([ended.promise, stopping.promise, watch(topics)]);
      // Not of one that has crashed: kafkajs would resolve without having committed anything.
      await assignment.commit();
    } finally {
      assignment.end();
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
        await assignment.measure(now);
      } catch (error) {
        fail(error);
      }
    }
  }

  const running = (async () => {
    for (let delayMs = restartMs.from; !isStopping;) {
      const before = assignment.generation;
      try {
        await consume();
        delayMs = restartMs.from;
      } catch (error) {
        if (isStopping) return;
        fail(error);
        // A consumer that had joined begins the pace anew.
        if (assignment.generation > before + 1) delayMs = restartMs.from;
        await pause(delayMs * (0.75 + Math.random() / 2));
        delayMs = Math.min(delayMs * 2, restartMs.to);
      }
    }
  })();

  return {
    get partitions() {
      return assignment.partitions;
    },
    get isJoined() {
      return assignment.isJoined;
    },
    advanced: () => assignment.advanced(),
    async stop(drainMs) {
      isStopping = true;
      await assignment.close(drainMs);
      stopping.resolve("stop");
      await running;
      await admin.close();
    },
  };
}
