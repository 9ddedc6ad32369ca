/**
 * The queue of one topic. It sends as soon as it is idle and whatever has come by then goes as one batch, so that batches
 * grow with the load and nothing waits for a timer. One batch is under way at a time: kafkajs reorders concurrent sends.
 *
 * A batch that was sent and failed is frozen: the same records are sent again until Kafka has them or all of them have
 * expired. Only so are they at worst stored twice, in order, and for an idempotent producer the same batch with the same
 * sequence numbers, which the broker recognizes.
 *
 * Where one partition fails by itself (no leader, its broker hangs) its records move to a lane of their own until it is
 * well, so that the topic's others go on.
 */
import type { Clock } from "@sluice/kernel";
import { createBatch, divideByPartition, halve, isWhole, type Batch } from "./batch.ts";
import { nobody, type Entry, type Outcome, type Owner } from "./entry.ts";
import type { Failure } from "./failure.ts";
import type { Producer } from "./producer.ts";
import { createTopicGate } from "./topic-gate.ts";

const maxBatchRecords = 1000;
/** No batch is made smaller than this on account of a topic's low `max.message.bytes`. */
const minBatchBytes = 16_384;
/** Milliseconds between attempts, doubled from the first to the last. */
const backoff = { from: 50, to: 500 };
export interface LaneOptions {
  readonly topic: string;
  readonly producer: Producer;
  readonly clock: Clock;
  readonly maxBatchBytes: number;
  /** Milliseconds that an idle lane waits for more before it sends. */
  readonly lingerMs: number;
  /** Ask whether the topic exists before the first send. */
  readonly probeFirst: boolean;
  sent(records: number, seconds: number): void;
  /** A partition got a lane of its own. */
  isolated(partition: number, failure: Failure): void;
  /** Of a lane for one partition: what it begins with, and whom it tells when it is done. */
  readonly apart?: { readonly batches: Batch[]; readonly queue: Entry[]; whenIdle(): void };
}

export interface Lane {
  push(entry: Entry): void;
  /** True where nothing waits and nothing is under way. */
  isIdle(): boolean;
  /** The topic is missing or forbidden. */
  isShut(): boolean;
  /** A partition of the topic has a lane of its own, since it fails by itself. */
  isDivided(): boolean;
  /** Settles what this owner still has here as `closed`; what was sent may still be stored. */
  abandon(owner: Owner): void;
  /** For good: also stops what is under way. */
  close(): void;
}

export function createLane(options: LaneOptions): Lane {
  const { topic, producer, clock } = options;
  /** In the order they came; `head` is the first that was not taken yet. */
  let queue: Entry[] = options.apart?.queue ?? [];
  let head = 0;
  /** Taken from the queue: the one to send next, and behind it the rest of one that was divided. */
  let batches: Batch[] = options.apart?.batches ?? [];
  let underWay: Batch | undefined;
  const isolated = new Map<number, Lane>();
  let maxBytes = options.maxBatchBytes;
  const gate = createTopicGate(topic, producer, options.probeFirst);
  let running = false;
  let closed = false;
  let lastFailure: Failure | undefined;
  let endWait: (() => void) | undefined;

  function settle(entries: readonly Entry[], outcome: Outcome): void {
    if (closed) return;
    for (const entry of entries) entry.owner.settled(entry, outcome, lastFailure);
  }

  /** Takes the entries that `choose` names out of the queue. */
  function takeFromQueue(choose: (entry: Entry) => boolean): Entry[] {
    const { taken = [], left = [] } = Object.groupBy(queue.slice(head), (entry) => (choose(entry) ? "taken" : "left"));
    if (taken.length > 0) {
      queue = left;
      head = 0;
    }
    return taken;
  }

  /** Takes what `choose` names out of the batches that were not sent. */
  function takeFromBatches(choose: (entry: Entry) => boolean): Entry[] {
    const taken: Entry[] = [];
    for (const batch of batches) {
      if (batch.sent || batch === underWay) continue;
      const { out = [], left = [] } = Object.groupBy(batch.entries, (entry) => (choose(entry) ? "out" : "left"));
      taken.push(...out);
      batch.entries = left;
    }
    batches = batches.filter(({ entries }) => entries.length > 0);
    return taken;
  }

  /** Gives up what is too old, and behind it what is of the same clients: sent again, it has to come in their order. */
  function expire(): void {
    const now = clock.now();
    const isLate = (entry: Entry): boolean => entry.expiresAt <= now;
    const late: Entry[] = [];
    // Of what was sent nothing can be taken back, so it is given up as a whole.
    for (const batch of batches.filter(({ sent, entries }) => sent && entries.every(isLate))) {
      late.push(...batch.entries);
      batches = batches.filter((each) => each !== batch);
      // Its sequence numbers may be known to the broker: another batch under them would pass for a duplicate and be lost.
      producer.renew();
    }
    late.push(...takeFromBatches(isLate));
    // The queue's order is that of arrival, so the late are in front.
    if (queue[head] && isLate(queue[head] as Entry)) late.push(...takeFromQueue(isLate));
    if (late.length === 0) return;
    const clients = new Set(late.map(({ clientId }) => clientId));
    clients.delete(undefined);
    const isBehind = ({ clientId }: Entry): boolean => clients.has(clientId);
    if (clients.size > 0) late.push(...takeFromBatches(isBehind), ...takeFromQueue(isBehind));
    settle(late, "expired");
  }

  function cut(): Batch | undefined {
    if (head === queue.length) return undefined;
    let end = head;
    let bytes = 0;
    while (end < queue.length && end - head < maxBatchRecords) {
      const size = queue[end]?.bytes ?? 0;
      // A record over the limit goes alone, so that its refusal is about no other.
      if (end > head && bytes + size > maxBytes) break;
      bytes += size;
      end++;
    }
    const entries = queue.slice(head, end);
    head = end;
    if (head === queue.length) {
      queue = [];
      head = 0;
    } else if (head > 4096) {
      queue = queue.slice(head);
      head = 0;
    }
    return { entries, bytes, sent: false };
  }

  /**
   * Finds the record that Kafka refuses without harm to the others. First by partition, because some of them may be
   * stored already and an idempotent producer needs the same batch again for those; then by halves.
   */
  function divide(batch: Batch, failure: Failure): void {
    const whole = isWhole(batch);
    if (whole && failure.reason === "tooLarge") {
      const largest = batch.entries.reduce((most, entry) => Math.max(most, entry.bytes), 0);
      // Many small records too large together: the topic's limit is below ours.
      if (largest * 2 < batch.bytes) maxBytes = Math.max(Math.min(maxBytes, batch.bytes / 2), minBatchBytes);
    }
    batches.splice(0, 1, ...(whole ? halve(batch) : divideByPartition(batch)));
  }

  /** Everything for the partition goes to a lane of its own, in its order. */
  function isolate(partition: number, failure: Failure): void {
    const isOf = (entry: Entry): boolean => partitionOf(entry) === partition;
    const own = batches.filter(({ entries }) => entries.every(isOf));
    batches = batches.filter((batch) => !own.includes(batch));
    const whenIdle = (): void => void isolated.delete(partition);
    const apart = { batches: own, queue: takeFromQueue(isOf), whenIdle };
    isolated.set(partition, createLane({ ...options, apart, probeFirst: false }));
    options.isolated(partition, failure);
  }

  function partitionOf(entry: Entry): number | undefined {
    return (entry.partition ??= producer.choosePartition(topic, entry.key));
  }

  /** What other partitions have is not sent again. */
  function settleStored(batch: Batch, stored: readonly number[]): void {
    const { done = [], left = [] } = Object.groupBy(batch.entries, ({ partition }) =>
      partition !== undefined && stored.includes(partition) ? "done" : "left",
    );
    Object.assign(batch, createBatch(left, true));
    settle(done, "acked");
  }

  /** What to do before the next attempt; undefined: go on at once. */
  function handleFailure(batch: Batch, failure: Failure): "backoff" | "gate" | undefined {
    lastFailure = failure;
    if (failure.reason !== "unconnected") batch.sent = true;
    if (failure.stored) settleStored(batch, failure.stored);
    if (batch.entries.length === 0) {
      batches.shift();
      return undefined;
    }
    switch (failure.reason) {
      case "tooLarge":
      case "invalidRecord":
        if (batch.entries.length > 1) {
          divide(batch, failure);
        } else {
          batches.shift();
          settle(batch.entries, failure.reason === "tooLarge" ? "recordTooLarge" : "invalidRecord");
        }
        return undefined;
      case "illegalTopic":
        batches.shift();
        settle(batch.entries, "illegalTopic");
        return undefined;
      case "unknownTopic":
      case "unauthorized":
        return "gate";
      case "unconnected":
        // The producer paces its attempts to connect.
        return undefined;
      default:
        return mayConcernOne(failure) ? setApart(batch, failure) : "backoff";
    }
  }

  /** The topic has other partitions, and they may be well. */
  function mayConcernOne(failure: Failure): boolean {
    if (options.apart || failure.reason !== "unavailable") return false;
    const { partitions, leaders } = producer.spread(topic);
    return partitions > 1 && (failure.ofPartition === true || leaders > 1);
  }

  function setApart(batch: Batch, failure: Failure): "backoff" | undefined {
    if (!isWhole(batch)) {
      batches.splice(0, 1, ...divideByPartition(batch));
      return undefined;
    }
    const partition = batch.entries[0]?.partition;
    if (partition === undefined) return "backoff";
    isolate(partition, failure);
    return undefined;
  }

  function wait(ms: number): Promise<void> {
    if (closed) return Promise.resolve();
    return new Promise((resolve) => {
      endWait = () => {
        timer.clear();
        resolve();
      };
      const timer = clock.setTimeout(endWait, ms);
    });
  }

  /** Not all that wait for one thing at one moment. */
  function waitAbout(ms: number): Promise<void> {
    return wait(ms * (0.75 + Math.random() / 2));
  }

  /** @returns whether anything still waits */
  function stillShut(failure: Failure): boolean {
    lastFailure = failure;
    expire();
    return !closed && (batches.length > 0 || head < queue.length);
  }

  async function run(): Promise<void> {
    for (let failures = 0; !closed;) {
      if (gate.isShut) await gate.pass(stillShut, waitAbout);
      expire();
      let batch = batches[0];
      if (!batch) {
        batch = cut();
        if (!batch) break;
        batches.push(batch);
      }
      if (gate.isShut) continue;
      const startedAt = performance.now();
      underWay = batch;
      const failure = await producer.send(topic, batch.entries);
      underWay = undefined;
      if (closed) break;
      if (!failure) {
        batches.shift();
        failures = 0;
        lastFailure = undefined;
        options.sent(batch.entries.length, (performance.now() - startedAt) / 1000);
        settle(batch.entries, "acked");
        continue;
      }
      const next = handleFailure(batch, failure);
      if (next === undefined) continue;
      if (next === "gate") gate.shut();
      await waitAbout(Math.min(backoff.from * 2 ** Math.min(failures++, 10), backoff.to));
    }
    running = false;
    if (!closed) options.apart?.whenIdle();
  }

  function start(): void {
    if (running) return;
    running = true;
    // What else comes in this turn of the event loop, or until then, goes with it.
    if (options.lingerMs > 0) void wait(options.lingerMs).then(run);
    else setImmediate(() => void run());
  }

  if (options.apart) start();
  return {
    push(entry) {
      if (isolated.size > 0) {
        const apart = isolated.get(partitionOf(entry) ?? -1);
        if (apart) {
          apart.push(entry);
          return;
        }
      }
      queue.push(entry);
      start();
    },
    isIdle: () => !running && isolated.size === 0,
    isShut: () => gate.isShut,
    isDivided: () => isolated.size > 0,
    abandon(owner) {
      const isOwn = (entry: Entry): boolean => entry.owner === owner;
      const given = [...takeFromBatches(isOwn), ...takeFromQueue(isOwn)];
      for (const entry of batches.flatMap(({ entries }) => entries)) {
        if (!isOwn(entry)) continue;
        given.push(entry);
        entry.owner = nobody;
      }
      for (const entry of given) owner.settled(entry, "closed", lastFailure);
      for (const lane of isolated.values()) lane.abandon(owner);
    },
    close() {
      closed = true;
      for (const lane of isolated.values()) lane.close();
      batches = [];
      queue = [];
      head = 0;
      endWait?.();
    },
  };
}
