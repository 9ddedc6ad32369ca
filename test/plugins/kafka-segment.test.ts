/** The bytes of KafkaMQTT's disk buffer: what was written is read back, and what was damaged does no harm to the rest. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Content } from "../../plugins/kafka/record.ts";
import {
  encodeFrames,
  frameHeaderBytes,
  parseFrames,
  parseSegmentName,
  segmentName,
} from "../../plugins/kafka/segment.ts";
import { decodeRecord, encodeRecord } from "../../plugins/kafka/stored-record.ts";
import { createRandom } from "../helpers/random.ts";

const seed = Number(process.env["SEED"] ?? Date.now() % 1_000_000);

function randomBytes(random: (below: number) => number, most: number): Buffer {
  return Buffer.from(Array.from({ length: random(most) }, () => random(256)));
}

/** Reads a file's content as a reader does that gets it in chunks of a random size. */
function readInChunks(
  content: Buffer,
  random: (below: number) => number,
): { sequences: number[]; bodies: Buffer[]; skipped: number } {
  const sequences: number[] = [];
  const bodies: Buffer[] = [];
  let skipped = 0;
  for (let at = 0, wanted = 0; at < content.length;) {
    const size = Math.max(wanted, 1 + random(300));
    const parsed = parseFrames(content.subarray(at, at + size), content.length - at);
    for (const { sequence, body } of parsed.frames) {
      sequences.push(sequence);
      bodies.push(Buffer.from(body));
    }
    skipped += parsed.skipped;
    at += parsed.consumed;
    assert.ok(parsed.consumed > 0 || parsed.needed > size, "every step gets further, or asks for more");
    wanted = parsed.needed;
  }
  return { sequences, bodies, skipped };
}

test(`frames are read back from chunks of any size (seed ${seed})`, () => {
  const random = createRandom(seed);
  for (let round = 0; round < 200; round++) {
    const bodies = Array.from({ length: 1 + random(20) }, () => randomBytes(random, 200));
    const first = 1 + random(2 ** 47);
    const read = readInChunks(encodeFrames(first, bodies), random);
    assert.deepEqual(read, { sequences: bodies.map((_, index) => first + index), bodies, skipped: 0 });
  }
});

test(`damage anywhere costs only the frames that it touches, and none is made up (seed ${seed})`, () => {
  const random = createRandom(seed);
  for (let round = 0; round < 1000; round++) {
    const bodies = Array.from({ length: 20 }, () => randomBytes(random, 100));
    const content = encodeFrames(1, bodies);
    const from = random(content.length);
    const to = Math.min(content.length, from + 1 + random(60));
    const damage = round % 3;
    if (damage === 0) content.fill(0, from, to);
    else if (damage === 1) randomBytes(random, to - from + 1).copy(content, from);
    const left = damage === 2 ? content.subarray(0, from) : content;
    const touched = new Set<number>();
    let at = 0;
    for (const [index, body] of bodies.entries()) {
      const end = at + frameHeaderBytes + body.length;
      if (damage === 2 ? end > from : at < to && end > from) touched.add(index);
      at = end;
    }
    const read = readInChunks(left, random);
    const found = new Set(read.sequences.map((sequence) => sequence - 1));
    for (const [index, body] of bodies.entries()) {
      if (!touched.has(index)) assert.ok(found.has(index), `frame ${index} is whole`);
      const at1 = read.sequences.indexOf(index + 1);
      if (at1 >= 0) assert.deepEqual(read.bodies[at1], body);
    }
    assert.deepEqual(
      read.sequences,
      read.sequences.toSorted((a, b) => a - b),
    );
    assert.equal(new Set(read.sequences).size, read.sequences.length);
  }
});

const contents: Content[] = [
  { topic: "t", key: null, value: Buffer.alloc(0), headers: [], timestamp: 0, partition: undefined, bytes: 1 },
  {
    topic: "größe",
    key: "",
    value: Buffer.from([0, 255]),
    headers: ["a", "ä€😀", "b", Buffer.from([255, 0]), "", ""],
    timestamp: 1_764_066_000_000,
    partition: 7,
    bytes: 1,
  },
];

test("a record is what it was after it was stored", () => {
  for (const content of contents) {
    const decoded = decodeRecord(encodeRecord({ content, receivedAt: 5 }));
    assert.ok(decoded);
    assert.equal(decoded.receivedAt, 5);
    const { bytes, ...rest } = decoded.content;
    const { bytes: _, ...expected } = content;
    assert.deepEqual(rest, expected);
    assert.ok(bytes > 0);
  }
});

test(`what is no record is told from one without a throw (seed ${seed})`, () => {
  const random = createRandom(seed);
  const good = encodeRecord({ content: contents[1] as Content, receivedAt: 5 });
  for (let length = 0; length < good.length; length++) assert.equal(decodeRecord(good.subarray(0, length)), undefined);
  assert.equal(decodeRecord(Buffer.concat([good, Buffer.alloc(1)])), undefined);
  for (let round = 0; round < 5000; round++) {
    const bad = Buffer.from(good);
    for (let n = 0; n < 3; n++) bad[random(bad.length)] = random(256);
    decodeRecord(bad);
    decodeRecord(randomBytes(random, 200));
  }
});

test("segments sort by their names as their records do", () => {
  assert.equal(parseSegmentName(segmentName(42)), 42);
  assert.ok(segmentName(9) < segmentName(10));
  for (const name of ["done", "42.seg", ".lock", `${segmentName(1)}.bak`])
    assert.equal(parseSegmentName(name), undefined);
});
