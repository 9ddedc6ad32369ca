/** A small, honest Host for tests that build a filter or service through its kind. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Clock, Host, Logger } from "@sluice/kernel";
import {
  createMetrics,
  SluiceError,
  systemClock,
  type HostSource,
  type RootLogger,
  type SharedHost,
} from "@sluice/kernel/internal";

export interface LogLine {
  readonly level: "debug" | "info" | "warn" | "error";
  readonly message: string;
  readonly fields: Readonly<Record<string, unknown>>;
}

export interface TestHost {
  readonly host: Host;
  /** Every line logged, oldest first. */
  readonly logs: readonly LogLine[];
  /**
   * The sum of the series of one metric that carry these labels, as a scrape would show it; undefined where there is
   * none. A histogram's parts are named as on the page: `..._count`, `..._sum`.
   */
  readonly metricValue: (name: string, labels?: Record<string, string>) => Promise<number | undefined>;
  /** Aborts the host's signal and removes its folder, if it made one. */
  readonly close: () => void;
}

/** What hosts are made from: logs, metrics and a gateway without proxies. @param folder the config's */
export function createTestSource(folder: string, clock: Clock = systemClock) {
  const logs: LogLine[] = [];
  const metrics: HostSource["metrics"] = createMetrics();
  let logLevel = "info";

  function createLogger(fixed: object): RootLogger {
    const logAt =
      (level: LogLine["level"]): Logger["info"] =>
      (fields, message) => {
        logs.push({ level, message, fields: { ...fixed, ...fields } });
      };
    return {
      level: "debug",
      debug: logAt("debug"),
      info: logAt("info"),
      warn: logAt("warn"),
      error: logAt("error"),
      child: (fields) => createLogger({ ...fixed, ...fields }),
    };
  }

  const shared: SharedHost = {
    folder,
    clock,
    publish: (proxy) => Promise.reject(new SluiceError("PROXY_NOT_FOUND", `no proxy is named "${proxy}"`)),
    proxies: { get: () => undefined, list: () => [] },
    config: {
      documents: () => [],
      version: () => 1,
      apply: () => Promise.reject(new SluiceError("CONFIG_READ_ONLY", "the test host has no files")),
      history: () => [],
      rollback: () => Promise.reject(new SluiceError("CONFIG_READ_ONLY", "the test host has no files")),
    },
    kinds: () => [],
    health: () => [],
    worker: { index: 0, count: 1 },
    cluster: { isJoined: false, members: () => Promise.resolve([]) },
    about: () => ({ name: "sluice", version: "0.0.0", node: process.version, startedAt: Date.now() }),
    logLevel: {
      get: () => logLevel,
      set(level) {
        logLevel = level;
      },
    },
    ready: Promise.resolve(),
    isReady: () => true,
    drain: () => undefined,
  };

  return {
    source: { shared, metrics, log: createLogger({}) },
    logs,
    metricValue: async (name: string, labels: Record<string, string> = {}) =>
      sumSeries(await metrics.text(), name, labels),
  };
}

export function createTestHost(options: { name?: string; folder?: string; overrides?: Partial<Host> } = {}): TestHost {
  const folder = options.folder ?? mkdtempSync(join(tmpdir(), "sluice-host-"));
  const closing = new AbortController();
  const { source, logs, metricValue } = createTestSource(folder);
  return {
    host: {
      ...source.shared,
      name: options.name ?? "pipeline/filter",
      log: source.log,
      metrics: source.metrics.scoped(closing.signal),
      signal: closing.signal,
      ...options.overrides,
    },
    logs,
    metricValue,
    close() {
      closing.abort();
      if (options.folder === undefined) rmSync(folder, { recursive: true, force: true });
    },
  };
}

function sumSeries(page: string, name: string, labels: Record<string, string>): number | undefined {
  let sum: number | undefined;
  for (const line of page.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match || match[1] !== name) continue;
    const text = match[2] ?? "";
    const carries = Object.entries(labels).every(([key, value]) => text.includes(`${key}=${JSON.stringify(value)}`));
    if (carries) sum = (sum ?? 0) + Number(match[3]);
  }
  return sum;
}
