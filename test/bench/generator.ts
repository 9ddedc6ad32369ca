/** A load generator in a process of its own, so that what it costs is not taken for what the server costs. */
import { fork } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import type { Counts, Load } from "./load/load.ts";
import type { Call, Loads } from "./load/process.ts";

type OptionsOf<K extends keyof Loads> = Loads[K] extends Load<infer Options> ? Options : never;

export interface Reading extends Counts {
  /** CPU microseconds of the generator's process since it began. */
  readonly cpuUs: number;
  /** Milliseconds of `performance.now()`. */
  readonly at: number;
}

export interface RunningLoad {
  read(): Promise<Reading>;
  stop(): Promise<Reading>;
}

export interface Generator {
  start<K extends keyof Loads>(kind: K, options: OptionsOf<K>): Promise<RunningLoad>;
  close(): Promise<void>;
}

interface Reply {
  readonly id: number;
  readonly result?: Counts;
  readonly error?: string;
  readonly cpuUs: number;
}

export function createGenerator(): Generator {
  const child = fork(join(import.meta.dirname, "load/process.ts"), { stdio: "inherit" });
  const waiting = new Map<
    number,
    { readonly resolve: (reply: Reply) => void; readonly reject: (error: Error) => void }
  >();
  let last = 0;
  let loads = 0;
  child.on("message", (reply: Reply) => {
    const { resolve, reject } = waiting.get(reply.id)!;
    waiting.delete(reply.id);
    if (reply.error === undefined) resolve(reply);
    else reject(new Error(reply.error));
  });
  child.once("exit", () => {
    for (const { reject } of waiting.values()) reject(new Error("the load generator has ended"));
    waiting.clear();
  });

  function call(message: Omit<Call, "id">): Promise<Reply> {
    const { promise, resolve, reject } = Promise.withResolvers<Reply>();
    const id = ++last;
    waiting.set(id, { resolve, reject });
    child.send({ id, ...message }, (error) => {
      if (error && waiting.delete(id)) reject(error);
    });
    return promise;
  }

  return {
    async start(kind, options) {
      const load = ++loads;
      await call({ call: "start", load, kind, options });
      const get = async (what: "read" | "stop"): Promise<Reading> => {
        const { result, cpuUs } = await call({ call: what, load });
        return { ...result!, cpuUs, at: performance.now() };
      };
      return { read: () => get("read"), stop: () => get("stop") };
    },
    async close() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, "exit");
      child.disconnect();
      await exited;
    },
  };
}
