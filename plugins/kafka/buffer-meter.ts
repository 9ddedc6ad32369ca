/** What is counted of a disk buffer. */
import type { Metrics } from "@sluice/kernel";

export interface BufferMeter {
  wrote(records: number, bytes: number, seconds: number): void;
  /** Not written because the disk failed, or is full. */
  failed(records: number): void;
  /** Not written because the buffer is full. */
  refused(records: number): void;
  /** Acknowledged to their devices, and gone: dropped as `onFull` says, too old, or not readable any more. */
  lost(reason: "dropped" | "expired" | "corrupt", records: number): void;
  /** Written to refused.ndjson because Kafka will never take them. */
  setAside(reason: string): void;
  corrupted(): void;
  tore(): void;
  syncFailed(): void;
}

export function createBufferMeter(metrics: Metrics, filter: string): BufferMeter {
  const labels = { filter };
  const counter = (name: string, help: string) => metrics.counter(name, help, ["filter"]).with(labels);
  const written = counter("sluice_kafka_buffer_records_written_total", "Records written to the disk buffer");
  const bytesWritten = counter("sluice_kafka_buffer_written_bytes_total", "Bytes written to the disk buffer");
  const seconds = metrics
    .histogram("sluice_kafka_buffer_write_seconds", "Time to write a batch to the disk buffer, its sync included", [
      "filter",
    ])
    .with(labels);
  const unwritten = metrics.counter(
    "sluice_kafka_buffer_records_unwritten_total",
    "Records that the disk buffer did not take",
    ["filter", "reason"],
  );
  const lost = metrics.counter(
    "sluice_kafka_buffer_records_lost_total",
    "Records that were acknowledged and are gone from the disk buffer",
    ["filter", "reason"],
  );
  const aside = metrics.counter(
    "sluice_kafka_buffer_records_refused_total",
    "Records that Kafka will never take, now in refused.ndjson",
    ["filter", "reason"],
  );
  const corrupted = counter("sluice_kafka_buffer_corrupt_segments_total", "Segments of which a part could not be read");
  const torn = counter("sluice_kafka_buffer_torn_segments_total", "Segments that ended within a record after a crash");
  const syncFailures = counter("sluice_kafka_buffer_sync_failures_total", "Syncs that failed after an acknowledgement");
  return {
    wrote(records, bytes, took) {
      written.inc(records);
      bytesWritten.inc(bytes);
      seconds.observe(took);
    },
    failed: (records) => unwritten.inc({ ...labels, reason: "failed" }, records),
    refused: (records) => unwritten.inc({ ...labels, reason: "full" }, records),
    lost: (reason, records) => lost.inc({ ...labels, reason }, records),
    setAside: (reason) => aside.inc({ ...labels, reason }),
    corrupted: () => corrupted.inc(),
    tore: () => torn.inc(),
    syncFailed: () => syncFailures.inc(),
  };
}
