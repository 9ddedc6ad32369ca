/** A thousand persistent clients hopping between three gateways, of which one is killed, as is one of three NATS servers. */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { runChaos } from "../helpers/cluster-chaos.ts";
import { startNats } from "../helpers/nats.ts";

const nats = await startNats({ nodes: 3 });
after(() => nats?.stop());

test(
  "1,000 clients hop while a gateway and a NATS server are killed: nothing is missing, doubled or swapped",
  { skip: !nats },
  async (t) => {
    assert.ok(nats);
    const report = await runChaos(t, nats, {
      seed: 2,
      clients: 1000,
      publishers: 10,
      seconds: 40,
      hopEveryMs: 50,
      pauseMs: 250,
    });
    const { missing, doubles, swapped, ...counts } = report;
    t.diagnostic(JSON.stringify(counts));
    assert.deepEqual({ missing, doubles, swapped }, { missing: [], doubles: [], swapped: [] });
    assert.ok(counts.acked > 1000 && counts.hops > 200, JSON.stringify(counts));
  },
);
