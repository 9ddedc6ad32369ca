import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

/** Asks again until the answer is this one; for what no event announces. Fails with the difference. */
export async function eventually<T>(ask: () => T | Promise<T>, expected: T, timeoutMs = 10_000): Promise<void> {
  const until = performance.now() + timeoutMs;
  for (;;) {
    const actual = await ask();
    try {
      assert.deepEqual(actual, expected);
      return;
    } catch (error) {
      if (performance.now() > until) throw error;
    }
    await sleep(10);
  }
}
