/** kill -9 under load, three times; the long suite does it twenty times. */
import { test } from "node:test";
import { assertNothingLost, crashAgainAndAgain } from "../helpers/store-crash.ts";

for (const qos of [1, 2] as const) {
  test(`kill -9 under load and a restart, 3 times: every acknowledged QoS ${qos} message reaches its persistent subscribers`, async () => {
    assertNothingLost(await crashAgainAndAgain(3, qos), 1500);
  });
}

test("the same with workers, one of which is killed before all are, at QoS 2", async () => {
  assertNothingLost(await crashAgainAndAgain(2, 2, 2), 1500);
});
