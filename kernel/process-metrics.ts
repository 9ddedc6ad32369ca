/** What the process itself is doing: its event loop, garbage collection, CPU and memory. */
import { constants, monitorEventLoopDelay, type PerformanceEntry, PerformanceObserver } from "node:perf_hooks";
import type { Metrics } from "./plugin.ts";

export interface ProcessMetrics {
  close(): void;
}

/** Milliseconds between two looks at the event loop; what it is late by is its delay. */
const resolutionMs = 20;
/** Of each delay that is told: the last one to two of these. */
const windowMs = 5000;
/** Seconds: from a scavenge to a pause that clients notice. */
const pauseBuckets = [0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1];

const kinds: Readonly<Record<number, string>> = {
  [constants.NODE_PERFORMANCE_GC_MINOR]: "minor",
  [constants.NODE_PERFORMANCE_GC_MAJOR]: "major",
  [constants.NODE_PERFORMANCE_GC_INCREMENTAL]: "incremental",
  [constants.NODE_PERFORMANCE_GC_WEAKCB]: "weakCallbacks",
};

/** @param worker its name: `main`, or a worker's number; series of several processes are summed, and a delay is no sum */
export function createProcessMetrics(metrics: Metrics, worker: string): ProcessMetrics {
  // Two, each begun when the other is half through, so that there is always one with a window's worth in it.
  const delays = [0, 1].map(() => monitorEventLoopDelay({ resolution: resolutionMs }));
  let oldest = 0;
  for (const each of delays) each.enable();
  const turn = setInterval(() => {
    delays[oldest]?.reset();
    oldest = 1 - oldest;
  }, windowMs).unref();

  metrics.gauge(
    "sluice_event_loop_delay_seconds",
    "How late the event loop was in the last 5 to 10 seconds: p50, p99, max.",
    ["worker", "stat"],
    (gauge) => {
      const histogram = delays[oldest];
      if (!histogram) return;
      const { count, max } = histogram;
      const told = { p50: histogram.percentile(50), p99: histogram.percentile(99), max: count === 0 ? 0 : max };
      for (const [stat, nanoseconds] of Object.entries(told)) {
        gauge.set({ worker, stat }, Math.max(0, nanoseconds / 1e9 - resolutionMs / 1000));
      }
    },
  );

  const pauses = metrics.histogram(
    "sluice_gc_pause_seconds",
    "Pauses of garbage collection, by its kind.",
    ["kind"],
    pauseBuckets,
  );
  const byKind = new Map(Object.entries(kinds).map(([kind, name]) => [Number(kind), pauses.with({ kind: name })]));
  const observer = new PerformanceObserver((list) => {
    // The types of Node's own entries lack what it says of each kind of entry.
    for (const { duration, detail } of list.getEntries() as (PerformanceEntry & { detail?: { kind: number } })[]) {
      byKind.get(detail?.kind ?? 0)?.observe(duration / 1000);
    }
  });
  observer.observe({ entryTypes: ["gc"] });

  metrics.gauge("sluice_process_cpu_seconds", "CPU time that the process has used, by mode.", ["mode"], (gauge) => {
    const { user, system } = process.cpuUsage();
    gauge.set({ mode: "user" }, user / 1e6);
    gauge.set({ mode: "system" }, system / 1e6);
  });
  metrics.gauge("sluice_process_memory_bytes", "Memory of the process, by part.", ["part"], (gauge) => {
    const { rss, heapUsed, external } = process.memoryUsage();
    for (const [part, bytes] of Object.entries({ rss, heapUsed, external })) gauge.set({ part }, bytes);
  });

  return {
    close() {
      clearInterval(turn);
      observer.disconnect();
      for (const each of delays) each.disable();
    },
  };
}
