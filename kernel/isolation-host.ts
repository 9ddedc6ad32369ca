/** The gateway as an isolated filter sees it from its own thread. What it logs, counts and publishes is collected and sent over. */
import type { Inward, LogLine, Outward } from "./crossing.ts";
import { cloneProblem, toCarry } from "./crossing.ts";
import { SluiceError } from "./errors.ts";
import { systemClock } from "./host.ts";
import { createThreadMetrics, refused } from "./isolation-metrics.ts";
import type { Host, PublishOutcome } from "./plugin.ts";

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
export function createThreadHost(o: {
  name: string;
  folder: string;
  about: object;
  worker: Host["worker"];
  wake: () => void;
}): ThreadHost {
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
    worker: o.worker,
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
    get cluster() {
      return refuse("cluster");
    },
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
  throw refused(member);
}

function toLoggable(fields: object): object {
  if (cloneProblem(fields) === undefined) return fields;
  return Object.fromEntries(
    Object.entries(fields).map(([key, value]) => [key, cloneProblem(value) === undefined ? value : String(value)]),
  );
}
