import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { createDecoder } from "../../kernel/codec.ts";
import type { InPacket, Refusal } from "../../kernel/codec.ts";
import { topicNameProblem } from "../../kernel/topics.ts";
import { bytesOf, connect, field, malformedPackets, packet, validConnect } from "../fixtures/malformed-packets.ts";
import { createRandom } from "../helpers/random.ts";

const maxPacketBytes = 1 << 20;

interface Outcome {
  readonly packets: InPacket[];
  readonly refusal: Refusal | undefined;
}

/** Feeds the chunks to a new decoder. They are copied: what is decoded is a view on them. */
function decode(...chunks: Buffer[]): Outcome {
  const packets: InPacket[] = [];
  const decoder = createDecoder({ maxPacketBytes, onPacket: (decoded) => packets.push(decoded) > 0 });
  let refusal: Refusal | undefined;
  for (const chunk of chunks) refusal = decoder.push(Buffer.from(chunk));
  return { packets, refusal };
}

function assertSameHoweverSplit(bytes: Buffer): Outcome {
  const whole = decode(bytes);
  for (let at = 1; at < bytes.length; at++) {
    assert.deepEqual(decode(bytes.subarray(0, at), bytes.subarray(at)), whole, `split at ${at}`);
  }
  assert.deepEqual(decode(...[...bytes].map((byte) => bytesOf(byte))), whole, "byte by byte");
  return whole;
}

describe(`${malformedPackets.length} malformed packets are refused, however they are split`, () => {
  for (const { name, bytes, first, code, connack } of malformedPackets) {
    test(name, () => {
      const { packets, refusal } = assertSameHoweverSplit(first ? bytes : Buffer.concat([validConnect, bytes]));
      assert.equal(refusal?.code, code, refusal?.message);
      assert.equal(refusal?.connack, connack);
      assert.equal(packets.length, first ? 0 : 1, "only the CONNECT was delivered");
    });
  }
});

test("their names are unique", () => {
  assert.equal(new Set(malformedPackets.map(({ name }) => name)).size, malformedPackets.length);
});

test("a refusal's message holds nothing that the client sent", () => {
  for (const secret of ["hunter2", "tenant-7"]) {
    for (const bytes of [
      connect(0x82, [field("c"), field(secret), bytesOf(1)]),
      connect(0xc6, [field("c"), field(`${secret}/#`), field(secret), field(secret), field(secret)]),
      Buffer.concat([validConnect, packet(0x30, field(`${secret}/#`), Buffer.from(secret))]),
    ]) {
      const { refusal } = decode(bytes);
      assert.ok(refusal);
      assert.doesNotMatch(refusal.message, new RegExp(secret));
    }
  }
});

test("a malformed packet does not take those before it along, nor lets those behind it in", () => {
  const publish = packet(0x30, field("a"), Buffer.from("1"));
  const { packets, refusal } = assertSameHoweverSplit(
    Buffer.concat([validConnect, publish, packet(0x36, field("a"), bytesOf(0, 1)), publish]),
  );
  assert.equal(refusal?.code, "MALFORMED_PACKET");
  assert.deepEqual(
    packets.map(({ cmd }) => cmd),
    ["connect", "publish"],
  );
});

test("a decoder that refused stays dead, and one connection's malformed packet does not harm another", () => {
  const packets: InPacket[] = [];
  const healthy = createDecoder({ maxPacketBytes, onPacket: (decoded) => packets.push(decoded) > 0 });
  assert.equal(healthy.push(validConnect), undefined);
  for (const { bytes, first } of malformedPackets) {
    const other = createDecoder({ maxPacketBytes, onPacket: () => true });
    if (!first) other.push(validConnect);
    const refusal = other.push(Buffer.from(bytes));
    assert.ok(refusal);
    assert.equal(other.push(bytesOf(0xc0, 0x00)), refusal);
    assert.equal(other.resume(), refusal);
    assert.equal(healthy.push(packet(0x32, field("a/b"), bytesOf(0, 9), Buffer.from("fine"))), undefined);
    const last = packets.at(-1);
    assert.ok(last?.cmd === "publish" && last.topic === "a/b" && last.packetId === 9);
    assert.equal(last.payload.toString(), "fine");
  }
  assert.equal(packets.length, malformedPackets.length + 1);
});

test("the maximum packet size is judged from the fixed header, and is itself allowed", () => {
  const packets: InPacket[] = [];
  const decoder = createDecoder({ maxPacketBytes: 200, onPacket: (decoded) => packets.push(decoded) > 0 });
  decoder.push(validConnect);
  const largest = packet(0x30, field("a"), Buffer.alloc(200 - 6));
  assert.equal(largest.length, 200);
  assert.equal(decoder.push(largest), undefined);
  assert.equal(packets.length, 2);
  const larger = packet(0x30, field("a"), Buffer.alloc(201 - 6));
  assert.equal(larger.length, 201);
  const refusal = decoder.push(larger.subarray(0, 3));
  assert.equal(refusal?.code, "PACKET_TOO_LARGE");
  assert.match(refusal.message, /201 bytes.*200/);
});

/** What the rest of the kernel relies on. */
function assertValid(accepted: InPacket): void {
  if (accepted.cmd === "publish") assert.equal(topicNameProblem(accepted.topic), undefined);
  if (accepted.cmd === "connect" && accepted.will) assert.equal(topicNameProblem(accepted.will.topic), undefined);
  if (accepted.cmd === "subscribe") assert.ok(accepted.subscriptions.length > 0);
  if (accepted.cmd === "unsubscribe") assert.ok(accepted.topicFilters.length > 0);
  if (accepted.cmd === "publish" && accepted.qos === 0) assert.equal(accepted.packetId, undefined);
  else if ("packetId" in accepted) assert.ok(accepted.packetId && accepted.packetId > 0 && accepted.packetId < 65_536);
}

test("mutated packets never throw, and come out the same however they are split", () => {
  const random = createRandom(20_261_122);
  const samples = [
    connect(0xee, [field("c"), field("will/topic"), field("gone"), field("user"), field("pass")]),
    connect(0x02, [field("c")], { name: "MQIsdp", level: 3 }),
    packet(0x30, field("a/b"), Buffer.from("zero")),
    packet(0x33, field("a/é/b"), bytesOf(0, 7), Buffer.from("one")),
    packet(0x3c, field("a"), bytesOf(1, 2)),
    packet(0x82, bytesOf(0, 1), field("a/+"), bytesOf(0), field("#"), bytesOf(2)),
    packet(0xa2, bytesOf(0, 1), field("a/+"), field("b")),
    packet(0x40, bytesOf(0, 1)),
    packet(0x62, bytesOf(0, 1)),
    bytesOf(0xc0, 0x00),
    bytesOf(0xe0, 0x00),
    ...malformedPackets.map(({ bytes }) => bytes),
  ];
  let refused = 0;
  let passed = 0;
  for (let round = 0; round < 20_000; round++) {
    const stream = [random(10) === 0 ? Buffer.alloc(0) : validConnect];
    for (let n = random(3); n >= 0; n--) stream.push(samples[random(samples.length)] ?? validConnect);
    let bytes = Buffer.concat(stream);
    for (let n = random(4); n > 0; n--) {
      const at = random(bytes.length);
      const kind = random(3);
      if (kind === 0) bytes[at] = random(256);
      else if (kind === 1) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1)]);
      else bytes = Buffer.concat([bytes.subarray(0, at), bytesOf(random(256)), bytes.subarray(at)]);
    }
    const whole = decode(bytes);
    if (whole.refusal) refused++;
    for (const accepted of whole.packets) assertValid(accepted);
    passed += whole.packets.length;
    const cut = random(bytes.length);
    const later = cut + random(bytes.length - cut);
    const pieces = [bytes.subarray(0, cut), bytes.subarray(cut, later), bytes.subarray(later)];
    assert.deepEqual(decode(...pieces), whole, bytes.toString("hex"));
  }
  assert.ok(refused > 5000 && passed > 5000, `${refused} refused, ${passed} packets passed`);
});
