/** Mutated PUBLISHes and acks of MQTT 3.1.1: the decoder, which reads them itself, against mqtt-packet's stock parser. */
import assert from "node:assert/strict";
import { isUtf8 } from "node:buffer";
import { generate, type Packet, parser } from "mqtt-packet";
import { createDecoder, type InPacket, type Refusal } from "../../kernel/codec.ts";
import { topicNameProblem } from "../../kernel/topics.ts";
import { validConnect } from "../fixtures/malformed-packets.ts";
import { createRandom } from "./random.ts";

const topics = [
  "a",
  "fleet/042/device/12345/log",
  "$SYS/x",
  "grüße/日本",
  "a\uFFFDb",
  "tab\there",
  "/",
  "x".repeat(200),
];

const samples: readonly Buffer[] = [
  ...topics.flatMap((topic) =>
    ([0, 1, 2] as const).flatMap((qos) =>
      ["", "payload", "p".repeat(150)].map((payload) =>
        generate({ cmd: "publish", topic, payload, qos, dup: qos > 0, retain: qos === 1, messageId: 258 }),
      ),
    ),
  ),
  ...(["puback", "pubrec", "pubrel", "pubcomp"] as const).map((cmd) => generate({ cmd, messageId: 65_535 })),
];

export interface Compared {
  /** Packets that both read, and read alike. */
  equal: number;
  /** Refused by both. */
  refused: number;
  /** Refused by the decoder alone, each for a rule that stock does not know. */
  stricter: number;
}

/** One packet a round, behind a CONNECT. @throws AssertionError with the packet in hex */
export function fuzzV4({ seed, rounds }: { seed: number; rounds: number }): Compared {
  const random = createRandom(seed);
  const compared: Compared = { equal: 0, refused: 0, stricter: 0 };
  for (let round = 0; round < rounds; round++) {
    const bytes = mutated(Buffer.from(samples[random(samples.length)] ?? validConnect), random);
    const stock = parseStock(bytes.subarray(0, frameEnd(bytes)));
    const cut = random(bytes.length + 1);
    const whole = decode(bytes);
    assert.deepEqual(decode(bytes.subarray(0, cut), bytes.subarray(cut)), whole, bytes.toString("hex"));
    // Bytes that are left over may be another packet, which is of no interest here.
    if (whole.packet) {
      assert.deepEqual(inWordsOfStock(whole.packet), stock && inOurs(stock), bytes.toString("hex"));
      compared.equal++;
    } else if (!whole.refusal) {
      assert.equal(stock, undefined, `stock has a packet: ${bytes.toString("hex")}`);
    } else if (stock === undefined) {
      compared.refused++;
    } else {
      assert.ok(isForbidden(stock, bytes), `${whole.refusal.message}: ${bytes.toString("hex")}`);
      compared.stricter++;
    }
  }
  return compared;
}

/** The remaining length stays right, mostly: else nothing behind it would be reached. */
function mutated(bytes: Buffer, random: (below: number) => number): Buffer {
  for (let n = random(4); n > 0; n--)
    bytes[random(3) === 0 ? random(Math.min(6, bytes.length)) : random(bytes.length)] = random(256);
  if (random(5) > 0) return bytes;
  const shorter = bytes.subarray(0, 2 + random(bytes.length - 1));
  if (shorter.length < 130 && shorter.length > 1) shorter[1] = shorter.length - 2;
  return shorter;
}

function decode(...chunks: Buffer[]): { packet: InPacket | undefined; refusal: Refusal | undefined } {
  const packets: InPacket[] = [];
  const decoder = createDecoder({ maxPacketBytes: 1 << 20, onPacket: (decoded) => packets.push(decoded) > 0 });
  let refusal = decoder.push(Buffer.from(validConnect));
  for (const chunk of chunks) refusal = decoder.push(Buffer.from(chunk));
  return { packet: packets[1], refusal };
}

/** Stock would read a packet id from the packet behind, so it gets the first one alone. */
function frameEnd(bytes: Buffer): number {
  let length = 0;
  for (let digits = 1; digits <= 4 && digits < bytes.length; digits++) {
    const digit = bytes.readUInt8(digits);
    length |= (digit & 0x7f) << (7 * (digits - 1));
    if (digit < 0x80) return 1 + digits + length;
  }
  return bytes.length;
}

/** The first packet; undefined where it throws it out, or waits for more. */
function parseStock(bytes: Buffer): Packet | undefined {
  const stock = parser({ protocolVersion: 4 });
  let first: Packet | undefined;
  let failed = false;
  stock.on("packet", (packet) => (first ??= packet));
  stock.on("error", () => (failed = true));
  stock.parse(Buffer.from(bytes));
  return failed && first === undefined ? undefined : first;
}

/** A rule that the stock parser does not know, or a packet that is none of these. */
function isForbidden(packet: Packet, bytes: Buffer): boolean {
  if (packet.cmd === "publish") {
    const { topic, qos, messageId } = packet;
    let start = 1;
    while (bytes.readUInt8(start) >= 0x80) start++;
    start += 3;
    const raw = bytes.subarray(start, start + bytes.readUInt16BE(start - 2));
    const isDupAtNone = qos === 0 && packet.dup;
    return isDupAtNone || !isUtf8(raw) || topicNameProblem(topic) !== undefined || (qos > 0 && !((messageId ?? 0) > 0));
  }
  const isAck = ["puback", "pubrec", "pubrel", "pubcomp"].includes(packet.cmd);
  return (
    !isAck ||
    !((packet.messageId ?? 0) > 0) ||
    packet.length !== 2 ||
    (bytes.readUInt8(0) & 0x0f) !== (packet.cmd === "pubrel" ? 2 : 0)
  );
}

function inWordsOfStock(packet: InPacket): object {
  if (packet.cmd === "publish") {
    const { cmd, topic, payload, qos, retain, dup, packetId } = packet;
    return { cmd, topic, payload, qos, retain, dup, packetId };
  }
  return "packetId" in packet ? { cmd: packet.cmd, packetId: packet.packetId } : { cmd: packet.cmd };
}

function inOurs(packet: Packet): object {
  if (packet.cmd === "publish") {
    const { cmd, topic, payload, qos, retain, dup, messageId } = packet;
    return { cmd, topic, payload, qos, retain, dup, packetId: qos === 0 ? undefined : messageId };
  }
  const hasId = packet.messageId !== undefined && packet.cmd.startsWith("pub");
  return hasId || packet.cmd === "subscribe" || packet.cmd === "unsubscribe"
    ? { cmd: packet.cmd, packetId: packet.messageId }
    : { cmd: packet.cmd };
}
