/** What operators see of a cluster's troubles: each kind logged once, then counted, with a sum each half minute. */
import type { Clock, Host } from "@sluice/kernel";
import type { Failure, Reason } from "./failure.ts";
import { createSeldom } from "./seldom.ts";

const batchBuckets = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];

/** A filter that uses the cluster. Its host ends with it, so that the log and the series are asked for anew each time. */
export type Member = Pick<Host, "name" | "log" | "metrics">;

export interface Reporter {
  failed(failure: Failure, topic: string | undefined): void;
  recovered(outageMs: number): void;
  connected(): void;
  created(topic: string): void;
  /** A producer was replaced by a fresh one. */
  renewed(): void;
  isolated(topic: string, partition: number, failure: Failure): void;
  /** The fast encoder can't be used. */
  slowed(problem: string): void;
  /** A batch was acknowledged. */
  sent(records: number, seconds: number): void;
}

export function createReporter(members: ReadonlySet<Member>, brokers: readonly string[], clock: Clock): Reporter {
  const seldom = createSeldom<Reason | "isolated">(clock);

  function log(level: "info" | "warn", fields: object, message: string): void {
    const [first] = members;
    const filters = members.size > 1 ? { filters: [...members].map(({ name }) => name) } : {};
    first?.log[level]({ brokers, ...filters, ...fields }, message);
  }

  function logSeldom(about: Reason | "isolated", fields: object, message: string): void {
    seldom.say(about, (more) => log("warn", { ...fields, ...more }, message));
  }

  function count(name: string, help: string, labels: Readonly<Record<string, string>> = {}): void {
    const names = ["filter", ...Object.keys(labels)];
    for (const { metrics, name: filter } of members) metrics.counter(name, help, names).inc({ filter, ...labels });
  }

  return {
    failed(failure, topic) {
      const { reason, message, broker } = failure;
      count("sluice_kafka_errors_total", "Failed sends and connects", { reason });
      const at = { ...(topic === undefined ? {} : { topic }), ...(broker === undefined ? {} : { broker }) };
      logSeldom(reason, { reason, ...at }, `Kafka: ${message}; records wait and are sent again`);
    },
    recovered(outageMs) {
      for (const reason of ["unconnected", "unavailable", "internal"] as const) seldom.forget(reason);
      log("info", { outageMs }, "Kafka: working again");
    },
    connected: () => log("info", {}, "Kafka: connected"),
    created: (topic) => log("info", { topic }, "Kafka: topic created"),
    renewed: () => count("sluice_kafka_producer_renewals_total", "Producers replaced by a fresh one"),
    isolated(topic, partition, { message }) {
      count(
        "sluice_kafka_partitions_isolated_total",
        "Times that a partition failed by itself and got a queue of its own",
      );
      const text = `Kafka: partition ${partition} of ${topic}: ${message}; its records wait, those of others go on`;
      logSeldom("isolated", { topic, partition }, text);
    },
    slowed: (problem) =>
      log(
        "warn",
        { problem },
        "Kafka: records are encoded by kafkajs, at some three times the CPU; nothing else changes",
      ),
    sent(records, seconds) {
      for (const { metrics, name: filter } of members) {
        metrics
          .histogram("sluice_kafka_batch_records", "Records in a batch that was sent", ["filter"], batchBuckets)
          .observe({ filter }, records);
        metrics
          .histogram("sluice_kafka_send_seconds", "From sending a batch to Kafka's acknowledgement", ["filter"])
          .observe({ filter }, seconds);
      }
    },
  };
}
