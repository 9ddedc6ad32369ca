/** What a change of a filter with wildcards makes the cache forget: all that it matches, and little else. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { createMatchCache } from "../../kernel/match-cache.ts";
import { matches } from "../../kernel/topics.ts";
import { createRandom } from "../helpers/random.ts";

/** Up to `count` topic names, each cached with a result of its own. */
function filled(cache: ReturnType<typeof createMatchCache<readonly string[]>>, topics: Iterable<string>) {
  const results = new Map<string, readonly string[]>();
  for (const topic of topics) {
    const result = [topic];
    results.set(topic, result);
    cache.set(topic, result);
  }
  return results;
}

test("random changes: what a filter matches is forgotten at once, and hardly anything else", () => {
  const random = createRandom(4711);
  const words = ["a", "b", "", "$x", "c", "dd"];
  const level = (): string => words[random(words.length)] ?? "";
  const randomTopic = (): string => Array.from({ length: 1 + random(5) }, level).join("/") || "a";
  // Eight shapes, as many as are kept: what they say at their levels is random.
  const shapes = ["=/#", "=/=/#", "+/=", "=/+", "=/+/=", "+/=/#", "=/=/=/+", "=/+/=/#"];
  const cache = createMatchCache<readonly string[]>(10_000);
  for (const shape of shapes) cache.deleteMatching(shape.replaceAll("=", "a"));
  let forgotten = 0;
  let needlessly = 0;
  let kept = 0;
  for (let round = 0; round < 400; round++) {
    const results = filled(cache, Array.from({ length: 100 }, randomTopic));
    const filter = shapes[random(shapes.length)]!.replaceAll("=", level);
    cache.deleteMatching(filter);
    for (const [topic, result] of results) {
      const found = cache.get(topic);
      if (matches(filter, topic)) {
        assert.equal(found, undefined, `${filter} matches ${topic}`);
        forgotten++;
      } else if (found === undefined) needlessly++;
      else {
        assert.equal(found, result);
        kept++;
      }
    }
  }
  assert.ok(forgotten > 1000 && kept > 10_000, `${forgotten} forgotten, ${kept} kept`);
  // Those that begin with $, which a filter with a wildcard at its first level does not match.
  assert.ok(needlessly < kept / 50, `${needlessly} forgotten needlessly, ${kept} kept`);
});

test("more shapes of filters than are kept, long ones and none but wildcards: what they match is forgotten all the same", () => {
  const cache = createMatchCache<readonly string[]>(1000);
  const deep = "x/".repeat(20);
  const filters = [
    ...Array.from({ length: 12 }, (_, n) => `${"+/".repeat(n)}a/#`),
    "#",
    "+/#",
    `${deep}+`,
    `${"+/".repeat(15)}x/#`,
    `${"x/".repeat(16)}#`,
    "a/#",
  ];
  const topics = [...filters.map((filter) => filter.replaceAll("+", "b").replace("#", "c")), "a", "b/a", deep];
  for (let round = 0; round < 3; round++) {
    for (const filter of filters) {
      filled(cache, topics);
      cache.deleteMatching(filter);
      const matching = topics.filter((topic) => matches(filter, topic));
      assert.ok(matching.length > 0, filter);
      for (const topic of matching) assert.equal(cache.get(topic), undefined, `${filter} matches ${topic}`);
    }
  }
});

test("in a full cache, what was asked for stays, and what a filter matches is forgotten wherever it has moved", () => {
  const cache = createMatchCache<readonly string[]>(4);
  cache.deleteMatching("seen/+");
  filled(cache, ["a/1", "b/1", "a/2", "c/1"]);
  for (const topic of ["a/1", "b/1", "a/2"]) assert.deepEqual(cache.get(topic), [topic]);
  filled(cache, ["a/3"]);
  assert.equal(cache.get("a/3"), undefined, "the first time it has to wait");
  for (let turn = 0; turn < 8 && !cache.get("a/3"); turn++) filled(cache, ["a/3"]);
  assert.deepEqual(cache.get("a/3"), ["a/3"]);
  assert.equal(cache.get("c/1"), undefined, "nobody had asked for it");
  cache.deleteMatching("a/+");
  for (const topic of ["a/1", "a/2", "a/3"]) assert.equal(cache.get(topic), undefined);
  assert.deepEqual(cache.get("b/1"), ["b/1"]);
  cache.deleteMatching("b/+");
  assert.equal(cache.get("b/1"), undefined);
});

test("as many topics as it may hold are all held, and of twice as many in turns not all push each other out", () => {
  const cache = createMatchCache<readonly string[]>(1000);
  const topics = Array.from({ length: 2000 }, (_, n) => `device/${n}/log`);
  const hits = (count: number): number => {
    let found = 0;
    for (const topic of topics.slice(0, count)) {
      if (cache.get(topic)) found++;
      else cache.set(topic, [topic]);
    }
    return found;
  };
  assert.equal(hits(1000), 0);
  assert.equal(hits(1000), 1000);
  let later = 0;
  for (let turn = 0; turn < 10; turn++) later += hits(2000);
  assert.ok(later > 4000, `${later} of 20,000 found`);
  // A new set of topics, none of them the old ones, is let in little by little.
  const others = Array.from({ length: 900 }, (_, n) => `other/${n}/log`);
  for (let turn = 0; turn < 20; turn++) for (const topic of others) if (!cache.get(topic)) cache.set(topic, [topic]);
  const held = others.filter((topic) => cache.get(topic) !== undefined).length;
  assert.ok(held > 800, `${held} of 900 held`);
});

test("a filter that matches thousands of topics forgets them, and one that matches few leaves the rest", () => {
  const cache = createMatchCache<readonly string[]>(100_000);
  cache.deleteMatching("x/#");
  cache.deleteMatching("x/x/#");
  const topics = Array.from({ length: 20_000 }, (_, n) => `${n % 2 ? "a" : "b"}/${n}/log`);
  const results = filled(cache, topics);
  cache.deleteMatching("a/1/#");
  assert.equal(cache.get("a/1/log"), undefined);
  assert.ok(topics.every((topic) => topic === "a/1/log" || cache.get(topic) === results.get(topic)));
  cache.deleteMatching("a/#");
  assert.ok(topics.every((topic) => topic.startsWith("b/") || cache.get(topic) === undefined));
});

test("topics that come and go again and again don't fill the memory", () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const cache = createMatchCache<readonly string[]>(2000);
  for (const filter of ["a/#", "+/b/#", "+/+/c"]) cache.deleteMatching(filter);
  const turn = (n: number): void => {
    cache.set(`a${n % 50}/b/c`, [String(n)]);
    cache.deleteMatching(`a${n % 50}/#`);
    cache.set(`a${n}/b/c`, [String(n)]);
  };
  for (let n = 0; n < 20_000; n++) turn(n);
  collect();
  const before = process.memoryUsage().heapUsed;
  for (let n = 20_000; n < 300_000; n++) turn(n);
  collect();
  const grown = process.memoryUsage().heapUsed - before;
  assert.ok(grown < 500_000, `${grown} bytes more`);
});
