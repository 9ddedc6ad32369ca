import assert from "node:assert/strict";
import { test } from "node:test";
import { schemaCompiler } from "../../kernel/schema.ts";

const schemaOf = (minimum: number) => ({ type: "object", properties: { n: { type: "integer", minimum } } });

test("a schema that reads the same is compiled once, whichever object it is; another one is another", () => {
  const compile = schemaCompiler();
  const first = compile(schemaOf(1));
  assert.equal(compile(schemaOf(1)), first);
  assert.deepEqual(first({ n: 0 }), [{ path: ["n"], message: "must be at least 1, not 0" }]);
  const other = compile(schemaOf(0));
  assert.notEqual(other, first);
  assert.deepEqual(other({ n: 0 }), []);
});

test("what is remembered is bounded: after a thousand others a schema is compiled anew, and works", () => {
  const compile = schemaCompiler();
  const first = compile(schemaOf(-1));
  for (let n = 0; n < 1000; n++) compile(schemaOf(n));
  const again = compile(schemaOf(-1));
  assert.notEqual(again, first);
  assert.equal(again({ n: -2 }).length, 1);
});
