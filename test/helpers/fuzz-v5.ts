/** Mutated streams of MQTT 5: what the decoder does with them does not depend on how they are split. */
import assert from "node:assert/strict";
import { createDecoder, type InPacket, type Refusal } from "../../kernel/codec.ts";
import { topicNameProblem } from "../../kernel/topics.ts";
import { bytesOf } from "../fixtures/malformed-packets.ts";
import { fullPackets, malformedV5, validConnectV5 } from "../fixtures/malformed-v5.ts";
import { createRandom } from "./random.ts";

const samples = [...fullPackets.map(([, bytes]) => bytes), ...malformedV5.map(({ bytes }) => bytes)];

/** @throws AssertionError with the stream in hex */
export function fuzzV5({ seed, rounds }: { seed: number; rounds: number }): { refused: number; passed: number } {
  const random = createRandom(seed);
  let refused = 0;
  let passed = 0;
  for (let round = 0; round < rounds; round++) {
    const stream = [random(10) === 0 ? Buffer.alloc(0) : validConnectV5];
    for (let n = random(3); n >= 0; n--) stream.push(samples[random(samples.length)] ?? validConnectV5);
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
  return { refused, passed };
}

function decode(...chunks: Buffer[]): { packets: InPacket[]; refusal: Refusal | undefined } {
  const packets: InPacket[] = [];
  const decoder = createDecoder({ maxPacketBytes: 1 << 20, onPacket: (decoded) => packets.push(decoded) > 0 });
  let refusal: Refusal | undefined;
  for (const chunk of chunks) refusal = decoder.push(Buffer.from(chunk));
  return { packets, refusal };
}

/** What the rest of the kernel relies on. */
function assertValid(accepted: InPacket): void {
  if (accepted.cmd === "publish") {
    if (accepted.topic === "") assert.ok(accepted.topicAlias > 0);
    else assert.equal(topicNameProblem(accepted.topic), undefined);
    const { responseTopic } = accepted.properties ?? {};
    if (responseTopic !== undefined) assert.equal(topicNameProblem(responseTopic), undefined);
  }
  if (accepted.cmd === "connect" && accepted.will) assert.equal(topicNameProblem(accepted.will.topic), undefined);
  if (accepted.cmd === "connect" && accepted.properties) assert.ok(accepted.properties.receiveMaximum > 0);
  if (accepted.cmd === "subscribe") assert.ok(accepted.subscriptions.length > 0);
  if (accepted.cmd === "unsubscribe") assert.ok(accepted.topicFilters.length > 0);
  if (accepted.cmd === "publish" && accepted.qos === 0) assert.equal(accepted.packetId, undefined);
  else if ("packetId" in accepted) assert.ok(accepted.packetId && accepted.packetId > 0 && accepted.packetId < 65_536);
}
