import assert from "node:assert/strict";
import { test } from "node:test";
import { createPublishContext, openPipeline, testPlugin } from "@sluice/testkit";

const plugin = new URL("..", import.meta.url);

test("while Redis is away a message is a fault, and health says why", async (t) => {
  // Nobody listens on port 9.
  const config = `
kind: Pipeline
name: publish
filters:
  - { name: sink, kind: RedisStream, url: redis://127.0.0.1:9, stream: readings }
`;
  const pipeline = await openPipeline(config, { plugins: [plugin] });
  t.after(() => pipeline.close());
  const { outcome } = await pipeline.send(createPublishContext());
  assert.equal(outcome.kind, "fault");
  assert.equal(pipeline.health()[0]?.ok, false);
});

await testPlugin(plugin, { options: { RedisStream: { url: "redis://127.0.0.1:9" } } });
