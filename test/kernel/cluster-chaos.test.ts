/** What holds while everything goes wrong: no acknowledged message is missing, order, exactly once; some seconds of it. */
import { test } from "node:test";
import { runChaos } from "../helpers/memory-chaos.ts";

test("clients that hop between nodes, some of which die, lose nothing", async (t) => {
  t.diagnostic(JSON.stringify(await runChaos({ seed: 2, steps: 250, kills: true })));
});
