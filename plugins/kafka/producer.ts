/**
 * Connects to Kafka, reconnects, replaces a kafkajs producer that has gone bad, and says in a {@link Failure} what became
 * of a batch.
 */
import type { Clock, Health } from "@sluice/kernel";
import type { Admin, Kafka, Producer as KafkaProducer, RecordMetadata } from "kafkajs";
import { compressionType, createPartitioner, prepareEncoder } from "./client.ts";
import { acksOf, brokersOf, type Config } from "./config.ts";
import type { Entry } from "./entry.ts";
import { judgeError, storedOf, type Failure } from "./failure.ts";
import { createParcel, toMessages } from "./parcel.ts";
import { createPlacement } from "./partitioner.ts";
import type { Reporter } from "./reporter.ts";

/** Milliseconds between attempts to connect: doubled from the first to the last, so that Kafka's return is soon seen. */
const connectBackoff = { from: 50, to: 500 };
/** Milliseconds of nothing but failures after which the producer is made anew, addresses looked up again. */
const stuckAfterMs = 30_000;
/** Milliseconds without a send after which a cluster that failed is asked whether it is back, and between two questions. */
const askAfterMs = 1000;
export interface Producer {
  /**
   * Resolves with nothing once every record is acknowledged as `acks` says; never rejects. One call per topic at a time,
   * since kafkajs reorders concurrent ones without an error.
   */
  send(topic: string, records: Entry[]): Promise<Failure | undefined>;
  /** Where a record for the topic would go; undefined while nothing is known of the topic. */
  choosePartition(topic: string, key: string | null): number | undefined;
  /** How many partitions the topic has, and how many brokers lead them; 0 while nothing is known of it. */
  spread(topic: string): { readonly partitions: number; readonly leaders: number };
  /** Creates the topic first where the options say so. Nothing = it can be written. */
  probeTopic(topic: string): Promise<Failure | undefined>;
  /** Later sends get a new producer id: needed when a batch that may have been sent is given up. */
  renew(): void;
  health(): Health;
  close(): Promise<void>;
}

/** One kafkajs producer, its connections and its idempotent producer id. */
interface Generation {
  readonly producer: KafkaProducer;
  sending: number;
  retired: boolean;
}

export interface ProducerDeps {
  readonly kafka: Kafka;
  readonly clock: Clock;
  readonly reporter: Reporter;
}

export function createProducer(config: Config, { kafka, clock, reporter }: ProducerDeps): Producer {
  const acks = acksOf(config);
  const idempotent = config.idempotent ?? acks === -1;
  const brokers = brokersOf(config);
  const compression = compressionType(config.compression);
  const createdBy = config.topic.create;
  const placement = createPlacement();
  /** Batches go as parcels, encoded by fast-produce.ts. */
  let isFast: boolean | undefined = config.encoder === "stock" ? false : undefined;

  let current: Generation | undefined;
  let connecting: Promise<Generation | Failure> | undefined;
  let connectFailures = 0;
  let admin: Promise<Admin> | undefined;
  const closing = new AbortController();
  /** When the trouble began; undefined while all is well. */
  let failingSince: number | undefined;
  let renewedAt = clock.now();
  let lastFailure: Failure | undefined;
  let everConnected = false;
  /** Sends that have begun and not ended, and when the last one ended. */
  let sends = 0;
  let sentAt = 0;
  let asking: Promise<void> | undefined;
  const delays = new Set<() => void>();

  function delay(ms: number): Promise<void> {
    if (closing.signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const finish = () => {
        timer.clear();
        delays.delete(finish);
        resolve();
      };
      const timer = clock.setTimeout(finish, ms);
      delays.add(finish);
    });
  }

  function report(failure: Failure, topic?: string): Failure {
    if (failure.reason === "unconnected" || failure.reason === "unavailable" || failure.reason === "internal") {
      // One partition that is away is no outage: the others go on.
      if (!failure.ofPartition) {
        failingSince ??= clock.now();
        lastFailure = failure;
        asking ??= askWhileIdle();
      }
    }
    reporter.failed(failure, topic);
    return failure;
  }

  function recovered(): void {
    if (failingSince === undefined) return;
    reporter.recovered(clock.now() - failingSince);
    failingSince = undefined;
    lastFailure = undefined;
  }

  /**
   * Sends tell whether Kafka is well, but those that failed may all be given up and no others come: then it is asked, so
   * that health does not stay as the last of them left it. Any client may ask for the brokers' addresses.
   */
  async function askWhileIdle(): Promise<void> {
    while (!closing.signal.aborted && failingSince !== undefined) {
      await delay(askAfterMs);
      if (!isIdle() || failingSince === undefined) continue;
      // What was sent meanwhile knows better.
      if ((await isThere()) && isIdle()) recovered();
    }
    asking = undefined;
  }

  function isIdle(): boolean {
    return sends === 0 && !connecting && clock.now() - sentAt >= askAfterMs;
  }

  async function isThere(): Promise<boolean> {
    const asker = kafka.admin({ retry: { retries: 0 } });
    try {
      await asker.connect();
      await asker.describeCluster();
      return true;
    } catch {
      return false;
    } finally {
      await disconnect(asker);
    }
  }

  async function mayBeFast(): Promise<boolean> {
    const problem = await prepareEncoder(compression);
    if (problem !== undefined) reporter.slowed(problem);
    return problem === undefined;
  }

  /** One attempt, shared by all who want it, paced by the failures before it. */
  function connect(): Promise<Generation | Failure> {
    connecting ??= (async () => {
      if (connectFailures > 0) {
        const ms = Math.min(connectBackoff.from * 2 ** Math.min(connectFailures - 1, 10), connectBackoff.to);
        await delay(ms * (0.75 + Math.random() / 2));
      }
      if (closing.signal.aborted) return { reason: "unconnected", message: "the filter is closed" } satisfies Failure;
      isFast ??= await mayBeFast();
      const producer = kafka.producer({
        idempotent,
        allowAutoTopicCreation: createdBy === "broker",
        createPartitioner: createPartitioner(placement.place),
        // We retry ourselves. kafkajs wants at least one retry of an idempotent producer, but its retry would forget
        // the records whose leader has moved to a broker that had answered already: against NaN it never begins one.
        retry: { retries: idempotent ? Number.NaN : 0 },
      });
      try {
        await producer.connect();
      } catch (error) {
        connectFailures++;
        await disconnect(producer);
        const { message, broker } = judgeError(error);
        return report({ reason: "unconnected", message: `can't connect: ${message}`, ...(broker ? { broker } : {}) });
      }
      connectFailures = 0;
      const generation: Generation = { producer, sending: 0, retired: false };
      if (closing.signal.aborted) {
        await disconnect(producer);
        return { reason: "unconnected", message: "the filter is closed" } satisfies Failure;
      }
      current = generation;
      renewedAt = clock.now();
      if (!everConnected) reporter.connected();
      everConnected = true;
      // A producer that connects can't always send, so only the first connection counts as recovery.
      if (lastFailure?.reason === "unconnected") recovered();
      return generation;
    })().finally(() => {
      connecting = undefined;
    });
    return connecting;
  }

  function renew(): void {
    const old = current;
    if (!old) return;
    current = undefined;
    old.retired = true;
    reporter.renewed();
    if (old.sending === 0) void disconnect(old.producer);
  }

  async function send(topic: string, records: Entry[]): Promise<Failure | undefined> {
    sends++;
    try {
      return await attempt(topic, records);
    } finally {
      sends--;
      sentAt = clock.now();
    }
  }

  async function attempt(topic: string, records: Entry[]): Promise<Failure | undefined> {
    const generation = current ?? (await connect());
    if (!("producer" in generation)) return generation;
    generation.sending++;
    try {
      const answers = await generation.producer.send({
        topic,
        messages: isFast ? createParcel(records, (record) => placement.again(record, topic)) : toMessages(records),
        acks,
        compression,
        timeout: config.requestTimeoutMs,
      });
      if (acks !== 0) refuseGaps(records, answers);
      recovered();
      return undefined;
    } catch (error) {
      // An idempotent producer has taken back the sequence numbers of all: it needs the same batch again, which the
      // brokers know where they have it.
      const stored = idempotent ? [] : storedOf(error);
      const failure = report({ ...judgeError(error), ...(stored.length > 0 ? { stored } : {}) }, topic);
      if (generation === current && wantsRenewal(failure)) renew();
      return failure;
    } finally {
      generation.sending--;
      if (generation.retired && generation.sending === 0) void disconnect(generation.producer);
    }
  }

  /**
   * A topic that was deleted (or forbidden) after it was used stays in kafkajs' list of topics and fails every later
   * look at the metadata, so that no other topic can be written either: only a new producer is rid of it.
   */
  function wantsRenewal({ reason }: Failure): boolean {
    if (reason === "unknownTopic" || reason === "unauthorized") return true;
    if (reason === "sequence" || reason === "internal") return true;
    if (reason !== "unavailable" || failingSince === undefined) return false;
    const now = clock.now();
    return now - failingSince > stuckAfterMs && now - renewedAt > stuckAfterMs;
  }

  async function probeTopic(topic: string): Promise<Failure | undefined> {
    try {
      admin ??= (async () => {
        const made = kafka.admin();
        await made.connect();
        return made;
      })();
      const connected = await admin;
      if (typeof createdBy === "object") {
        const { partitions = -1, replicationFactor = -1 } = createdBy;
        // Resolves with false for one that exists.
        const created = await connected.createTopics({
          topics: [{ topic, numPartitions: partitions, replicationFactor }],
        });
        if (created) reporter.created(topic);
      }
      await connected.fetchTopicMetadata({ topics: [topic] });
      return undefined;
    } catch (error) {
      const failure = judgeError(error);
      // About the topic, or a connection that is no longer good (kafkajs then fails with a TypeError of its own).
      if (failure.reason === "unavailable" || failure.reason === "internal") {
        const broken = admin;
        admin = undefined;
        void broken?.then(disconnect).catch(() => undefined);
        return report({ reason: "unavailable", message: `can't look for topic ${topic}: ${failure.message}` }, topic);
      }
      return report(failure, topic);
    }
  }

  // So that health and log tell at once whether Kafka is there; ends with the first connection or close().
  async function keepTrying(): Promise<void> {
    while (!closing.signal.aborted && !everConnected) await connect();
  }
  void keepTrying();

  return {
    send,
    choosePartition: placement.choose,
    spread: placement.spread,
    probeTopic,
    renew,
    health() {
      if (lastFailure) {
        const seconds = Math.round((clock.now() - (failingSince ?? clock.now())) / 1000);
        return {
          ok: false,
          detail: `failing: Kafka at ${brokers.join(", ")}: ${lastFailure.message} (for ${seconds} s)`,
        };
      }
      const detail = `Kafka at ${brokers.join(", ")}`;
      return everConnected
        ? { ok: true, detail: `connected: ${detail}` }
        : { ok: false, detail: `connecting: ${detail}` };
    },
    async close() {
      closing.abort();
      for (const finish of delays) finish();
      const last = current;
      current = undefined;
      await Promise.all([connecting, asking]);
      const openAdmin = await admin?.catch(() => undefined);
      await Promise.all([last && disconnect(last.producer), openAdmin && disconnect(openAdmin)]);
    },
  };
}

/** It can only fail on what is already gone. */
async function disconnect(client: KafkaProducer | Admin): Promise<void> {
  await client.disconnect().catch(() => undefined);
}

/** Nothing is taken as acknowledged that no broker has answered for. */
function refuseGaps(records: readonly Entry[], answers: RecordMetadata[]): void {
  const answered = new Set(answers.map(({ partition }) => partition));
  const missing = records.find(({ partition }) => partition === undefined || !answered.has(partition));
  if (missing) throw new Error(`no answer for partition ${missing.partition}`);
}
