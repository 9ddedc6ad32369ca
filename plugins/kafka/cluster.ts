/**
 * One connection to a Kafka cluster: a producer and a lane for each topic. Filters of a gateway whose settings for it are
 * equal share it, so that their records for one topic go through one lane and in one order.
 */
import type { Clock, Health, Host } from "@sluice/kernel";
import { createClient } from "./client.ts";
import { brokersOf, type Config } from "./config.ts";
import type { Entry, Owner } from "./entry.ts";
import { createLane, type Lane } from "./lane.ts";
import { createProducer, type Producer } from "./producer.ts";
import { createReporter, type Member, type Reporter } from "./reporter.ts";

/** Beyond this many topics, lanes with nothing to do are dropped before another is made. */
const maxIdleLanes = 1000;

export interface Cluster {
  push(topic: string, entry: Entry): void;
  /** The topic is missing or forbidden: what was pushed for it waits. */
  isShut(topic: string): boolean;
  /** A partition of the topic fails by itself, and its records wait apart. */
  isDivided(topic: string): boolean;
  /** Settles what the owner has under way for the topic as `closed`. */
  abandon(topic: string, owner: Owner): void;
  health(): Health;
  /** Settles what the owners still have under way as `closed`, and lets go of the cluster; the last one closes it. */
  leave(owners: readonly Owner[]): Promise<void>;
}

interface Shared {
  readonly members: Set<Member>;
  readonly topics: Map<string, TopicLanes>;
  readonly producer: Producer;
  readonly reporter: Reporter;
}

/** A topic's lanes: one, until its partitions are known and that one is idle; then as many as `inFlight` allows. */
interface TopicLanes {
  readonly lanes: Lane[];
  spread: boolean;
}

/** By gateway, which each has one `proxies`, and the settings. It holds nothing that is not in use. */
const clustersOf = new WeakMap<Host["proxies"], Map<string, Shared>>();

export function joinCluster(config: Config, host: Host): Cluster {
  const clusters = clustersOf.get(host.proxies) ?? new Map<string, Shared>();
  clustersOf.set(host.proxies, clusters);
  const key = keyOf(config);
  const shared = clusters.get(key) ?? connect(config, host);
  clusters.set(key, shared);
  const { members, topics, producer } = shared;
  const member: Member = { name: host.name, log: host.log, metrics: host.metrics };
  members.add(member);

  return {
    push: (topic, entry) => laneFor(shared, config, topic, entry, host.clock).push(entry),
    isShut: (topic) => topics.get(topic)?.lanes.some((lane) => lane.isShut()) ?? false,
    isDivided: (topic) => topics.get(topic)?.lanes.some((lane) => lane.isDivided()) ?? false,
    abandon(topic, owner) {
      for (const lane of topics.get(topic)?.lanes ?? []) lane.abandon(owner);
    },
    health: () => producer.health(),
    async leave(owners) {
      for (const lane of [...topics.values()].flatMap(({ lanes }) => lanes)) {
        for (const owner of owners) lane.abandon(owner);
      }
      if (members.size > 1) {
        members.delete(member);
        return;
      }
      clusters.delete(key);
      for (const { lanes } of topics.values()) for (const lane of lanes) lane.close();
      await producer.close();
      members.delete(member);
    },
  };
}

/** What the connection, the producer and the lanes depend on. */
function keyOf(config: Config): string {
  const { backend, ssl, sasl, clientId, acks, idempotent, compression, lingerMs, inFlight, maxBatchBytes } = config;
  const { requestTimeoutMs, connectionTimeoutMs, topic, encoder } = config;
  // A lane counts on its records being given up in the order they came.
  const timeouts = [requestTimeoutMs, connectionTimeoutMs, config.ack, config.deliveryTimeoutMs, config.buffer?.maxAge];
  const sending = [acks, idempotent ?? null, compression, lingerMs, inFlight, maxBatchBytes, topic.create, encoder];
  return JSON.stringify([backend, ssl, sasl ?? null, clientId ?? null, timeouts, sending]);
}

function connect(config: Config, host: Host): Shared {
  const { clock } = host;
  const members = new Set<Member>();
  const reporter = createReporter(members, brokersOf(config), clock);
  const debug = (fields: object, message: string): void => {
    for (const { log } of members) log.debug(fields, message);
  };
  const kafka = createClient(config, host.name, debug);
  const producer = createProducer(config, { kafka, clock, reporter });
  return { members, topics: new Map(), producer, reporter };
}

function laneFor(shared: Shared, config: Config, topic: string, entry: Entry, clock: Clock): Lane {
  const { producer } = shared;
  const known = shared.topics.get(topic) ?? openTopic(shared, config, topic, clock);
  const [first] = known.lanes as [Lane];
  if (config.inFlight === 1) return first;
  if (!known.spread && first.isIdle() && producer.spread(topic).partitions > 0) {
    known.spread = true;
    const more = Array.from({ length: config.inFlight - 1 }, () => openLane(shared, config, topic, clock));
    known.lanes.push(...more);
  }
  if (!known.spread) return first;
  // Lanes have no partition in common: kafkajs reorders concurrent sends to one.
  entry.partition ??= producer.choosePartition(topic, entry.key);
  return known.lanes[(entry.partition ?? 0) % known.lanes.length] ?? first;
}

function openTopic(shared: Shared, config: Config, topic: string, clock: Clock): TopicLanes {
  const { topics } = shared;
  if (topics.size >= maxIdleLanes) {
    for (const [name, { lanes }] of topics) if (lanes.every((lane) => lane.isIdle())) topics.delete(name);
  }
  const opened: TopicLanes = { lanes: [openLane(shared, config, topic, clock)], spread: false };
  topics.set(topic, opened);
  return opened;
}

function openLane({ producer, reporter }: Shared, config: Config, topic: string, clock: Clock): Lane {
  return createLane({
    topic,
    producer,
    clock,
    maxBatchBytes: config.maxBatchBytes,
    lingerMs: config.lingerMs,
    probeFirst: config.topic.create !== "broker",
    sent: (records, seconds) => reporter.sent(records, seconds),
    isolated: (partition, failure) => reporter.isolated(topic, partition, failure),
  });
}
