/**
 * One gateway for a buffer's folder: two would number records alike and delete each other's. The lock is a file that says
 * who holds it, since Node has no lock that the system gives up with the process. It is stale when that process is gone
 * or, of another host or container, when it has not been refreshed for a while.
 */
import { readFile, rename, stat, unlink, utimes, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { randomUUID } from "node:crypto";
import type { Clock } from "@sluice/kernel";

/** Milliseconds after which a lock of another host is stale; ours is refreshed six times as often. */
const foreignStaleMs = 60_000;

interface Holder {
  readonly id: string;
  readonly host: string;
  readonly pid: number;
  /** When the process started, as the system counts; tells it from a later one with its pid. */
  readonly started: string;
  readonly owner: string;
}

/** Resolves with what releases it; rejects, naming the holder, where the folder is taken. */
export async function lockFolder(path: string, owner: string, clock: Clock): Promise<() => Promise<void>> {
  const mine: Holder = {
    id: randomUUID(),
    host: hostname(),
    pid: process.pid,
    started: await startOf(process.pid),
    owner,
  };
  const text = JSON.stringify(mine);
  for (let attempt = 0; !(await create(path, text)); attempt++) {
    const holder = parseHolder(await readFile(path, "utf8").catch(() => ""));
    const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: 0 }));
    const isFresh = clock.now() - mtimeMs < foreignStaleMs;
    const isHeld = holder && (holder.host === hostname() ? await isRunning(holder) : isFresh);
    if (attempt === 3 || isHeld) {
      const by = holder ? `${holder.owner} of process ${holder.pid} on ${holder.host}` : "another process";
      throw new Error(`${path} is held by ${by}: give each gateway and each filter its own buffer.dir`);
    }
    // Moved aside first, so that of two that find it stale one can't delete what the other has just made.
    await rename(path, `${path}.${mine.id}`).then(
      () => unlink(`${path}.${mine.id}`),
      () => undefined,
    );
  }
  let timer: { clear(): void };
  const refresh = (): void => {
    timer = clock.setTimeout(() => {
      const now = clock.now() / 1000;
      void utimes(path, now, now).catch(() => undefined);
      refresh();
    }, foreignStaleMs / 6);
  };
  refresh();
  return async () => {
    timer.clear();
    if ((await readFile(path, "utf8").catch(() => "")) === text) await unlink(path);
  };
}

/** False where it exists. */
async function create(path: string, text: string): Promise<boolean> {
  try {
    await writeFile(path, text, { flag: "wx" });
    return true;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EEXIST") return false;
    throw error;
  }
}

async function isRunning({ pid, started }: Holder): Promise<boolean> {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ESRCH") return false;
  }
  const now = await startOf(pid);
  return started === "" || now === "" || now === started;
}

/** Linux: the 22nd field of /proc/PID/stat, behind a name that may hold anything. Empty elsewhere. */
async function startOf(pid: number): Promise<string> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  return text.slice(text.lastIndexOf(")") + 2).split(" ")[19] ?? "";
}

function parseHolder(text: string): Holder | undefined {
  try {
    return JSON.parse(text) as Holder;
  } catch {
    return undefined;
  }
}
