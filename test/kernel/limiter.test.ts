import assert from "node:assert/strict";
import { test } from "node:test";
import { createKeyedLimiter, createLimiter, type Limiter } from "../../kernel/limiter.ts";

function limiter(requestRate: number, bytesRate: number, timePeriod = 1): { it: Limiter; tick: (ms: number) => void } {
  let now = 5000;
  return { it: createLimiter({ requestRate, bytesRate, timePeriod }, () => now), tick: (ms) => void (now += ms) };
}

function admitted(it: Limiter, tries: number, bytes: number): number {
  return Array.from({ length: tries }, () => it.admit(bytes)).filter(Boolean).length;
}

test("A32: no rates never block", () => {
  assert.equal(admitted(limiter(0, 0).it, 1000, 1e6), 1000);
});

test("A32: 10 requests a minute, then none until the window turns", () => {
  const { it, tick } = limiter(10, 0, 60);
  assert.equal(admitted(it, 20, 0), 10);
  assert.equal(it.waitMs(), 60_000);
  tick(59_999);
  assert.equal(admitted(it, 20, 0), 0);
  tick(1);
  assert.equal(admitted(it, 20, 0), 10);
});

test("A32: 100 bytes in steps of 10 are 10 steps; the byte limit may be reached first", () => {
  assert.equal(admitted(limiter(0, 100, 60).it, 20, 10), 10);
  assert.equal(admitted(limiter(50, 100, 60).it, 20, 25), 4);
  assert.equal(admitted(limiter(3, 100, 60).it, 20, 10), 3);
});

test("one large cost overshoots and is paid back by the windows that follow", () => {
  const { it, tick } = limiter(0, 100, 2);
  assert.equal(it.admit(500), true);
  assert.equal(it.waitMs(), 10_000);
  tick(9999);
  assert.equal(it.admit(1), false);
  assert.equal(it.waitMs(), 1);
  tick(1);
  assert.equal(it.waitMs(), 0);
  assert.equal(it.admit(1), true);
});

test("a limit for each key, of a bounded number of keys", () => {
  let forgotten = 0;
  const of = createKeyedLimiter(
    { requestRate: 1, bytesRate: 0, timePeriod: 1 },
    { now: () => 0, max: 2, forgotten: () => void forgotten++ },
  );
  assert.equal(of("a").admit(0), true);
  assert.equal(of("a").admit(0), false);
  assert.equal(of("b").admit(0), true);
  assert.equal(of("c").admit(0), true);
  assert.equal(of("a").admit(0), true, "a was forgotten for c");
  assert.equal(forgotten, 2);
});
