import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { matches, topicFilterProblem, topicNameProblem } from "../../kernel/topics.ts";
import {
  covers,
  filterSubject,
  maxLevels,
  maxSubjectBytes,
  subjectProblem,
  subjectTopic,
  topicSubject,
} from "../../plugins/nats-cluster/subjects.ts";
import { createRandom } from "../helpers/random.ts";

const levels = [
  "",
  "a",
  "b",
  "$SYS",
  "$",
  ".",
  "*",
  ">",
  "~",
  "~0",
  "a b",
  "\t",
  "é",
  "温度",
  "😀",
  "\u2028",
  "\u007f",
  "~d",
  "a.b>*~",
];

/** What nats-server does: tokens between dots, `*` one of them, `>` one or more at the end. */
function natsMatches(pattern: string, subject: string): boolean {
  const [want, have] = [pattern.split("."), subject.split(".")];
  for (const [at, token] of want.entries()) {
    if (token === ">") return have.length > at;
    if (have[at] === undefined || (token !== "*" && token !== have[at])) return false;
  }
  return want.length === have.length;
}

function randomText(random: (below: number) => number, more: readonly string[]): string {
  const from = [...levels, ...more];
  return Array.from({ length: 1 + random(4) }, () => from[random(from.length)] ?? "").join("/");
}

describe("topics as NATS subjects", () => {
  test("known ones", () => {
    assert.equal(topicSubject("a/b"), "n.a.b.~");
    assert.equal(topicSubject("/"), "n.~0.~0.~");
    assert.equal(topicSubject("$SYS/x y"), "d.$SYS.x~sy.~");
    assert.equal(filterSubject("#"), "n.>");
    assert.equal(filterSubject("sport/#"), "n.sport.>");
    assert.equal(filterSubject("+/a/+"), "n.*.a.*.~");
    assert.equal(filterSubject("$SYS/#"), "d.$SYS.>");
  });

  test("a topic is read back from its subject, and no two share one", () => {
    const random = createRandom(7);
    const topics = new Map<string, string>();
    for (let n = 0; n < 20_000; n++) {
      const topic = randomText(random, []);
      if (topicNameProblem(topic) !== undefined || subjectProblem(topic) !== undefined) continue;
      const subject = topicSubject(topic);
      assert.equal(subjectTopic(subject), topic);
      assert.ok(/^[^\s*>]+$/u.test(subject) && !subject.split(".").includes(""), `${subject} is a literal subject`);
      assert.equal(topics.get(subject) ?? topic, topic);
      topics.set(subject, topic);
    }
    assert.ok(topics.size > 5000);
  });

  test("a filter's subject gets the topics that the filter matches, and no others", () => {
    const random = createRandom(11);
    let matched = 0;
    for (let n = 0; n < 100_000; n++) {
      const filter = randomText(random, ["+", "+", "+"]) + (random(3) === 0 ? "/#" : "");
      const topic = randomText(random, []);
      if (topicFilterProblem(filter) !== undefined || topicNameProblem(topic) !== undefined) continue;
      const expected = matches(filter, topic);
      assert.equal(natsMatches(filterSubject(filter), topicSubject(topic)), expected, `${filter} and ${topic}`);
      if (expected) matched++;
    }
    assert.ok(matched > 1000);
    assert.ok(
      natsMatches(filterSubject("#"), topicSubject("a")) && !natsMatches(filterSubject("#"), topicSubject("$a")),
    );
  });

  test("what covers a filter gets all that the filter gets", () => {
    const random = createRandom(13);
    let covered = 0;
    for (let n = 0; n < 100_000; n++) {
      const wide = randomText(random, ["+", "+", "+"]) + (random(3) === 0 ? "/#" : "");
      const narrow = randomText(random, ["+", "+", "+"]) + (random(3) === 0 ? "/#" : "");
      if (topicFilterProblem(wide) !== undefined || topicFilterProblem(narrow) !== undefined) continue;
      const isCovered = covers(filterSubject(wide), filterSubject(narrow));
      if (!isCovered) continue;
      covered++;
      const topic = narrow.replaceAll("+", "x").replace(/#$/, "y/z");
      assert.ok(!matches(narrow, topic) || matches(wide, topic), `${wide}, ${narrow}, ${topic}`);
    }
    assert.ok(covered > 500);
    assert.ok(covers("n.>", "n.a.>") && covers("n.a.>", "n.a.~") && covers("n.*.~", "n.a.~"));
    assert.ok(!covers("n.a.>", "n.>") && !covers("n.a.~", "n.*.~") && !covers("n.>", "d.$SYS.~"));
  });

  test("what would break the connection to a server is refused before", () => {
    assert.equal(subjectProblem("a/b"), undefined);
    assert.match(subjectProblem("x".repeat(maxSubjectBytes)) ?? "", /bytes as a subject/);
    assert.equal(subjectProblem("x".repeat(maxSubjectBytes - 4)), undefined);
    assert.match(subjectProblem("\u2028".repeat(200)) ?? "", /bytes as a subject/);
    assert.equal(subjectProblem("/".repeat(maxLevels - 1)), undefined);
    assert.match(subjectProblem("/".repeat(maxLevels)) ?? "", /levels/);
  });
});
