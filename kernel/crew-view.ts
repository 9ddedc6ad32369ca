/** The workers as one: what they report, put together. */
import type { WorkerReport } from "./crew-wire.ts";
import { mergeSnapshots, type MetricSnapshot } from "./metrics.ts";
import type { ObjectHealth } from "./plugin.ts";
import { addTotals, type ProxyTotals } from "./proxy-metrics.ts";

export interface CrewView {
  reported(worker: number, report: WorkerReport): void;
  measured(worker: number, metrics: readonly MetricSnapshot[]): void;
  ended(worker: number): void;
  /** Of every filter, over all workers; and of the workers themselves. */
  health(): readonly ObjectHealth[];
  listeners(proxy: string): WorkerReport["proxies"][number]["listeners"];
  /** What each worker has counted, those that have ended included. */
  totals(proxy: string): readonly ProxyTotals[];
  /** The series of all workers, as last measured; of those that have ended what only grows. */
  metrics(): Promise<readonly (readonly MetricSnapshot[])[]>;
}

const onlyGrows = new Set<unknown>(["counter", "histogram"]);

export function createCrewView(count: number): CrewView {
  const reports = new Map<number, WorkerReport>();
  const measures = new Map<number, readonly MetricSnapshot[]>();
  let past: readonly MetricSnapshot[] = [];
  const pastTotals = new Map<string, ProxyTotals>();
  let merging: Promise<void> = Promise.resolve();

  async function keep(last: readonly MetricSnapshot[]): Promise<void> {
    past = await mergeSnapshots([past, last.filter(({ type }) => onlyGrows.has(type))]);
  }

  return {
    reported: (worker, report) => void reports.set(worker, report),
    measured: (worker, metrics) => void measures.set(worker, metrics),
    ended(worker) {
      for (const { name, totals } of reports.get(worker)?.proxies ?? []) {
        const before = pastTotals.get(name);
        pastTotals.set(name, before ? addTotals(before, totals) : totals);
      }
      reports.delete(worker);
      const last = measures.get(worker);
      measures.delete(worker);
      if (last) merging = merging.then(() => keep(last));
    },
    health() {
      const byName = new Map<string, ObjectHealth>();
      for (const [worker, { health }] of reports) {
        for (const each of health) {
          const known = byName.get(each.name);
          if (known && (!known.ok || each.ok)) continue;
          byName.set(each.name, each.ok ? each : { ...each, detail: `worker ${worker}: ${each.detail ?? "not ok"}` });
        }
      }
      const running = reports.size;
      return [{ name: "workers", ok: running === count, detail: `${running} of ${count} run` }, ...byName.values()];
    },
    listeners(proxy) {
      for (const { proxies } of reports.values()) {
        const found = proxies.find(({ name }) => name === proxy);
        if (found) return found.listeners;
      }
      return [];
    },
    totals: (proxy) => [
      ...[pastTotals.get(proxy)].filter((totals) => totals !== undefined),
      ...[...reports.values()].flatMap(({ proxies }) =>
        proxies.filter(({ name }) => name === proxy).map(({ totals }) => totals),
      ),
    ],
    async metrics() {
      await merging;
      return [...(past.length > 0 ? [past] : []), ...measures.values()];
    },
  };
}
