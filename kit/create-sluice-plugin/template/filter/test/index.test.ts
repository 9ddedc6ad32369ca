import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { createPublishContext, openPipeline, testPlugin } from "@sluice/testkit";

const plugin = new URL("..", import.meta.url);

const config = `
kind: Pipeline
name: publish
filters:
  - name: __use__
    kind: __Kind__
    field: from
`;

/** What becomes of a payload. */
async function send(t: TestContext, payload: string) {
  const pipeline = await openPipeline(config, { plugins: [plugin] });
  t.after(() => pipeline.close());
  const ctx = createPublishContext({ clientId: "dev1", payload });
  const { outcome } = await pipeline.send(ctx);
  return { outcome, payload: ctx.packet.payload.toString() };
}

test("adds the client id to a JSON object", async (t) => {
  const { outcome, payload } = await send(t, '{"celsius":21}');
  assert.deepEqual(outcome, { kind: "passed" });
  assert.deepEqual(JSON.parse(payload), { celsius: 21, from: "dev1" });
});

test("has a verdict for what is no JSON object", async (t) => {
  for (const payload of ["warm", "[1]", "null", ""]) {
    assert.deepEqual((await send(t, payload)).outcome, { kind: "unhandled", result: "notJson", verdict: true });
  }
});

// What every plugin owes the gateway: schema, README, results, deadlines, nothing left open, nothing kept in memory.
await testPlugin(plugin);
