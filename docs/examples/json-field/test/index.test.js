import assert from "node:assert/strict";
import { test } from "node:test";
import { createPublishContext, openPipeline, testPlugin } from "@sluice/testkit";

const plugin = new URL("..", import.meta.url);

/** @param {string} fields */
const config = (fields) => `
kind: Pipeline
name: publish
flow:
  - filter: check
    jumpIf: { fieldMissing: END }
filters:
  - name: check
    kind: JsonField
    fields: ${fields}
`;

test("what is right goes on, what is not has a result of its own", async (t) => {
  const fields = "[{ path: reading.celsius, type: number }, { path: device }]";
  const pipeline = await openPipeline(config(fields), { plugins: [plugin] });
  t.after(() => pipeline.close());
  const cases = /** @type {const} */ ([
    ['{"reading":{"celsius":21},"device":null}', undefined],
    ['{"reading":{"celsius":"21"},"device":1}', "fieldInvalid"],
    ['{"reading":{},"device":1}', "fieldMissing"],
    ['{"reading":21}', "fieldMissing"],
    ['{"reading":{"celsius":21}}', "fieldMissing"],
    ["[1]", "notJson"],
    ["warm", "notJson"],
    ["", "notJson"],
  ]);
  for (const [payload, result] of cases) {
    const { steps } = await pipeline.send(createPublishContext({ payload }));
    assert.equal(steps[0]?.result, result, payload);
  }
});

test("what every object inherits is no field of the payload", async (t) => {
  const pipeline = await openPipeline(config("[{ path: constructor.name }]"), { plugins: [plugin] });
  t.after(() => pipeline.close());
  const { steps } = await pipeline.send(createPublishContext({ payload: "{}" }));
  assert.equal(steps[0]?.result, "fieldMissing");
});

test("a path that is listed twice is a problem of the config", async () => {
  const twice = config("[{ path: a }, { path: a }]");
  await assert.rejects(openPipeline(twice, { plugins: [plugin] }), /fields\[1\]\.path: "a" is listed twice/);
});

await testPlugin(plugin);
