import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  createTopicIndex,
  matches,
  maxFilterLevels,
  topicFilterProblem,
  topicNameProblem,
} from "../../kernel/topics.ts";
import type { TopicIndex } from "../../kernel/topics.ts";
import { createRandom } from "../helpers/random.ts";

const nul = "\u0000";
/** 65,535 bytes of UTF-8, the most that MQTT can send. */
const longest = "é".repeat(32_767) + "x";

describe("A14: valid topic filters", () => {
  const valid = [
    "#",
    "+",
    "/",
    "//",
    "///",
    "/#",
    "/+",
    "+/+",
    "+/#",
    "sport",
    "finance/",
    "/finance",
    "sport/#",
    "sport/+",
    "sport/+/player1",
    "/+/sport/+/player1/+/score",
    "sport/tennis/player1/#",
    "sport/tennis/+",
    "+/tennis/#",
    "/+/+/finance/#",
    "a//b",
    "a/ /b",
    "$SYS/#",
    "$SYS/+/load",
    "$share",
    "$sharegroup/a",
    "a/$share/g/b",
    "$share/group/a/b",
    "$share/group/#",
    "$share/g//",
    "Beijing/温度/+",
    "😀/#",
    longest,
    `${"a/".repeat(maxFilterLevels - 1)}#`,
  ];
  for (const filter of valid) {
    test(JSON.stringify(filter.slice(0, 40)), () => assert.equal(topicFilterProblem(filter), undefined));
  }
});

describe("A14: topic filters that are refused", () => {
  const refused: [filter: string, problem: RegExp][] = [
    ["", /not be empty/],
    ["#/sport", /# must/],
    ["sport#", /# must/],
    ["#sport", /# must/],
    ["##", /# must/],
    ["/#/sport", /# must/],
    ["#+", /# must/],
    ["+#", /\+ must/],
    ["sport/tennis#", /# must/],
    ["sport/tennis/#/ranking", /# must/],
    ["sport/#/", /# must/],
    ["a/#b", /# must/],
    ["sport+", /\+ must/],
    ["+sport", /\+ must/],
    ["++", /\+ must/],
    ["/+/++/+finance", /\+ must/],
    ["a/b+/c", /\+ must/],
    ["a/+b/c", /\+ must/],
    [nul, /U\+0000/],
    [`a/${nul}/b`, /U\+0000/],
    ["a/\ud800/b", /surrogates/],
    ["\udc00", /surrogates/],
    [`${longest}x`, /65535 bytes/],
    ["x".repeat(65_536), /65535 bytes/],
    ["a/".repeat(maxFilterLevels), /at most 128 levels, not 129/],
    ["$share/", /MQTT-4.8.2-1/],
    ["$share/g", /MQTT-4.8.2-1/],
    ["$share/g/", /MQTT-4.8.2-1/],
    ["$share//t", /MQTT-4.8.2-1/],
    ["$share/+/t", /MQTT-4.8.2-2/],
    ["$share/a#/t", /MQTT-4.8.2-2/],
    ["$share/g/t#", /# must/],
    [`$share/g/${"a/".repeat(maxFilterLevels)}`, /at most 128 levels, not 129/],
  ];
  for (const [filter, problem] of refused) {
    test(JSON.stringify(filter.slice(0, 40)), () => assert.match(topicFilterProblem(filter) ?? "", problem));
  }
});

describe("L29: topic names", () => {
  for (const topic of ["a", "/", "a/b", "/a", "a/", "$SYS/a", "a b", "é/温度/😀", "\ufeffa", longest]) {
    test(`${JSON.stringify(topic.slice(0, 40))} is valid`, () => assert.equal(topicNameProblem(topic), undefined));
  }
  const refused: [topic: string, problem: RegExp][] = [
    ["", /not be empty/],
    ["#", /wildcards/],
    ["+", /wildcards/],
    ["a/+", /wildcards/],
    ["a/b#c", /wildcards/],
    [`a${nul}`, /U\+0000/],
    ["\ud83d", /surrogates/],
    [`${longest}x`, /65535 bytes/],
  ];
  for (const [topic, problem] of refused) {
    test(`${JSON.stringify(topic.slice(0, 40))} is refused`, () =>
      assert.match(topicNameProblem(topic) ?? "", problem));
  }
});

/** Filter, topic name, whether they match: by `matches` and by an index that holds the filter alone. */
const matchTable: [filter: string, topic: string, matching: boolean][] = [
  // A31
  ["a/b", "a/b/c", false],
  ["a/b", "a", false],
  ["a/b", "a/c", false],
  ["a/b", "a/b", true],
  ["a/b", "A/b", false],
  // A15, the examples of MQTT 4.7.1.2 and 4.7.1.3
  ["sport/tennis/player1/#", "sport/tennis/player1", true],
  ["sport/tennis/player1/#", "sport/tennis/player1/ranking", true],
  ["sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true],
  ["sport/tennis/player1/#", "sport/tennis/player2", false],
  ["sport/tennis/player1/#", "sport/tennis", false],
  ["sport/#", "sport", true],
  ["sport/#", "sport/", true],
  ["sport/#", "sports", false],
  ["sport/+", "sport", false],
  ["sport/+", "sport/", true],
  ["sport/tennis/+", "sport/tennis/player1", true],
  ["sport/tennis/+", "sport/tennis/player1/ranking", false],
  ["+/+", "/finance", true],
  ["/+", "/finance", true],
  ["+", "/finance", false],
  ["+", "finance", true],
  ["+/#", "finance", true],
  ["+/+/#", "finance", false],
  ["#", "a", true],
  ["#", "/", true],
  ["/#", "/", true],
  ["/#", "a", false],
  ["/", "/", true],
  ["/", "//", false],
  ["+/+/+", "//", true],
  ["a//b", "a//b", true],
  ["a/+/b", "a//b", true],
  ["a/b/", "a/b", false],
  ["a/b", "a/b/", false],
  ["a/b/#", "a/b/", true],
  ["a/+/c/#", "a/b/c", true],
  // L29: wildcards never match the first level of $ topics [MQTT-4.7.2-1]
  ["#", "$SYS", false],
  ["#", "$SYS/load", false],
  ["+", "$SYS", false],
  ["+/load", "$SYS/load", false],
  ["+/#", "$SYS/load", false],
  ["$SYS/#", "$SYS/load", true],
  ["$SYS/#", "$SYS", true],
  ["$SYS/+", "$SYS/load", true],
  ["$SYS/load", "$SYS/load", true],
  ["#", "a/$SYS", true],
  ["a/+", "a/$SYS", true],
];

describe("A15, A31, L29: what matches", () => {
  for (const [filter, topic, matching] of matchTable) {
    test(`${filter} ${matching ? "matches" : "does not match"} ${topic}`, () => {
      assert.equal(topicFilterProblem(filter), undefined);
      assert.equal(matches(filter, topic), matching);
      const index = createTopicIndex<string, number>({ prefer: Math.max, cacheSize: 10 });
      index.set(filter, "A", 1);
      const expected = matching ? [{ key: "A", value: 1 }] : [];
      assert.deepEqual(index.match(topic), expected);
      assert.deepEqual(index.match(topic), expected, "the second time, from the cache");
    });
  }
});

/** The match as `A0 B1`, sorted. */
function found(index: TopicIndex<string, number>, topic: string): string {
  return index
    .match(topic)
    .map(({ key, value }) => `${key}${value}`)
    .sort()
    .join(" ");
}

const wildcardTable: [key: string, filter: string, value: number][] = [
  ["A", "a/+", 0],
  ["A", "b/d", 1],
  ["B", "+/+", 1],
  ["C", "+/fin", 1],
  ["D", "a/fin", 1],
  ["E", "#", 2],
  ["F", "a/#", 2],
];

for (const cacheSize of [0, 1, 100]) {
  test(`A15, A27: subscribe, match, unsubscribe, with a cache of ${cacheSize}`, () => {
    const index = createTopicIndex<string, number>({ prefer: Math.max, cacheSize });
    assert.equal(found(index, "a/fin"), "");
    for (const [key, filter, value] of wildcardTable) index.set(filter, key, value);
    assert.equal(index.size, 7);
    for (let round = 0; round < 2; round++) {
      assert.equal(found(index, "a/fin"), "A0 B1 C1 D1 E2 F2");
      assert.equal(found(index, "b/d"), "A1 B1 E2");
      assert.equal(found(index, "b/d/f"), "E2");
    }
    // A27: at once, not eventually
    assert.equal(index.delete("+/+", "B"), true);
    assert.equal(index.delete("#", "E"), true);
    assert.equal(found(index, "a/fin"), "A0 C1 D1 F2");
    assert.equal(found(index, "b/d"), "A1");
    for (const filter of ["a/+", "b/d"]) assert.equal(index.delete(filter, "A"), true);
    assert.equal(found(index, "a/fin"), "C1 D1 F2");
    for (const [key, filter] of wildcardTable.slice(3)) index.delete(filter, key);
    assert.equal(index.size, 0);
    assert.equal(found(index, "a/fin"), "");
  });
}

test("what was not subscribed can't be deleted", () => {
  const index = createTopicIndex<string, number>({ prefer: Math.max, cacheSize: 10 });
  for (const filter of ["a/b", "a/+", "a/#"]) {
    index.set(filter, "A", 1);
    assert.equal(index.delete(filter, "B"), false);
    assert.equal(index.delete(`${filter[0]}/x/${filter.slice(2)}`, "A"), false);
  }
  assert.equal(index.delete("#", "A"), false);
  assert.equal(index.size, 3);
  assert.equal(found(index, "a/b"), "A1");
});

test("a subscription to the same topic filter replaces the one before [MQTT-3.8.4-3]", () => {
  const index = createTopicIndex<string, number>({ prefer: Math.max, cacheSize: 10 });
  for (const filter of ["a/b", "a/+", "a/#"]) {
    for (const key of ["A", "B"]) {
      index.set(filter, key, 2);
      assert.match(found(index, "a/b"), new RegExp(`${key}2`));
      index.set(filter, key, 0);
      assert.match(found(index, "a/b"), new RegExp(`${key}0`));
    }
  }
  assert.equal(index.size, 6);
});

test("L23: overlapping topic filters give one entry, of the highest QoS, whatever their order", () => {
  const filters: [filter: string, value: number][] = [
    ["a/b", 0],
    ["a/+", 1],
    ["a/#", 2],
    ["#", 0],
    ["+/b", 1],
  ];
  for (let turn = 0; turn < filters.length; turn++) {
    const index = createTopicIndex<string, number>({ prefer: Math.max, cacheSize: 10 });
    for (const [filter, value] of [...filters.slice(turn), ...filters.slice(0, turn)]) index.set(filter, "A", value);
    assert.equal(found(index, "a/b"), "A2");
    // With so many subscribers that they are merged through a Map.
    for (let n = 0; n < 20; n++) for (const [filter, value] of filters) index.set(filter, `K${n}_`, value);
    assert.equal(index.match("a/b").length, 21);
    assert.ok(index.match("a/b").every(({ value }) => value === 2));
  }
});

test("prefer may make a third value", () => {
  const index = createTopicIndex<string, { ids: string }>({
    prefer: (a, b) => ({ ids: [a.ids, b.ids].sort().join("") }),
    cacheSize: 0,
  });
  index.set("a/b", "A", { ids: "x" });
  index.set("a/+", "A", { ids: "y" });
  assert.deepEqual(index.match("a/b"), [{ key: "A", value: { ids: "xy" } }]);
  assert.deepEqual(index.match("a/c"), [{ key: "A", value: { ids: "y" } }]);
});

test("L32: unsubscribing one topic filter leaves an overlapping one, cached or not", () => {
  for (const [gone, stays] of [
    ["a/b", "a/+"],
    ["a/+", "a/b"],
    ["a/#", "a/b"],
    ["a/#", "a/+"],
    ["a/b/#", "a/#"],
    ["+/b", "a/+"],
  ] as const) {
    const index = createTopicIndex<string, number>({ prefer: Math.max, cacheSize: 10 });
    index.set(gone, "A", 1);
    index.set(stays, "A", 1);
    assert.equal(found(index, "a/b"), "A1");
    index.delete(gone, "A");
    assert.equal(found(index, "a/b"), "A1", `${gone} gone, ${stays} stays`);
    index.delete(stays, "A");
    assert.equal(found(index, "a/b"), "");
  }
});

test("a result stays as it was when subscriptions change", () => {
  const index = createTopicIndex<string, number>({ prefer: Math.max, cacheSize: 10 });
  for (const key of ["A", "B", "C"]) index.set("a/b", key, 0);
  const result = index.match("a/b");
  index.delete("a/b", "B");
  index.set("a/b", "A", 1);
  assert.deepEqual(
    result.map(({ key, value }) => `${key}${value}`),
    ["A0", "B0", "C0"],
  );
});

test("the cache serves the same array until a subscription that matters changes", () => {
  const index = createTopicIndex<string, number>({ prefer: Math.max, cacheSize: 10 });
  index.set("a/b", "A", 0);
  index.set("c", "C", 0);
  const before = index.match("a/b");
  assert.equal(index.match("a/b"), before);
  index.set("c", "D", 0);
  assert.equal(index.match("a/b"), before, "another plain filter does not matter");
  index.set("a/b", "B", 0);
  assert.notEqual(index.match("a/b"), before);
});

test("L32: a topic that is asked for again takes the place of one that is not, sooner where topics or results are long", () => {
  const few = createTopicIndex<string, number>({ prefer: Math.max, cacheSize: 4 });
  few.set("#", "A", 0);
  const first = few.match("first");
  const [second] = ["second", "third", "fourth"].map((topic) => few.match(topic));
  assert.equal(few.match("second"), second, "asked for again");
  few.match("once");
  assert.equal(few.match("first"), first, "what comes once takes no place");
  few.match("second");
  for (let turn = 0; turn < 16; turn++) {
    for (const topic of ["fifth", "sixth"]) few.match(topic);
    assert.equal(few.match("second"), second, "asked for all the time");
  }
  const isKept = (topic: string): boolean => few.match(topic) === few.match(topic);
  assert.ok(isKept("fifth") || isKept("sixth"), "let in by and by");

  const many = createTopicIndex<string, number>({ prefer: Math.max, cacheSize: 100 });
  many.set("#", "A", 0);
  const kept = many.match("kept");
  const long = "x".repeat(60_000);
  assert.notEqual(
    many.match(long),
    many.match(long),
    "half of what the cache may weigh is too much for one topic name",
  );
  assert.equal(many.match("kept"), kept);
  for (let n = 0; n < 500; n++) many.set("large/+", `k${n}`, 0);
  for (let turn = 0; turn < 30; turn++) for (let n = 0; n < 12; n++) assert.equal(many.match(`large/${n}`).length, 501);
  assert.notEqual(
    many.match("kept"),
    kept,
    "a dozen large results weigh more than the cache may, though 100 entries fit",
  );
});

test("a topic name of tens of thousands of levels is matched at once", () => {
  const index = createTopicIndex<string, number>({ prefer: Math.max, cacheSize: 0 });
  index.set("#", "A", 0);
  index.set("+/+/#", "B", 0);
  index.set(`${"+/".repeat(maxFilterLevels - 1)}+`, "C", 0);
  const topic = "/".repeat(65_535);
  assert.equal(topicNameProblem(topic), undefined);
  assert.equal(found(index, topic), "A0 B0");
  assert.equal(found(index, "/".repeat(maxFilterLevels - 1)), "A0 B0 C0");
});

test("A27, L32: an index through random changes agrees with matching each filter, and ends empty", () => {
  const random = createRandom(20_261_122);
  const words = ["a", "b", "", "$x", "c"];
  const level = (): string => words[random(words.length)] ?? "";
  function randomTopic(): string {
    const topic = Array.from({ length: 1 + random(4) }, level).join("/");
    return topic === "" ? "a" : topic;
  }
  function randomFilter(): string {
    const levels = Array.from({ length: 1 + random(4) }, () => (random(3) === 0 ? "+" : level()));
    if (random(4) === 0) levels.push("#");
    const filter = levels.join("/");
    return filter === "" ? "#" : filter;
  }

  for (const cacheSize of [0, 3, 1000]) {
    const index = createTopicIndex<string, number>({ prefer: Math.max, cacheSize });
    const naive = new Map<string, { filter: string; key: string; value: number }>();
    let nonEmpty = 0;
    for (let step = 0; step < 6000; step++) {
      const key = `k${random(6)}`;
      const filter = randomFilter();
      assert.equal(topicFilterProblem(filter), undefined, filter);
      const id = `${key} ${filter}`;
      if (random(100) < 45) {
        const value = random(3);
        index.set(filter, key, value);
        naive.set(id, { filter, key, value });
      } else {
        const known = [...naive.values()][random(naive.size + 1)] ?? { filter, key };
        assert.equal(index.delete(known.filter, known.key), naive.delete(`${known.key} ${known.filter}`));
      }
      assert.equal(index.size, naive.size);
      const topic = randomTopic();
      const expected = new Map<string, number>();
      for (const subscription of naive.values()) {
        if (!matches(subscription.filter, topic)) continue;
        expected.set(subscription.key, Math.max(expected.get(subscription.key) ?? 0, subscription.value));
      }
      if (expected.size > 0) nonEmpty++;
      const actual = index.match(topic);
      assert.equal(actual.length, expected.size, `each key once, for ${topic}`);
      assert.deepEqual(new Map(actual.map(({ key: k, value }) => [k, value])), expected, topic);
    }
    assert.ok(nonEmpty > 1000, `${nonEmpty} matches of any worth`);
    for (const { filter, key } of naive.values()) assert.equal(index.delete(filter, key), true);
    assert.equal(index.size, 0);
    for (const topic of ["a", "a/b", "$x", "$x/a", "/"]) assert.deepEqual(index.match(topic), []);
  }
});

test("matches agrees with a regular expression made of the filter", () => {
  const random = createRandom(7);
  const words = ["a", "ab", "", "$"];
  let hits = 0;
  for (let n = 0; n < 20_000; n++) {
    const level = (): string => words[random(words.length)] ?? "";
    const topic = Array.from({ length: 1 + random(4) }, level).join("/") || "a";
    const levels = Array.from({ length: 1 + random(3) }, () => (random(2) === 0 ? "+" : level()));
    const rest = random(3) === 0;
    const filter = [...levels, ...(rest ? ["#"] : [])].join("/") || "#";
    const body = levels.map((part) => (part === "+" ? "[^/]*" : part.replace("$", "\\$"))).join("/");
    const pattern = new RegExp(filter === "#" ? "^" : `^${body}${rest ? "(/.*)?" : ""}$`);
    const expected = pattern.test(topic) && !(topic.startsWith("$") && /^[+#]/.test(filter));
    assert.equal(matches(filter, topic), expected, `${filter} and ${topic}`);
    if (expected) hits++;
  }
  assert.ok(hits > 1000);
});

test("100,000 subscriptions: all found, and all gone after unsubscribing", () => {
  const index = createTopicIndex<number, number>({ prefer: Math.max, cacheSize: 1000 });
  const filterOf = (i: number): string => [`d/${i}/cmd`, `d/${i}/+`, `d/${i}/#`, `d/+/${i}`][i % 4] ?? `d/${i}`;
  for (let i = 0; i < 100_000; i++) index.set(filterOf(i), i, i % 3);
  assert.equal(index.size, 100_000);
  for (let i = 0; i < 100_000; i += 97) {
    const topic = i % 4 === 3 ? `d/x/${i}` : `d/${i}/cmd`;
    assert.deepEqual(index.match(topic), [{ key: i, value: i % 3 }]);
  }
  for (let i = 0; i < 100_000; i++) assert.equal(index.delete(filterOf(i), i), true);
  assert.equal(index.size, 0);
  assert.deepEqual(index.match("d/1/cmd"), []);
});
