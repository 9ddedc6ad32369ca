/** What a KafkaSource counts, and what operators are told of it. */
import type { Host } from "@sluice/kernel";
import type { Failure } from "./failure.ts";
import { createSeldom } from "./seldom.ts";
import type { SourceRecord, Unmapped } from "./source-mapper.ts";

/** `nobody`: no session was there for it. */
export type RecordEnd = "published" | "nobody" | "deadLettered" | "skipped";

export interface SourceState {
  readonly inFlight: number;
  readonly queued: number;
  readonly queuedBytes: number;
  readonly partitions: number;
  readonly isConnected: boolean;
  readonly lagByTopic: ReadonlyMap<string, number>;
}

export interface SourceMeter {
  ended(how: RecordEnd): void;
  /** @param fate what becomes of the record, in words */
  unmapped(record: SourceRecord, why: Unmapped, fate: string): void;
  deadLetterFailed(reason: string, message: string): void;
  retried(record: SourceRecord, code: string, message: string): void;
  unacknowledged(): void;
  failed(failure: Failure): void;
  joined(partitions: number): void;
  missing(topics: readonly string[]): void;
  committed(): void;
  paused(): void;
}

export function createSourceMeter(host: Host, state: () => SourceState): SourceMeter {
  const { metrics, log, name: service } = host;
  const own = { service };
  const seldom = createSeldom<string>(host.clock);
  const counter = (name: string, help: string, labels: readonly string[] = []) =>
    metrics.counter(name, help, ["service", ...labels]);
  const gauge = (name: string, help: string, value: (now: SourceState) => number): void => {
    metrics.gauge(name, help, ["service"], (each) => each.set(own, value(state())));
  };

  const records = counter("sluice_kafka_source_records_total", "Records that are over with", ["outcome"]);
  const unmapped = counter("sluice_kafka_source_unmapped_records_total", "Records that could not be mapped", [
    "reason",
  ]);
  const retries = counter(
    "sluice_kafka_source_retries_total",
    "Records that the proxy or the dead-letter topic could not take then",
    ["code"],
  );
  const unacknowledged = counter(
    "sluice_kafka_source_unacknowledged_total",
    "Records committed after acknowledgeTimeoutMs without an ack",
  );
  const errors = counter("sluice_kafka_source_errors_total", "Failures of consumers, commits and look-ups", ["reason"]);
  const joins = counter("sluice_kafka_source_assignments_total", "Times that the group assigned partitions");
  const commits = counter("sluice_kafka_source_commits_total", "Commits of offsets");
  const pauses = counter(
    "sluice_kafka_source_pauses_total",
    "Times that a partition was no longer fetched, as too much waited",
  );
  gauge(
    "sluice_kafka_source_inflight_records",
    "Records handed to the proxy and not over with",
    ({ inFlight }) => inFlight,
  );
  gauge("sluice_kafka_source_queue_records", "Records fetched and not yet handed to the proxy", ({ queued }) => queued);
  gauge("sluice_kafka_source_queue_bytes", "Bytes of those records", ({ queuedBytes }) => queuedBytes);
  gauge("sluice_kafka_source_partitions", "Partitions assigned", ({ partitions }) => partitions);
  gauge("sluice_kafka_source_connected", "1 while a member of the group, else 0", ({ isConnected }) =>
    isConnected ? 1 : 0,
  );
  let told: ReadonlySet<string> = new Set();
  metrics.gauge("sluice_kafka_source_lag_records", "Records not over with", ["service", "topic"], (each) => {
    const { lagByTopic } = state();
    // Of a topic that is another member's now.
    for (const topic of told) if (!lagByTopic.has(topic)) each.set({ service, topic }, 0);
    for (const [topic, lag] of lagByTopic) each.set({ service, topic }, lag);
    told = new Set(lagByTopic.keys());
  });

  const placeOf = ({ topic, partition, offset }: SourceRecord): object => ({
    topic,
    partition,
    offset: String(offset),
  });
  let wasMissing = "";
  let isFailing = false;
  return {
    ended: (outcome) => records.inc({ service, outcome }),
    unmapped(record, { reason, detail }, fate) {
      unmapped.inc({ service, reason });
      seldom.say(`unmapped ${reason}`, (more) =>
        log.warn({ reason, detail, ...placeOf(record), ...more }, `KafkaSource: a record can't be mapped; ${fate}`),
      );
    },
    deadLetterFailed(reason, message) {
      retries.inc({ service, code: reason });
      const text = `KafkaSource: the dead-letter topic can't be written: ${message}; the partition waits for it`;
      seldom.say(`deadLetter ${reason}`, (more) => log.warn({ reason, ...more }, text));
    },
    retried(record, code, message) {
      retries.inc({ service, code });
      seldom.say(`retry ${code}`, (more) =>
        log.warn({ code, ...placeOf(record), ...more }, `KafkaSource: ${message}; the record is tried again`),
      );
    },
    unacknowledged: () => unacknowledged.inc(own),
    failed({ reason, message, broker }) {
      isFailing = true;
      errors.inc({ service, reason });
      const at = broker === undefined ? {} : { broker };
      seldom.say(`failed ${reason}`, (more) =>
        log.warn({ reason, ...at, ...more }, `KafkaSource: ${message}; it goes on where the group has committed`),
      );
    },
    joined(partitions) {
      joins.inc(own);
      log.info({ partitions }, `KafkaSource: ${isFailing ? "working again" : "partitions assigned"}`);
      if (!isFailing) return;
      isFailing = false;
      for (const reason of ["unconnected", "unavailable", "internal", "unknownTopic"])
        seldom.forget(`failed ${reason}`);
    },
    missing(topics) {
      if (topics.join() !== wasMissing && topics.length > 0) log.warn({ topics }, "KafkaSource: topics do not exist");
      wasMissing = topics.join();
    },
    committed: () => commits.inc(own),
    paused: () => pauses.inc(own),
  };
}
