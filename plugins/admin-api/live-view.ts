/** What `sluice top` shows: two readings of a gateway's metrics, and what happened in between. */
import { type Exposition, sumOf } from "./exposition.ts";
import { formatTable } from "./table.ts";

export interface Reading {
  /** Seconds, of a clock that only goes forward. */
  readonly at: number;
  readonly metrics: Exposition;
}

export interface ProxyView {
  readonly proxy: string;
  readonly clients: number;
  /** All of these a second. */
  readonly connects: number;
  readonly in: number;
  readonly out: number;
  readonly acks: number;
  readonly unacknowledged: number;
  readonly dropped: number;
  readonly deadLetters: number;
  /** Deliveries that wait or are in flight. */
  readonly queued: number;
}

export interface FilterView {
  readonly filter: string;
  readonly kind: string;
  readonly packets: number;
  readonly faults: number;
  /** Records or packets that wait in memory. */
  readonly waiting: number;
  /** Of KafkaMQTT: whether Kafka answers. */
  readonly kafka?: "connected" | "away";
  /** Records in its disk buffer, and seconds since the oldest came. */
  readonly buffered?: number;
  readonly bufferAge?: number;
}

/** A KafkaSource. */
export interface SourceView {
  readonly source: string;
  /** Records a second that are over with. */
  readonly records: number;
  /** Records in Kafka that are not over with. */
  readonly lag: number;
  /** Fetched, or handed to the proxy. */
  readonly waiting: number;
  readonly kafka: "connected" | "away";
}

export interface LiveView {
  readonly seconds: number;
  /** Percent of one core. */
  readonly cpu: number;
  readonly memoryBytes: number;
  readonly heapBytes: number;
  readonly eventLoopDelayMs: { readonly p50: number; readonly p99: number; readonly max: number };
  /** Milliseconds of pause a second, by kind of collection. */
  readonly gcMs: Readonly<Record<string, number>>;
  readonly proxies: readonly ProxyView[];
  readonly filters: readonly FilterView[];
  readonly sources: readonly SourceView[];
  /** Packets in pipelines now. */
  readonly active: number;
}

const gcPauses = "sluice_gc_pause_seconds";
const ackTypes = ["puback", "pubrec", "pubcomp"];

export function compare(before: Reading, now: Reading): LiveView {
  const seconds = Math.max(0.001, now.at - before.at);
  /** A second; a gateway that was started anew in between has counted from 0. */
  const rate = (name: string, labels: Readonly<Record<string, string>> = {}): number =>
    Math.max(0, sumOf(now.metrics, name, labels) - sumOf(before.metrics, name, labels)) / seconds;
  const value = (name: string, labels: Readonly<Record<string, string>> = {}): number =>
    sumOf(now.metrics, name, labels);
  const has = (name: string, labels: Readonly<Record<string, string>>): boolean =>
    (now.metrics.get(name) ?? []).some((each) =>
      Object.entries(labels).every(([key, wanted]) => each.labels[key] === wanted),
    );
  const valuesOf = (name: string, label: string): string[] => [
    ...new Set((now.metrics.get(name) ?? []).flatMap(({ labels }) => labels[label] ?? [])),
  ];
  /** Of several workers the one that is latest. */
  const delay = (stat: string): number =>
    (now.metrics.get("sluice_event_loop_delay_seconds") ?? [])
      .filter(({ labels }) => labels["stat"] === stat)
      .reduce((most, each) => Math.max(most, 1000 * each.value), 0);

  return {
    seconds,
    cpu: 100 * rate("sluice_process_cpu_seconds"),
    memoryBytes: value("sluice_process_memory_bytes", { part: "rss" }),
    heapBytes: value("sluice_process_memory_bytes", { part: "heapUsed" }),
    eventLoopDelayMs: { p50: delay("p50"), p99: delay("p99"), max: delay("max") },
    gcMs: Object.fromEntries(
      valuesOf(`${gcPauses}_sum`, "kind").map((kind) => [kind, 1000 * rate(`${gcPauses}_sum`, { kind })]),
    ),
    active: value("sluice_pipeline_packets_active"),
    proxies: valuesOf("sluice_connections", "proxy").map((proxy) => ({
      proxy,
      clients: value("sluice_connections", { proxy }),
      connects: rate("sluice_connects_accepted_total", { proxy }),
      in: rate("sluice_messages_in_total", { proxy }),
      out: rate("sluice_messages_out_total", { proxy }),
      acks: ackTypes.reduce((sum, type) => sum + rate("sluice_packets_sent_total", { proxy, type }), 0),
      unacknowledged: rate("sluice_publishes_unacknowledged_total", { proxy }),
      dropped: rate("sluice_messages_dropped_total", { proxy }),
      deadLetters: rate("sluice_dead_letters_total", { proxy }),
      queued: value("sluice_queued_messages", { proxy }),
    })),
    sources: valuesOf("sluice_kafka_source_connected", "service").map((service) => ({
      source: service,
      records: rate("sluice_kafka_source_records_total", { service }),
      lag: value("sluice_kafka_source_lag_records", { service }),
      waiting:
        value("sluice_kafka_source_queue_records", { service }) +
        value("sluice_kafka_source_inflight_records", { service }),
      kafka: value("sluice_kafka_source_connected", { service }) > 0 ? ("connected" as const) : ("away" as const),
    })),
    filters: filtersOf(now.metrics).map(({ pipeline, filter, kind }) => {
      const labels = { pipeline, filter, kind };
      const name = `${pipeline}/${filter}`;
      const own = { filter: name };
      return {
        filter: name,
        kind,
        packets: rate("sluice_filter_packets_total", labels),
        faults: rate("sluice_filter_packets_total", { ...labels, outcome: "fault" }),
        waiting: value("sluice_kafka_queue_records", own) + value("sluice_isolated_packets", own),
        ...(has("sluice_kafka_connected", own) && {
          // Of several workers, all.
          kafka: value("sluice_kafka_connected", own) > 0 ? ("connected" as const) : ("away" as const),
        }),
        ...(has("sluice_kafka_buffer_records", own) && {
          buffered: value("sluice_kafka_buffer_records", own),
          bufferAge: value("sluice_kafka_buffer_age_seconds", own),
        }),
      };
    }),
  };
}

/** Those that have had a packet, and those that write to Kafka, in the order of the page. */
function filtersOf(metrics: Exposition): { pipeline: string; filter: string; kind: string }[] {
  const found = new Map<string, { pipeline: string; filter: string; kind: string }>();
  for (const { labels } of metrics.get("sluice_filter_packets_total") ?? []) {
    const { pipeline = "", filter = "", kind = "" } = labels;
    found.set(`${pipeline}/${filter}`, { pipeline, filter, kind });
  }
  for (const { labels } of metrics.get("sluice_kafka_connected") ?? []) {
    const [pipeline = "", filter = ""] = (labels["filter"] ?? "").split("/");
    const name = `${pipeline}/${filter}`;
    if (!found.has(name)) found.set(name, { pipeline, filter, kind: "-" });
  }
  return [...found.values()];
}

/** For people: two lines on the process, a table of proxies, one of filters, and one of sources where there are any. Ends with a line end. */
export function formatView(view: LiveView, url: string): string {
  const { p50, p99, max } = view.eventLoopDelayMs;
  const gc = Object.entries(view.gcMs).map(([kind, ms]) => `${kind} ${ms.toFixed(1)}`);
  const lines = [
    `${url}   CPU ${view.cpu.toFixed(0)} %   memory ${megabytes(view.memoryBytes)} MB (heap ${megabytes(view.heapBytes)})   in pipelines ${view.active}`,
    `event loop late by ${p50.toFixed(1)} ms (p50), ${p99.toFixed(1)} (p99), ${max.toFixed(1)} (most)   GC ms/s: ${gc.join(", ") || "none"}`,
    "",
  ];
  const proxies = [
    ["PROXY", "CLIENTS", "CONNECTS/S", "IN/S", "OUT/S", "ACKS/S", "NO ACK/S", "DEAD/S", "DROPPED/S", "QUEUED"],
    ...view.proxies.map((each) => [
      each.proxy,
      String(each.clients),
      perSecond(each.connects),
      perSecond(each.in),
      perSecond(each.out),
      perSecond(each.acks),
      perSecond(each.unacknowledged),
      perSecond(each.deadLetters),
      perSecond(each.dropped),
      String(each.queued),
    ]),
  ];
  const filters = [
    ["FILTER", "KIND", "PACKETS/S", "FAULTS/S", "WAITING", "KAFKA", "BUFFERED", "AGE S"],
    ...view.filters.map((each) => [
      each.filter,
      each.kind,
      perSecond(each.packets),
      perSecond(each.faults),
      String(each.waiting),
      each.kafka ?? "-",
      each.buffered === undefined ? "-" : String(each.buffered),
      each.bufferAge === undefined ? "-" : each.bufferAge.toFixed(1),
    ]),
  ];
  const sources = [
    ["SOURCE", "RECORDS/S", "LAG", "WAITING", "KAFKA"],
    ...view.sources.map(({ source, records, lag, waiting, kafka }) => [
      source,
      perSecond(records),
      String(lag),
      String(waiting),
      kafka,
    ]),
  ];
  const tables = [proxies, filters, ...(view.sources.length > 0 ? [sources] : [])];
  return `${lines.join("\n")}\n${tables.map(formatTable).join("\n")}`;
}

function perSecond(rate: number): string {
  return rate === 0 || rate >= 10 ? rate.toFixed(0) : rate.toFixed(1);
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(0);
}
