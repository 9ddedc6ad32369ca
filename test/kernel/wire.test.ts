/** Frames between processes: what is written is what is read, however the stream is cut. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Message } from "../../kernel/plugin.ts";
import { readMessage, readSubscription, writeMessage, writeSubscription } from "../../kernel/store-wire.ts";
import { createFrameSplitter, createWireReader, createWireWriter } from "../../kernel/wire.ts";
import { createRandom } from "../helpers/random.ts";

const numbers = [
  0,
  1,
  127,
  128,
  16_383,
  16_384,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32,
  0xffff_ffff + 1,
  Number.MAX_SAFE_INTEGER,
];
const texts = ["", "a/b", "\u0000", "ä\u{1f600}".repeat(1000), "x".repeat(100_000)];

test("numbers, texts and bytes come back, in frames that are cut anywhere and joined", () => {
  const random = createRandom(7);
  const out = createWireWriter();
  const frames: Buffer[] = [];
  for (let n = 0; n < 50; n++) {
    for (const each of numbers) out.number(each);
    for (const each of texts) out.text(each);
    out.byte(255);
    out.double(-1.5);
    out.bytes(Buffer.from([n, 0, 255]));
    frames.push(out.take());
  }
  const all = Buffer.concat(frames);
  let seen = 0;
  const split = createFrameSplitter((frame) => {
    const read = createWireReader(frame);
    for (const each of numbers) assert.equal(read.number(), each);
    for (const each of texts) assert.equal(read.text(), each);
    assert.equal(read.byte(), 255);
    assert.equal(read.double(), -1.5);
    assert.deepEqual([...read.bytes()], [seen++, 0, 255]);
    assert.ok(read.done);
  });
  for (let at = 0; at < all.length;) {
    const length = random(3) === 0 ? 1 + random(6) : 1 + random(70_000);
    split(all.subarray(at, at + length));
    at += length;
  }
  assert.equal(seen, 50);
});

test("a message comes back with its properties, expiry and publisher, or without", () => {
  const out = createWireWriter();
  const bare: Message = { topic: "t", payload: Buffer.alloc(0), qos: 0, retain: false, properties: undefined };
  const full: Message = {
    topic: "a/ä",
    payload: Buffer.from([0, 1, 255]),
    qos: 2,
    retain: true,
    properties: {
      payloadFormat: 0,
      messageExpiry: 0xffff_ffff,
      contentType: "",
      responseTopic: "r",
      correlationData: Buffer.from([0]),
      userProperties: [
        ["a", "1"],
        ["a", ""],
      ],
    },
  };
  writeMessage(out, bare, undefined, 0);
  writeMessage(out, full, "me", 1_764_000_000_123.5);
  const read = createWireReader(out.take().subarray(4));
  assert.deepEqual(readMessage(read), { ...bare, from: undefined, expiresAt: 0, frames: undefined });
  assert.deepEqual(readMessage(read), { ...full, from: "me", expiresAt: 1_764_000_000_123.5, frames: undefined });
});

test("each option of a subscription comes back", () => {
  const out = createWireWriter();
  const all = ([0, 1, 2] as const).flatMap((qos) =>
    [true, false].flatMap((flag) =>
      ([0, 1, 2] as const).map((retainHandling) => ({
        qos,
        noLocal: flag,
        retainAsPublished: !flag,
        retainHandling,
        identifier: qos * 268_435_455,
      })),
    ),
  );
  for (const each of all) writeSubscription(out, "$share/g/#", each);
  const read = createWireReader(out.take().subarray(4));
  for (const each of all) assert.deepEqual(readSubscription(read), ["$share/g/#", each]);
});

test("what is read beyond a frame's end throws, and nothing is made of it", () => {
  for (const bytes of [[], [0x80], [5, 1, 2]]) {
    const read = createWireReader(Buffer.from(bytes));
    assert.throws(() => read.text(), RangeError);
  }
  assert.throws(() => createWireReader(Buffer.from([1, 2])).double(), RangeError);
});
