/** Twice the rate that the gateway can take, by MQTT and by HTTP, and what a device that does little sees of it. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Generator, RunningLoad } from "./generator.ts";
import { minus, shareOf } from "./load/latencies.ts";
import type { Server } from "./servers/server.ts";
import { usageOf } from "./usage.ts";

/** Milliseconds. */
export interface Times {
  readonly p50: number;
  readonly p99: number;
  readonly worst: number;
}

export interface Overload {
  /** Messages a second: what it can take, what it was offered beside the HTTP requests, and what it took then. */
  readonly capacity: number;
  readonly offered: number;
  readonly taken: number;
  /** `half`: the most in the first half of the time. */
  readonly memoryMiB: Readonly<Record<"before" | "half" | "peak" | "after", number>>;
  readonly pings: Times;
  readonly acks: Times;
  readonly connects: Times;
  /** Of probes. */
  readonly unanswered: number;
  readonly http: {
    readonly statuses: Readonly<Record<string, number>>;
    readonly times: Times;
    readonly unanswered: number;
  };
  /** From the end of the load until a device sees all answered within `calmMs`. */
  readonly recoveryMs: number;
}

const topic = "bench/device/12345/log";
/** Its subscriber acknowledges nothing. */
const stillTopic = "bench/still";
const clients = 50;
const calmMs = 250;
const recoveryTimeoutMs = 60_000;
const mib = 1024 * 1024;

export interface OverloadOptions {
  readonly server: Server;
  /** Each in a process of its own, so that the flood's own delay is not taken for the server's. */
  readonly flooding: Generator;
  readonly probing: Generator;
  readonly seconds: number;
  /** Of what it can take; 2 without it. */
  readonly times?: number;
  /** HTTP connections, each with one request at a time: more than `maxPublishes` of them wait for a subscriber that stands still. */
  readonly requests: number;
}

export async function overload(options: OverloadOptions): Promise<Overload> {
  const { server, flooding, probing, seconds, times = 2 } = options;
  const { address, http, pid } = server;
  if (!http || pid === undefined) throw new Error("it must run here and publish by HTTP");
  const memory = (): number => usageOf(pid).memoryBytes / mib;
  const publishing = { address, clients, qos: 1, payloadBytes: 128, topics: [topic] } as const;

  const probes = await probing.start("probes", { address, intervalMs: 50, topic: "bench/probe" });
  const measured = await flooding.start("publishers", { ...publishing, window: 32, prefix: "fit" });
  await sleep(500);
  const capacity = await rateOf(measured, Math.min(2000, seconds * 500));
  await measured.stop();

  await server.collect?.();
  const before = memory();
  const offered = times * capacity;
  const calm = await probes.read();
  const flood = await flooding.start("publishers", {
    ...publishing,
    window: 16_000,
    rate: offered,
    isAbrupt: true,
    prefix: "flood",
  });
  const standing = { subscribers: 1, qos: 1, window: 0, payloadBytes: 128, topic: stillTopic, isStill: true } as const;
  const still = await probing.start("fanOut", { address, ...standing });
  const body = JSON.stringify({ topic: stillTopic, qos: 1, payload: "x".repeat(1000) });
  const asking = await probing.start("requests", { ...http, body, connections: options.requests });
  const startedAt = performance.now();
  const from = await flood.read();
  let half = 0;
  let peak = 0;
  while (performance.now() - startedAt < seconds * 1000) {
    await sleep(100);
    peak = Math.max(peak, memory());
    if (performance.now() - startedAt < seconds * 500) half = peak;
  }
  const to = await flood.read();
  const busy = await probes.read();

  const endedAt = performance.now();
  const [, answers] = await Promise.all([flood.stop(), asking.stop()]);
  await still.stop();
  const recoveryMs = await recovered(probes, endedAt);
  const { sent: probed, acked: answered } = await probes.stop();
  await server.collect?.();
  return {
    capacity,
    offered,
    taken: ((to.acked - from.acked) * 1000) / (to.at - from.at),
    memoryMiB: { before, half, peak, after: memory() },
    pings: timesOf(minus(busy.latencies, calm.latencies)),
    acks: timesOf(minus(busy.more!["acks"]!, calm.more!["acks"]!)),
    connects: timesOf(minus(busy.more!["connects"]!, calm.more!["connects"]!)),
    unanswered: probed - answered,
    http: {
      statuses: answers.statuses ?? {},
      times: timesOf(answers.latencies),
      unanswered: answers.sent - answers.acked,
    },
    recoveryMs,
  };
}

async function rateOf(load: RunningLoad, ms: number): Promise<number> {
  const before = await load.read();
  await sleep(ms);
  const after = await load.read();
  return ((after.acked - before.acked) * 1000) / (after.at - before.at);
}

function timesOf(counts: readonly number[]): Times {
  return { p50: shareOf(counts, 0.5), p99: shareOf(counts, 0.99), worst: shareOf(counts, 1) };
}

/** Milliseconds from `endedAt` to the begin of half a second in which a device had all answered soon. */
async function recovered(probes: RunningLoad, endedAt: number): Promise<number> {
  for (;;) {
    const from = performance.now();
    const before = await probes.read();
    await sleep(500);
    const after = await probes.read();
    const times = minus(after.latencies, before.latencies).map(
      (count, n) => count + after.more!["acks"]![n]! - before.more!["acks"]![n]!,
    );
    if (shareOf(times, 1) <= calmMs) return Math.max(0, from - endedAt);
    if (from - endedAt > recoveryTimeoutMs) throw new Error(`not recovered within ${recoveryTimeoutMs} ms`);
  }
}

export function linesOf(found: Overload): string {
  const ms = ({ p50, p99, worst }: Times): string =>
    `p50 ${p50.toFixed(1)}, p99 ${p99.toFixed(0)}, worst ${worst.toFixed(0)} ms`;
  const { memoryMiB: memory, http } = found;
  const count = (value: number): string => Math.round(value).toLocaleString("en");
  return [
    `can take ${count(found.capacity)}/s, is offered ${count(found.offered)}/s and ${Object.values(http.statuses).reduce((a, b) => a + b, 0)} HTTP requests, takes ${count(found.taken)}/s`,
    `memory: ${count(memory.before)} MiB before, ${count(memory.half)} at most in the first half, ${count(memory.peak)} in all, ${count(memory.after)} after`,
    `a device's PINGREQ: ${ms(found.pings)}; its PUBLISH: ${ms(found.acks)}; a new CONNECT: ${ms(found.connects)}; ${found.unanswered} unanswered`,
    `HTTP: ${JSON.stringify(http.statuses)}, ${ms(http.times)}; ${http.unanswered} unanswered`,
    `recovered ${count(found.recoveryMs)} ms after the end`,
  ].join("\n");
}
