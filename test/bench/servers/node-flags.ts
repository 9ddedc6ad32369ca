/** What is added to a server that runs on Node so that its memory can be told from its garbage. */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export const nodeFlags = ["--expose-gc", "--import", join(import.meta.dirname, "../collect.ts")];

/** A collection takes tens of milliseconds, and a second one frees what the first has found to be free. */
export async function collectGarbage(pid: number): Promise<void> {
  for (let n = 0; n < 2; n++) {
    process.kill(pid, "SIGUSR2");
    await sleep(500);
  }
}
