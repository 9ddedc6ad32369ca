/** The series of NATSCluster. */
import type { Counter, Metrics } from "@sluice/kernel";
import type { LiveMeters } from "./live.ts";
import type { PublisherMeters } from "./publisher.ts";

export interface Meters extends LiveMeters, PublisherMeters {
  /** Guarded writes that were refused. */
  readonly conflicts: Counter;
  /** Several of a session's writes sent as one: `written`, or done `apart` after all. */
  readonly batches: Counter;
}

export interface Readings {
  interest(): number;
  waiting(): number;
  waitingSeconds(): number;
  peers(): number;
  connected(): boolean;
}

export function createMeters(metrics: Metrics, read: Readings): Meters {
  metrics.gauge("sluice_nats_connected", "1 while a NATS server answers.", [], (gauge) =>
    gauge.set({}, read.connected() ? 1 : 0),
  );
  metrics.gauge("sluice_nats_subscriptions", "Subjects that this node asks NATS for.", [], (gauge) =>
    gauge.set({}, read.interest()),
  );
  metrics.gauge("sluice_nats_waiting", "Writes that NATS has not confirmed yet.", [], (gauge) =>
    gauge.set({}, read.waiting()),
  );
  metrics.gauge("sluice_nats_waiting_seconds", "How long the oldest message has waited to be confirmed.", [], (gauge) =>
    gauge.set({}, read.waitingSeconds()),
  );
  metrics.gauge("sluice_nats_peers", "Other nodes that are up.", [], (gauge) => gauge.set({}, read.peers()));
  return {
    received: metrics.counter("sluice_nats_received_total", "Messages that NATS brought this node.", ["proxy"]),
    doubled: metrics.counter(
      "sluice_nats_doubled_total",
      "Messages that NATS brought twice, since two subscriptions of this node match them, and that were left out once.",
      ["proxy"],
    ),
    sent: metrics.counter("sluice_nats_sent_total", "Messages of QoS 0 sent to other nodes.", ["proxy"]),
    unsent: metrics.counter(
      "sluice_nats_unsent_total",
      "Messages of QoS 0 not sent to other nodes: NATS is away or too slow, or they are too large.",
      ["proxy"],
    ),
    retries: metrics.counter("sluice_nats_retries_total", "Writes that were sent to NATS again."),
    failures: metrics.counter(
      "sluice_nats_failures_total",
      "Messages that NATS did not confirm, and that were not acknowledged.",
      ["reason"],
    ),
    batches: metrics.counter(
      "sluice_nats_batches_total",
      "Writes of a session that were sent to NATS as one: `written`, or written `apart`, since it was not known to have come to anything.",
      ["proxy", "outcome"],
    ),
    conflicts: metrics.counter(
      "sluice_nats_conflicts_total",
      "Writes of sessions that NATS refused, since another node owns them: `taken` while taking over, `fenced` later.",
      ["proxy", "kind"],
    ),
  };
}
