/** How much of a filter waits in memory, and what became of it. */
import type { Host } from "@sluice/kernel";

export interface QueueGauge {
  readonly records: number;
  readonly bytes: number;
  enter(bytes: number): void;
  leave(bytes: number): void;
  acked(): void;
}

export function createQueueGauge(host: Host, isConnected: () => boolean): QueueGauge {
  const { metrics } = host;
  const labels = { filter: host.name };
  let records = 0;
  let bytes = 0;
  const acked = metrics
    .counter("sluice_kafka_records_acked_total", "Records that Kafka has acknowledged", ["filter"])
    .with(labels);
  metrics.gauge("sluice_kafka_queue_records", "Records waiting in memory", ["filter"], (gauge) =>
    gauge.set(labels, records),
  );
  metrics.gauge("sluice_kafka_queue_bytes", "Bytes of those records", ["filter"], (gauge) => gauge.set(labels, bytes));
  metrics.gauge(
    "sluice_kafka_connected",
    "1 while Kafka answers, 0 while it does not",
    ["filter"],
    (gauge) => gauge.set(labels, isConnected() ? 1 : 0),
    { merge: "min" },
  );
  return {
    get records() {
      return records;
    },
    get bytes() {
      return bytes;
    },
    enter(size) {
      records++;
      bytes += size;
    },
    leave(size) {
      records--;
      bytes -= size;
    },
    acked: () => acked.inc(),
  };
}
