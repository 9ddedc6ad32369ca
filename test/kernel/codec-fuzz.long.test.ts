import assert from "node:assert/strict";
import { test } from "node:test";
import { createDecoder } from "../../kernel/codec.ts";
import { validConnect } from "../fixtures/malformed-packets.ts";
import { validConnectV5 } from "../fixtures/malformed-v5.ts";
import { fuzzV4 } from "../helpers/fuzz-v4.ts";
import { fuzzV5 } from "../helpers/fuzz-v5.ts";
import { createRandom } from "../helpers/random.ts";

test("a million mutated streams of MQTT 5 never throw, and come out the same however they are split", () => {
  const { refused, passed } = fuzzV5({ seed: 5, rounds: 1_000_000 });
  assert.ok(refused > 250_000 && passed > 250_000, `${refused} refused, ${passed} packets passed`);
});

test("half a million mutated PUBLISHes and acks of 3.1.1 are read as mqtt-packet reads them, or refused for a rule", () => {
  const { equal, stricter } = fuzzV4({ seed: 290, rounds: 500_000 });
  assert.ok(equal > 150_000 && stricter > 20_000, `${equal} equal, ${stricter} stricter`);
});

for (const [version, connect] of [
  ["3.1.1", validConnect],
  ["5", validConnectV5],
] as const) {
  test(`millions of random bytes behind a CONNECT of ${version} never throw, and memory stays flat`, () =>
    noise(connect));
}

function noise(connect: Buffer): void {
  const random = createRandom(55);
  let refused = 0;
  const heapAt: number[] = [];
  for (let round = 0; round < 300_000; round++) {
    const decoder = createDecoder({ maxPacketBytes: 1 << 20, onPacket: () => true });
    decoder.push(Buffer.from(connect));
    const bytes = Buffer.alloc(1 + random(32));
    for (let at = 0; at < bytes.length; at++) bytes[at] = random(256);
    if (decoder.push(bytes) !== undefined) refused++;
    if (round === 50_000 || round === 299_999) {
      globalThis.gc?.();
      heapAt.push(process.memoryUsage().heapUsed);
    }
  }
  const [early = 0, late = 0] = heapAt;
  assert.ok(late < early + 64 * 1024 * 1024, `the heap grew from ${early} to ${late}`);
  assert.ok(refused > 100_000, `${refused} refused`);
}
