/** As cluster-chaos.test.ts, for longer and with many seeds. */
import { test } from "node:test";
import { runChaos } from "../helpers/memory-chaos.ts";

for (let seed = 100; seed < 140; seed++) {
  test(`clients that hop between nodes lose nothing (seed ${seed})`, async (t) => {
    t.diagnostic(JSON.stringify(await runChaos({ seed, steps: 600, kills: seed % 4 > 0 })));
  });
}
