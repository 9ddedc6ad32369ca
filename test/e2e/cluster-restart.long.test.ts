/** As cluster-restart.test.ts, with many clients, and in place: every gateway is started again where it was. */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { startNats } from "../helpers/nats.ts";
import { restartAll } from "../helpers/rolling-restart.ts";

const nats = await startNats({ nodes: 3 });
after(() => nats?.stop());

for (const isBeside of [true, false]) {
  const how = isBeside ? "replaced" : "started again in place";
  test(`400 clients while all gateways are ${how}: nothing is lost, each stop drops its clients once`, async (t) => {
    if (!nats) return t.skip("no NATS");
    const { missing, doubles, swapped, drops, stops, ...counts } = await restartAll(t, nats, {
      namespace: isBeside ? "beside" : "inplace",
      isBeside,
      clients: 400,
      publishers: 5,
      wildcardEvery: 50,
      pauseMs: 100,
    });
    t.diagnostic(JSON.stringify({ ...counts, dropped: drops.reduce((sum, each) => sum + each, 0) }));
    assert.deepEqual({ missing, doubles, swapped }, { missing: [], doubles: [], swapped: [] });
    assert.deepEqual(drops, stops);
    if (isBeside) assert.equal(Math.max(...drops), 1);
    assert.ok(counts.acked > 1000, JSON.stringify(counts));
  });
}
