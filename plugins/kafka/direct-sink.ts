/** Records to Kafka by way of memory: acknowledged when Kafka has them (`ack: kafka`), or on arrival (`ack: received`). */
import type { Client, FilterContext, FilterResult, Host } from "@sluice/kernel";
import type { Cluster } from "./cluster.ts";
import type { Config } from "./config.ts";
import type { Outcome, Owner } from "./entry.ts";
import { createHold, keeperOf } from "./hold.ts";
import type { Sink } from "./index.ts";
import { createQueueGauge } from "./queue-gauge.ts";
import { waitingFault } from "./waiting-fault.ts";

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

  const owner: Owner = {
    settled(entry, outcome, failure) {
      queue.leave(entry.bytes);
      if (outcome === "acked") {
        queue.acked();
        entry.resolve?.();
      } else {
        refuse(outcome);
        const last = failure ? ` (last: ${failure.message})` : "";
        if (outcome === "expired" || outcome === "closed") {
          entry.reject?.(waitingFault(`${describe(outcome, entry.topic, config)}${last}`));
        } else {
          entry.resolve?.(outcome);
        }
      }
      if (queue.records === 0) whenEmpty?.();
    },
  };

  function fail(reason: string, message: string, client: Client | undefined): never {
    refuse(reason);
    hold.begin(client);
    throw waitingFault(message);
  }

  return {
    take(content, ctx): FilterResult | Promise<FilterResult> {
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
      const expiresAt = clock.now() + config.deliveryTimeoutMs;
      if (!waits) {
        // Its payload is a view of what was read from a socket, and the packet is through before it is sent.
        const value = Buffer.from(content.value);
        cluster.push(topic, { ...content, value, expiresAt, clientId: ctx.client.id, owner });
        return undefined;
      }
      return new Promise<FilterResult>((resolve, reject) => {
        const { key, value, headers, timestamp, partition } = content;
        cluster.push(topic, {
          topic,
          key,
          value,
          headers,
          timestamp,
          partition,
          bytes,
          expiresAt,
          clientId: ctx.client.id,
          owner,
          resolve(result) {
            if (result !== undefined) deps.explain(ctx, result, topic);
            resolve(result);
          },
          reject(error) {
            hold.begin(client);
            reject(error);
          },
        });
      });
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
