/** A folder that stands for a lock: what several test processes would install at once, one of them does. */
import { mkdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";

/** mkdir is atomic; a lock whose owner has died is removed. */
export async function takeLock(lock: string): Promise<boolean> {
  try {
    await mkdir(lock);
    await writeFile(join(lock, "pid"), String(process.pid));
    return true;
  } catch {
    const pid = Number(await readFile(join(lock, "pid"), "utf8").catch(() => ""));
    const { mtimeMs } = await stat(lock).catch(() => ({ mtimeMs: Date.now() }));
    const dead = pid > 0 ? !isAlive(pid) : Date.now() - mtimeMs > 10_000;
    if (dead) await rm(lock, { recursive: true, force: true });
    return false;
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
