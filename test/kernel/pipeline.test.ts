import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import { test } from "node:test";
import { createMetrics } from "../../kernel/metrics.ts";
import type { Outcome } from "../../kernel/outcome.ts";
import {
  createLane,
  createPipeline,
  type FilterInstance,
  type Job,
  type Lane,
  type Pipeline,
} from "../../kernel/pipeline.ts";
import type { Client, Filter, FilterContext, FilterKind, PublishContext } from "../../kernel/plugin.ts";
import type { FlowNode } from "../../kernel/spec.ts";

const silent = { debug() {}, info() {}, warn() {}, error() {} };

interface Use {
  handle: Filter["handle"];
  results?: string[];
  discards?: string[];
  concurrent?: boolean;
}

function build(uses: Record<string, Use>, flow?: Partial<FlowNode>[], timeoutMs = 5000): Pipeline {
  const filters = new Map<string, FilterInstance>();
  for (const [name, { handle, results = [], discards = [], concurrent = false }] of Object.entries(uses)) {
    const filter: Filter = { handle };
    const kind: FilterKind = {
      kind: `Kind-${name}`,
      packets: ["Publish"],
      results,
      discards,
      concurrent,
      create: () => filter,
    };
    const from = { package: "test", version: "1.0.0" };
    filters.set(name, { name, kind, from, filter, options: {}, close: () => Promise.resolve() });
  }
  const used: Partial<FlowNode>[] = flow ?? Object.keys(uses).map((filter) => ({ filter }));
  const nodes = used.map((node) => ({
    filter: node.filter ?? "",
    alias: node.alias ?? node.filter ?? "",
    jumpIf: node.jumpIf ?? {},
  }));
  return createPipeline({ name: "pipe", flow: nodes, filters: [], data: { answer: 42 }, timeoutMs }, filters, {
    log: silent,
    metrics: createMetrics(),
  });
}

const client: Client = {
  id: "c",
  username: undefined,
  address: "",
  protocolVersion: 4,
  certificate: undefined,
  data: new Map(),
};

function job(topic: string, lane: Lane = createLane(), final?: Job["final"]): Job {
  const packet = { topic, payload: Buffer.from(""), qos: 1 as const, retain: false, dup: false, packetId: 1 };
  return { type: "Publish", origin: "client", packet, client, lane, final };
}

function run(pipeline: Pipeline, each: Job): Promise<Outcome> {
  return new Promise((resolve) => {
    const outcome = pipeline.run(each, resolve);
    if (outcome) resolve(outcome);
  });
}

const topicOf = (ctx: FilterContext): string => (ctx as PublishContext).packet.topic;

test("synchronous filters end synchronously, in the order of the flow, and share data", () => {
  const seen: string[] = [];
  const pipeline = build({
    a: {
      handle(ctx) {
        ctx.data.set("k", "v");
        seen.push("a");
      },
    },
    b: {
      handle: (ctx) => void seen.push(`b ${String(ctx.data.get("k"))} ${JSON.stringify(ctx.data.get("PIPELINE"))}`),
    },
  });
  const outcome = pipeline.run(job("t"), () => assert.fail("it is not asynchronous"));
  assert.deepEqual(outcome, { kind: "passed" });
  assert.deepEqual(seen, ["a", 'b v {"answer":42}']);
  assert.equal(pipeline.active, 0);
});

test("a result without a jumpIf ends the run: a verdict where the kind lists it in discards", async () => {
  const b = { handle: () => assert.fail("not reached") };
  assert.deepEqual(await run(build({ a: { handle: () => "Bad", results: ["Bad"] }, b }), job("t")), {
    kind: "unhandled",
    result: "Bad",
    verdict: false,
  });
  assert.deepEqual(await run(build({ a: { handle: () => "Bad", results: ["Bad"], discards: ["Bad"] }, b }), job("t")), {
    kind: "unhandled",
    result: "Bad",
    verdict: true,
  });
});

test("jumpIf: to a later alias, to END, on the empty result, past an END node, and it clears the outcome", async () => {
  const seen: string[] = [];
  const say = (name: string, result?: string, results: string[] = []): Use => ({
    handle(ctx) {
      seen.push(name);
      if (result) ctx.reject("notAuthorized");
      return result;
    },
    results,
  });
  const uses = { a: say("a", "Bad", ["Bad"]), b: say("b"), dlq: say("dlq") };
  const flow = [
    { filter: "a", jumpIf: { Bad: "dead" } },
    { filter: "b" },
    { filter: "END" },
    { filter: "dlq", alias: "dead" },
  ];
  assert.deepEqual(await run(build(uses, flow), job("t")), { kind: "passed" });
  assert.deepEqual(seen.splice(0), ["a", "dlq"]);

  assert.deepEqual(await run(build(uses, [{ filter: "b" }, { filter: "END" }, { filter: "dlq" }]), job("t")), {
    kind: "passed",
  });
  assert.deepEqual(seen.splice(0), ["b"]);

  assert.deepEqual(await run(build(uses, [{ filter: "b", jumpIf: { "": "END" } }, { filter: "dlq" }]), job("t")), {
    kind: "passed",
  });
  assert.deepEqual(seen.splice(0), ["b"]);

  assert.deepEqual(await run(build(uses, [{ filter: "a" }, { filter: "b" }]), job("t")), {
    kind: "rejected",
    reason: "notAuthorized",
  });
});

test("drop, reject and disconnect end the run once their filter returns", async () => {
  const after = { handle: () => assert.fail("not reached") };
  const outcomes: [Filter["handle"], Outcome][] = [
    [(ctx) => ctx.drop(), { kind: "dropped" }],
    [(ctx) => ctx.reject("banned"), { kind: "rejected", reason: "banned" }],
    [async (ctx) => ctx.disconnect("quotaExceeded"), { kind: "disconnected", reason: "quotaExceeded" }],
  ];
  for (const [handle, expected] of outcomes) {
    assert.deepEqual(await run(build({ a: { handle }, after }), job("t")), expected);
  }
});

test("a throw, a rejection and an undeclared result are faults of that packet alone", async () => {
  const pipeline = build({
    a: {
      handle(ctx) {
        if (topicOf(ctx) === "throw") throw new Error("boom");
        if (topicOf(ctx) === "reject") return Promise.reject(new Error("later"));
        if (topicOf(ctx) === "undeclared") return "Surprise";
      },
    },
  });
  for (const topic of ["throw", "reject", "undeclared"]) {
    assert.equal((await run(pipeline, job(topic))).kind, "fault", topic);
  }
  assert.deepEqual(await run(pipeline, job("fine")), { kind: "passed" });
});

test("packets of one connection enter an asynchronous filter one after the other; those of others don't wait", async () => {
  const entered: string[] = [];
  const gates = new Map<string, () => void>();
  const pipeline = build({
    slow: {
      handle(ctx) {
        entered.push(topicOf(ctx));
        return new Promise((resolve) => gates.set(topicOf(ctx), resolve));
      },
    },
  });
  const lane = createLane();
  const runs = ["1", "2", "3"].map((topic) => run(pipeline, job(topic, lane)));
  const other = run(pipeline, job("other", createLane()));
  assert.deepEqual(entered, ["1", "other"]);
  gates.get("1")?.();
  await runs[0];
  assert.deepEqual(entered, ["1", "other", "2"]);
  gates.get("other")?.();
  await other;
  gates.get("2")?.();
  await runs[1];
  gates.get("3")?.();
  await Promise.all(runs);
  assert.deepEqual(entered, ["1", "other", "2", "3"]);
});

test("a concurrent filter takes them all at once, and what follows it gets them in order", async () => {
  const gates = new Map<string, () => void>();
  const delivered: string[] = [];
  const entered: string[] = [];
  const pipeline = build({
    sink: {
      concurrent: true,
      handle(ctx) {
        entered.push(topicOf(ctx));
        return new Promise((resolve) => gates.set(topicOf(ctx), resolve));
      },
    },
    after: { handle: (ctx) => void delivered.push(`after ${topicOf(ctx)}`) },
  });
  const lane = createLane();
  const runs = ["1", "2", "3"].map((topic) =>
    run(
      pipeline,
      job(topic, lane, () => void delivered.push(`final ${topic}`)),
    ),
  );
  assert.deepEqual(entered, ["1", "2", "3"]);
  gates.get("3")?.();
  gates.get("2")?.();
  await turn();
  assert.equal(delivered.length, 0);
  gates.get("1")?.();
  await Promise.all(runs);
  assert.deepEqual(
    delivered.filter((each) => each.startsWith("after")),
    ["after 1", "after 2", "after 3"],
  );
  assert.deepEqual(
    delivered.filter((each) => each.startsWith("final")),
    ["final 1", "final 2", "final 3"],
  );
});

test("a packet that ends early lets the ones behind it go on", async () => {
  const pipeline = build({
    a: {
      handle(ctx) {
        if (topicOf(ctx) === "bad") return Promise.reject(new Error("no"));
      },
    },
  });
  const lane = createLane();
  const outcomes = await Promise.all(["bad", "good", "bad", "good"].map((topic) => run(pipeline, job(topic, lane))));
  assert.deepEqual(
    outcomes.map(({ kind }) => kind),
    ["fault", "passed", "fault", "passed"],
  );
});

test("the deadline is a fault, aborts the signal, and frees the lane", async () => {
  let signal: AbortSignal | undefined;
  const pipeline = build(
    {
      hang: {
        handle(ctx) {
          if (topicOf(ctx) !== "hang") return undefined;
          signal = ctx.signal;
          return new Promise(() => {});
        },
      },
    },
    undefined,
    50,
  );
  const lane = createLane();
  const hung = run(pipeline, job("hang", lane));
  const behind = run(pipeline, job("fine", lane));
  const outcome = await hung;
  assert.equal(outcome.kind, "fault");
  assert.match(String(outcome.kind === "fault" && outcome.error), /pipe did not finish a Publish within 50 ms/);
  assert.equal(signal?.aborted, true);
  assert.deepEqual(await behind, { kind: "passed" });
});

test("drained waits for the packets under way", async () => {
  let go: () => void = () => {};
  let isDrained = false;
  const pipeline = build({ a: { handle: () => new Promise((resolve) => (go = resolve)) } });
  const under = run(pipeline, job("t"));
  const draining = pipeline.drained().then(() => (isDrained = true));
  await turn();
  assert.equal(isDrained, false);
  go();
  await Promise.all([under, draining]);
});

test("packets of a newer generation wait for the connection's packets in the older one", async () => {
  const gates: (() => void)[] = [];
  const seen: string[] = [];
  const sink = (name: string): Use => ({
    concurrent: true,
    handle(ctx) {
      seen.push(`${name} ${topicOf(ctx)}`);
      return new Promise((resolve) => gates.push(resolve));
    },
  });
  const [old, fresh] = [build({ a: sink("old") }), build({ a: sink("new") })];
  const lane = createLane();
  const runs = [
    run(old, job("1", lane)),
    run(old, job("2", lane)),
    run(fresh, job("3", lane)),
    run(fresh, job("4", lane)),
  ];
  assert.deepEqual(seen, ["old 1", "old 2"]);
  gates[1]?.();
  await runs[1];
  assert.deepEqual(seen, ["old 1", "old 2"]);
  gates[0]?.();
  await runs[0];
  assert.deepEqual(seen, ["old 1", "old 2", "new 3", "new 4"]);
  for (const go of gates) go();
  await Promise.all(runs);
});

/** An answer of a filter's own, that is no promise. */
function createPending(onAsked: (self: { answer(result?: string): void; fail(error: unknown): void }) => void) {
  return {
    // oxlint-disable-next-line unicorn/no-thenable -- what the plugin API calls a pending result
    then: (answer: (result?: string) => void, fail: (error: unknown) => void): void => onAsked({ answer, fail }),
  };
}

test("a filter settles many packets synchronously with pending results of its own, in their order", async () => {
  const waiting: { answer(result?: string): void; fail(error: unknown): void }[] = [];
  const behind: string[] = [];
  const pipeline = build({
    sink: { concurrent: true, results: ["full"], handle: () => createPending((self) => waiting.push(self)) },
    after: { handle: (ctx) => void behind.push(topicOf(ctx)) },
  });
  const lane = createLane();
  const outcomes: string[] = [];
  for (const topic of ["0", "1", "2", "3"]) {
    assert.equal(
      pipeline.run(job(topic, lane), ({ kind }) => outcomes.push(`${topic} ${kind}`)),
      undefined,
    );
  }
  assert.equal(waiting.length, 4);
  waiting[1]?.answer();
  assert.deepEqual([behind, outcomes], [[], []], "what follows a concurrent filter gets them in order");
  waiting[0]?.answer();
  waiting[2]?.fail(new Error("lost"));
  waiting[3]?.answer("full");
  assert.deepEqual(behind, ["0", "1"]);
  assert.deepEqual(outcomes.toSorted(), ["0 passed", "1 passed", "2 fault", "3 unhandled"]);
  assert.equal(pipeline.active, 0);
  await pipeline.drained();
});

test("a pending result that answers within then() is heard too", async () => {
  const pipeline = build({
    hasty: { handle: () => createPending((self) => self.answer()) },
    failing: {
      handle: (ctx) => (topicOf(ctx) === "bad" ? createPending((self) => self.fail(new Error("no"))) : undefined),
    },
  });
  assert.equal((await run(pipeline, job("good"))).kind, "passed");
  assert.equal((await run(pipeline, job("bad"))).kind, "fault");
  assert.equal(pipeline.active, 0);
});

test("10,000 packets of one lane through a filter that answers later: all pass, in order", async () => {
  const seen: number[] = [];
  const pipeline = build({ a: { handle: () => turn().then(() => undefined), concurrent: true } });
  const lane = createLane();
  const runs = Array.from({ length: 10_000 }, (_, n) =>
    run(
      pipeline,
      job("t", lane, () => void seen.push(n)),
    ),
  );
  await Promise.all(runs);
  assert.deepEqual(
    seen,
    Array.from({ length: 10_000 }, (_, n) => n),
  );
  assert.equal(lane.last, undefined);
});
