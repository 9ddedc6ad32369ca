/** A part of cluster.long.test.ts. */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { runChaos } from "../helpers/cluster-chaos.ts";
import { startNats } from "../helpers/nats.ts";

const nats = await startNats({ nodes: 3 });
after(() => nats?.stop());

test(
  "clients that hop while a gateway and a NATS server are killed miss nothing, and get nothing twice",
  { skip: !nats },
  async (t) => {
    assert.ok(nats);
    const report = await runChaos(t, nats, {
      seed: 1,
      clients: 40,
      publishers: 2,
      seconds: 6,
      hopEveryMs: 100,
      pauseMs: 50,
    });
    const { missing, doubles, swapped, ...counts } = report;
    t.diagnostic(JSON.stringify(counts));
    assert.deepEqual({ missing, doubles, swapped }, { missing: [], doubles: [], swapped: [] });
    assert.ok(counts.acked > 100 && counts.hops > 15, JSON.stringify(counts));
  },
);
