import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { createPace } from "../../plugins/admin-api/pace.ts";

test("of many requests five go on in each turn of the event loop, in the order in which they came", async () => {
  const pace = createPace();
  const gone: number[] = [];
  const ask = (n: number): void => {
    const waits = pace();
    if (waits) void waits.then(() => gone.push(n));
    else gone.push(n);
  };
  for (let n = 0; n < 12; n++) ask(n);
  assert.deepEqual(gone, [0, 1, 2, 3, 4]);
  await turn();
  assert.deepEqual(gone, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  // Who comes now stands behind those who wait, though there would be room for it.
  ask(12);
  await turn();
  assert.deepEqual(gone, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
  await turn();
  ask(13);
  assert.equal(gone.at(-1), 13);
});
