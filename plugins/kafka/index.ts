/** KafkaMQTT: each packet becomes a Kafka record, and is through when Kafka has acknowledged it. */
import type { Filter, FilterKind, FilterResult, Host } from "@sluice/kernel";
import { validate, type Config } from "./config.ts";
import type { Failure } from "./failure.ts";
import { createLane, type Lane, type Outcome } from "./lane.ts";
import { createProducer } from "./producer.ts";
import { createRecordBuilder, type Entry } from "./record.ts";

/** Milliseconds that `close` waits for records under way. */
const closeWithinMs = 3000;
/** Beyond this many topics, lanes with nothing to do are dropped before another is made. */
const maxIdleLanes = 1000;
const batchBuckets = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];

const kind: FilterKind<Config> = {
  kind: "KafkaMQTT",
  packets: ["Connect", "Publish", "Subscribe", "Unsubscribe", "Disconnect"],
  results: ["getDataFailed", "illegalTopic", "recordTooLarge"],
  // None is in `discards`: a record that can't be written is a fault, unless jumpIf says where it goes instead.
  concurrent: true,
  validate,
  create: createFilter,
};
export default kind;

function createFilter(config: Config, host: Host): Filter {
  const { clock, metrics } = host;
  const labels = { filter: host.name };
  const build = createRecordBuilder(config);
  const producer = createProducer(config, host);
  const lanes = new Map<string, Lane>();
  let queuedRecords = 0;
  let queuedBytes = 0;
  let closed = false;
  let whenEmpty: (() => void) | undefined;

  const acked = metrics
    .counter("sluice_kafka_records_acked_total", "Records that Kafka has acknowledged", ["filter"])
    .with(labels);
  const failed = metrics.counter("sluice_kafka_records_failed_total", "Records that did not reach Kafka", [
    "filter",
    "reason",
  ]);
  const batchRecords = metrics
    .histogram("sluice_kafka_batch_records", "Records in a batch that was sent", ["filter"], batchBuckets)
    .with(labels);
  const sendSeconds = metrics
    .histogram("sluice_kafka_send_seconds", "From sending a batch to Kafka's acknowledgement", ["filter"])
    .with(labels);
  metrics.gauge("sluice_kafka_queue_records", "Records waiting for Kafka's acknowledgement", ["filter"], (gauge) =>
    gauge.set(labels, queuedRecords),
  );
  metrics.gauge("sluice_kafka_queue_bytes", "Bytes of those records", ["filter"], (gauge) =>
    gauge.set(labels, queuedBytes),
  );
  metrics.gauge("sluice_kafka_connected", "1 while Kafka answers, 0 while it does not", ["filter"], (gauge) =>
    gauge.set(labels, producer.health().ok ? 1 : 0),
  );

  function refuse(reason: string): void {
    failed.inc({ ...labels, reason });
  }

  function settled(topic: string, entry: Entry, outcome: Outcome, failure: Failure | undefined): void {
    queuedRecords--;
    queuedBytes -= entry.bytes;
    if (outcome === "acked") {
      acked.inc();
      entry.resolve();
    } else {
      refuse(outcome);
      if (outcome === "illegalTopic" || outcome === "recordTooLarge") entry.resolve(outcome);
      else
        entry.reject(new Error(`${describe(outcome, topic, config)}${failure ? ` (last: ${failure.message})` : ""}`));
    }
    if (queuedRecords === 0) whenEmpty?.();
  }

  function laneOf(topic: string): Lane {
    const known = lanes.get(topic);
    if (known) return known;
    if (lanes.size >= maxIdleLanes) {
      for (const [name, lane] of lanes) if (lane.isIdle()) lanes.delete(name);
    }
    const lane = createLane({
      topic,
      producer,
      clock,
      maxBatchBytes: config.maxBatchBytes,
      probeFirst: config.createTopics !== "broker",
      settled: (entry, outcome, failure) => settled(topic, entry, outcome, failure),
      sent(records, seconds) {
        batchRecords.observe(records);
        sendSeconds.observe(seconds);
      },
    });
    lanes.set(topic, lane);
    return lane;
  }

  return {
    handle(ctx): FilterResult | Promise<FilterResult> {
      const content = build(ctx);
      if (typeof content === "string") {
        refuse(content);
        return content;
      }
      const { topic, key, value, headers, bytes } = content;
      if (bytes > config.maxQueuedBytes) {
        refuse("recordTooLarge");
        return "recordTooLarge";
      }
      if (closed) {
        refuse("closed");
        throw new Error(describe("closed", topic, config));
      }
      // The connection's own cap pauses its socket long before; this bounds the sum of all connections.
      if (queuedRecords >= config.maxQueuedRecords || queuedBytes + bytes > config.maxQueuedBytes) {
        refuse("queueFull");
        throw new Error(
          `${queuedRecords} records (${queuedBytes} bytes) wait for Kafka: the queue is full; see health, or raise maxQueuedRecords and maxQueuedBytes`,
        );
      }
      queuedRecords++;
      queuedBytes += bytes;
      const now = clock.now();
      return new Promise<FilterResult>((resolve, reject) => {
        const expiresAt = now + config.deliveryTimeoutMs;
        laneOf(topic).push({ key, value, headers, timestamp: String(now), bytes, expiresAt, resolve, reject });
      });
    },

    health: () => producer.health(),

    async close() {
      closed = true;
      if (queuedRecords > 0) {
        await new Promise<void>((resolve) => {
          const timer = clock.setTimeout(resolve, closeWithinMs);
          whenEmpty = () => {
            timer.clear();
            resolve();
          };
        });
      }
      for (const lane of lanes.values()) lane.abandon();
      await producer.close();
    },
  };
}

function describe(outcome: Outcome, topic: string, { deliveryTimeoutMs }: Config): string {
  if (outcome === "closed") return `the filter was closed before Kafka acknowledged a record for topic ${topic}`;
  if (outcome === "invalidRecord")
    return `Kafka refuses a record for topic ${topic} as invalid; check the topic's settings`;
  return `Kafka did not acknowledge a record for topic ${topic} within ${deliveryTimeoutMs} ms`;
}
