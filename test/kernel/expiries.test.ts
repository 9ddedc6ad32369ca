/** What ends at a time ends then, whatever the clock does. */
import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { createExpiries } from "../../kernel/expiries.ts";

function open(t: TestContext) {
  t.mock.timers.enable({ apis: ["setInterval"] });
  const clock = { now: 1_000_000_500 };
  const expiries = createExpiries(() => clock.now);
  const due: string[] = [];
  t.after(() => expiries.close());
  return {
    expiries,
    due,
    clock,
    /** The clock goes on by so many seconds, and the timer with it. */
    pass(seconds: number): void {
      for (let second = 0; second < seconds; second++) {
        clock.now += 1000;
        t.mock.timers.tick(1000);
      }
    },
    end: (name: string) => (): void => void due.push(name),
  };
}

test("each ends at its time, not before, and within a second after", (t) => {
  const { expiries, due, clock, pass, end } = open(t);
  for (const seconds of [1, 2, 2, 5, 100]) expiries.add(clock.now + seconds * 1000, end(`after ${seconds}`));
  expiries.add(clock.now - 5000, end("past"));
  pass(1);
  assert.deepEqual(due, ["past"]);
  pass(1);
  assert.deepEqual(due, ["past", "after 1"]);
  pass(1);
  assert.deepEqual(due, ["past", "after 1", "after 2", "after 2"]);
  pass(50);
  assert.deepEqual(due.slice(4), ["after 5"]);
  pass(60);
  assert.deepEqual(due.slice(5), ["after 100"]);
});

test("what is taken back does not end; the others of its second do", (t) => {
  const { expiries, due, clock, pass, end } = open(t);
  const [gone, stays] = [end("gone"), end("stays")];
  const at = clock.now + 2000;
  expiries.add(at, gone);
  expiries.add(at, stays);
  expiries.delete(at, gone);
  expiries.delete(at, gone);
  expiries.delete(at + 5000, stays);
  pass(10);
  assert.deepEqual(due, ["stays"]);
});

test("a clock that jumps ahead ends what has passed; one that is set back ends nothing too early", (t) => {
  const { expiries, due, clock, pass, end } = open(t);
  expiries.add(clock.now + 10_000, end("ten"));
  expiries.add(clock.now + 86_400_000, end("day"));
  clock.now += 3_600_000;
  pass(1);
  assert.deepEqual(due, ["ten"]);
  clock.now -= 7_200_000;
  pass(5);
  expiries.add(clock.now + 2000, end("two"));
  pass(5);
  assert.deepEqual(due, ["ten", "two"]);
  clock.now += 90_000_000;
  pass(1);
  assert.deepEqual(due, ["ten", "two", "day"]);
});

test("nothing ends after close, and one that ends may add another", (t) => {
  const { expiries, due, clock, pass, end } = open(t);
  expiries.add(clock.now + 1000, () => {
    due.push("first");
    expiries.add(clock.now + 1000, end("second"));
  });
  pass(4);
  assert.deepEqual(due, ["first", "second"]);
  expiries.add(clock.now + 1000, end("late"));
  expiries.close();
  pass(4);
  assert.deepEqual(due, ["first", "second"]);
});
