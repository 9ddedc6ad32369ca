/** Records to Kafka by way of memory: acknowledged when Kafka has them (`ack: kafka`), or on arrival (`ack: received`). */
import type { Client, FilterContext, FilterResult, Host, PendingResult } from "@sluice/kernel";
import type { Cluster } from "./cluster.ts";
import type { Config } from "./config.ts";
import type { Outcome } from "./entry.ts";
import type { Failure } from "./failure.ts";
import { createHold, keeperOf } from "./hold.ts";
import type { Sink } from "./index.ts";
import { createQueueGauge } from "./queue-gauge.ts";
import { waitingFault } from "./waiting-fault.ts";
import { WaitingRecord } from "./waiting-record.ts";

/** Milliseconds that `close` waits for records under way. */
const closeWithinMs = 3000;
export interface DirectSinkDeps {
  readonly host: Host;
  readonly cluster: Cluster;
  readonly refuse: (reason: string) => void;
  /** Before a result becomes known. */
  explain(ctx: FilterContext, result: string, topic: string): void;
}

export function createDirectSink(config: Config, deps: DirectSinkDeps): Sink {
  const { host, cluster, refuse } = deps;
  const { clock } = host;
  const waits = config.ack === "kafka";
  const queue = createQueueGauge(host, () => cluster.health().ok);
  const hold = createHold(clock);
  let isClosed = false;
  let whenEmpty: (() => void) | undefined;

  const owner = {
    settled(entry: WaitingRecord, outcome: Outcome, failure: Failure | undefined): void {
      queue.leave(entry.bytes);
      if (outcome === "acked") {
        queue.acked();
        entry.resolve();
      } else {
        giveUp(entry, outcome, failure);
      }
      if (queue.records === 0) whenEmpty?.();
    },
  };

  function giveUp(entry: WaitingRecord, outcome: Exclude<Outcome, "acked">, failure: Failure | undefined): void {
    refuse(outcome);
    const { topic, ctx } = entry;
    if (outcome === "expired" || outcome === "closed") {
      const last = failure ? ` (last: ${failure.message})` : "";
      if (waits) hold.begin(keeperOf(ctx));
      entry.reject(waitingFault(`${describe(outcome, topic, config)}${last}`));
    } else {
      if (waits) deps.explain(ctx, outcome, topic);
      entry.resolve(outcome);
    }
  }

  function fail(reason: string, message: string, client: Client | undefined): never {
    refuse(reason);
    hold.begin(client);
    throw waitingFault(message);
  }

  return {
    take(content, ctx, now): FilterResult | PendingResult {
      const { topic, bytes } = content;
      if (bytes > config.maxQueuedBytes) {
        refuse("recordTooLarge");
        return "recordTooLarge";
      }
      const client = keeperOf(ctx);
      if (isClosed) fail("closed", describe("closed", topic, config), client);
      if (client && hold.isHeld(client)) {
        fail(
          "behindFailed",
          "an earlier packet of the connection failed: to keep their order, this one does too",
          client,
        );
      }
      // The connection's own cap pauses its socket long before; this bounds the sum of all connections.
      if (queue.records >= config.maxQueuedRecords || queue.bytes + bytes > config.maxQueuedBytes) {
        const waiting = `${queue.records} records (${queue.bytes} bytes) wait for Kafka`;
        const advice = "the queue is full; see health, or raise maxQueuedRecords and maxQueuedBytes";
        fail("queueFull", `${waiting}: ${advice}`, client);
      }
      queue.enter(bytes);
      // Its payload is a view of what was read from a socket, and without waiting the packet is through before it is sent.
      const kept = waits ? content : { ...content, value: Buffer.from(content.value) };
      const record = new WaitingRecord(kept, ctx, now + config.deliveryTimeoutMs, owner);
      cluster.push(topic, record);
      return waits ? record : undefined;
    },
    health: () => cluster.health(),
    async close() {
      isClosed = true;
      if (queue.records > 0) {
        await new Promise<void>((resolve) => {
          const timer = clock.setTimeout(resolve, closeWithinMs);
          whenEmpty = () => {
            timer.clear();
            resolve();
          };
        });
      }
      await cluster.leave([owner]);
    },
  };
}

function describe(outcome: Outcome, topic: string, { deliveryTimeoutMs }: Config): string {
  return outcome === "closed"
    ? `the filter was closed before Kafka acknowledged a record for topic ${topic}`
    : `Kafka did not acknowledge a record for topic ${topic} within ${deliveryTimeoutMs} ms`;
}
