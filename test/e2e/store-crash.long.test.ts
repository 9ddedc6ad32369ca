/** kill -9 under load, twenty times. */
import { test } from "node:test";
import { assertNothingLost, crashAgainAndAgain } from "../helpers/store-crash.ts";

test("kill -9 under load and a restart, 20 times: every acknowledged QoS 1 message reaches its persistent subscribers", async (t) => {
  const report = await crashAgainAndAgain(20, 1);
  t.diagnostic(`${report.acked} acknowledged; starts took ${report.startMs.join(", ")} ms`);
  assertNothingLost(report, 10_000);
});
