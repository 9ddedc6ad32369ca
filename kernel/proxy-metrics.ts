/** The series of one proxy, each taken from the registry once. */
import type { CloseReason } from "./connection.ts";
import type { Metrics } from "./plugin.ts";
import type { StoreCounts } from "./store.ts";

type Cell = { inc(by?: number): void };

/** Since the proxy was made. */
export interface ProxyTotals {
  readonly packetsReceived: number;
  readonly packetsSent: number;
  readonly messagesReceived: number;
  readonly messagesSent: number;
  readonly messagesDropped: number;
}

export function addTotals(a: ProxyTotals, b: ProxyTotals): ProxyTotals {
  return {
    packetsReceived: a.packetsReceived + b.packetsReceived,
    packetsSent: a.packetsSent + b.packetsSent,
    messagesReceived: a.messagesReceived + b.messagesReceived,
    messagesSent: a.messagesSent + b.messagesSent,
    messagesDropped: a.messagesDropped + b.messagesDropped,
  };
}

export interface ProxyMetrics {
  readonly totals: ProxyTotals;
  received(type: string): void;
  sent(type: string): void;
  messageIn(): void;
  delivered(): void;
  resent(): void;
  delayed(): void;
  repeated(): void;
  dropped(reason: string, count?: number): void;
  withheld(reason: string): void;
  deadLettered(reason: string): void;
  deadLetterFailed(): void;
  suspectForgotten(): void;
  paused(reason: string): void;
  subscriptionRefused(reason: string): void;
  addressForgotten(): void;
  accepted(): void;
  refused(reason: string): void;
  refusedBytes(code: string): void;
  closed(why: CloseReason): void;
}

export function createProxyMetrics(
  proxy: string,
  metrics: Metrics,
  read: () => { connections: number; pending: number } & StoreCounts,
): ProxyMetrics {
  /** A counter by one more label, whose cells are looked up without making a label object each time. */
  function by(name: string, help: string, label: string): (value: string, count?: number) => void {
    const counter = metrics.counter(name, help, ["proxy", label]);
    const cells = new Map<string, Cell>();
    return (value, count) => {
      let cell = cells.get(value);
      if (!cell) cells.set(value, (cell = counter.with({ proxy, [label]: value })));
      cell.inc(count);
    };
  }
  function one(name: string, help: string): () => void {
    const cell = metrics.counter(name, help, ["proxy"]).with({ proxy });
    return () => cell.inc();
  }
  function gauge(name: string, help: string, value: () => number): void {
    metrics.gauge(name, help, ["proxy"], (series) => series.set({ proxy }, value()));
  }

  gauge("sluice_connections", "Clients connected.", () => read().connections);
  gauge("sluice_connections_pending", "Connections that are not admitted yet.", () => read().pending);
  gauge("sluice_sessions", "Sessions, of connected and of absent clients.", () => read().sessions);
  gauge("sluice_subscriptions", "Subscriptions of all sessions.", () => read().subscriptions);

  gauge("sluice_queued_messages", "Deliveries that wait or are in flight, of all sessions.", () => read().queued);
  gauge("sluice_queued_bytes", "Bytes of the messages held, each once.", () => read().queuedBytes);
  gauge("sluice_retained_messages", "Topics with a retained message.", () => read().retained);
  gauge("sluice_retained_bytes", "Bytes of the retained messages.", () => read().retainedBytes);

  const totals = { packetsReceived: 0, packetsSent: 0, messagesReceived: 0, messagesSent: 0, messagesDropped: 0 };
  const received = by("sluice_packets_received_total", "MQTT packets received, by type.", "type");
  const sent = by("sluice_packets_sent_total", "MQTT packets sent, by type.", "type");
  const messageIn = one("sluice_messages_in_total", "Messages taken from clients, their wills and the HTTP endpoint.");
  const delivered = one("sluice_messages_out_total", "Messages sent to subscribers, resends not counted.");
  const dropped = by(
    "sluice_messages_dropped_total",
    "Messages that reached no sink or subscriber, by reason.",
    "reason",
  );
  return {
    totals,
    received(type) {
      totals.packetsReceived++;
      received(type);
    },
    sent(type) {
      totals.packetsSent++;
      sent(type);
    },
    messageIn() {
      totals.messagesReceived++;
      messageIn();
    },
    delivered() {
      totals.messagesSent++;
      totals.packetsSent++;
      delivered();
      sent("publish");
    },
    resent: one(
      "sluice_messages_resent_total",
      "Deliveries sent again: to a client that came back, or because no ack came in time.",
    ),
    delayed: one("sluice_publishes_delayed_total", "PUBLISH packets that waited for clientPublishLimit."),
    repeated: one(
      "sluice_publishes_repeated_total",
      "QoS 2 PUBLISH packets that had come before, and were not handled again.",
    ),
    dropped(reason, count = 1) {
      totals.messagesDropped += count;
      dropped(reason, count);
    },
    withheld: by(
      "sluice_publishes_unacknowledged_total",
      "PUBLISH packets of QoS 1 and 2 that got no ack, by reason.",
      "reason",
    ),
    deadLettered: by(
      "sluice_dead_letters_total",
      "PUBLISH packets that faulted again and again and passed the dead-letter pipeline, by reason.",
      "reason",
    ),
    deadLetterFailed: one(
      "sluice_dead_letters_failed_total",
      "PUBLISH packets that did not pass the dead-letter pipeline either, and got no ack.",
    ),
    suspectForgotten: one(
      "sluice_poison_suspects_forgotten_total",
      "Packets whose faults are no longer counted because too many others faulted.",
    ),
    paused: by("sluice_connection_pauses_total", "Times that reading from a connection paused, by reason.", "reason"),
    subscriptionRefused: by("sluice_subscriptions_refused_total", "Topic filters answered 0x80, by reason.", "reason"),
    addressForgotten: one(
      "sluice_rate_addresses_forgotten_total",
      "Addresses that connectionLimit no longer counts because too many others came.",
    ),
    accepted: one("sluice_connects_accepted_total", "CONNECTs answered with CONNACK 0."),
    refused: by("sluice_connects_refused_total", "Connections refused, by reason.", "reason"),
    refusedBytes: by("sluice_packets_refused_total", "Connections closed for bytes that MQTT does not allow.", "code"),
    closed: by("sluice_connections_closed_total", "Connections that ended, by reason.", "reason"),
  };
}
