/** What holds while everything goes wrong: no acknowledged message is missing, order, exactly once; some seconds of it. */
import { test } from "node:test";
import { runChaos } from "../helpers/memory-chaos.ts";

for (const [seed, kills] of [
  [1, false],
  [2, true],
] as const) {
  test(`clients that hop between nodes lose nothing (seed ${seed}${kills ? ", nodes die" : ""})`, async (t) => {
    t.diagnostic(JSON.stringify(await runChaos({ seed, steps: 250, kills })));
  });
}
