/** One process at a time: a lock file that names its holder, and that nobody heeds once that process is gone. */
import { randomUUID } from "node:crypto";
import { mkdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { SluiceError } from "./errors.ts";

interface Holder {
  readonly pid: number;
  readonly host: string;
}

const retryMs = 100;
/** Between making the file and writing to it a lock has no holder; older, its maker died in between. */
const unwrittenStaleMs = 5_000;

/**
 * @param o.waitMs how long to wait for another holder
 * @param o.onWait told once, if it has to wait
 * @throws SluiceError PLUGIN_BUSY
 */
export async function withFileLock<T>(
  path: string,
  o: { waitMs: number; onWait: (holder: string) => void; signal: AbortSignal },
  work: () => Promise<T>,
): Promise<T> {
  const text = JSON.stringify({ pid: process.pid, host: hostname(), id: randomUUID() });
  const until = performance.now() + o.waitMs;
  let hasWaited = false;
  while (!(await take(path, text))) {
    const found = await judge(path);
    if (found.isStale) {
      await takeAway(path, found.text);
      continue;
    }
    if (!hasWaited) o.onWait(found.holder);
    hasWaited = true;
    if (performance.now() >= until) {
      throw new SluiceError("PLUGIN_BUSY", `${found.holder} is at work here: wait for it, or delete ${path}`);
    }
    await sleep(retryMs, undefined, { signal: o.signal });
  }
  try {
    return await work();
  } finally {
    if ((await readIfThere(path)) === text) await rm(path, { force: true });
  }
}

/** False where it is there already. The folder is made if need be. */
async function take(path: string, text: string): Promise<boolean> {
  try {
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, text, { flag: "wx" });
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // ENOENT: its last holder has just removed the folder.
    if (code === "EEXIST" || code === "ENOENT") return false;
    // Nothing was written where the disk is full, but the file may have been made.
    if ((await readIfThere(path)) === "") await rm(path, { force: true });
    throw error;
  }
}

async function judge(path: string): Promise<{ isStale: boolean; text: string | undefined; holder: string }> {
  const text = await readIfThere(path);
  if (text === undefined) return { isStale: false, text, holder: "another command" };
  const { pid, host } = parse(text) ?? {};
  if (pid === undefined || host === undefined) {
    const age = Date.now() - ((await stat(path).catch(() => undefined))?.mtimeMs ?? Date.now());
    return { isStale: age > unwrittenStaleMs, text, holder: "another command" };
  }
  if (host !== hostname()) return { isStale: false, text, holder: `process ${pid} on ${host}` };
  return { isStale: !isRunning(pid), text, holder: `process ${pid}` };
}

/** Of two that find a lock stale, one might take away what the other has just made: then it is put back. */
async function takeAway(path: string, stale: string | undefined): Promise<void> {
  const aside = `${path}.${randomUUID()}`;
  try {
    await rename(path, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw error;
  }
  const taken = await readIfThere(aside);
  if (taken !== undefined && taken !== stale) await take(path, taken);
  await rm(aside, { force: true });
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

function parse(text: string): Partial<Holder> | undefined {
  try {
    return JSON.parse(text) as Partial<Holder>;
  } catch {
    return undefined;
  }
}

const readIfThere = (path: string): Promise<string | undefined> => readFile(path, "utf8").catch(() => undefined);
