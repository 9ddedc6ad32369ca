import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { createSubjectInterest } from "../../plugins/nats-cluster/interest.ts";
import { covers } from "../../plugins/nats-cluster/subjects.ts";
import { createRandom } from "../helpers/random.ts";

const everything = "t.v.*.p.>";

function start(max: number) {
  const active = new Set<string>();
  const interest = createSubjectInterest({
    max,
    everything,
    subscribe(subject) {
      assert.ok(!active.has(subject), `${subject} is asked for twice`);
      active.add(subject);
      return () => assert.ok(active.delete(subject));
    },
  });
  return { interest, active };
}

describe("what a node asks NATS for", () => {
  test("counts, and leaves out what a wider subject brings", () => {
    const { interest, active } = start(100);
    interest.add("t.v.*.p.n.a.>");
    interest.add("t.v.1.p.n.a.b.~");
    interest.add("t.v.1.p.n.c.~");
    interest.add("t.v.1.p.n.c.~");
    assert.deepEqual([...active], ["t.v.*.p.n.a.>", "t.v.1.p.n.c.~"]);
    interest.delete("t.v.*.p.n.a.>");
    interest.delete("t.v.1.p.n.c.~");
    assert.deepEqual([...active].toSorted(), ["t.v.1.p.n.a.b.~", "t.v.1.p.n.c.~"]);
    interest.delete("t.v.1.p.n.c.~");
    interest.delete("t.v.1.p.n.a.b.~");
    interest.delete("t.v.1.p.n.a.b.~");
    assert.equal(active.size, 0);
  });

  for (const max of [1000, 12]) {
    test(`whatever is added and deleted, what is wanted is asked for (at most ${max} subjects)`, () => {
      const random = createRandom(max);
      const { interest, active } = start(max);
      const wanted: string[] = [];
      const levels = ["a", "b", "c", "*"];
      let collapsed = 0;
      for (let n = 0; n < 20_000; n++) {
        if (random(100) < 52 - wanted.length / 2) {
          const text = Array.from({ length: 1 + random(3) }, () => levels[random(4)]).join(".");
          const subject = `t.v.${text.includes("*") ? "*" : random(3)}.p.n.${text}.${random(4) === 0 ? ">" : "~"}`;
          interest.add(subject.endsWith(">") ? subject.replace(/^t\.v\.\d/, "t.v.*") : subject);
          wanted.push(subject.endsWith(">") ? subject.replace(/^t\.v\.\d/, "t.v.*") : subject);
        } else if (wanted.length > 0) {
          const [gone = ""] = wanted.splice(random(wanted.length), 1);
          interest.delete(gone);
        }
        for (const subject of wanted) {
          assert.ok(
            [...active].some((each) => covers(each, subject)),
            `${subject} is not asked for`,
          );
        }
        assert.ok(active.size <= max && interest.size === active.size);
        if (active.has(everything)) {
          collapsed++;
          assert.equal(active.size, 1);
        }
      }
      for (const subject of wanted) interest.delete(subject);
      assert.equal(active.size, 0);
      assert.equal(collapsed > 0, max === 12);
    });
  }
});
