import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { generate, parser } from "mqtt-packet";
import type { Packet } from "mqtt-packet";
import { createDecoder } from "../../kernel/codec.ts";
import {
  encodeAck,
  encodeConnack,
  encodePublishTemplate,
  encodeSuback,
  pingresp,
  publishFromTemplate,
} from "../../kernel/encoder.ts";
import type { InPacket } from "../../kernel/codec.ts";
import { bytesOf, connect, field, packet, validConnect } from "../fixtures/malformed-packets.ts";

const maxPacketBytes = 1 << 20;

/** A subscription of MQTT 3.1.1. */
const plainOptions = { noLocal: false, retainAsPublished: false, retainHandling: 0 } as const;

/** How a message of MQTT 3.1.1 is written. */
const plain = { retain: false, protocolVersion: 4, identifiers: [], alias: "none" } as const;

/** Everything in the bytes, which must be valid. */
function decode(...chunks: Buffer[]): InPacket[] {
  return decodeAll(chunks);
}

function decodeAll(chunks: readonly Buffer[]): InPacket[] {
  const packets: InPacket[] = [];
  const decoder = createDecoder({ maxPacketBytes, onPacket: (decoded) => packets.push(decoded) > 0 });
  for (const chunk of chunks) assert.equal(decoder.push(Buffer.from(chunk)), undefined);
  return packets;
}

/** The one packet behind a CONNECT. */
function decodeOne(bytes: Buffer): InPacket | undefined {
  const [, decoded, ...more] = decode(Buffer.concat([validConnect, bytes]));
  assert.deepEqual(more, []);
  return decoded;
}

/** What a client reads in the bytes. */
function readAsClient(bytes: Buffer): Packet[] {
  const packets: Packet[] = [];
  const client = parser({ protocolVersion: 4 });
  client.on("packet", (read) => packets.push(read));
  client.on("error", (error) => assert.fail(String(error)));
  assert.equal(client.parse(bytes), 0, "nothing left over");
  return packets;
}

describe("packets of mqtt-packet's own generator are decoded", () => {
  const will = { topic: "w/é", payload: Buffer.from("gone"), qos: 2, retain: true } as const;

  test("CONNECT with everything", () => {
    const bytes = generate({
      cmd: "connect",
      clientId: "dev1",
      clean: false,
      keepalive: 65_535,
      username: "user",
      password: bytesOf(0xff, 0x00),
      will,
    });
    assert.deepEqual(decode(bytes), [
      {
        cmd: "connect",
        protocolVersion: 4,
        clientId: "dev1",
        clean: false,
        keepalive: 65_535,
        username: "user",
        password: bytesOf(0xff, 0x00),
        will: { ...will, properties: undefined, delaySec: 0 },
        properties: undefined,
      },
    ]);
  });

  test("CONNECT with nothing", () => {
    const bytes = generate({ cmd: "connect", clientId: "" });
    const expected = { cmd: "connect", protocolVersion: 4, clientId: "", clean: true, keepalive: 0 };
    const none = { username: undefined, password: undefined, will: undefined, properties: undefined };
    assert.deepEqual(decode(bytes), [{ ...expected, ...none }]);
  });

  test("CONNECT with a user name, but no password", () => {
    const [decoded] = decode(generate({ cmd: "connect", clientId: "c", username: "user" }));
    assert.ok(decoded?.cmd === "connect");
    assert.equal(decoded.username, "user");
    assert.equal(decoded.password, undefined);
  });

  test("CONNECT with fields that are there but empty", () => {
    const [decoded] = decode(connect(0xc6, [field("c"), field("w"), field(""), field(""), field("")]));
    assert.ok(decoded?.cmd === "connect");
    assert.equal(decoded.username, "");
    assert.deepEqual(decoded.password, Buffer.alloc(0));
    assert.deepEqual(decoded.will, {
      topic: "w",
      payload: Buffer.alloc(0),
      qos: 0,
      retain: false,
      properties: undefined,
      delaySec: 0,
    });
  });

  test("CONNECT of MQTT 3.1, with a client id of over 23 characters", () => {
    const clientId = "x".repeat(100);
    const bytes = generate({ cmd: "connect", clientId, protocolId: "MQIsdp", protocolVersion: 3 });
    const [decoded] = decode(bytes);
    assert.ok(decoded?.cmd === "connect");
    assert.equal(decoded.protocolVersion, 3);
    assert.equal(decoded.clientId, clientId);
  });

  for (const qos of [0, 1, 2] as const) {
    for (const retain of [false, true]) {
      for (const dup of qos === 0 ? [false] : [false, true]) {
        test(`PUBLISH with QoS ${qos}${retain ? ", retain" : ""}${dup ? ", DUP" : ""}`, () => {
          const payload = bytesOf(0x00, 0xff, 0xc0);
          const bytes = generate({ cmd: "publish", topic: "a/é", payload, qos, retain, dup, messageId: 0xfffe });
          const packetId = qos === 0 ? undefined : 0xfffe;
          const expected = { cmd: "publish", topic: "a/é", payload, qos, retain, dup, packetId, bytes: bytes.length };
          assert.deepEqual(decodeOne(bytes), { ...expected, properties: undefined, topicAlias: 0 });
        });
      }
    }
  }

  test("PUBLISH without a payload", () => {
    const decoded = decodeOne(packet(0x30, field("a")));
    assert.ok(decoded?.cmd === "publish");
    assert.deepEqual(decoded.payload, Buffer.alloc(0));
    assert.equal(decoded.bytes, 5);
  });

  test("SUBSCRIBE", () => {
    const subscriptions = ([0, 1, 2] as const).map((qos) => ({ topic: `a/+/${qos}`, qos }));
    assert.deepEqual(decodeOne(generate({ cmd: "subscribe", messageId: 1, subscriptions })), {
      cmd: "subscribe",
      packetId: 1,
      subscriptions: subscriptions.map(({ topic, qos }) => ({ topicFilter: topic, qos, ...plainOptions })),
      identifier: 0,
      userProperties: undefined,
    });
  });

  test("UNSUBSCRIBE", () => {
    const bytes = generate({ cmd: "unsubscribe", messageId: 65_535, unsubscriptions: ["a", "b/#"] });
    assert.deepEqual(decodeOne(bytes), {
      cmd: "unsubscribe",
      packetId: 65_535,
      topicFilters: ["a", "b/#"],
      userProperties: undefined,
    });
  });

  for (const cmd of ["puback", "pubrec", "pubrel", "pubcomp"] as const) {
    test(cmd.toUpperCase(), () => {
      assert.deepEqual(decodeOne(generate({ cmd, messageId: 256 })), { cmd, packetId: 256, reasonCode: 0 });
    });
  }

  test("PINGREQ", () => assert.deepEqual(decodeOne(generate({ cmd: "pingreq" })), { cmd: "pingreq" }));

  test("DISCONNECT", () => {
    const plainly = { reasonCode: 0, sessionExpiry: undefined, userProperties: undefined };
    assert.deepEqual(decodeOne(generate({ cmd: "disconnect" })), { cmd: "disconnect", ...plainly });
  });
});

describe("what looks malformed but is not", () => {
  const texts: [name: string, text: string][] = [
    ["U+FFFD, sent as such", "a/\ufffd/b"],
    ["a byte order mark, which is kept [MQTT-1.5.3-3]", "\ufeffa"],
    ["a character outside the basic plane", "😀"],
    ["control characters, which only should not be sent", "a\u0001\u007f\u0085"],
    ["non-characters", "\uffff\ufdd0"],
  ];
  for (const [name, text] of texts) {
    test(`${name}, in a topic, a topic filter and a client id`, () => {
      const decoded = decode(
        connect(0x02, [field(text)]),
        packet(0x30, field(text)),
        packet(0x82, bytesOf(0, 1), field(text), bytesOf(0)),
      );
      assert.deepEqual(
        decoded.map((read) =>
          read.cmd === "connect" ? read.clientId : read.cmd === "publish" ? read.topic : read.cmd,
        ),
        [text, text, "subscribe"],
      );
    });
  }

  test("misplaced wildcards in a SUBSCRIBE, which its SUBACK refuses one by one", () => {
    const decoded = decodeOne(packet(0x82, bytesOf(0, 1), field("a#"), bytesOf(0), field("b"), bytesOf(1)));
    assert.deepEqual(decoded, {
      cmd: "subscribe",
      packetId: 1,
      subscriptions: [
        { topicFilter: "a#", qos: 0, ...plainOptions },
        { topicFilter: "b", qos: 1, ...plainOptions },
      ],
      identifier: 0,
      userProperties: undefined,
    });
  });

  test("a remaining length of more bytes than it needs, which only MQTT 5 forbids", () => {
    const decoded = decodeOne(Buffer.concat([bytesOf(0x30, 0x83, 0x80, 0x00), field("a")]));
    assert.ok(decoded?.cmd === "publish");
    assert.equal(decoded.topic, "a");
    assert.equal(decoded.bytes, 7);
  });

  test("DUP on SUBSCRIBE, UNSUBSCRIBE and PUBREL of MQTT 3.1", () => {
    const decoded = decode(
      connect(0x02, [field("c")], { name: "MQIsdp", level: 3 }),
      packet(0x8a, bytesOf(0, 1), field("a"), bytesOf(1)),
      packet(0xaa, bytesOf(0, 2), field("a")),
      packet(0x6a, bytesOf(0, 3)),
    );
    assert.deepEqual(
      decoded.map(({ cmd }) => cmd),
      ["connect", "subscribe", "unsubscribe", "pubrel"],
    );
  });
});

test("a long packet in many chunks comes out whole, followed by the next one", () => {
  const payload = Buffer.alloc(300_000, "0123456789");
  const bytes = Buffer.concat([validConnect, packet(0x30, field("a"), payload), bytesOf(0xc0, 0x00)]);
  for (const size of [1, 7, 1460, 65_536, 299_999]) {
    const chunks: Buffer[] = [];
    for (let at = 0; at < bytes.length; at += size) chunks.push(bytes.subarray(at, at + size));
    const [, publish, ping] = decodeAll(chunks);
    assert.ok(publish?.cmd === "publish" && publish.payload.equals(payload), `chunks of ${size}`);
    assert.deepEqual(ping, { cmd: "pingreq" });
  }
});

test("a packet that lies within its chunk is not copied", () => {
  const chunk = Buffer.concat([validConnect, packet(0x30, field("a"), Buffer.from("payload"))]);
  const decoder = createDecoder({
    maxPacketBytes,
    onPacket(decoded) {
      if (decoded.cmd === "publish") assert.equal(decoded.payload.buffer, chunk.buffer);
      return true;
    },
  });
  assert.equal(decoder.push(chunk), undefined);
});

test("a packet of several chunks lies in memory of its own size, and in no other", () => {
  const content = Buffer.alloc(200_000, "x");
  const whole = packet(0x30, field("a"), content);
  const before = process.memoryUsage().arrayBuffers;
  let grown = 0;
  const decoder = createDecoder({
    maxPacketBytes,
    onPacket(decoded) {
      if (decoded.cmd !== "publish") return true;
      assert.ok(decoded.payload.equals(content));
      assert.equal(decoded.payload.buffer.byteLength, whole.length);
      grown = process.memoryUsage().arrayBuffers - before;
      return true;
    },
  });
  decoder.push(validConnect);
  for (let at = 0; at < whole.length; at += 50_000) decoder.push(whole.subarray(at, at + 50_000));
  assert.ok(grown <= whole.length, `${grown} bytes`);
});

test("a length that is only claimed takes no memory", () => {
  const whole = packet(0x30, field("a"), Buffer.alloc(maxPacketBytes - 100));
  const before = process.memoryUsage().arrayBuffers;
  const decoders = Array.from({ length: 20 }, () => createDecoder({ maxPacketBytes, onPacket: () => true }));
  for (const decoder of decoders) {
    decoder.push(validConnect);
    for (let at = 0; at < 20_000; at += 5000) decoder.push(whole.subarray(at, at + 5000));
  }
  assert.ok(process.memoryUsage().arrayBuffers - before < 20 * 100_000);
});

test("a will's payload is copied, so that it does not keep the password's bytes", () => {
  const chunk = connect(0xc6, [field("c"), field("w"), field("gone"), field("u"), field("hunter2")]);
  const seen: (Buffer | undefined)[] = [];
  const decoder = createDecoder({
    maxPacketBytes,
    onPacket(decoded) {
      if (decoded.cmd === "connect") seen.push(decoded.will?.payload);
      return true;
    },
  });
  decoder.push(chunk);
  chunk.fill(0);
  assert.equal(seen[0]?.toString(), "gone");
});

test("nothing is decoded behind a DISCONNECT [MQTT-3.14.4-2]", () => {
  const decoded = decode(
    Buffer.concat([validConnect, bytesOf(0xe0, 0x00), packet(0x30, field("a")), bytesOf(0x00)]),
    bytesOf(0x00, 0x00),
  );
  assert.deepEqual(
    decoded.map(({ cmd }) => cmd),
    ["connect", "disconnect"],
  );
});

describe("pause and resume", () => {
  const publishes = Array.from({ length: 5 }, (_, n) => packet(0x30, field("a"), Buffer.from(String(n))));
  const stream = Buffer.concat([validConnect, ...publishes]);

  test("onPacket's false holds the rest back, in order, however it is split", () => {
    for (let cut = 1; cut < stream.length; cut++) {
      const seen: string[] = [];
      const decoder = createDecoder({
        maxPacketBytes,
        onPacket(decoded) {
          seen.push(decoded.cmd === "publish" ? decoded.payload.toString() : decoded.cmd);
          return false;
        },
      });
      assert.equal(decoder.push(Buffer.from(stream.subarray(0, cut))), undefined);
      assert.ok(seen.length <= 1);
      // A chunk that was under way when the socket was paused.
      assert.equal(decoder.push(Buffer.from(stream.subarray(cut))), undefined);
      assert.ok(seen.length <= 1 || cut < validConnect.length);
      for (let n = 1; n < 6; n++) {
        assert.equal(seen.length, n, `split at ${cut}`);
        assert.equal(decoder.resume(), undefined);
      }
      assert.equal(decoder.resume(), undefined);
      assert.deepEqual(seen, ["connect", "0", "1", "2", "3", "4"]);
    }
  });

  test("resume with nothing held back goes on with the next chunk", () => {
    const seen: string[] = [];
    const decoder = createDecoder({ maxPacketBytes, onPacket: ({ cmd }) => seen.push(cmd) < 0 });
    decoder.push(validConnect);
    decoder.resume();
    decoder.push(bytesOf(0xc0, 0x00));
    assert.deepEqual(seen, ["connect", "pingreq"]);
  });

  test("resume from within onPacket, before it returns false, is not lost", () => {
    let count = 0;
    const decoder = createDecoder({
      maxPacketBytes,
      onPacket() {
        count++;
        assert.equal(decoder.resume(), undefined);
        return false;
      },
    });
    decoder.push(stream);
    assert.equal(count, 6);
  });

  test("a malformed packet is refused when its turn comes, by resume", () => {
    let count = 0;
    const decoder = createDecoder({ maxPacketBytes, onPacket: () => ++count < 0 });
    assert.equal(decoder.push(Buffer.concat([validConnect, bytesOf(0xc1, 0x00)])), undefined);
    assert.equal(decoder.resume()?.code, "MALFORMED_PACKET");
    assert.equal(count, 1);
  });
});

describe("what is sent is read by mqtt-packet's own parser", () => {
  test("CONNACK: session present only with code 0 [MQTT-3.2.2-4]", () => {
    for (const code of [0, 1, 2, 3, 4, 5] as const) {
      for (const present of [false, true]) {
        const [read] = readAsClient(encodeConnack(code, present));
        assert.ok(read?.cmd === "connack");
        assert.equal(read.returnCode, code);
        assert.equal(read.sessionPresent, present && code === 0);
      }
    }
  });

  for (const cmd of ["puback", "pubrec", "pubrel", "pubcomp", "unsuback"] as const) {
    test(cmd.toUpperCase(), () => {
      for (const packetId of [1, 255, 256, 65_535]) {
        const [read] = readAsClient(encodeAck(cmd, packetId));
        assert.equal(read?.cmd, cmd);
        assert.equal(read?.messageId, packetId);
      }
      assert.notEqual(encodeAck(cmd, 1), encodeAck(cmd, 1), "each its own buffer");
    });
  }

  test("SUBACK and PINGRESP", () => {
    const [suback, ping] = readAsClient(Buffer.concat([encodeSuback(9, [0, 1, 2, 0x80]), pingresp]));
    assert.ok(suback?.cmd === "suback");
    assert.equal(suback.messageId, 9);
    assert.deepEqual(suback.granted, [0, 1, 2, 0x80]);
    assert.equal(ping?.cmd, "pingresp");
  });

  for (const qos of [0, 1, 2] as const) {
    test(`PUBLISH with QoS ${qos}, from a template`, () => {
      for (const payload of [Buffer.alloc(0), bytesOf(0, 255), Buffer.alloc(130), Buffer.alloc(20_000, "x")]) {
        const message = { topic: "Beijing/温度", payload, qos, retain: true };
        const template = encodePublishTemplate(message, { ...plain, qos, retain: true });
        for (const packetId of qos === 0 ? [undefined] : [1, 0x1234, 65_535]) {
          for (const dup of qos === 0 ? [false] : [false, true]) {
            const bytes = publishFromTemplate(template, { packetId, dup });
            const [read] = readAsClient(bytes);
            assert.ok(read?.cmd === "publish");
            assert.deepEqual(
              [read.topic, read.qos, read.retain, read.dup, read.messageId],
              [message.topic, qos, true, dup, packetId],
            );
            assert.ok(payload.equals(Buffer.from(read.payload)));
          }
        }
      }
    });
  }

  test("one template serves many subscribers", () => {
    const message = { topic: "a", payload: Buffer.from("x"), qos: 1, retain: false } as const;
    const qos0 = encodePublishTemplate(message, { ...plain, qos: 0 });
    assert.equal(qos0.idAt, -1);
    const none = { packetId: undefined, dup: false };
    assert.equal(publishFromTemplate(qos0, none), qos0.bytes, "shared: there is nothing to patch");
    const qos1 = encodePublishTemplate(message, { ...plain, qos: 1 });
    const before = Buffer.from(qos1.bytes);
    const first = publishFromTemplate(qos1, { packetId: 1, dup: true });
    publishFromTemplate(qos1, { packetId: 2, dup: false });
    const [read] = readAsClient(first);
    assert.equal(read?.messageId, 1, "not changed by the second");
    assert.deepEqual(qos1.bytes, before);
    assert.throws(() => publishFromTemplate(qos1, none), TypeError);
  });
});
