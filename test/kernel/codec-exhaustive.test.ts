/** What can be tried out whole: each packet of MQTT 3.1.1 cut at each byte, each first byte in each version. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { createDecoder, type InPacket, type Refusal } from "../../kernel/codec.ts";
import { bytesOf, connect, field, packet, validConnect } from "../fixtures/malformed-packets.ts";
import { fullPackets, validConnectV5 } from "../fixtures/malformed-v5.ts";

function decode(...chunks: Buffer[]): { packets: InPacket[]; refusal: Refusal | undefined } {
  const packets: InPacket[] = [];
  const decoder = createDecoder({ maxPacketBytes: 1 << 20, onPacket: (decoded) => packets.push(decoded) > 0 });
  let refusal: Refusal | undefined;
  for (const chunk of chunks) refusal = decoder.push(Buffer.from(chunk));
  return { packets, refusal };
}

const id = bytesOf(0, 7);

/** With a body, and the lengths (beside the whole) at which it is another packet that is valid. */
const packets: readonly [name: string, bytes: Buffer, first: boolean, valid: readonly number[]][] = [
  ["CONNECT", connect(0xee, [field("c"), field("w/t"), field("gone"), field("user"), field("pass")]), true, []],
  ["PUBLISH at QoS 0", packet(0x30, field("a/b"), bytesOf(1, 2, 3)), false, [5, 6, 7]],
  ["PUBLISH at QoS 1", packet(0x32, field("a/b"), id, bytesOf(1)), false, [7]],
  ["PUBLISH at QoS 2", packet(0x34, field("a/b"), id, bytesOf(1)), false, [7]],
  ["PUBACK", packet(0x40, id), false, []],
  ["PUBREC", packet(0x50, id), false, []],
  ["PUBREL", packet(0x62, id), false, []],
  ["PUBCOMP", packet(0x70, id), false, []],
  ["SUBSCRIBE", packet(0x82, id, field("a/+"), bytesOf(0), field("b"), bytesOf(1)), false, [8]],
  ["UNSUBSCRIBE", packet(0xa2, id, field("a/+"), field("b")), false, [7]],
];

describe("each packet of MQTT 3.1.1, cut at any byte", () => {
  for (const [name, bytes, first, valid] of packets) {
    test(name, () => {
      const [head, body] = [bytes.subarray(0, 1), bytes.subarray(2)];
      assert.equal(bytes.readUInt8(1), body.length, "one byte of remaining length");
      for (let length = 0; length <= body.length; length++) {
        const cut = Buffer.concat([head, bytesOf(length), body.subarray(0, length)]);
        const { refusal, packets: decoded } = first ? decode(cut) : decode(validConnect, cut);
        const isValid = length === body.length || valid.includes(length);
        assert.equal(refusal === undefined, isValid, `${length} bytes: ${refusal?.message}`);
        assert.equal(decoded.length, (first ? 0 : 1) + (isValid ? 1 : 0));
        // Where the packet goes on, it is waited for.
        const partly = bytes.subarray(0, 2 + Math.min(length, body.length - 1));
        assert.equal((first ? decode(partly) : decode(validConnect, partly)).refusal, undefined);
      }
    });
  }
});

/** What a client may begin a packet with; of a PUBLISH the flags vary. */
function isLegal(first: number, version: 4 | 5): boolean {
  const flags = first & 0x0f;
  switch (first >> 4) {
    case 3:
      return ((flags >> 1) & 3) !== 3 && !(((flags >> 1) & 3) === 0 && (flags & 8) !== 0);
    case 6:
    case 8:
    case 10:
      return flags === 2;
    case 4:
    case 5:
    case 7:
    case 12:
    case 14:
      return flags === 0;
    case 15:
      return version === 5 && flags === 0;
    default:
      // A second CONNECT, and what only a server sends.
      return false;
  }
}

for (const version of [4, 5] as const) {
  test(`each of the 256 first bytes in version ${version}: those that are not allowed are refused without a body`, () => {
    for (let first = 0; first < 256; first++) {
      const { refusal } = decode(version === 5 ? validConnectV5 : validConnect, bytesOf(first));
      assert.equal(refusal === undefined, isLegal(first, version), `0x${first.toString(16)}`);
      const { refusal: early } = decode(bytesOf(first));
      assert.equal(early === undefined, first === 0x10, `0x${first.toString(16)} first`);
    }
  });

  test(`each bit of a valid packet of version ${version} flipped: refused, or read as another packet, never thrown`, () => {
    const samples = version === 5 ? fullPackets : packets;
    let refused = 0;
    let tried = 0;
    for (const [, bytes, first] of samples) {
      for (let bit = 0; bit < bytes.length * 8; bit++) {
        const flipped = Buffer.from(bytes);
        flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
        const head = version === 5 ? validConnectV5 : validConnect;
        const { refusal } = first ? decode(flipped) : decode(head, flipped);
        tried++;
        if (refusal) refused++;
      }
    }
    assert.ok(refused > tried / 20, `${refused} of ${tried}`);
  });
}
