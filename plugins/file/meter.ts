/** What FileMQTT counts, and which topics can't be written at the moment. */
import type { Host } from "@sluice/kernel";

/** Topics whose problem is remembered; devices may choose topics, so there has to be an end. */
const maxProblems = 100;

export interface FileMeter {
  wrote(topic: string, records: number): void;
  failed(topic: string, records: number, problem: string): void;
  /** A record for which the queue had no room. */
  refused(): void;
  /** Records that came behind one of their client that failed. */
  withheld(records: number): void;
  observeWrite(bytes: number, seconds: number): void;
  synced(topic: string): void;
  syncFailed(topic: string, problem: string): void;
  rotated(): void;
  expired(): void;
  tore(): void;
  /** What went wrong last with a topic that has not been written since. */
  problem(): string | undefined;
}

export function createMeter(host: Host, state: { queuedBytes(): number; openFiles(): number }): FileMeter {
  const { metrics } = host;
  const filter = { filter: host.name };
  const count = (name: string, help: string) => metrics.counter(name, help, ["filter"]).with(filter);
  const outcomes = metrics.counter(
    "sluice_file_records_total",
    "Records that FileMQTT has written, failed to write, or refused: its queue was full, or an earlier one of the client failed",
    ["filter", "outcome"],
  );
  const written = outcomes.with({ ...filter, outcome: "written" });
  const failed = outcomes.with({ ...filter, outcome: "failed" });
  const refused = outcomes.with({ ...filter, outcome: "refused" });
  const behindFailed = outcomes.with({ ...filter, outcome: "behindFailed" });
  const bytes = count("sluice_file_written_bytes_total", "Bytes written to files");
  const syncFailures = count(
    "sluice_file_sync_failures_total",
    "Interval syncs that failed, after their records were acknowledged",
  );
  const rotations = count("sluice_file_rotations_total", "Files that were full and renamed");
  const expired = count("sluice_file_expired_files_total", "Rotated files deleted because of retention");
  const torn = count(
    "sluice_file_torn_records_total",
    "Records cut off at the end of a file, dropped when it was opened",
  );
  const writeSeconds = metrics
    .histogram("sluice_file_write_seconds", "Time to write one batch; with `fsync: always` also to sync it", ["filter"])
    .with(filter);
  metrics.gauge("sluice_file_queued_bytes", "Bytes of records that wait to be written", ["filter"], (gauge) =>
    gauge.set(filter, state.queuedBytes()),
  );
  metrics.gauge("sluice_file_open_files", "Files that are open for writing", ["filter"], (gauge) =>
    gauge.set(filter, state.openFiles()),
  );

  const problems = new Map<string, string>();
  const syncProblems = new Map<string, string>();
  function remember(known: Map<string, string>, topic: string, problem: string): void {
    known.delete(topic);
    known.set(topic, problem);
    const [oldest] = known.keys();
    if (known.size > maxProblems && oldest !== undefined) known.delete(oldest);
  }

  return {
    wrote(topic, records) {
      written.inc(records);
      problems.delete(topic);
    },
    failed(topic, records, problem) {
      failed.inc(records);
      // One line when it begins, not one for each of the packets that a device sends again and again.
      if (!problems.has(topic)) host.log.error({ problem }, "records can't be written; they are not acknowledged");
      remember(problems, topic, problem);
    },
    refused: () => refused.inc(),
    withheld: (records) => behindFailed.inc(records),
    observeWrite(size, seconds) {
      bytes.inc(size);
      writeSeconds.observe(seconds);
    },
    synced: (topic) => void syncProblems.delete(topic),
    syncFailed(topic, problem) {
      syncFailures.inc();
      remember(syncProblems, topic, problem);
    },
    rotated: () => rotations.inc(),
    expired: () => expired.inc(),
    tore: () => torn.inc(),
    problem: () => [...problems.values(), ...syncProblems.values()].at(-1),
  };
}
