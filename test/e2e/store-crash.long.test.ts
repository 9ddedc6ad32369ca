/** kill -9 under load, twenty times. */
import { test } from "node:test";
import { assertNothingLost, crashAgainAndAgain } from "../helpers/store-crash.ts";

for (const qos of [1, 2] as const) {
  test(`kill -9 under load and a restart, 20 times: every acknowledged QoS ${qos} message reaches its persistent subscribers`, async (t) => {
    const report = await crashAgainAndAgain(20, qos);
    t.diagnostic(`${report.acked} acknowledged; starts took ${report.startMs.join(", ")} ms`);
    assertNothingLost(report, 10_000);
  });
}

for (const qos of [1, 2] as const) {
  test(`with workers, one of which is killed before all are, 10 times at QoS ${qos}`, async () => {
    assertNothingLost(await crashAgainAndAgain(10, qos, 2), 10_000);
  });
}
