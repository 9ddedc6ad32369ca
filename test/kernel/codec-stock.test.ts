import assert from "node:assert/strict";
import { test } from "node:test";
import { fuzzV4 } from "../helpers/fuzz-v4.ts";

test("mutated PUBLISHes and acks, split or not, are read as mqtt-packet reads them, or refused for a rule", () => {
  const { equal, refused, stricter } = fuzzV4({ seed: 29, rounds: 30_000 });
  assert.ok(
    equal > 10_000 && refused > 100 && stricter > 1000,
    `${equal} equal, ${refused} refused, ${stricter} stricter`,
  );
});
