/** kill -9 under load, three times; the long suite does it twenty times. */
import { test } from "node:test";
import { assertNothingLost, crashAgainAndAgain } from "../helpers/store-crash.ts";

test("kill -9 under load and a restart, 3 times: every acknowledged QoS 1 message reaches its persistent subscribers", async () => {
  assertNothingLost(await crashAgainAndAgain(3, 1), 1500);
});
