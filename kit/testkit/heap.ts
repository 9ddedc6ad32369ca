/** Whether what is over is really gone. */
import { setImmediate as turn } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** A full collection, whatever flags the process was started with. */
export async function collectGarbage(): Promise<void> {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  // What the end of a promise frees is only free afterwards.
  for (let n = 0; n < 3; n++) {
    await turn();
    collect();
  }
}

/** Bytes in use once the garbage is gone, buffers included. */
export async function usedBytes(): Promise<number> {
  await collectGarbage();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}
