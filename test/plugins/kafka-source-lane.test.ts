/** One partition's lane: order, bounds, what is tried again, and how far it counts as done. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { systemClock } from "../../kernel/host.ts";
import {
  createAllowance,
  createSourceLane,
  type Allowance,
  type Handled,
  type SourceLane,
} from "../../plugins/kafka/source-lane.ts";
import type { SourceRecord } from "../../plugins/kafka/source-mapper.ts";
import { eventually } from "../helpers/eventually.ts";

interface Bench {
  readonly lane: SourceLane;
  /** Offsets in the order that they were handed on, each attempt. */
  readonly begun: number[];
  readonly settle: (offset: number, how: Handled) => void;
}

function createBench(
  maxInFlight: number,
  allowance: Allowance = createAllowance(1000),
  after = Promise.resolve(),
): Bench {
  const begun: number[] = [];
  const open = new Map<number, (how: Handled) => void>();
  const lane = createSourceLane(0n, after, {
    clock: systemClock,
    allowance,
    maxInFlight,
    handle({ offset }) {
      begun.push(Number(offset));
      return new Promise((resolve) => void open.set(Number(offset), resolve));
    },
    advanced: () => undefined,
  });
  return { lane, begun, settle: (offset, how) => open.get(offset)?.(how) };
}

function recordsOf(...offsets: number[]): SourceRecord[] {
  return offsets.map((offset) => ({
    topic: "t",
    partition: 0,
    offset: BigInt(offset),
    timestamp: 0,
    key: null,
    value: Buffer.alloc(10),
    headers: {},
  }));
}

const turn = () => new Promise((resolve) => void setImmediate(resolve));

test("no more than maxInFlight are under way, and done is only what has nothing undone before it", async () => {
  const { lane, begun, settle } = createBench(2);
  lane.push(recordsOf(0, 1, 2, 3), 4n);
  await turn();
  assert.deepEqual([begun, lane.inFlight, lane.queued], [[0, 1], 2, 2]);
  settle(1, "done");
  await turn();
  assert.deepEqual([begun, lane.position], [[0, 1, 2], 0n]);
  settle(0, "done");
  await turn();
  assert.deepEqual([begun, lane.position], [[0, 1, 2, 3], 2n]);
  settle(3, "done");
  settle(2, "done");
  await turn();
  assert.deepEqual([lane.position, lane.queuedBytes], [4n, 0]);
});

test("offsets without a record, of compaction and transactions, are passed over", async () => {
  const { lane, settle } = createBench(10);
  lane.push(recordsOf(0, 5), 9n);
  await turn();
  settle(0, "done");
  await turn();
  assert.equal(lane.position, 5n);
  settle(5, "done");
  await turn();
  assert.equal(lane.position, 9n);
  lane.push([], 12n);
  assert.equal(lane.position, 12n);
  // What has been taken already is not taken again.
  lane.push(recordsOf(5, 12), 13n);
  assert.equal(lane.inFlight, 1);
});

test("what fails is tried again alone and in order, before anything behind it", async () => {
  const { lane, begun, settle } = createBench(3);
  lane.push(recordsOf(0, 1, 2, 3), 4n);
  await turn();
  settle(2, new Error("full"));
  settle(0, new Error("full"));
  await turn();
  // The third is still under way: nothing is begun before it is known what became of it.
  assert.deepEqual([begun, lane.isRetrying], [[0, 1, 2], false]);
  settle(1, "done");
  await eventually(() => begun.slice(3), [0]);
  assert.equal(lane.isRetrying, true);
  settle(0, new Error("still"));
  await eventually(() => begun.slice(3), [0, 0]);
  settle(0, "done");
  await eventually(() => begun.slice(3), [0, 0, 2]);
  assert.equal(lane.position, 2n);
  settle(2, "done");
  await eventually(() => begun.slice(3), [0, 0, 2, 3]);
  assert.deepEqual([lane.position, lane.isRetrying], [3n, false]);
});

test("a record that is held ends the lane's way there", async () => {
  const { lane, begun, settle } = createBench(1);
  lane.push(recordsOf(0, 1), 2n);
  await turn();
  settle(0, "held");
  await turn();
  assert.deepEqual([begun, lane.position, lane.isHeld], [[0], 0n, true]);
});

test("lanes share an allowance, and one that is closed passes its turn on", async () => {
  const allowance = createAllowance(1);
  const [first, second, third] = [createBench(5, allowance), createBench(5, allowance), createBench(5, allowance)];
  await turn();
  for (const { lane } of [first, second, third]) lane.push(recordsOf(0, 1), 2n);
  assert.deepEqual([first.begun, second.begun, third.begun, allowance.used], [[0], [], [], 1]);
  await second.lane.close();
  // They take turns: the first had asked for its second record before the others came.
  first.settle(0, "done");
  await turn();
  assert.deepEqual([first.begun, second.begun, third.begun], [[0, 1], [], []]);
  first.settle(1, "done");
  await turn();
  assert.deepEqual([first.begun, second.begun, third.begun, allowance.used], [[0, 1], [], [0], 1]);
});

test("a closed lane begins nothing, and tells when nothing is under way; its successor waits for that", async () => {
  const { lane, settle } = createBench(1);
  lane.push(recordsOf(0, 1), 2n);
  await turn();
  const closed = lane.close();
  const next = createBench(1, createAllowance(1), closed);
  next.lane.push(recordsOf(0), 1n);
  await turn();
  assert.deepEqual(next.begun, []);
  settle(0, "done");
  await closed;
  await turn();
  assert.deepEqual([lane.position, lane.inFlight, next.begun], [1n, 0, [0]]);
});
