/** `sluice run` as a process of its own: its log, its metrics, its signals. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { bin } from "./gateway-under-test.ts";

const patienceMs = 20_000;

export interface LogLine {
  readonly level: number;
  readonly msg: string;
  readonly [field: string]: unknown;
}

export interface SpawnedGateway {
  readonly pid: number;
  /** Of the first MQTT listener. */
  readonly port: number;
  /** Of a proxy's listener. */
  url(proxy: string): Promise<string>;
  readonly api: string;
  /** What it has told people at its start. */
  banner(): string;
  readonly logs: readonly LogLine[];
  /** The first line from index `from` on that fits; waits for it. */
  logged(fits: (line: LogLine) => boolean, from?: number): Promise<LogLine>;
  /** What a change of the config led to: waits for the reload after those that `from` log lines tell of. */
  reloaded(from: number): Promise<LogLine>;
  metric(name: string): Promise<number>;
  signal(name: NodeJS.Signals): void;
  /** SIGTERM; resolves with the exit code. */
  stop(): Promise<number | null>;
}

/** The last line that a reload logs. */
export const outcomes = ["The config has changed", "The config has not changed", "The config was not changed"];

/** Its config needs one MQTTProxy and one AdminAPI, both on port 0. @param flags of node */
export async function spawnGateway(
  config: string,
  args: readonly string[] = [],
  flags: readonly string[] = [],
): Promise<SpawnedGateway> {
  const child = spawn(process.execPath, [...flags, bin, "run", "-c", config, ...args], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const logs: LogLine[] = [];
  const waiting = new Set<() => void>();
  let banner = "";
  let hasEnded = false;
  const notify = (): void => {
    for (const each of waiting) each();
  };
  createInterface({ input: child.stdout }).on("line", (line) => {
    logs.push(JSON.parse(line) as LogLine);
    notify();
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    banner += text;
    notify();
  });
  const exited = once(child, "exit").then(([code]) => {
    hasEnded = true;
    notify();
    return code as number | null;
  });

  async function until<T>(what: string, find: () => T | undefined): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const state = (): string => `${what}\n${banner}${logs.map((line) => JSON.stringify(line)).join("\n")}`;
    const timer = setTimeout(() => reject(new Error(`not within ${patienceMs} ms: ${state()}`)), patienceMs);
    const look = (): void => {
      const found = find();
      if (found !== undefined) resolve(found);
      else if (hasEnded) reject(new Error(`the gateway has ended: ${state()}`));
    };
    waiting.add(look);
    look();
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      waiting.delete(look);
    }
  }

  const logged: SpawnedGateway["logged"] = (fits, from = 0) =>
    until("a log line", () => logs.find((line, index) => index >= from && fits(line)));
  try {
    const port = await until("the MQTT port", () => /\bmqtts?:\/\/127\.0\.0\.1:(\d+)/.exec(banner)?.[1]);
    const api = await until("the HTTP port", () => /\bhttp:\/\/127\.0\.0\.1:\d+/.exec(banner)?.[0]);
    const { pid } = child;
    assert.ok(pid !== undefined);
    return {
      pid,
      port: Number(port),
      url: (proxy) =>
        until(`the URL of ${proxy}`, () => new RegExp(`^${proxy} listens on (\\S+)$`, "m").exec(banner)?.[1]),
      api,
      banner: () => banner,
      logs,
      logged,
      reloaded: (from) => logged(({ msg }) => outcomes.includes(msg), from),
      async metric(name) {
        const text = await (await fetch(`${api}/metrics`)).text();
        return text
          .split("\n")
          .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
          .reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
      },
      signal: (name) => void child.kill(name),
      stop() {
        child.kill("SIGTERM");
        return exited;
      },
    };
  } catch (error) {
    child.kill("SIGKILL");
    throw error;
  }
}
