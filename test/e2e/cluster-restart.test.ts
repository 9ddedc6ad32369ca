/** A rolling restart: what clients notice of it. cluster-restart.long.test.ts has more of them. */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { startNats } from "../helpers/nats.ts";
import { restartAll } from "../helpers/rolling-restart.ts";

const nats = await startNats({ nodes: 3 });
after(() => nats?.stop());

test("all gateways are replaced under load: nothing is lost or swapped, and each client is dropped once", async (t) => {
  if (!nats) return t.skip("no NATS");
  const load = { clients: 24, publishers: 2, wildcardEvery: 6, pauseMs: 50 };
  const { missing, doubles, swapped, drops, stops, ...counts } = await restartAll(t, nats, {
    namespace: "beside",
    isBeside: true,
    ...load,
  });
  t.diagnostic(JSON.stringify(counts));
  assert.deepEqual({ missing, doubles, swapped }, { missing: [], doubles: [], swapped: [] });
  assert.deepEqual(
    drops,
    drops.map(() => 1),
  );
  assert.deepEqual(stops, drops);
  assert.ok(counts.acked > 100, JSON.stringify(counts));
});
