/** npm as a process of its own: arguments as they are, no shell, and its errors in a few words. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { access, constants, realpath } from "node:fs/promises";
import { delimiter, dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { SluiceError } from "./errors.ts";

export interface NpmOptions {
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
  readonly signal: AbortSignal;
}

/** npm tries a registry again and again for minutes; this is for one that does not even fail. */
const deadlineMs = 15 * 60_000;
/** How long it may take to end once it is told to. */
const killedMs = 5_000;
/** What is kept of what it writes. */
const maxOutput = 1 << 20;
/** Inherited from an `npm run` around us, these would change what our own options mean. */
const foreign = /^npm_config_(include|global|location|workspaces?|include_workspace_root|package_lock_only|dry_run)$/i;

/**
 * Resolves with what npm has written to standard output.
 * @throws SluiceError PLUGIN_INSTALL_FAILED
 */
export async function runNpm(args: readonly string[], { cwd, env, signal }: NpmOptions): Promise<string> {
  const own = Object.fromEntries(Object.entries(env).filter(([name]) => !foreign.test(name)));
  const path = [dirname(process.execPath), env["PATH"]].filter((part) => part !== undefined).join(delimiter);
  const npm = await findNpm(env["PATH"] ?? "");
  const child = spawn(npm.file, [...npm.args, ...args], {
    cwd,
    env: { ...own, PATH: path },
    signal: AbortSignal.any([signal, AbortSignal.timeout(deadlineMs)]),
    stdio: ["ignore", "pipe", "pipe"],
  });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout = (stdout + text).slice(-maxOutput)));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr = (stderr + text).slice(-maxOutput)));
  const closed = new Promise<void>((resolve) => child.once("close", () => resolve()));
  let code: number | null;
  try {
    [code] = (await once(child, "close")) as [number | null];
  } catch (error) {
    // As long as it is there, it may still write.
    await Promise.race([closed, sleep(killedMs, undefined, { ref: false })]);
    const why = signal.aborted ? "interrupted" : (error as Error).message;
    throw new SluiceError("PLUGIN_INSTALL_FAILED", `npm ${args[0]}: ${why}`, { cause: error });
  }
  if (code === 0) return stdout;
  throw new SluiceError("PLUGIN_INSTALL_FAILED", `npm ${args[0]} failed: ${inShort(stderr) || `exit code ${code}`}`);
}

/** Run by our own Node where it is npm's JavaScript, so that packages are judged by the Node that will run them. */
async function findNpm(path: string): Promise<{ file: string; args: string[] }> {
  const beside = join(dirname(process.execPath), "node_modules/npm/bin/npm-cli.js");
  for (const candidate of [...path.split(delimiter).map((folder) => join(folder, "npm")), beside]) {
    try {
      await access(candidate, constants.X_OK);
      const real = await realpath(candidate);
      return real.endsWith(".js") ? { file: process.execPath, args: [real] } : { file: candidate, args: [] };
    } catch {
      continue;
    }
  }
  throw new SluiceError("PLUGIN_INSTALL_FAILED", "npm was not found on the PATH: it comes with Node.js; install it");
}

/** The first lines that say what is wrong, without npm's advice on where its log is. */
function inShort(stderr: string): string {
  const lines = stderr
    .split("\n")
    .map(
      (line) =>
        /^npm (?:error|ERR!) (?:\d{3} +|notarget +|network +)?(?!A complete log|code \w+$|errno|syscall|\d{3}$)(.*\S)/.exec(
          line,
        )?.[1],
    )
    .filter((line) => line !== undefined);
  const said = lines.length > 0 ? lines.slice(0, 2) : stderr.trim().split("\n").slice(-3);
  return said.map((line) => line.trim()).join("; ");
}
