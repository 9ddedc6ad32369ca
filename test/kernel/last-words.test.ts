/** What clients of a worker that has ended leave to be said: how much at a time, by whom, and what is given up. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { systemClock } from "../../kernel/host.ts";
import { createLastWords } from "../../kernel/last-words.ts";
import type { LastWords } from "../../kernel/siblings.ts";
import { eventually } from "../helpers/eventually.ts";

function open() {
  const given: { worker: string; id: number; words: LastWords }[] = [];
  let dropped = 0;
  const desk = createLastWords<string>({
    clock: systemClock,
    give: (worker, id, words) => void given.push({ worker, id, words }),
    dropped: (count) => void (dropped += count),
  });
  return {
    desk,
    given,
    ids: () => given.map(({ words }) => words.client.id),
    dropped: () => dropped,
    willOf: (id: string): LastWords => ({
      client: { id, username: undefined, address: "", protocolVersion: 5 },
      will: { topic: "w", payload: Buffer.from(id), qos: 1, retain: false, delaySec: 0 },
      connection: undefined,
    }),
  };
}

test("they wait for a worker, and are shared out; no more than 100 at a time are in one's pipelines", () => {
  const { desk, given, willOf } = open();
  for (let n = 0; n < 250; n++) desk.left(willOf(`c${n}`), 0);
  assert.equal(given.length, 0);
  desk.ready("a");
  assert.equal(given.length, 100);
  desk.ready("b");
  const at = (name: string): number => given.filter(({ worker }) => worker === name).length;
  assert.deepEqual([at("a"), at("b")], [100, 100]);
  for (const { worker, id } of given.slice(0, 100)) desk.said(worker, id);
  assert.equal(given.length, 250);
});

test("what a worker had in its pipelines when it ended is given up, and counted; the rest goes to the others", () => {
  const { desk, given, ids, dropped, willOf } = open();
  const over: string[] = [];
  desk.ready("a");
  for (let n = 0; n < 101; n++) desk.left(willOf(`c${n}`), 0, () => void over.push(`c${n}`));
  for (const { id } of given.slice(0, 3)) desk.begun("a", id);
  const [first] = given;
  desk.said("a", first?.id ?? 0);
  assert.deepEqual(over, ["c0"]);
  desk.gone("a");
  assert.equal(dropped(), 2);
  assert.deepEqual(over, ["c0", "c1", "c2"]);
  assert.equal(given.length, 101);
  desk.ready("b");
  assert.deepEqual(
    ids().slice(101),
    Array.from({ length: 98 }, (_, n) => `c${n + 3}`),
  );
});

test("a will that waits is forgotten when its client is back, published when its session has ended; presence waits for neither", async () => {
  const { desk, given, ids, willOf } = open();
  desk.ready("a");
  const over: string[] = [];
  desk.left({ ...willOf("resumed"), connection: 7 }, 60, () => void over.push("resumed"));
  assert.deepEqual(
    given.map(({ words }) => [words.client.id, words.will, words.connection]),
    [["resumed", undefined, 7]],
  );
  desk.left(willOf("anew"), 60);
  desk.left(willOf("removed"), 60);
  desk.left(willOf("due"), 0.02);
  desk.back("resumed", true);
  desk.back("anew", false);
  desk.ended("removed");
  assert.deepEqual(over, ["resumed"]);
  assert.deepEqual(ids(), ["resumed", "anew", "removed"]);
  await eventually(() => ids().at(-1), "due");
});

test("closing publishes what waits, and ends when it is said; what comes then is forgotten", async () => {
  const { desk, given, ids, willOf } = open();
  desk.ready("a");
  desk.left(willOf("waits"), 60);
  let isClosed = false;
  const closing = desk.close().then(() => (isClosed = true));
  desk.left(willOf("late"), 0);
  await Promise.resolve();
  assert.deepEqual([ids(), isClosed], [["waits"], false]);
  desk.said("a", given[0]?.id ?? 0);
  await closing;
  const { desk: other, willOf: another } = open();
  other.left(another("nobody to say it"), 60);
  await other.close();
});
