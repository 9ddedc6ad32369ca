/** What docs/scale.md says is what its unit costs come to, and what the code for subjects and interest does. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { fleets, rowsFor, withTable } from "../bench/cluster-arithmetic.ts";
import { simulate } from "../bench/cluster-scale.ts";
import { createSubjectTable } from "../helpers/subject-table.ts";

const subscriptions = process.env["SLUICE_TEST_LONG"] ? 1_000_000 : 50_000;

test("the arithmetic on the page is that of the unit costs", async () => {
  const page = await readFile(join(import.meta.dirname, "../../docs/scale.md"), "utf8");
  assert.equal(page, withTable(page));
  const log = rowsFor(fleets).find(([name]) => name === "engine: cores for the log");
  // 1,000,000 / 60 commands a second at 38 us.
  assert.equal(log?.[1], "0.63");
});

test("no node misses a message that it wants, and by interest none gets one that it does not want", () => {
  const o = { subscriptions, nodes: 25, messages: 2000, seed: 7 };
  const exact = simulate({ ...o, maxInterest: subscriptions });
  assert.equal(exact.missed, 0);
  assert.equal(exact.sent, exact.wanted);
  assert.ok(exact.wanted < 25);
  assert.ok(exact.perNode.subjects < exact.perNode.subscriptions, "nothing was covered by a wider subject");

  const collapsed = simulate({ ...o, maxInterest: 100 });
  assert.deepEqual([collapsed.missed, collapsed.sent, collapsed.perNode.subjects], [0, 25, 1]);
});

test("a node that asks for less than it wants is found out", () => {
  const table = createSubjectTable(["n.a.*.~", "n.b.>"]);
  const wanted = ["n.a.x.~", "n.b.~", "n.b.x.y.~"];
  assert.deepEqual(
    wanted.map((subject) => table.matches(subject)),
    [true, true, true],
  );
  assert.deepEqual(
    ["n.a.~", "n.a.x.y.~", "n.c.~"].map((subject) => table.matches(subject)),
    [false, false, false],
  );
});
