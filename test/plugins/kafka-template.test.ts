/** What a template costs is bounded by the work it does, whatever the clock on the wall says. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { compileTemplate } from "../../plugins/kafka/template.ts";
import type { Fault } from "../../kernel/plugin.ts";

function faultOf(render: () => string): Fault {
  try {
    render();
  } catch (error) {
    assert.ok(error instanceof Error);
    return error;
  }
  return assert.fail("it rendered");
}

const list = (length: number) => Array.from({ length }, (_, index) => String(index));

test("a rendering that the machine interrupts for long is none that does much", () => {
  const render = compileTemplate<object>("{% for each in list %}{{ each }}{{ pause }}{% endfor %}");
  let pauses = 0;
  const scope = {
    list: list(1000),
    get pause() {
      // As the thread waits while another process has its turn.
      if (pauses++ % 250 === 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60);
      return "";
    },
  };
  const startedAt = performance.now();
  assert.equal(render(scope), list(1000).join(""));
  assert.ok(performance.now() - startedAt > 200);
});

test("a template that takes too many steps is given up, and its packet is to blame: each time, at the same length", () => {
  const render = compileTemplate<object>("{% for each in list %}{{ each }}{% endfor %}");
  assert.equal(render({ list: list(9990) }), list(9990).join(""));
  for (let attempt = 0; attempt < 3; attempt++) {
    const fault = faultOf(() => render({ list: list(10_000) }));
    assert.match(fault.message, /more than 20000 steps/);
    assert.equal(fault.poison, true);
  }
  const endless = compileTemplate<object>("{% for a in (1..9999) %}{% for b in (1..99) %}{% endfor %}{% endfor %}");
  assert.match(faultOf(() => endless({})).message, /more than 20000 steps/);
});

test("nor do few steps that take long hold the event loop, and they may have been interrupted", () => {
  const render = compileTemplate<object>("{% for each in list %}{% if text contains each %}{% endif %}{% endfor %}");
  const scope = { list: list(4000).map((each) => `${"a".repeat(500)}${each}`), text: "a".repeat(100_000) };
  const before = process.threadCpuUsage();
  const fault = faultOf(() => render(scope));
  const { user, system } = process.threadCpuUsage(before);
  assert.match(fault.message, /more than 50 ms/);
  assert.equal(fault.poison, undefined);
  assert.ok(user + system < 2_000_000, `${user + system} us`);
});

test("what a template makes is bounded too", () => {
  const fault = faultOf(() => compileTemplate<object>("{% for a in (1..9000000) %}{% endfor %}")({}));
  assert.match(fault.message, /memory alloc limit exceeded/);
  assert.equal(fault.poison, true);
});
