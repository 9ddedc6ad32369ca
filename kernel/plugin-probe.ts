/** A plugin's code imported in a process of its own, to see whether it can be, before a gateway does. */
import { fork } from "node:child_process";
import { once } from "node:events";
import type { Code } from "./errors.ts";
import { SluiceError } from "./errors.ts";

/** What the process sends: nothing is wrong, or what is. */
export type ProbeAnswer = { readonly code: Code; readonly message: string } | { readonly code: undefined };

/** Beyond the deadline that the process has itself; it can't keep that one where the plugin never yields. */
const graceMs = 5_000;

/**
 * @param o.bin the running `sluice`, whose command `plugin probe` imports all that a package in `place` provides
 * @throws SluiceError PLUGIN_BROKEN, PLUGIN_DEPENDENCY_MISSING, PLUGIN_START_TIMEOUT
 */
export async function probePlugin(
  name: string,
  o: { bin: string; place: string; deadlineMs: number; env: NodeJS.ProcessEnv; signal: AbortSignal },
): Promise<void> {
  const child = fork(o.bin, ["plugin", "probe", o.place, name, String(o.deadlineMs)], {
    execArgv: [],
    cwd: o.place,
    env: o.env,
    stdio: ["ignore", "ignore", "pipe", "ipc"],
  });
  let answer: ProbeAnswer | undefined;
  let stderr = "";
  let isLate = false;
  child.on("message", (message) => (answer = message as ProbeAnswer));
  child.stderr?.setEncoding("utf8").on("data", (text: string) => (stderr = (stderr + text).slice(-10_000)));
  const timer = setTimeout(() => {
    isLate = true;
    child.kill("SIGKILL");
  }, o.deadlineMs + graceMs);
  const stop = (): void => void child.kill("SIGKILL");
  o.signal.addEventListener("abort", stop);
  try {
    const [code, killedBy] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
    if (isLate) {
      const message = `${name} did not finish importing within ${o.deadlineMs / 1000} s: it is in an endless loop`;
      throw new SluiceError("PLUGIN_START_TIMEOUT", message);
    }
    if (answer === undefined) {
      const last = stderr.trim().split("\n").at(-1) ?? "";
      const how = killedBy ? `by ${killedBy}` : `with exit code ${code}`;
      const message = `${name} ended the process that imported it, ${how}${last && `: ${last}`}`;
      throw new SluiceError("PLUGIN_BROKEN", message);
    }
    if (answer.code !== undefined) throw new SluiceError(answer.code, answer.message);
  } finally {
    clearTimeout(timer);
    o.signal.removeEventListener("abort", stop);
  }
}
