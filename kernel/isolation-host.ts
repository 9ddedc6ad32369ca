/** The gateway as an isolated filter sees it from its own thread. What it logs, counts and publishes is collected and sent over. */
import type { Inward, LogLine, MetricChanges, MetricDefinition, Outward } from "./crossing.ts";
import { cloneProblem, toCarry } from "./crossing.ts";
import { SluiceError } from "./errors.ts";
import { systemClock } from "./host.ts";
import type { Gauge, Host, Metrics, PublishOutcome } from "./plugin.ts";

export interface ThreadHost {
  readonly host: Host;
  /** What has come up since the last call, for the next message. */
  take(): Outward;
  /** Calls the gauges' `collect`. */
  collect(): void;
  published(answers: NonNullable<Inward["published"]>): void;
  close(): void;
}

/** More lines a second are dropped and counted: each is work for the gateway's thread. */
const maxLinesPerSecond = 100;
const maxPublishes = 1000;

/** @param o.wake something is to be sent soon */
export function createThreadHost(o: { name: string; folder: string; about: object; wake: () => void }): ThreadHost {
  const controller = new AbortController();
  const metrics = createThreadMetrics(o.wake);
  let logs: LogLine[] = [];
  let logsDropped = 0;
  let second = 0;
  let linesInSecond = 0;
  let publish: NonNullable<Outward["publish"]>[number][] = [];
  let lastId = 0;
  const publishing = new Map<number, PromiseWithResolvers<PublishOutcome>>();

  function logAt(level: LogLine["level"]) {
    return (fields: object, message: string): void => {
      const now = Math.floor(performance.now() / 1000);
      if (now !== second) linesInSecond = 0;
      second = now;
      if (++linesInSecond > maxLinesPerSecond) logsDropped++;
      else logs.push({ level, fields: toLoggable(fields), message });
      o.wake();
    };
  }

  const host: Host = {
    name: o.name,
    folder: o.folder,
    log: { debug: logAt("debug"), info: logAt("info"), warn: logAt("warn"), error: logAt("error") },
    metrics: metrics.metrics,
    clock: systemClock,
    signal: controller.signal,
    about: () => o.about as ReturnType<Host["about"]>,
    publish(proxy, message) {
      if (publishing.size >= maxPublishes) {
        const why = `${o.name} waits for ${maxPublishes} publishes already`;
        return Promise.reject(new SluiceError("ISOLATION_FULL", why));
      }
      const problem = cloneProblem(message);
      if (problem !== undefined) return Promise.reject(new SluiceError("ISOLATION_NOT_CLONEABLE", problem));
      const answer = Promise.withResolvers<PublishOutcome>();
      const id = ++lastId;
      publishing.set(id, answer);
      publish.push({ id, proxy, message: toCarry(message) as typeof message });
      o.wake();
      return answer.promise;
    },
    get proxies() {
      return refuse("proxies");
    },
    get config() {
      return refuse("config");
    },
    kinds: () => refuse("kinds"),
    health: () => refuse("health"),
    get logLevel() {
      return refuse("logLevel");
    },
    get ready() {
      return refuse("ready");
    },
    isReady: () => refuse("isReady"),
    drain: () => refuse("drain"),
  };

  return {
    host,
    collect: () => metrics.collect(),
    take() {
      const changes = metrics.take();
      const taken: Outward = {
        ...(logs.length > 0 && { logs }),
        ...(logsDropped > 0 && { logsDropped }),
        ...(publish.length > 0 && { publish }),
        ...(changes && { metrics: changes }),
      };
      logs = [];
      logsDropped = 0;
      publish = [];
      return taken;
    },
    published(answers) {
      for (const { id, outcome, error } of answers) {
        const waiting = publishing.get(id);
        publishing.delete(id);
        if (outcome) waiting?.resolve(outcome);
        else waiting?.reject(Object.assign(new Error(error?.message), { code: error?.code }));
      }
    },
    close() {
      controller.abort(new DOMException("This instance is closed", "AbortError"));
    },
  };
}

function refuse(member: string): never {
  throw new SluiceError(
    "ISOLATION_REFUSED",
    `host.${member} is not available to an isolated filter: run it without "isolate", or do without`,
  );
}

function toLoggable(fields: object): object {
  if (cloneProblem(fields) === undefined) return fields;
  return Object.fromEntries(
    Object.entries(fields).map(([key, value]) => [key, cloneProblem(value) === undefined ? value : String(value)]),
  );
}

interface ThreadMetrics {
  readonly metrics: Metrics;
  take(): MetricChanges | undefined;
  collect(): void;
}

type Labels = Record<string, string>;
interface Series {
  readonly name: string;
  readonly labels: Labels;
  values: number[];
}

function createThreadMetrics(wake: () => void): ThreadMetrics {
  const known = new Set<string>();
  let definitions: MetricDefinition[] = [];
  const series = new Map<string, Series>();
  let changed = new Set<Series>();
  const collectors = new Map<string, ((gauge: Gauge) => void)[]>();
  let collected: MetricChanges["collected"][number][] = [];

  function define(definition: MetricDefinition): void {
    if (known.has(definition.name)) return;
    known.add(definition.name);
    definitions.push({ ...definition, labels: [...definition.labels] });
    wake();
  }
  function seriesOf(name: string, labels: Labels): Series {
    const key = `${name} ${JSON.stringify(labels)}`;
    let found = series.get(key);
    if (!found) series.set(key, (found = { name, labels: { ...labels }, values: [] }));
    return found;
  }
  function touch(one: Series): void {
    if (changed.has(one)) return;
    changed.add(one);
    wake();
  }
  function add(one: Series, by: number): void {
    one.values[0] = (one.values[0] ?? 0) + by;
    touch(one);
  }
  function observe(one: Series, value: number): void {
    one.values.push(value);
    touch(one);
  }

  return {
    metrics: {
      counter(name, help, labels = []) {
        define({ type: "counter", name, help, labels });
        return {
          inc: (by = {}, amount = 1) => add(seriesOf(name, by), amount),
          with(fixed) {
            const one = seriesOf(name, fixed);
            return { inc: (by = 1) => add(one, by) };
          },
        };
      },
      gauge(name, help, labels = [], collect) {
        define({ type: "gauge", name, help, labels });
        if (collect) collectors.set(name, [...(collectors.get(name) ?? []), collect]);
        return {
          set(by, value) {
            const one = seriesOf(name, by);
            one.values[0] = value;
            touch(one);
          },
        };
      },
      histogram(name, help, labels = [], buckets) {
        define({ type: "histogram", name, help, labels, buckets: buckets && [...buckets] });
        return {
          observe: (by, value) => observe(seriesOf(name, by), value),
          with(fixed) {
            const one = seriesOf(name, fixed);
            return { observe: (value) => observe(one, value) };
          },
        };
      },
      text: () => Promise.try(() => refuse("metrics.text")),
      contentType: "text/plain",
    },
    collect() {
      collected = [...collectors].map(([name, each]) => {
        const now: [Labels, number][] = [];
        for (const one of each) one({ set: (labels, value) => void now.push([labels, value]) });
        return [name, now];
      });
    },
    take() {
      if (definitions.length === 0 && changed.size === 0 && collected.length === 0) return undefined;
      const taken: MetricChanges = {
        definitions,
        values: [...changed].map((one) => [one.name, one.labels, one.values]),
        collected,
      };
      for (const one of changed) one.values = [];
      changed = new Set();
      definitions = [];
      collected = [];
      return taken;
    },
  };
}
