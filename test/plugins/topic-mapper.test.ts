import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import type { TestContext } from "node:test";
import { parse } from "yaml";
import kind from "../../plugins/topic-mapper/index.ts";
import { createPublishContext, createSubscribeContext, createFilterMaker, createTestHost } from "@sluice/testkit";

const maker = createFilterMaker(kind, new URL("../../plugins/topic-mapper/schema.json", import.meta.url));

interface PageOptions {
  policies: { name: string; topicIndex: number; headers: Record<string, string> }[];
  [option: string]: unknown;
}

/** The TopicMapper of the documentation's page, as printed. */
function pageOptions(): PageOptions {
  const text = readFileSync(new URL("../fixtures/doc-yaml/topic-mapper.yaml", import.meta.url), "utf8");
  const pipeline = parse(text) as { filters: (PageOptions & { name: string; kind: string })[] };
  const mapper = pipeline.filters.find((filter) => filter.kind === "TopicMapper");
  assert.ok(mapper);
  const { name: _name, kind: _kind, ...options } = mapper;
  return options;
}

/** With the gateway policy's topic taken from the device (level 2), as the page's first example means it. */
function correctedOptions(): PageOptions {
  const options = pageOptions();
  const gateway = options.policies.find((policy) => policy.name === "gateway");
  assert.ok(gateway);
  gateway.topicIndex = 2;
  return options;
}

/** What later filters find after each topic: topic and headers, or the result's name. */
async function mapAll(t: TestContext, options: object, topics: readonly string[]): Promise<unknown[]> {
  const { host, close } = createTestHost();
  t.after(close);
  const filter = await maker.build(options, host);
  const outcomes: unknown[] = [];
  for (const topic of topics) {
    const ctx = createPublishContext({ topic });
    const result = await filter.handle(ctx);
    outcomes.push(result ?? [ctx.data.get("kafka-topic"), ctx.data.get("kafka-headers")]);
  }
  return outcomes;
}

const setKV = { topic: "kafka-topic", headers: "kafka-headers" };
const failed = "MQTTTopicMapFailed";

describe("the page's examples", () => {
  const example1 = "gateway/gate123/iphone/log";
  const headers1 = { gateway: "gateway", gatewayID: "gate123", device: "iphone", status: "log" };

  test("example 1 with the corrected topicIndex gives what the page promises", async (t) => {
    assert.deepEqual(await mapAll(t, correctedOptions(), [example1]), [["iot_phone", headers1]]);
  });

  test("example 1 as printed takes the topic from the status, as Easegress does", async (t) => {
    assert.deepEqual(await mapAll(t, pageOptions(), [example1]), [["iot_other", headers1]]);
  });

  test("examples 2 and 3", async (t) => {
    assert.deepEqual(await mapAll(t, pageOptions(), ["direct/xiaomi/status", "direct/tv/log"]), [
      ["iot_phone", { direct: "direct", device: "xiaomi", status: "status" }],
      ["iot_other", { direct: "direct", device: "tv", status: "log" }],
    ]);
  });

  test("level 0 is the first level that is not empty, however many slashes lead", async (t) => {
    const [plain, ...slashed] = await mapAll(t, pageOptions(), [
      "direct/iphone/log",
      "/direct/iphone/log",
      "//direct/iphone/log",
      "////direct/iphone/log",
    ]);
    assert.deepEqual(plain, ["iot_phone", { direct: "direct", device: "iphone", status: "log" }]);
    for (const each of slashed) assert.deepEqual(each, plain);
  });
});

describe("A35: Easegress' mapping table", () => {
  const deviceHeaders = ["d2s", "tenant", "device_type", "things_id", "event", "eventName"];
  const gatewayHeaders = [
    "g2s",
    "gwTenantId",
    "gwInfoModelId",
    "gwThingsId",
    "d2s",
    "tenantId",
    "infoModelId",
    "thingsId",
    "event",
    "eventName",
  ];

  /** The schema with `before` levels in front of the ones named. */
  function tableOptions(before: number) {
    const keyed = (names: string[]) => Object.fromEntries(names.map((name, level) => [String(level + before), name]));
    return {
      setKV,
      matchIndex: before,
      route: [
        { name: "g2s", matchExpr: "g2s" },
        { name: "d2s", matchExpr: "d2s" },
      ],
      policies: [
        {
          name: "d2s",
          topicIndex: 4 + before,
          route: [
            { topic: "to_cloud", exprs: ["log", "status", "event"] },
            { topic: "to_raw", exprs: ["raw"] },
          ],
          headers: keyed(deviceHeaders),
        },
        {
          name: "g2s",
          topicIndex: 8 + before,
          route: [
            { topic: "to_cloud", exprs: ["log", "status", "event", "data"] },
            { topic: "to_raw", exprs: ["raw"] },
          ],
          headers: keyed(gatewayHeaders),
        },
      ],
    };
  }

  const rows: readonly [topic: string, mapped: string, names: readonly string[]][] = [
    ["/d2s/abc/phone/123/log/error", "to_cloud", deviceHeaders],
    ["/d2s/xyz/tv/234/status/shutdown", "to_cloud", deviceHeaders],
    ["/d2s/opq/car/345/raw", "to_raw", deviceHeaders],
    ["/g2s/gwTenantId/gwInfoModelId/gwThingsId/d2s/tenantId/infoModelId/thingsId/data", "to_cloud", gatewayHeaders],
    ["/g2s/gw123/gwInfo234/gwID345/d2s/456/654/123/raw", "to_raw", gatewayHeaders],
  ];

  for (const [topic, mapped, names] of rows) {
    const levels = topic.slice(1).split("/");
    const headers = Object.fromEntries(levels.map((level, index) => [names[index], level]));

    test(topic, async (t) => {
      assert.deepEqual(await mapAll(t, tableOptions(0), [topic]), [[mapped, headers]]);
    });
    test(`${topic} one level deeper, by matchIndex 1`, async (t) => {
      assert.deepEqual(await mapAll(t, tableOptions(1), [`nothing${topic}`]), [[mapped, headers]]);
    });
  }

  test("what does not map: no route, too few levels, no topic", async (t) => {
    assert.deepEqual(await mapAll(t, tableOptions(0), ["/not-work", "/d2s/abc/phone"]), [failed, failed]);
    assert.deepEqual(
      await mapAll(t, tableOptions(1), ["/level0", "nothing/g2s", "nothing/d2s/tenant/device_type/things_id/notexist"]),
      [failed, failed, failed],
    );
  });
});

describe("matching", () => {
  const oneLevel = (matchExpr: string, exprs: readonly string[]) => ({
    setKV,
    route: [{ name: "p", matchExpr }],
    policies: [{ name: "p", topicIndex: 0, route: [{ topic: "out", exprs }] }],
  });

  test("expressions are unanchored and case-sensitive", async (t) => {
    const topics = ["gateway", "xxgatyy", "ga", "GATE"];
    assert.deepEqual(await mapAll(t, oneLevel("gate*", [".*"]), topics), [["out", {}], ["out", {}], failed, failed]);
  });

  test("an anchored expression matches a beginning or the whole level only", async (t) => {
    assert.deepEqual(await mapAll(t, oneLevel("^gate$", [""]), ["gate", "gateway"]), [["out", {}], failed]);
  });

  test("the first route and the first entry that match are taken", async (t) => {
    const options = {
      setKV,
      route: [
        { name: "first", matchExpr: "a" },
        { name: "second", matchExpr: "ab" },
      ],
      policies: [
        { name: "second", topicIndex: 0, route: [{ topic: "wrong", exprs: [".*"] }] },
        {
          name: "first",
          topicIndex: 1,
          route: [
            { topic: "one", exprs: ["x"] },
            { topic: "two", exprs: ["y", "xy"] },
          ],
        },
      ],
    };
    assert.deepEqual(await mapAll(t, options, ["ab/xy", "ab/y"]), [
      ["one", {}],
      ["two", {}],
    ]);
  });

  test("entries with the same topic count at the place of the first, as in Easegress", async (t) => {
    const options = oneLevel(".*", ["x"]);
    options.policies[0]?.route.push({ topic: "between", exprs: ["y"] }, { topic: "out", exprs: ["yy"] });
    assert.deepEqual(await mapAll(t, options, ["x", "y", "yy"]), [
      ["out", {}],
      ["between", {}],
      ["out", {}],
    ]);
  });

  test("empty levels inside a topic count, and a topic of slashes has no level at all", async (t) => {
    const options = {
      setKV,
      route: [{ name: "p", matchExpr: ".*" }],
      policies: [
        { name: "p", topicIndex: 0, route: [{ topic: "out", exprs: [".*"] }], headers: { 1: "b", 2: "c", 3: "d" } },
      ],
    };
    assert.deepEqual(await mapAll(t, options, ["a//c", "a/", "/", "///"]), [
      ["out", { b: "", c: "c" }],
      ["out", { b: "" }],
      failed,
      failed,
    ]);
  });

  test("a header may have any name", async (t) => {
    const options = oneLevel(".*", [".*"]);
    const policies = [{ ...options.policies[0], headers: { 0: "__proto__" } }];
    const [mapped] = await mapAll(t, { ...options, policies }, ["value"]);
    assert.deepEqual(Object.entries((mapped as [string, object])[1]), [["__proto__", "value"]]);
  });

  test("a pattern that makes a backtracking engine run for ages is answered at once, on the longest topic too", async (t) => {
    const options = oneLevel("^(a+)+$", [".*"]);
    const started = performance.now();
    // 32 letters take V8's own engine some 20 s, and each further one twice as long.
    const first = await mapAll(t, options, [`${"a".repeat(32)}!`]);
    assert.deepEqual(first, [failed]);
    assert.ok(performance.now() - started < 5_000, "the engine backtracks");
    assert.deepEqual(await mapAll(t, options, [`${"a".repeat(65_000)}!`, "a".repeat(65_000)]), [failed, ["out", {}]]);
    assert.ok(performance.now() - started < 10_000, "matching is not linear in the topic's length");
  });
});

describe("what becomes of a message", () => {
  test("an empty mapper maps nothing and lets everything pass", async (t) => {
    const { host, close } = createTestHost();
    t.after(close);
    const filter = await maker.build({}, host);
    const ctx = createPublishContext({ topic: "a/b" });
    assert.equal(await filter.handle(ctx), undefined);
    assert.deepEqual([ctx.data.size, ctx.packet.topic, ctx.decision], [0, "a/b", {}]);
  });

  test("packets that are no PUBLISH pass", async (t) => {
    const { host, close } = createTestHost();
    t.after(close);
    const filter = await maker.build(pageOptions(), host);
    const ctx = createSubscribeContext({ topicFilters: ["nowhere/#"] });
    assert.equal(await filter.handle(ctx), undefined);
    assert.equal(ctx.data.size, 0);
  });

  test("the packet's own topic is left alone", async (t) => {
    const { host, close } = createTestHost();
    t.after(close);
    const filter = await maker.build(pageOptions(), host);
    const ctx = createPublishContext({ topic: "direct/tv/log" });
    await filter.handle(ctx);
    assert.equal(ctx.packet.topic, "direct/tv/log");
  });

  test("onUnmatched: discard returns a result that is a verdict, counts, and logs once for a flood", async (t) => {
    const { host, logs, metricValue, close } = createTestHost();
    t.after(close);
    const filter = await maker.build(pageOptions(), host);
    for (let each = 0; each < 100; each++) {
      assert.equal(await filter.handle(createPublishContext({ topic: `elsewhere/${each}` })), failed);
    }
    await filter.handle(createPublishContext({ topic: "direct/tv/log" }));
    assert.ok(kind.discards?.includes(failed));
    assert.equal(await metricValue("sluice_topic_mapper_messages_total", { outcome: "unmatched" }), 100);
    assert.equal(await metricValue("sluice_topic_mapper_messages_total", { outcome: "mapped" }), 1);
    const warnings = logs.filter(({ level }) => level === "warn");
    assert.equal(warnings.length, 1);
    assert.match(warnings[0]?.message ?? "", /level 0 \(matchIndex\), "elsewhere", matches no route/);
  });

  test("the flood's next warning, a minute later, tells how many there were", async (t) => {
    let now = 0;
    const base = createTestHost();
    const { host, logs, close } = createTestHost({ overrides: { clock: { ...base.host.clock, now: () => now } } });
    t.after(() => (base.close(), close()));
    const filter = await maker.build(pageOptions(), host);
    for (now = 0; now <= 60_000; now += 20_000) await filter.handle(createPublishContext({ topic: "elsewhere" }));
    const counts = logs.filter(({ level }) => level === "warn").map(({ fields }) => fields["unmatched"]);
    assert.deepEqual(counts, [1, 3]);
  });

  test("onUnmatched: default goes on with an empty mapping, so that the sink's default applies", async (t) => {
    const { host, logs, metricValue, close } = createTestHost();
    t.after(close);
    const filter = await maker.build({ ...pageOptions(), onUnmatched: "default" }, host);
    const ctx = createPublishContext({ topic: "elsewhere" });
    assert.equal(await filter.handle(ctx), undefined);
    assert.deepEqual(
      [...ctx.data],
      [
        ["kafka-topic", undefined],
        ["kafka-headers", {}],
      ],
    );
    assert.deepEqual(logs, []);
    assert.equal(await metricValue("sluice_topic_mapper_messages_total", { outcome: "unmatched" }), 1);
  });

  test("onUnmatched: fault throws, naming the filter, the level and no payload", async (t) => {
    const { host, close } = createTestHost({ name: "publish/mapper" });
    t.after(close);
    const filter = await maker.build({ ...pageOptions(), onUnmatched: "fault" }, host);
    const ctx = createPublishContext({ topic: "elsewhere/x", payload: "do not tell" });
    assert.throws(
      () => filter.handle(ctx),
      (error: Error) => {
        assert.match(error.message, /publish\/mapper: level 0 \(matchIndex\), "elsewhere"/);
        assert.doesNotMatch(error.message, /do not tell/);
        return true;
      },
    );
  });

  test("a reason never repeats a long level whole", async (t) => {
    const { host, close } = createTestHost();
    t.after(close);
    const filter = await maker.build({ ...pageOptions(), onUnmatched: "fault" }, host);
    const ctx = createPublishContext({ topic: "z".repeat(60_000) });
    assert.throws(
      () => filter.handle(ctx),
      (error: Error) => error.message.length < 400,
    );
  });

  test("without setKV.headers or setKV.topic only the other is set", async (t) => {
    const { host, close } = createTestHost();
    t.after(close);
    for (const [key, expected] of [
      ["topic", "iot_other"],
      ["headers", { direct: "direct", device: "tv", status: "log" }],
    ] as const) {
      const filter = await maker.build({ ...pageOptions(), setKV: { [key]: "only" } }, host);
      const ctx = createPublishContext({ topic: "direct/tv/log" });
      await filter.handle(ctx);
      assert.deepEqual([...ctx.data], [["only", expected]]);
    }
  });
});

describe("the cache", () => {
  async function missesAfter(
    t: TestContext,
    cacheSize: number,
    topics: readonly string[],
  ): Promise<number | undefined> {
    const { host, metricValue, close } = createTestHost();
    t.after(close);
    const filter = await maker.build({ ...pageOptions(), cacheSize }, host);
    for (const topic of topics) await filter.handle(createPublishContext({ topic }));
    return metricValue("sluice_topic_mapper_cache_misses_total");
  }

  test("answers a topic that came before, mapped or not", async (t) => {
    assert.equal(await missesAfter(t, 10, ["direct/a", "direct/a", "no", "no", "no"]), 2);
  });

  test("forgets the least recently used topic beyond its size", async (t) => {
    // The third pushes out direct/b, since direct/a was used after it.
    const topics = ["direct/a", "direct/b", "direct/a", "direct/c", "direct/a", "direct/b"];
    assert.equal(await missesAfter(t, 2, topics), 4);
  });

  test("remembers no topic of more than 1,024 characters, and none at all with size 0", async (t) => {
    const long = `direct/${"x".repeat(1_018)}`;
    const longest = long.slice(0, 1_024);
    assert.equal(await missesAfter(t, 10, [long, long, longest, longest]), 3);
    assert.equal(await missesAfter(t, 0, ["direct/a", "direct/a"]), 2);
  });

  test("a later filter can't change what the next message of the topic gets", async (t) => {
    const { host, close } = createTestHost();
    t.after(close);
    const filter = await maker.build(pageOptions(), host);
    const first = createPublishContext({ topic: "direct/tv/log" });
    await filter.handle(first);
    const headers = first.data.get("kafka-headers") as Record<string, string>;
    assert.throws(() => (headers["device"] = "fridge"), TypeError);
    const second = createPublishContext({ topic: "direct/tv/log" });
    await filter.handle(second);
    assert.deepEqual(second.data.get("kafka-headers"), { direct: "direct", device: "tv", status: "log" });
  });
});

describe("what the config check refuses", () => {
  test("L5: a negative index", () => {
    const options = pageOptions();
    options["matchIndex"] = -1;
    const policy = options.policies[0];
    assert.ok(policy);
    policy.topicIndex = -2;
    const problems = maker.problems(options);
    assert.deepEqual(Object.keys(problems).sort(), ["matchIndex", "policies.0.topicIndex"]);
    assert.match(problems["matchIndex"] ?? "", /at least 0/);
  });

  test("a negative or wordy header level", () => {
    const options = pageOptions();
    const policy = options.policies[0];
    assert.ok(policy);
    policy.headers = { "-1": "a", device: "b", "01": "c", "1": "d" };
    assert.deepEqual(Object.keys(maker.problems(options)).sort(), [
      "policies.0.headers.-1",
      "policies.0.headers.01",
      "policies.0.headers.device",
    ]);
  });

  test("A35: every expression that does not compile, with its place, why and what to do", () => {
    const problems = maker.problems({
      setKV,
      route: [
        { name: "p", matchExpr: "][" },
        { name: "p", matchExpr: "*" },
      ],
      policies: [
        {
          name: "p",
          topicIndex: 0,
          route: [{ topic: "t", exprs: ["fine", "a(?=b)", "(?<!x)y", "(a)\\1", "x{1001}", "a++", "(open"] }],
        },
      ],
    });
    assert.match(
      problems["route.0.matchExpr"] ?? "",
      /"\]\[" is not an RE2 expression: missing closing \] at character 2/,
    );
    assert.match(problems["route.1.matchExpr"] ?? "", /not a wildcard/);
    const expr = (index: number) => problems[`policies.0.route.0.exprs.${index}`];
    assert.equal(expr(0), undefined);
    assert.match(expr(1) ?? "", /at character 2.*look-around/);
    assert.match(expr(2) ?? "", /look-around/);
    assert.match(expr(3) ?? "", /at character 4.*back-references/);
    assert.match(expr(4) ?? "", /at most 1000/);
    assert.match(expr(5) ?? "", /possessive/);
    assert.match(expr(6) ?? "", /missing closing \)/);
    assert.equal(Object.keys(problems).length, 8);
  });

  test("a route to a policy that does not exist names those that do", () => {
    const options = { ...pageOptions(), route: [{ name: "dirct", matchExpr: "dir" }] };
    assert.match(maker.problems(options)["route.0.name"] ?? "", /"dirct".*direct, gateway/);
  });

  test("policies without a route, and a mapping without setKV", () => {
    assert.match(maker.problems({ ...pageOptions(), route: [] })["route"] ?? "", /no policy is ever reached/);
    const { setKV: _setKV, ...without } = pageOptions();
    assert.match(maker.problems(without)["setKV"] ?? "", /mqtt\.topicKey/);
  });

  test("a misspelt key and a missing topicIndex", () => {
    assert.match(maker.problems({ ...pageOptions(), matchIndx: 0 })["matchIndx"] ?? "", /matchIndex/);
    const problems = maker.problems({ policies: [{ name: "p", route: [{ topic: "t", exprs: ["."] }] }] });
    assert.match(problems["policies.0.topicIndex"] ?? "", /missing/);
  });

  test("nothing in the page's config, printed or corrected", () => {
    assert.deepEqual(maker.problems(pageOptions()), {});
    assert.deepEqual(maker.problems(correctedOptions()), {});
  });

  test("two policies of one name are taken as Easegress takes them: the last counts, with a warning", async (t) => {
    const { host, logs, close } = createTestHost();
    t.after(close);
    const policy = (topic: string) => ({ name: "p", topicIndex: 0, route: [{ topic, exprs: [".*"] }] });
    const filter = await maker.build(
      { setKV, route: [{ name: "p", matchExpr: ".*" }], policies: [policy("early"), policy("late")] },
      host,
    );
    const ctx = createPublishContext({ topic: "a" });
    await filter.handle(ctx);
    assert.equal(ctx.data.get("kafka-topic"), "late");
    assert.deepEqual(
      logs.map(({ level }) => level),
      ["warn"],
    );
  });
});
