/** Retained messages by topic filter: what the index finds is what matching each topic would. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { createExpiries } from "../../kernel/expiries.ts";
import { createRetained } from "../../kernel/retained.ts";
import type { KeptMessage } from "../../kernel/session.ts";
import { matches, topicFilterProblem } from "../../kernel/topics.ts";
import { createRandom } from "../helpers/random.ts";

function kept(topic: string, payload = "x"): KeptMessage {
  return {
    topic,
    payload: Buffer.from(payload),
    qos: 1,
    retain: true,
    properties: undefined,
    expiresAt: 0,
    from: undefined,
    frames: undefined,
    seq: 1,
    bytes: topic.length,
    holders: 0,
    records: 0,
  };
}

function open() {
  const held = new Set<KeptMessage>();
  const expiries = createExpiries(Date.now);
  const retained = createRetained({
    limits: { maxMessages: 10_000, maxBytes: 1 << 26 },
    expiries,
    now: Date.now,
    kept: (message) => void held.add(message),
    dropped: (message) => void held.delete(message),
  });
  return { retained, held };
}

test("300 topics and 2,000 filters at random: the index finds what matching each topic would", () => {
  const random = createRandom(7);
  const levels = ["a", "b", "", "$x", "cc"];
  const level = (): string => levels[random(levels.length)] ?? "";
  const { retained } = open();
  const topics = new Set<string>();
  for (let n = 0; n < 300; n++) {
    const topic = Array.from({ length: 1 + random(5) }, level).join("/");
    if (topic === "") continue;
    topics.add(topic);
    retained.set(kept(topic));
  }
  assert.equal(retained.count, topics.size);
  let found = 0;
  for (let n = 0; n < 2000; n++) {
    const parts = Array.from({ length: 1 + random(5) }, () => (random(3) === 0 ? "+" : level()));
    if (random(3) === 0) parts.push("#");
    const filter = parts.join("/");
    if (topicFilterProblem(filter) !== undefined) continue;
    const got = retained.match(filter).map(({ topic }) => topic);
    found += got.length;
    assert.deepEqual(got.toSorted(), [...topics].filter((topic) => matches(filter, topic)).toSorted(), filter);
  }
  assert.ok(found > 1000, `only ${found} matches`);
});

test("what is cleared leaves no level behind, and gives its bytes back", () => {
  const { retained, held } = open();
  const deep = `${"x/".repeat(30_000)}end`;
  for (const topic of ["a", "a/b/c", "a/b", deep, "d"]) retained.set(kept(topic));
  retained.set(kept("a/b", "again"));
  assert.equal(held.size, 5);
  assert.equal(retained.match("#").length, 5);
  assert.equal(retained.match(`${"x/".repeat(100)}#`).length, 1, "topics may be deeper than filters");
  for (const topic of ["a", "a/b/c", "a/b", deep, "d", "never"]) retained.set(kept(topic, ""));
  assert.deepEqual([retained.count, retained.bytes, held.size], [0, 0, 0]);
  assert.deepEqual(retained.match("#"), []);
});
