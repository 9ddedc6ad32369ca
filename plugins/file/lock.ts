/**
 * One writer for each topic: a second one would number its records alike and rotate the file away under the first.
 * The lock is a file that says who holds it, since Node has no lock that the system gives up with the process. It is
 * stale when that process is gone, or, of another host or container, when it has not been refreshed for a while.
 */
import { randomUUID } from "node:crypto";
import { readFile, rename, stat, unlink, utimes, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import type { Clock } from "@sluice/kernel";

const retryMs = 50;
/** A lock of another host is stale when its last refresh is older; holders refresh it six times as often. */
const foreignStaleMs = 60_000;
/** Between creating the file and writing to it a lock has no holder; older, its maker died in between. */
const unwrittenStaleMs = 5_000;

export interface Lock {
  /** False where somebody took it away: stop writing. */
  refresh(): Promise<boolean>;
  release(): Promise<void>;
}

export interface LockRequest {
  readonly path: string;
  /** The filter, for whoever finds the lock taken. */
  readonly owner: string;
  /** How long to wait for the holder: after a reload, the filter that this one replaces. */
  readonly waitMs: number;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

interface Holder {
  readonly id: string;
  readonly host: string;
  readonly pid: number;
  /** When the process started, as the system counts; tells it from a later one with its pid. */
  readonly started: string | null;
  readonly owner: string;
}

export async function takeLock({ path, owner, waitMs, clock, signal }: LockRequest): Promise<Lock> {
  const id = randomUUID();
  const mine: Holder = { id, host: hostname(), pid: process.pid, started: await startOf(process.pid), owner };
  const text = `${JSON.stringify(mine)}\n`;
  const deadline = clock.now() + waitMs;

  while (!(await create(path, text))) {
    const other = await judge(path, clock);
    if (other === "gone") continue;
    if (other.stale) {
      await takeAway(path, other.text);
      continue;
    }
    if (clock.now() >= deadline) throw new Error(describe(path, other.holder, mine));
    await pause(clock, signal);
    if (signal.aborted) throw new Error(`${path}: closed while waiting for the lock`);
  }

  async function isMine(): Promise<boolean> {
    return (await readIfThere(path)) === text;
  }
  return {
    async refresh() {
      if (!(await isMine())) return false;
      const now = clock.now() / 1000;
      await utimes(path, now, now);
      return true;
    },
    async release() {
      if (await isMine()) await unlink(path);
    },
  };
}

/** False where it exists. */
async function create(path: string, text: string): Promise<boolean> {
  try {
    await writeFile(path, text, { flag: "wx" });
    return true;
  } catch (error) {
    if (isCode(error, "EEXIST")) return false;
    // A full disk has room for a name, but not for what is in it. Where nothing was made there is nothing to remove.
    if (isCode(error, "ENOSPC") || isCode(error, "EDQUOT")) await unlink(path).catch(() => undefined);
    throw error;
  }
}

async function judge(
  path: string,
  clock: Clock,
): Promise<"gone" | { stale: boolean; text: string; holder: Holder | undefined }> {
  const text = await readIfThere(path);
  const found = await stat(path).catch(ignoreMissing);
  if (text === undefined || !found) return "gone";
  const holder = parseHolder(text);
  const age = clock.now() - found.mtimeMs;
  if (!holder) return { stale: age > unwrittenStaleMs, text, holder };
  if (holder.host !== hostname()) return { stale: age > foreignStaleMs, text, holder };
  return { stale: !(await isRunning(holder)), text, holder };
}

/** Of two that find a lock stale, one might take away what the other has just made: then it is put back. */
async function takeAway(path: string, text: string): Promise<void> {
  const aside = `${path}.${randomUUID()}`;
  try {
    await rename(path, aside);
  } catch (error) {
    ignoreMissing(error);
    return;
  }
  const taken = await readIfThere(aside);
  if (taken !== undefined && taken !== text) await create(path, taken);
  await unlink(aside);
}

async function isRunning({ pid, started }: Holder): Promise<boolean> {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (isCode(error, "ESRCH")) return false;
  }
  const now = await startOf(pid);
  return started === null || now === null || now === started;
}

/** Linux: the 22nd field of /proc/PID/stat, behind a name that may hold anything. Null elsewhere. */
async function startOf(pid: number): Promise<string | null> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  return text.slice(text.lastIndexOf(")") + 2).split(" ")[19] ?? null;
}

function parseHolder(text: string): Holder | undefined {
  try {
    return JSON.parse(text) as Holder;
  } catch {
    return undefined;
  }
}

function describe(path: string, holder: Holder | undefined, mine: Holder): string {
  if (!holder) return `${path} is held by a process that has not said which: if none is starting, delete it`;
  const here = holder.host === mine.host;
  if (here && holder.pid === mine.pid && holder.started === mine.started) {
    return `${path} is held by ${holder.owner} of this gateway: use one FileMQTT for the topic (a pipeline may serve several packet types and proxies), or give each its own dir or topic`;
  }
  const where = here ? `process ${holder.pid}` : `process ${holder.pid} on ${holder.host}`;
  return `${path} is held by ${holder.owner} of ${where}: give each gateway its own dir`;
}

function pause(clock: Clock, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = clock.setTimeout(resolve, retryMs);
  const stop = () => {
    timer.clear();
    resolve();
  };
  signal.addEventListener("abort", stop, { once: true });
  return promise.finally(() => signal.removeEventListener("abort", stop));
}

function readIfThere(path: string): Promise<string | undefined> {
  return readFile(path, "utf8").catch(ignoreMissing);
}

function ignoreMissing(error: unknown): undefined {
  if (!isCode(error, "ENOENT")) throw error;
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}
