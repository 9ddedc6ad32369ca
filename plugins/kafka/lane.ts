/**
 * The queue of one topic. It sends as soon as it is idle and whatever has come by then goes as one batch, so that batches
 * grow with the load and nothing waits for a timer. One batch is under way at a time: kafkajs reorders concurrent sends.
 *
 * A batch that was sent and failed is frozen: the same records are sent again until Kafka has them or all of them have
 * expired. Only so are they at worst stored twice, in order, and for an idempotent producer the same batch with the same
 * sequence numbers, which the broker recognizes.
 */
import type { Clock } from "@sluice/kernel";
import type { Failure } from "./failure.ts";
import type { Producer } from "./producer.ts";
import type { Entry } from "./record.ts";

const maxBatchRecords = 1000;
/** No batch is made smaller than this on account of a topic's low `max.message.bytes`. */
const minBatchBytes = 16_384;
/** Milliseconds between attempts, doubled from the first to the last. */
const backoff = { from: 50, to: 500 };
/** The same for a topic that does not exist or is forbidden: not mended by waiting alone. */
const gateBackoff = { from: 100, to: 2000 };
const attemptsAtGate = 20;

export interface LaneOptions {
  readonly topic: string;
  readonly producer: Producer;
  readonly clock: Clock;
  readonly maxBatchBytes: number;
  /** Ask whether the topic exists before the first send. */
  readonly probeFirst: boolean;
  /** Called once for each entry, when its fate is known. */
  settled(entry: Entry, outcome: Outcome, lastFailure: Failure | undefined): void;
  sent(records: number, seconds: number): void;
}

export type Outcome = "acked" | "illegalTopic" | "recordTooLarge" | "invalidRecord" | "expired" | "closed";

export interface Lane {
  push(entry: Entry): void;
  /** True where nothing waits and nothing is under way. */
  isIdle(): boolean;
  /** Rejects all that waits; what is under way may still be stored. */
  abandon(): void;
}

interface Batch {
  entries: Entry[];
  bytes: number;
  /** It may be in Kafka already, in whole or in part. */
  sent: boolean;
}

export function createLane(options: LaneOptions): Lane {
  const { topic, producer, clock } = options;
  /** In the order they came; `head` is the first that was not taken yet. */
  let queue: Entry[] = [];
  let head = 0;
  /** Taken from the queue: the one to send next, and behind it the rest of one that was divided. */
  let batches: Batch[] = [];
  let maxBytes = options.maxBatchBytes;
  let gated = options.probeFirst;
  let running = false;
  const abandoning = new AbortController();
  let lastFailure: Failure | undefined;
  let endWait: (() => void) | undefined;

  function settle(entries: readonly Entry[], outcome: Outcome): void {
    if (abandoning.signal.aborted) return;
    for (const entry of entries) options.settled(entry, outcome, lastFailure);
  }

  /** The queue's order is that of arrival, so the expired are in front. */
  function expire(): void {
    const now = clock.now();
    while (head < queue.length && (queue[head]?.expiresAt ?? 0) <= now) {
      settle(queue.slice(head, ++head), "expired");
    }
    let givenUp = false;
    batches = batches.filter((batch) => {
      const live = batch.entries.filter((entry) => entry.expiresAt > now);
      if (live.length === batch.entries.length || (batch.sent && live.length > 0)) return true;
      if (batch.sent) {
        givenUp = true;
        settle(batch.entries, "expired");
        return false;
      }
      settle(
        batch.entries.filter((entry) => entry.expiresAt <= now),
        "expired",
      );
      batch.entries = live;
      return live.length > 0;
    });
    // Its sequence numbers may be known to the broker: another batch under them would pass for a duplicate and be lost.
    if (givenUp) producer.renew();
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
   * stored already and an idempotent producer needs the same batch again for those; then by halves, as a batch for one
   * partition is stored whole or not at all.
   */
  function divide(batch: Batch, failure: Failure): void {
    const groups = Map.groupBy(batch.entries, (entry) => entry.partition);
    const single = groups.size <= 1;
    const middle = Math.ceil(batch.entries.length / 2);
    const parts = single ? [batch.entries.slice(0, middle), batch.entries.slice(middle)] : [...groups.values()];
    if (single && failure.reason === "tooLarge") {
      const largest = batch.entries.reduce((most, entry) => Math.max(most, entry.bytes), 0);
      // Many small records too large together: the topic's limit is below ours.
      if (largest * 2 < batch.bytes) maxBytes = Math.max(Math.min(maxBytes, batch.bytes / 2), minBatchBytes);
    }
    const made = parts.map((entries) => {
      const bytes = entries.reduce((sum, entry) => sum + entry.bytes, 0);
      return { entries, bytes, sent: !single };
    });
    batches.splice(0, 1, ...made);
  }

  /** What to do before the next attempt; undefined: go on at once. */
  function handleFailure(batch: Batch, failure: Failure): "backoff" | "gate" | undefined {
    lastFailure = failure;
    if (failure.reason !== "unconnected") batch.sent = true;
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
        return "backoff";
    }
  }

  function wait(ms: number): Promise<void> {
    if (abandoning.signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      endWait = () => {
        timer.clear();
        resolve();
      };
      const timer = clock.setTimeout(endWait, ms * (0.75 + Math.random() / 2));
    });
  }

  /** A missing topic is looked for here, away from the producer that the other topics use. */
  async function passGate(): Promise<void> {
    for (let attempt = 0; gated && !abandoning.signal.aborted; attempt++) {
      const failure = await producer.probeTopic(topic);
      if (!failure) {
        gated = false;
        return;
      }
      lastFailure = failure;
      expire();
      if (batches.length === 0 && head === queue.length) return;
      // Only a producer's question makes a broker create a topic, so where it may, ask that way once in a while.
      if (attempt === attemptsAtGate && !options.probeFirst) {
        gated = false;
        return;
      }
      await wait(Math.min(gateBackoff.from * 2 ** Math.min(attempt, 10), gateBackoff.to));
    }
  }

  async function run(): Promise<void> {
    for (let failures = 0; !abandoning.signal.aborted;) {
      if (gated) await passGate();
      expire();
      let batch = batches[0];
      if (!batch) {
        batch = cut();
        if (!batch) break;
        batches.push(batch);
      }
      if (gated) continue;
      const startedAt = performance.now();
      const failure = await producer.send(topic, batch.entries);
      if (abandoning.signal.aborted) break;
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
      if (next === "gate") gated = true;
      await wait(Math.min(backoff.from * 2 ** Math.min(failures++, 10), backoff.to));
    }
    running = false;
  }

  return {
    push(entry) {
      queue.push(entry);
      if (running) return;
      running = true;
      // What else comes in this turn of the event loop goes with it.
      setImmediate(() => void run());
    },
    isIdle: () => !running,
    abandon() {
      const rest = [...batches.flatMap((batch) => batch.entries), ...queue.slice(head)];
      settle(rest, "closed");
      abandoning.abort();
      batches = [];
      queue = [];
      head = 0;
      endWait?.();
    },
  };
}
