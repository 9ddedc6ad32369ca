/** How a figure is got: a load runs, and between two moments of it the server's CPU and what it has done are compared. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Generator, Reading, RunningLoad } from "./generator.ts";
import { minus, shareOf } from "./load/latencies.ts";
import { mappedTopic } from "./servers/documents.ts";
import type { Server } from "./servers/server.ts";
import { usageOf } from "./usage.ts";

export interface Figures {
  /** CPU microseconds of the server: for a message, delivery, request or connection. NaN where its process is unknown. */
  readonly cpuUs?: number;
  /** Of those, a second. */
  readonly rate?: number;
  /** CPU microseconds of the generator for the same. */
  readonly generatorUs?: number;
  /** Milliseconds. */
  readonly p50?: number;
  readonly p99?: number;
  /** What never arrived although it was acknowledged, at QoS 0 although it was sent; or requests that were refused. */
  readonly lost?: number;
  /** A connection: KiB of memory as it is; and with the garbage collected, where that can be asked for. */
  readonly kib?: number;
  readonly collectedKib?: number;
  /** Of one core. */
  readonly cpuPercent?: number;
}

export interface Bench {
  readonly server: Server;
  readonly generator: Generator;
  /** For a load that reads while the other one writes. */
  readonly reader: Generator;
  /** How long is looked at. */
  readonly seconds: number;
  readonly warmUpSeconds: number;
  /** Where the server writes to Kafka. */
  readonly kafka:
    | { readonly brokers: readonly string[]; readonly topic: string; readonly arrived: () => Promise<number> }
    | undefined;
}

const payloadBytes = 128;
/** What has not arrived this long after the last that did never will. */
const lateMs = 5000;

interface Window {
  readonly before: Reading;
  readonly after: Reading;
  readonly cpuUs: number;
}

async function look(server: Server, load: RunningLoad, seconds: number): Promise<Window> {
  const before = await load.read();
  const used = cpuOf(server);
  await sleep(seconds * 1000);
  const cpuUs = cpuOf(server) - used;
  return { before, after: await load.read(), cpuUs };
}

function cpuOf({ pid }: Server): number {
  return pid === undefined ? Number.NaN : usageOf(pid).cpuUs;
}

/** @param count of what the figures are about */
function figures({ before, after, cpuUs }: Window, count: (reading: Reading) => number): Figures {
  const items = count(after) - count(before);
  if (items <= 0) throw new Error("nothing was done while it was measured");
  const times = minus(after.latencies, before.latencies);
  return {
    cpuUs: cpuUs / items,
    rate: (items * 1000) / (after.at - before.at),
    generatorUs: (after.cpuUs - before.cpuUs) / items,
    p50: shareOf(times, 0.5),
    p99: shareOf(times, 0.99),
  };
}

export interface IngestOptions {
  readonly clients: number;
  readonly qos: 0 | 1;
  readonly window: number;
  readonly topics?: readonly string[];
  readonly payloadBytes?: number;
  readonly isMapped?: boolean;
}

/** Clients publish as fast as they are answered; where there is a Kafka, what it has got is counted afterwards. */
export async function ingest(bench: Bench, options: IngestOptions): Promise<Figures> {
  const { server, generator, seconds, warmUpSeconds, kafka } = bench;
  const {
    isMapped = false,
    topics = [isMapped ? mappedTopic : (kafka?.topic ?? "bench/device/12345/log")],
    ...rest
  } = options;
  const had = (await kafka?.arrived()) ?? 0;
  const load = await generator.start("publishers", { payloadBytes, ...rest, address: server.address, topics });
  await sleep(warmUpSeconds * 1000);
  const window = await look(server, load, seconds);
  const { sent, acked, closed = 0 } = await load.stop();
  if (closed > 0) throw new Error(`the server has closed ${closed} connections`);
  const found = figures(window, (reading) => reading.acked);
  if (!kafka) return { ...found, lost: sent - acked };
  const due = options.qos === 0 ? sent : acked;
  return { ...found, lost: Math.max(0, due - (await settled(kafka.arrived, had + due)) + had) };
}

/** What other clients have subscribed to; see load/churn.ts. */
export interface Standing {
  readonly clients: number;
  readonly each?: number;
  readonly filter: string;
  readonly rate: number;
}

/** As {@link ingest}, beside other clients' subscriptions: where they come and go, what that costs is in the figure. */
export async function ingestBeside(bench: Bench, options: IngestOptions, standing: Standing): Promise<Figures> {
  const load = await bench.reader.start("churn", { address: bench.server.address, ...standing });
  let stopped: Promise<Reading> | undefined;
  try {
    const found = await ingest(bench, options);
    stopped = load.stop();
    const { sent, closed = 0, skipped = 0 } = await stopped;
    if (closed > 0) throw new Error(`the server has closed ${closed} connections that subscribed`);
    if (skipped > sent / 10) throw new Error(`${skipped} of ${sent + skipped} subscriptions were not answered in time`);
    return found;
  } finally {
    await (stopped ?? load.stop());
  }
}

/** The last count, once it is what is due or has stood still. */
async function settled(count: () => Promise<number>, due: number): Promise<number> {
  let last = -1;
  let movedAt = performance.now();
  for (;;) {
    const now = await count();
    if (now >= due) return now;
    if (now !== last) movedAt = performance.now();
    last = now;
    if (performance.now() - movedAt > lateMs) return now;
    await sleep(100);
  }
}

export interface FanOutFigures {
  readonly subscribers: number;
  readonly qos: 0 | 1;
  readonly window: number;
}

/** The figures are for a delivery. */
export async function fanOut(bench: Bench, options: FanOutFigures): Promise<Figures> {
  const { server, generator, seconds, warmUpSeconds } = bench;
  const topic = `bench/${options.subscribers}/news`;
  const load = await generator.start("fanOut", { ...options, address: server.address, payloadBytes, topic });
  await sleep(warmUpSeconds * 1000);
  const window = await look(server, load, seconds);
  const { sent, received = 0 } = await load.stop();
  const found = figures(window, (reading) => reading.received ?? 0);
  return { ...found, lost: sent * options.subscribers - received };
}

/** A request to publish at QoS 1, by so many connections that are kept; with a rate, of a server that has seen many. */
export async function requests(
  bench: Bench,
  options: { readonly subscribers: number; readonly connections: number; readonly rate?: number },
): Promise<Figures> {
  const { server, generator, reader, seconds, warmUpSeconds } = bench;
  const { http, address } = server;
  if (!http) throw new Error("it takes no publishes by HTTP");
  const { subscribers, connections, rate } = options;
  const topic = `bench/http/${subscribers}`;
  const body = JSON.stringify({ topic, qos: 1, payload: "x".repeat(payloadBytes) });
  const audience =
    subscribers > 0
      ? await reader.start("fanOut", { address, subscribers, qos: 1, window: 0, payloadBytes, topic })
      : undefined;
  let before = 0;
  if (rate !== undefined) {
    // At a calm rate it takes a quarter of a minute until V8 has compiled what is called now and then.
    const warmUp = await generator.start("requests", { ...http, body, connections });
    await sleep(warmUpSeconds * 1000);
    before = (await warmUp.stop()).statuses?.["200"] ?? 0;
  }
  const load = await generator.start("requests", { ...http, body, connections, rate });
  await sleep(warmUpSeconds * 1000);
  const window = await look(server, load, seconds);
  const { acked, statuses = {} } = await load.stop();
  const found = figures(window, (reading) => reading.acked);
  const accepted = statuses["200"] ?? 0;
  const due = (before + accepted) * subscribers;
  const got = async (): Promise<number> => (await audience?.read())?.received ?? 0;
  const missing = due - (audience ? await settled(got, due) : 0);
  await audience?.stop();
  return { ...found, lost: acked - accepted + Math.max(0, missing) };
}

/** Milliseconds from the publish to the moment at which a consumer of Kafka has the record, at a calm rate. */
export async function latency(bench: Bench, options: { readonly rate: number }): Promise<Figures> {
  const { server, generator, reader, seconds, warmUpSeconds, kafka } = bench;
  if (!kafka) throw new Error("it writes to no Kafka");
  const { brokers, topic } = kafka;
  const had = await kafka.arrived();
  const consumer = await reader.start("kafkaReader", { brokers, topic });
  const { address } = server;
  const publishing = {
    clients: 50,
    qos: 1,
    window: 1000,
    topics: [topic],
    isStamped: true,
  } as const;
  const load = await generator.start("publishers", { ...publishing, ...options, address, payloadBytes });
  await sleep(warmUpSeconds * 1000);
  const first = await consumer.read();
  const window = await look(server, load, seconds);
  const times = minus((await consumer.read()).latencies, first.latencies);
  const { acked } = await load.stop();
  await consumer.stop();
  const lost = Math.max(0, acked - (await settled(kafka.arrived, had + acked)) + had);
  const found = figures(window, (reading) => reading.acked);
  return { ...found, p50: shareOf(times, 0.5), p99: shareOf(times, 0.99), lost };
}

export interface IdleOptions {
  readonly clients: number;
  /** Seconds. */
  readonly keepAlive: number;
  /** A second, so that what connecting leaves behind is not more than it has to be. */
  readonly rate: number;
  readonly clean?: boolean;
}

/** What a connected client that says nothing but its keep alive costs. The server must be a new one. */
export async function idle(bench: Bench, { clients, keepAlive, rate, clean = true }: IdleOptions): Promise<Figures> {
  const { server, generator, seconds } = bench;
  const { address, pid, collect } = server;
  if (pid === undefined) throw new Error("its process is not on this machine");
  // What the first clients bring into memory is not theirs.
  const first = await generator.start("connections", {
    address,
    clients: 200,
    atOnce: 20,
    keepAlive: 0,
    prefix: "first",
  });
  await until(first, 200);
  await first.stop();
  await sleep(500);
  await collect?.();
  const empty = usageOf(pid).memoryBytes;
  const load = await generator.start("connections", { address, clients, atOnce: 20, keepAlive, rate, clean });
  await until(load, clients);
  await sleep(1000);
  const kib = (usageOf(pid).memoryBytes - empty) / 1024 / clients;
  await collect?.();
  const collectedKib = collect && (usageOf(pid).memoryBytes - empty) / 1024 / clients;
  const window = await look(server, load, Math.max(4, seconds));
  const { closed = 0 } = await load.stop();
  if (closed > 0) throw new Error(`the server has closed ${closed} idle connections`);
  const cpuPercent = window.cpuUs / (window.after.at - window.before.at) / 10;
  return { kib, ...(collectedKib === undefined ? {} : { collectedKib }), cpuPercent };
}

/** So many clients connect, some at once, and stay. */
export async function connects(bench: Bench, options: { readonly clients: number }): Promise<Figures> {
  const { server, generator } = bench;
  const { clients } = options;
  const connecting = { address: server.address, atOnce: 50, keepAlive: 0 };
  const first = await generator.start("connections", { ...connecting, clients: 500, prefix: "first" });
  await until(first, 500);
  await first.stop();
  await sleep(500);
  const used = cpuOf(server);
  const load = await generator.start("connections", { ...connecting, clients });
  const before = await load.read();
  const { tookMs = 0, latencies } = await until(load, clients);
  const cpuUs = (cpuOf(server) - used) / clients;
  const { cpuUs: generatorCpuUs } = await load.stop();
  return {
    cpuUs,
    rate: (clients * 1000) / tookMs,
    generatorUs: (generatorCpuUs - before.cpuUs) / clients,
    p50: shareOf(latencies, 0.5),
    p99: shareOf(latencies, 0.99),
  };
}

/** Resolves when as many are connected; rejects where some could not be. */
async function until(load: RunningLoad, clients: number): Promise<Reading> {
  for (;;) {
    const reading = await load.read();
    if (reading.skipped) throw new Error(`${reading.skipped} clients could not connect`);
    if (reading.sent >= clients) return reading;
    await sleep(20);
  }
}

/** KiB a subscription, once garbage is collected, and the cost of a message beside them. The server must be a new one. */
export async function subscribed(bench: Bench, options: IngestOptions, standing: Standing): Promise<Figures> {
  const { reader, server } = bench;
  const { pid, address, collect } = server;
  if (pid === undefined || !collect) throw new Error("its memory can't be told");
  // What its clients take, and what the first of anything brings into memory, is not the subscriptions'.
  await ingest(bench, options);
  const clients = await reader.start("churn", { address, ...standing, each: 1 });
  await collect();
  const empty = usageOf(pid).memoryBytes;
  await clients.stop();
  const load = await reader.start("churn", { address, ...standing });
  await collect();
  const { clients: count, each = 1 } = standing;
  const collectedKib = (usageOf(pid).memoryBytes - empty) / 1024 / (count * each);
  try {
    return { ...(await ingest(bench, options)), collectedKib };
  } finally {
    await load.stop();
  }
}
