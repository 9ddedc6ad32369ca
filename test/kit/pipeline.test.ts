import assert from "node:assert/strict";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import {
  createConnectContext,
  createPublishContext,
  createTestClock,
  openPipeline,
  type PipelineOptions,
  type TestPipeline,
} from "@sluice/testkit";
import { forgetProbe, openProbe } from "../fixtures/plugins-e2e/probe/control.ts";

const plugins = [join(import.meta.dirname, "../fixtures/plugins-e2e/probe")];

async function open(t: TestContext, yaml: string, options: PipelineOptions = { plugins }): Promise<TestPipeline> {
  const pipeline = await openPipeline(yaml, options);
  t.after(() => pipeline.close());
  return pipeline;
}

const mapper = (more = "") => `
kind: Pipeline
name: publish
flow:
  - filter: mapper
    jumpIf: { MQTTTopicMapFailed: END }
  - filter: sink
filters:
  - name: mapper
    kind: TopicMapper
    route: [{ name: all, matchExpr: ^sensors$ }]
    policies: [{ name: all, topicIndex: 1, route: [{ topic: rooms, exprs: ["."] }], headers: { 1: room } }]
    setKV: { topic: topic, headers: headers }
  - name: sink
    kind: FileMQTT
    mqtt: { topicKey: topic, headerKey: headers }
    topic: { default: other }
    ${more}
`;

test("a packet's way: outcome, steps and what filters left, with the distribution's own filters", async (t) => {
  const pipeline = await open(t, mapper());
  const mapped = await pipeline.send(createPublishContext({ topic: "sensors/kitchen" }));
  assert.deepEqual(mapped.outcome, { kind: "passed" });
  assert.deepEqual(mapped.steps, [{ filter: "mapper" }, { filter: "sink" }]);
  assert.equal(mapped.data.get("topic"), "rooms");
  assert.deepEqual(mapped.data.get("headers"), { room: "kitchen" });

  const unmapped = await pipeline.send(createPublishContext({ topic: "elsewhere/kitchen" }));
  assert.deepEqual(unmapped.outcome, { kind: "passed" });
  assert.deepEqual(unmapped.steps, [{ filter: "mapper", result: "MQTTTopicMapFailed" }]);
  const labels = { pipeline: "publish", filter: "mapper", outcome: "MQTTTopicMapFailed" };
  assert.equal(await pipeline.metricValue("sluice_filter_packets_total", labels), 1);
});

test("a config with problems is refused with all of them, and a reload that fails changes nothing", async (t) => {
  await assert.rejects(openPipeline("kind: Pipeline\nname: p\nfilters: [{ name: a, kind: Nothing }]\n"), {
    code: "PLUGIN_NOT_FOUND",
    message: /sluice\.yaml:3:.*Nothing/,
  });
  const pipeline = await open(t, mapper());
  await assert.rejects(pipeline.reload(mapper("unknown: 1")), /unknown/);
  const { steps } = await pipeline.send(createPublishContext({ topic: "sensors/kitchen" }));
  assert.equal(steps.length, 2);
});

test("a fault shows what was thrown, a deadline passes, and packets of one client keep their order", async (t) => {
  const probe = openProbe("kit");
  t.after(() => forgetProbe("kit"));
  const yaml = "kind: Pipeline\nname: p\ntimeout: 0.2\nfilters: [{ name: probe, kind: Probe, probe: kit }]\n";
  const pipeline = await open(t, yaml);
  const failure = new Error("away");
  probe.handle = () => {
    throw failure;
  };
  const failed = await pipeline.send(createPublishContext());
  assert.deepEqual(failed.outcome, { kind: "fault", error: failure });
  assert.deepEqual(failed.steps, [{ filter: "probe", error: failure }]);

  const gate = Promise.withResolvers<void>();
  const order: string[] = [];
  probe.handle = async (ctx) => {
    order.push(`in ${ctx.client.id}`);
    await gate.promise;
  };
  const runs = ["a", "a", "b"].map((clientId) => pipeline.send(createPublishContext({ clientId })));
  assert.deepEqual(order, ["in a", "in b"]);
  gate.resolve();
  const ended = await Promise.all(runs);
  assert.deepEqual(
    ended.map(({ outcome }) => outcome.kind),
    ["passed", "passed", "passed"],
  );
  assert.deepEqual(order, ["in a", "in b", "in a"]);

  probe.handle = () => new Promise(() => undefined);
  const late = await pipeline.send(createPublishContext());
  assert.equal(late.outcome.kind, "fault");
  assert.match(String(late.outcome.kind === "fault" && late.outcome.error), /did not finish a Publish within 200 ms/);
});

test("the one of several pipelines that is named runs", async (t) => {
  const yaml = `
kind: Pipeline
name: connect
filters: [{ name: auth, kind: MQTTClientAuth, auth: [] }]
---
${mapper()}`;
  const pipeline = await open(t, yaml, { name: "connect" });
  const { outcome, steps } = await pipeline.send(createConnectContext({ username: "a", password: "b" }));
  assert.equal(outcome.kind, "rejected");
  assert.deepEqual(steps, [{ filter: "auth", result: "AuthFail" }]);
});

test("a clock goes on when told, and runs what is due in its order", () => {
  const clock = createTestClock(1000);
  const seen: string[] = [];
  const say = (what: string) => () => void seen.push(`${what} ${clock.now()}`);
  clock.setTimeout(say("late"), 30);
  clock.setTimeout(() => {
    say("early")();
    clock.setTimeout(say("again"), 5);
  }, 10);
  const cleared = clock.setTimeout(say("never"), 12);
  cleared.clear();
  clock.advance(20);
  assert.deepEqual(seen, ["early 1010", "again 1015"]);
  assert.deepEqual([clock.now(), clock.pending], [1020, 1]);
  clock.advance(10);
  assert.deepEqual(seen.slice(2), ["late 1030"]);
  assert.equal(clock.pending, 0);
});
