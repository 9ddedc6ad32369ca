import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { TestContext } from "node:test";
import kind from "../../plugins/auth/connect-control.ts";
import {
  createConnectContext,
  createPublishContext,
  createSubscribeContext,
  type Decision,
  createFilterMaker,
  createTestHost,
} from "@sluice/testkit";

const maker = createFilterMaker(kind, new URL("../../plugins/auth/connect-control.schema.json", import.meta.url));
const result = "bannedClientOrTopicError";

async function build(t: TestContext, options: object) {
  const { host, metricValue, close } = createTestHost();
  t.after(close);
  return { filter: await maker.build(options, host), metricValue };
}

describe("A37: Publish", () => {
  async function publish(t: TestContext, options: object, clientId: string, topic: string): Promise<Decision> {
    const { filter } = await build(t, options);
    const ctx = createPublishContext({ clientId, topic });
    const returned = await filter.handle(ctx);
    assert.equal(returned, ctx.decision.outcome === undefined ? undefined : result);
    return ctx.decision;
  }
  const byClient = { outcome: "disconnect", reason: "banned" };
  const byTopic = { outcome: "disconnect", reason: "notAuthorized" };
  const rows: readonly [name: string, options: object, clientId: string, topic: string, decision: object][] = [
    ["a listed client", { bannedClients: ["ban1", "ban2"] }, "ban2", "unban", byClient],
    ["a client that only begins like a listed one", { bannedClients: ["ban1"] }, "ban11", "ban/sport", {}],
    ["a listed topic", { bannedTopics: ["ban/sport/ball"] }, "unban", "ban/sport/ball", byTopic],
    ["a topic below a listed one", { bannedTopics: ["ban/sport"] }, "unban", "ban/sport/ball", {}],
    ["a client by regex, unanchored", { bannedClientRe: "phone" }, "my-phone-1", "unban", byClient],
    ["a client that the regex leaves", { bannedClientRe: "^phone" }, "my-phone-1", "unban", {}],
    ["a topic by regex, unanchored", { bannedTopicRe: "sport" }, "tv", "ban/sport/run", byTopic],
    ["a topic that the regex leaves", { bannedTopicRe: "sport" }, "tv", "unban", {}],
    ["empty expressions ban nobody", { bannedClientRe: "", bannedTopicRe: "" }, "tv", "unban", {}],
    ["no options ban nobody", {}, "tv", "unban", {}],
    // L50: Easegress compares the texts.
    ["L50: a topic under a # filter", { bannedTopics: ["ban/#"] }, "tv", "ban/sport/run", byTopic],
    ["L50: the parent of a # filter", { bannedTopics: ["ban/#"] }, "tv", "ban", byTopic],
    ["L50: a topic that a + filter matches", { bannedTopics: ["+/secret"] }, "tv", "house/secret", byTopic],
    ["L50: + is one level", { bannedTopics: ["+/secret"] }, "tv", "house/room/secret", {}],
    ["L50: # leaves topics that begin with $", { bannedTopics: ["#"] }, "tv", "$SYS/x", {}],
    ["both banned: the client is the reason", { bannedClients: ["tv"], bannedTopics: ["#"] }, "tv", "a", byClient],
  ];
  for (const [name, options, clientId, topic, decision] of rows) {
    test(name, async (t) => assert.deepEqual(await publish(t, options, clientId, topic), decision));
  }

  test("a client's verdict is not another's", async (t) => {
    const { filter, metricValue } = await build(t, { bannedClientRe: "^bad" });
    for (const [clientId, expected] of [
      ["bad1", result],
      ["good", undefined],
      ["bad2", result],
      ["good", undefined],
    ]) {
      const ctx = createPublishContext({ clientId: clientId ?? "" });
      assert.equal(await filter.handle(ctx), expected);
      assert.equal(await filter.handle(ctx), expected);
    }
    assert.equal(await metricValue("sluice_connect_control_refusals_total", { packet: "Publish" }), 4);
  });
});

describe("L50: Connect", () => {
  const will = (topic: string) => ({ topic, payload: Buffer.from("gone"), qos: 0 as const, retain: false });

  test("a banned client is refused", async (t) => {
    const { filter, metricValue } = await build(t, { bannedClients: ["ban1"], bannedClientRe: "^bad" });
    for (const clientId of ["ban1", "bad-2"]) {
      const ctx = createConnectContext({ clientId });
      assert.equal(await filter.handle(ctx), result);
      assert.deepEqual(ctx.decision, { outcome: "reject", reason: "banned" });
    }
    const ctx = createConnectContext({ clientId: "good" });
    assert.equal(await filter.handle(ctx), undefined);
    assert.deepEqual(ctx.decision, {});
    assert.equal(await metricValue("sluice_connect_control_refusals_total", { packet: "Connect" }), 2);
  });

  test("a will on a banned topic is refused while there is someone to tell", async (t) => {
    const { filter } = await build(t, { bannedTopics: ["ban/#"] });
    const ctx = createConnectContext({ will: will("ban/x") });
    assert.equal(await filter.handle(ctx), result);
    assert.deepEqual(ctx.decision, { outcome: "reject", reason: "notAuthorized" });
    assert.equal(await filter.handle(createConnectContext({ will: will("fine") })), undefined);
  });
});

describe("L50: Subscribe", () => {
  test("a banned client is disconnected", async (t) => {
    const { filter } = await build(t, { bannedClients: ["ban1"] });
    const ctx = createSubscribeContext({ clientId: "ban1" });
    assert.equal(await filter.handle(ctx), result);
    assert.deepEqual(ctx.decision, { outcome: "disconnect", reason: "banned" });
  });

  async function refusedOf(t: TestContext, options: object, topicFilters: readonly string[]): Promise<string[]> {
    const { filter } = await build(t, options);
    const ctx = createSubscribeContext({ topicFilters });
    await filter.handle(ctx);
    return ctx.packet.subscriptions.filter(({ refused }) => refused).map(({ topicFilter }) => topicFilter);
  }

  const overlaps: readonly [banned: string, refused: readonly string[], granted: readonly string[]][] = [
    [
      "a/secret",
      ["a/secret", "a/+", "+/secret", "+/+", "a/#", "a/secret/#", "#", "+/#"],
      ["a", "+", "a/secret/x", "a/secret/+", "b/#", "/#", "A/secret", "a/secret/"],
    ],
    ["a/#", ["a", "a/b", "a/b/c", "+", "+/b", "a/+/c", "#", "+/x/#"], ["b", "b/a", "/a", "b/#", "aa"]],
    ["+/b", ["a/b", "+/+", "a/#", "+/b/#", "a/+", "#"], ["a", "a/c", "a/b/c", "+", "$x/b", "$x/#"]],
    ["$SYS/load", ["$SYS/load", "$SYS/#", "$SYS/+"], ["#", "+/load", "+/+", "+/#", "$other/#"]],
    ["#", ["a", "#", "+", "/", "a/b"], ["$SYS/x", "$SYS/#"]],
    ["a/secret", ["$share/g/a/secret", "$share/g/a/#", "$share/g/#"], ["$share/a/secret", "$share/g/b/secret"]],
  ];
  for (const [banned, refused, granted] of overlaps) {
    test(`${banned} banned: a subscription that could receive it is refused (${refused.join(" ")})`, async (t) => {
      assert.deepEqual(await refusedOf(t, { bannedTopics: [banned] }, [...refused, ...granted]), refused);
    });
  }

  test("a regex is tested on the text of the topic filter, behind a share's group", async (t) => {
    const filters = ["sport/+", "$share/sport/news", "$share/g/sport", "#"];
    assert.deepEqual(await refusedOf(t, { bannedTopicRe: "sport" }, filters), ["sport/+", "$share/g/sport"]);
  });

  test("the others of the packet are granted; with none left the packet is refused with the result", async (t) => {
    const { filter, metricValue } = await build(t, { bannedTopics: ["ban"] });
    const mixed = createSubscribeContext({ topicFilters: ["ban", "fine"] });
    assert.equal(await filter.handle(mixed), undefined);
    assert.deepEqual(mixed.decision, {});
    const all = createSubscribeContext({ topicFilters: ["ban", "+"] });
    assert.equal(await filter.handle(all), result);
    assert.deepEqual(all.decision, { outcome: "reject", reason: "notAuthorized" });
    const none = createSubscribeContext({ topicFilters: ["fine", "fine/#"] });
    assert.equal(await filter.handle(none), undefined);
    assert.equal(await metricValue("sluice_connect_control_refusals_total", { packet: "Subscribe" }), 3);
  });
});

describe("A37: config and status", () => {
  test("expressions that don't compile are refused, where Easegress ignored them", () => {
    const problems = maker.problems({ bannedClientRe: "(", bannedTopicRe: "(?P<name>" });
    assert.match(problems["bannedClientRe"] ?? "", /"\(" is not an RE2 expression: missing closing \)/);
    assert.match(problems["bannedTopicRe"] ?? "", /is not an RE2 expression/);
  });

  test("a wildcard in the wrong place is refused", () => {
    const problems = maker.problems({ bannedTopics: ["a/#/b", "a#", "a+/b", "a/+/#", "#", "plain"] });
    assert.deepEqual(Object.keys(problems).sort(), ["bannedTopics.0", "bannedTopics.1", "bannedTopics.2"]);
  });

  test("health tells the counts and the expressions", async (t) => {
    const { filter } = await build(t, { bannedClients: ["a", "b"], bannedTopics: ["x"], bannedTopicRe: "^y" });
    assert.deepEqual(filter.health?.(), { ok: true, detail: "banned clients: 2; banned topics: 1 and /^y/" });
  });

  test("a pattern that makes a backtracking engine run for ages is answered at once", async (t) => {
    const { filter } = await build(t, { bannedClientRe: "^(a+)+$", bannedTopicRe: "^(a+)+$" });
    const started = performance.now();
    const ctx = createPublishContext({ clientId: `${"a".repeat(32)}!`, topic: `${"a".repeat(32)}!` });
    assert.equal(await filter.handle(ctx), undefined);
    assert.ok(performance.now() - started < 5_000, "the engine backtracks");
  });
});
