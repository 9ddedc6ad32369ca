/** The rows of the table: what is measured, and what the figure should be. */
import { type Bench, connects, fanOut, type Figures, idle, ingest, latency, requests } from "./measure.ts";
import type { Setup } from "./servers/server.ts";

/** A figure that the gateway's is held against. */
export interface Goal {
  /** At most so much of Easegress' figure. */
  readonly share?: number;
  /**
   * Where Easegress isn't measured: its figure is about so many times Mosquitto's in that row (measured once, side by side
   * on one machine, see docs/performance.md).
   */
  readonly mosquitto?: { readonly row: string; readonly times: number };
  /** Where neither is: what Easegress' figure was then. */
  readonly once?: number;
  /** At most this much, whoever else is measured. */
  readonly atMost?: number;
}

export interface Row {
  readonly name: string;
  readonly title: string;
  readonly setup: Setup;
  /** The figure that counts. */
  readonly figure: keyof Figures;
  readonly unit: string;
  readonly goal: Goal;
  /** Another figure with a bound of its own. */
  readonly also?: {
    readonly figure: keyof Figures;
    readonly unit: string;
    readonly atMost?: number;
    readonly atLeast?: number;
  };
  /** The server must have done nothing else before. */
  readonly isFresh?: boolean;
  /** Only servers that publish by HTTP. */
  readonly http?: boolean;
  measure(bench: Bench): Promise<Figures>;
}

const message = { figure: "cpuUs", unit: "us a message" } as const;
const delivery = { figure: "cpuUs", unit: "us a delivery" } as const;
const request = { figure: "cpuUs", unit: "us a request" } as const;
const half = { share: 1 / 2 };
/** Mosquitto took 4.9 us beside which Easegress took so many. */
const ingestTimes = (us: number) => ({ row: "ingest-qos1", times: Math.round(us / 0.49) / 10 });
const easegressIngest = ingestTimes(18.2);
/** At QoS 0 a PINGRESP behind half of these says that they were taken. */
const qos0Window = 200;

function fanOutRow(name: string, title: string, subscribers: number, qos: 0 | 1, window: number): Row {
  const goal: Goal = { ...half, mosquitto: { row: name, times: qos === 1 ? 1.16 : 1.4 } };
  return {
    ...delivery,
    name,
    title,
    setup: "broker",
    goal,
    measure: (bench) => fanOut(bench, { subscribers, qos, window }),
  };
}

/** @param us Easegress' then */
function requestRow(name: string, title: string, subscribers: number, us: number, rate?: number): Row {
  const options = { subscribers, connections: 20, ...(rate === undefined ? {} : { rate }) };
  return {
    ...request,
    name,
    title,
    setup: "broker",
    http: true,
    goal: { ...half, mosquitto: ingestTimes(us) },
    measure: (bench) => requests(bench, options),
  };
}

export const rows: readonly Row[] = [
  {
    ...message,
    name: "kafka-qos1",
    title: "QoS 1 into Kafka, 50 clients, window 32",
    setup: "kafka",
    goal: { share: 1 / 2.5, mosquitto: easegressIngest },
    measure: (bench) => ingest(bench, { clients: 50, qos: 1, window: 32 }),
  },
  {
    ...message,
    name: "kafka-qos1-window1",
    title: "QoS 1 into Kafka, 500 clients, window 1",
    setup: "kafka",
    goal: { share: 0.8, mosquitto: easegressIngest },
    measure: (bench) => ingest(bench, { clients: 500, qos: 1, window: 1 }),
  },
  {
    ...message,
    name: "kafka-qos0",
    title: "QoS 0 into Kafka, 50 clients",
    setup: "kafka",
    goal: { share: 1 / 2.5, mosquitto: { row: "ingest-qos0", times: 8.1 } },
    measure: (bench) => ingest(bench, { clients: 50, qos: 0, window: qos0Window }),
  },
  {
    name: "kafka-latency",
    title: "Publish to readable in Kafka at 5,000/s",
    setup: "kafka",
    figure: "p50",
    unit: "ms p50",
    goal: { share: 1, once: 0.38 },
    also: { figure: "p99", unit: "ms p99", atMost: 6.3 },
    measure: (bench) => latency(bench, { rate: 5000 }),
  },
  {
    ...message,
    name: "mapper-qos1",
    title: "QoS 1 through TopicMapper into Kafka, 50 clients, window 32",
    setup: "mapper",
    goal: { share: 1 / 2.5, mosquitto: ingestTimes(23) },
    measure: (bench) => ingest(bench, { clients: 50, qos: 1, window: 32, isMapped: true }),
  },
  {
    ...message,
    name: "ingest-qos1",
    title: "QoS 1, nobody subscribes, 50 clients, window 32",
    setup: "broker",
    goal: {},
    measure: (bench) => ingest(bench, { clients: 50, qos: 1, window: 32 }),
  },
  {
    ...message,
    name: "ingest-qos1-window1",
    title: "QoS 1, nobody subscribes, 50 clients, window 1",
    setup: "broker",
    goal: {},
    measure: (bench) => ingest(bench, { clients: 50, qos: 1, window: 1 }),
  },
  {
    ...message,
    name: "ingest-qos0",
    title: "QoS 0, nobody subscribes, 50 clients",
    setup: "broker",
    goal: {},
    measure: (bench) => ingest(bench, { clients: 50, qos: 0, window: qos0Window }),
  },
  fanOutRow("fan-out-10", "1 to 10 subscribers, QoS 1, pipelined", 10, 1, 32),
  fanOutRow("fan-out-10-single", "1 to 10 subscribers, QoS 1, one at a time", 10, 1, 1),
  fanOutRow("fan-out-100", "1 to 100 subscribers, QoS 1, pipelined", 100, 1, 32),
  fanOutRow("fan-out-100-single", "1 to 100 subscribers, QoS 1, one at a time", 100, 1, 1),
  fanOutRow("fan-out-10-qos0", "1 to 10 subscribers, QoS 0, pipelined", 10, 0, 32),
  fanOutRow("fan-out-100-qos0", "1 to 100 subscribers, QoS 0, pipelined", 100, 0, 32),
  requestRow("http", "HTTP publish, nobody subscribes, 20 connections", 0, 183),
  requestRow("http-10", "HTTP publish, 10 subscribers, 20 connections", 10, 270),
  requestRow("http-calm", "HTTP publish, nobody subscribes, 100/s", 0, 1000, 100),
  requestRow("http-10-calm", "HTTP publish, 10 subscribers, 100/s", 10, 1000, 100),
  {
    name: "connects",
    title: "5,000 connects",
    setup: "broker",
    figure: "cpuUs",
    unit: "us a connect",
    goal: { atMost: 130 },
    also: { figure: "rate", unit: "a second", atLeast: 8000 },
    measure: (bench) => connects(bench, { clients: 5000 }),
  },
  {
    name: "idle",
    title: "5,000 idle clients, keep alive 60 s",
    setup: "broker",
    figure: "kib",
    unit: "KiB each",
    goal: { atMost: 10 },
    also: { figure: "cpuPercent", unit: "% of a core", atMost: 2 },
    isFresh: true,
    measure: (bench) => idle(bench, { clients: 5000, keepAlive: 60, rate: 2500 }),
  },
  {
    name: "idle-tls",
    title: "2,000 idle clients by TLS, keep alive 60 s",
    setup: "tls",
    figure: "kib",
    unit: "KiB each",
    goal: { atMost: 35 },
    also: { figure: "cpuPercent", unit: "% of a core", atMost: 2 },
    isFresh: true,
    measure: (bench) => idle(bench, { clients: 2000, keepAlive: 60, rate: 500 }),
  },
];

/** The rows of Mosquitto's that the goals of others come from and that are not among them. */
export function yardsticksOf(chosen: readonly Row[]): readonly Row[] {
  const wanted = new Set(chosen.flatMap(({ goal }) => goal.mosquitto?.row ?? []));
  return rows.filter((row) => wanted.has(row.name) && !chosen.includes(row));
}
