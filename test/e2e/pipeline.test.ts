/** Flows of several filters, as a packet meets them; and configs that must not start. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test, type TestContext } from "node:test";
import type { FilterContext, FilterResult } from "../../kernel/plugin.ts";
import { forgetProbe, openProbe } from "../fixtures/plugins-e2e/probe/control.ts";
import { startTestGateway } from "../helpers/gateway.ts";
import { probeDocument, toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw, publishPacket } from "../helpers/raw-client.ts";

const proxyDocument = {
  kind: "MQTTProxy",
  name: "mqttproxy",
  host: "127.0.0.1",
  port: 0,
  faultGrace: 1,
  rules: [{ when: { packetType: "Publish" }, pipeline: "publish" }],
};

/** A gateway with one pipeline of probes called a, b and c; `path` lists those that each PUBLISH went through. */
async function startFlow(
  t: TestContext,
  pipeline: object,
  handlers: Record<string, (ctx: FilterContext) => FilterResult> = {},
): Promise<{ send: (payload: string) => Promise<"acked" | "not acked">; path: string[] }> {
  const run = randomUUID();
  const path: string[] = [];
  const names = ["a", "b", "c"];
  for (const name of names) {
    openProbe(`${name}-${run}`).handle = (ctx) => {
      path.push(name);
      return handlers[name]?.(ctx);
    };
  }
  const filters = names.map((name) => ({ name, kind: "Probe", probe: `${name}-${run}` }));
  const gateway = await startTestGateway(
    toYaml([probeDocument, proxyDocument, { kind: "Pipeline", name: "publish", filters, ...pipeline }]),
  );
  t.after(async () => {
    await gateway.stop();
    for (const name of names) forgetProbe(`${name}-${run}`);
  });
  const client = await connectRaw(gateway.port(), "c");
  return {
    path,
    async send(payload) {
      path.length = 0;
      client.send(publishPacket("a/b", payload, 1));
      const [ack] = await client.flush();
      return ack?.cmd === "puback" ? "acked" : "not acked";
    },
  };
}

const payloadOf = (ctx: FilterContext): string => (ctx.type === "Publish" ? String(ctx.packet.payload) : "");

test("A38: without a flow all filters run in their order, with one the nodes that it names", async (t) => {
  const plain = await startFlow(t, {});
  assert.equal(await plain.send("x"), "acked");
  assert.deepEqual(plain.path, ["a", "b", "c"]);
  const flow = await startFlow(t, { flow: [{ filter: "c" }, { filter: "a" }, { filter: "c", alias: "again" }] });
  assert.equal(await flow.send("x"), "acked");
  assert.deepEqual(flow.path, ["c", "a", "c"]);
});

test("A38: jumpIf goes on at a later node or END, for a result and for success; a result without one ends the run", async (t) => {
  const { send, path } = await startFlow(
    t,
    {
      flow: [
        { filter: "a", jumpIf: { verdict: "last", failure: "END" } },
        { filter: "b", jumpIf: { "": "END" } },
        { filter: "c", alias: "last" },
      ],
    },
    {
      a: (ctx) => (payloadOf(ctx).startsWith("a:") ? payloadOf(ctx).slice(2) : undefined),
      b: (ctx) => (payloadOf(ctx).startsWith("b:") ? payloadOf(ctx).slice(2) : undefined),
    },
  );
  const cases: [payload: string, path: string[], answer: "acked" | "not acked"][] = [
    ["a:verdict", ["a", "c"], "acked"],
    ["a:failure", ["a"], "acked"],
    ["x", ["a", "b"], "acked"],
    ["b:verdict", ["a", "b"], "acked"],
    ["b:failure", ["a", "b"], "not acked"],
  ];
  for (const [payload, expected, answer] of cases) {
    assert.equal(await send(payload), answer, payload);
    assert.deepEqual(path, expected, payload);
  }
});

test("A38: a jumpIf clears what the filter decided; without one the run ends with it", async (t) => {
  const { send, path } = await startFlow(
    t,
    { flow: [{ filter: "a", jumpIf: { failure: "c" } }, { filter: "b" }, { filter: "c" }] },
    {
      a(ctx) {
        if (payloadOf(ctx) === "plain") return undefined;
        ctx.disconnect("banned");
        return "failure";
      },
      b: (ctx) => ctx.drop(),
    },
  );
  assert.equal(await send("jump"), "acked");
  assert.deepEqual(path, ["a", "c"]);
  assert.equal(await send("plain"), "acked");
  assert.deepEqual(path, ["a", "b"]);
});

test("A38: filters find the pipeline's data, and hand values on within one run", async (t) => {
  const found: unknown[] = [];
  const { send } = await startFlow(
    t,
    { data: { site: "north" } },
    {
      a(ctx) {
        found.push(ctx.data.get("PIPELINE"), ctx.data.get("handed"));
        ctx.data.set("handed", payloadOf(ctx));
      },
      c(ctx) {
        found.push(ctx.data.get("handed"));
      },
    },
  );
  await send("1");
  await send("2");
  assert.deepEqual(found, [{ site: "north" }, undefined, "1", { site: "north" }, undefined, "2"]);
});

const probe = (name: string): object => ({ name, kind: "Probe", probe: name });

/** What is wrong with a pipeline -> what the start says. */
const wrongPipelines: Record<string, [pipeline: object, message: RegExp]> = {
  "A38: a flow that names a missing filter": [
    { flow: [{ filter: "x" }], filters: [probe("a")] },
    /no filter .* named "x"/,
  ],
  "A38: two filters of one name": [{ filters: [probe("a"), probe("a")] }, /has the name "a" already/],
  "A38: a jump to a missing node": [
    { flow: [{ filter: "a", jumpIf: { verdict: "x" } }], filters: [probe("a")] },
    /no step .* named "x"/,
  ],
  "A38: a jump backwards": [
    { flow: [{ filter: "a" }, { filter: "b", jumpIf: { verdict: "a" } }], filters: [probe("a"), probe("b")] },
    /not later/,
  ],
  "A38: a jump on a result that the kind does not declare": [
    { flow: [{ filter: "a", jumpIf: { AuthFail: "END" } }], filters: [probe("a")] },
    /never returns "AuthFail"/,
  ],
  "L4: a node with a namespace": [{ flow: [{ filter: "a", namespace: "other" }], filters: [probe("a")] }, /namespace/],
  "L5: a negative topicIndex": [
    {
      filters: [
        {
          name: "mapper",
          kind: "TopicMapper",
          setKV: { topic: "t", headers: "h" },
          matchIndex: 0,
          route: [{ name: "p", matchExpr: "x" }],
          policies: [{ name: "p", topicIndex: -1, route: [{ topic: "out", exprs: [".*"] }], headers: {} }],
        },
      ],
    },
    /topicIndex/,
  ],
  "A07: a misspelt key": [{ filters: [{ ...probe("a"), prob: "x" }] }, /did you mean "?probe"?/i],
};

/** One that starts after all must not stay. */
async function start(yaml: string): Promise<void> {
  const gateway = await startTestGateway(yaml);
  await gateway.stop();
}

for (const [name, [pipeline, message]] of Object.entries(wrongPipelines)) {
  test(`${name} stops the start`, async () => {
    const yaml = toYaml([probeDocument, proxyDocument, { kind: "Pipeline", name: "publish", ...pipeline }]);
    await assert.rejects(start(yaml), message);
  });
}

test("L1: a filter that can't handle the packets of a rule stops the start", async () => {
  const rules = [{ when: { packetType: "Connect" }, pipeline: "publish" }];
  const filters = [{ name: "a", kind: "PublishProbe", probe: "a" }];
  const documents = [probeDocument, { ...proxyDocument, rules }, { kind: "Pipeline", name: "publish", filters }];
  await assert.rejects(start(toYaml(documents)), /can't be used for Connect packets: its filter "a"/);
});
