/** One client id that connects everywhere at once: 100 times, or 1,000 with SLUICE_TEST_LONG. */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { race } from "../helpers/client-race.ts";
import { startCluster } from "../helpers/gateway-cluster.ts";
import { isLong } from "../helpers/long-test.ts";
import { startNats } from "../helpers/nats.ts";

const connects = isLong ? 1000 : 100;
const nats = await startNats({ nodes: 3 });
after(() => nats?.stop());

test(`${connects} racing reconnects over three gateways: one owner, no message lost, none of QoS 2 twice`, async (t) => {
  if (!nats) return t.skip("no NATS");
  const nodes = await startCluster({ urls: nats.urls, namespace: "race" });
  t.after(() => Promise.all(nodes.map((node) => node.stop())));
  const { accepted, refused, ...found } = await race(t, nodes, { connects, atOnce: 30, seed: 7 });
  t.diagnostic(JSON.stringify({ accepted, refused, acked: found.acked }));
  assert.deepEqual({ ...found, acked: 0 }, { open: 1, owners: 1, acked: 0, missing: [], doubles: [] });
  assert.ok(found.acked > 20, `${found.acked} messages`);
  assert.ok(accepted + refused > connects);
  // Most are overtaken by the next before they have been answered.
  assert.ok(accepted > 10, `${accepted} accepted`);
});
