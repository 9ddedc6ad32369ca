import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { generate, parser, type Packet } from "mqtt-packet";
import {
  createDecoder,
  encodeAck,
  encodeAuth,
  encodeConnackV5,
  encodeDisconnect,
  encodePublishTemplate,
  encodeSubackV5,
  encodeUnsubackV5,
  type InPacket,
  publishFromTemplate,
  type Refusal,
} from "../../kernel/codec.ts";
import { bytesOf, field, packet } from "../fixtures/malformed-packets.ts";
import {
  connectV5,
  fullPackets,
  malformedV5,
  none,
  properties,
  validConnectV5,
  withProperties,
} from "../fixtures/malformed-v5.ts";
import { fuzzV5 } from "../helpers/fuzz-v5.ts";

interface Outcome {
  readonly packets: InPacket[];
  readonly refusal: Refusal | undefined;
}

function decode(...chunks: Buffer[]): Outcome {
  const packets: InPacket[] = [];
  const decoder = createDecoder({ maxPacketBytes: 1 << 20, onPacket: (decoded) => packets.push(decoded) > 0 });
  let refusal: Refusal | undefined;
  for (const chunk of chunks) refusal = decoder.push(Buffer.from(chunk));
  return { packets, refusal };
}

/** The one packet that the bytes hold, behind a CONNECT unless they are one. */
function decodeOne(bytes: Buffer): InPacket {
  const isConnect = bytes[0] === 0x10;
  const { packets, refusal } = isConnect ? decode(bytes) : decode(validConnectV5, bytes);
  assert.equal(refusal, undefined);
  const decoded = packets.at(-1);
  assert.ok(decoded && packets.length === (isConnect ? 1 : 2));
  return decoded;
}

/** What a client of MQTT 5 reads in the bytes. */
function readAsClient(bytes: Buffer): Packet {
  const read: Packet[] = [];
  const client = parser({ protocolVersion: 5 });
  client.on("packet", (each) => read.push(each));
  client.on("error", (error) => assert.fail(String(error)));
  assert.equal(client.parse(bytes), 0, "nothing left over");
  const [only] = read;
  assert.ok(only && read.length === 1);
  return only;
}

const v5 = { protocolVersion: 5 } as const;

describe("what mqtt-packet writes is read", () => {
  test("CONNECT with everything", () => {
    const bytes = generate({
      cmd: "connect",
      protocolVersion: 5,
      clientId: "dev1",
      clean: true,
      keepalive: 30,
      username: "user",
      password: bytesOf(0xff, 0),
      properties: {
        sessionExpiryInterval: 0xffff_ffff,
        receiveMaximum: 20,
        maximumPacketSize: 10_000,
        topicAliasMaximum: 7,
        requestResponseInformation: true,
        requestProblemInformation: false,
        userProperties: { region: "eu" },
        authenticationMethod: "SCRAM",
        authenticationData: bytesOf(1, 2),
      },
      will: {
        topic: "w/é",
        payload: Buffer.from("gone"),
        qos: 2,
        retain: true,
        properties: {
          willDelayInterval: 5,
          payloadFormatIndicator: true,
          messageExpiryInterval: 60,
          contentType: "text/plain",
          responseTopic: "re",
          correlationData: bytesOf(9),
          userProperties: { a: ["1", "2"] },
        },
      },
    });
    assert.deepEqual(decodeOne(bytes), {
      cmd: "connect",
      protocolVersion: 5,
      clientId: "dev1",
      clean: true,
      keepalive: 30,
      username: "user",
      password: bytesOf(0xff, 0),
      will: {
        topic: "w/é",
        payload: Buffer.from("gone"),
        qos: 2,
        retain: true,
        delaySec: 5,
        properties: {
          payloadFormat: 1,
          messageExpiry: 60,
          contentType: "text/plain",
          responseTopic: "re",
          correlationData: bytesOf(9),
          userProperties: [
            ["a", "1"],
            ["a", "2"],
          ],
        },
      },
      properties: {
        sessionExpiry: 0xffff_ffff,
        receiveMaximum: 20,
        maximumPacketSize: 10_000,
        topicAliasMaximum: 7,
        requestResponseInformation: true,
        requestProblemInformation: false,
        userProperties: [["region", "eu"]],
        authenticationMethod: "SCRAM",
        authenticationData: bytesOf(1, 2),
      },
    });
  });

  test("CONNECT with nothing has the defaults [MQTT-3.1.2-11]", () => {
    const decoded = decodeOne(generate({ cmd: "connect", protocolVersion: 5, clientId: "" }));
    assert.ok(decoded.cmd === "connect");
    assert.equal(decoded.will, undefined);
    assert.deepEqual(decoded.properties, {
      sessionExpiry: 0,
      receiveMaximum: 65_535,
      maximumPacketSize: Infinity,
      topicAliasMaximum: 0,
      requestResponseInformation: false,
      requestProblemInformation: true,
      userProperties: undefined,
      authenticationMethod: undefined,
      authenticationData: undefined,
    });
  });

  test("CONNECT with a password and no user name, which only 3.1.1 forbids", () => {
    const decoded = decodeOne(connectV5(0x42, none, field("c"), field("secret")));
    assert.ok(decoded.cmd === "connect");
    assert.equal(decoded.username, undefined);
    assert.equal(decoded.password?.toString(), "secret");
  });

  for (const qos of [0, 1, 2] as const) {
    test(`PUBLISH at QoS ${qos}`, () => {
      const message = { topic: "a/é", payload: bytesOf(0, 255), qos, retain: true, dup: qos > 0 };
      const bytes = generate({ cmd: "publish", ...message, messageId: 7 }, v5);
      const packetId = qos === 0 ? undefined : 7;
      const expected = { cmd: "publish", ...message, packetId, properties: undefined, topicAlias: 0 };
      assert.deepEqual(decodeOne(bytes), { ...expected, bytes: bytes.length });
    });
  }

  test("PUBLISH with all properties, and an alias for its topic", () => {
    const bytes = generate(
      {
        cmd: "publish",
        topic: "",
        payload: "x",
        qos: 1,
        retain: false,
        dup: false,
        messageId: 7,
        properties: {
          payloadFormatIndicator: true,
          messageExpiryInterval: 0,
          topicAlias: 65_535,
          responseTopic: "re",
          correlationData: Buffer.alloc(0),
          contentType: "",
        },
      },
      v5,
    );
    const decoded = decodeOne(bytes);
    assert.ok(decoded.cmd === "publish");
    assert.equal(decoded.topic, "");
    assert.equal(decoded.topicAlias, 65_535);
    assert.deepEqual(decoded.properties, {
      payloadFormat: 1,
      messageExpiry: 0,
      contentType: "",
      responseTopic: "re",
      correlationData: Buffer.alloc(0),
      userProperties: undefined,
    });
  });

  test("user properties in their order, names and empty values repeated [MQTT-3.3.2-18]", () => {
    const pairs = [
      ["b", ""],
      ["2", "x"],
      ["b", ""],
      ["1", "é"],
      ["__proto__", "y"],
      ["", ""],
      ["b", "z"],
    ] as const;
    const parts = pairs.map(([name, value]) => Buffer.concat([bytesOf(38), field(name), field(value)]));
    const decoded = decodeOne(packet(0x30, field("a"), properties(...parts)));
    assert.ok(decoded.cmd === "publish");
    assert.deepEqual(decoded.properties?.userProperties, pairs);
    const form = { qos: 0, retain: false, protocolVersion: 5, identifiers: [], alias: "none" } as const;
    const sent = publishFromTemplate(encodePublishTemplate(decoded, form), { packetId: undefined, dup: false });
    assert.deepEqual(sent, packet(0x30, field("a"), properties(...parts)), "and so they are passed on");
  });

  test("SUBSCRIBE with its options and an identifier", () => {
    const bytes = generate(
      {
        cmd: "subscribe",
        messageId: 9,
        properties: { subscriptionIdentifier: 268_435_455, userProperties: { a: "b" } },
        subscriptions: [
          { topic: "a/+", qos: 2, nl: true, rap: true, rh: 2 },
          { topic: "$share/g/a", qos: 0, nl: false, rap: false, rh: 1 },
        ],
      },
      v5,
    );
    assert.deepEqual(decodeOne(bytes), {
      cmd: "subscribe",
      packetId: 9,
      subscriptions: [
        { topicFilter: "a/+", qos: 2, noLocal: true, retainAsPublished: true, retainHandling: 2 },
        { topicFilter: "$share/g/a", qos: 0, noLocal: false, retainAsPublished: false, retainHandling: 1 },
      ],
      identifier: 268_435_455,
      userProperties: [["a", "b"]],
    });
  });

  test("UNSUBSCRIBE", () => {
    const bytes = generate({ cmd: "unsubscribe", messageId: 9, unsubscriptions: ["a", "b/#"] }, v5);
    const expected = { cmd: "unsubscribe", packetId: 9, topicFilters: ["a", "b/#"], userProperties: undefined };
    assert.deepEqual(decodeOne(bytes), expected);
  });

  for (const [cmd, reasonCode] of [
    ["puback", 0x87],
    ["pubrec", 0x97],
    ["pubrel", 0x92],
    ["pubcomp", 0x92],
  ] as const) {
    test(`${cmd.toUpperCase()}, short and with a reason`, () => {
      assert.deepEqual(decodeOne(generate({ cmd, messageId: 256 }, v5)), { cmd, packetId: 256, reasonCode: 0 });
      const first = { puback: 0x40, pubrec: 0x50, pubrel: 0x62, pubcomp: 0x70 }[cmd];
      const expected = { cmd, packetId: 256, reasonCode };
      assert.deepEqual(decodeOne(packet(first, bytesOf(1, 0, reasonCode))), expected, "without a property length");
      const properties5 = { reasonString: "because", userProperties: { a: "b" } };
      assert.deepEqual(decodeOne(generate({ cmd, messageId: 256, reasonCode, properties: properties5 }, v5)), expected);
    });
  }

  test("DISCONNECT: empty, with a reason, with a session expiry", () => {
    const normal = { cmd: "disconnect", reasonCode: 0, sessionExpiry: undefined, userProperties: undefined };
    assert.deepEqual(decodeOne(bytesOf(0xe0, 0)), normal);
    assert.deepEqual(decodeOne(bytesOf(0xe0, 1, 4)), { ...normal, reasonCode: 4 });
    const bytes = generate({ cmd: "disconnect", reasonCode: 0, properties: { sessionExpiryInterval: 9 } }, v5);
    assert.deepEqual(decodeOne(bytes), { ...normal, sessionExpiry: 9 });
  });

  test("AUTH", () => {
    const bytes = encodeAuth(0x18, "SCRAM", bytesOf(1));
    assert.deepEqual(decodeOne(bytes), { cmd: "auth", reasonCode: 0x18, method: "SCRAM", data: bytesOf(1) });
  });
});

describe("what is sent is read by mqtt-packet's own parser", () => {
  test("CONNACK with everything, and session present only with success [MQTT-3.2.2-6]", () => {
    const read = readAsClient(
      encodeConnackV5({
        reasonCode: 0,
        sessionPresent: true,
        assignedClientId: "auto-1",
        sessionExpiry: 10,
        serverKeepAlive: 60,
        receiveMaximum: 100,
        maximumPacketSize: 1000,
        topicAliasMaximum: 32,
        maximumQos: 1,
        retainAvailable: false,
        responseInformation: "re/",
        serverReference: "other",
        reasonString: "fine",
        authenticationMethod: "SCRAM",
        authenticationData: bytesOf(1),
      }),
    );
    assert.ok(read.cmd === "connack");
    assert.equal(read.reasonCode, 0);
    assert.equal(read.sessionPresent, true);
    assert.deepEqual(read.properties, {
      assignedClientIdentifier: "auto-1",
      sessionExpiryInterval: 10,
      serverKeepAlive: 60,
      receiveMaximum: 100,
      maximumPacketSize: 1000,
      topicAliasMaximum: 32,
      maximumQoS: 1,
      retainAvailable: false,
      responseInformation: "re/",
      serverReference: "other",
      reasonString: "fine",
      authenticationMethod: "SCRAM",
      authenticationData: bytesOf(1),
    });
    const refused = readAsClient(encodeConnackV5({ reasonCode: 0x87, sessionPresent: true }));
    assert.ok(refused.cmd === "connack");
    assert.deepEqual([refused.reasonCode, refused.sessionPresent, refused.properties], [0x87, false, undefined]);
  });

  for (const cmd of ["puback", "pubrec", "pubrel", "pubcomp"] as const) {
    test(`${cmd.toUpperCase()} with a reason`, () => {
      const reasonCode = cmd === "puback" || cmd === "pubrec" ? 0x99 : 0x92;
      for (const text of [undefined, "because"]) {
        const read = readAsClient(encodeAck(cmd, 258, reasonCode, text));
        assert.ok(read.cmd === cmd);
        assert.deepEqual([read.messageId, read.reasonCode], [258, reasonCode]);
        assert.equal(read.properties?.reasonString, text);
      }
    });
  }

  test("SUBACK, UNSUBACK, DISCONNECT and AUTH", () => {
    const suback = readAsClient(encodeSubackV5(9, [0, 2, 0x8f], "because"));
    assert.ok(suback.cmd === "suback");
    assert.deepEqual([suback.messageId, suback.granted], [9, [0, 2, 0x8f]]);
    const unsuback = readAsClient(encodeUnsubackV5(9, [0, 0x11]));
    assert.ok(unsuback.cmd === "unsuback");
    assert.deepEqual([unsuback.messageId, (unsuback as { granted?: unknown }).granted], [9, [0, 0x11]]);
    const disconnect = readAsClient(encodeDisconnect(0x9c, { serverReference: "other", reasonString: "moving" }));
    assert.ok(disconnect.cmd === "disconnect");
    assert.equal(disconnect.reasonCode, 0x9c);
    assert.deepEqual(disconnect.properties, { serverReference: "other", reasonString: "moving" });
    const auth = readAsClient(encodeAuth(0x18, "SCRAM", undefined));
    assert.ok(auth.cmd === "auth");
    assert.deepEqual([auth.reasonCode, auth.properties], [0x18, { authenticationMethod: "SCRAM" }]);
  });

  test("PUBLISH in every form, what differs between subscribers patched", () => {
    const message = {
      topic: "Beijing/温度",
      payload: Buffer.alloc(200, "x"),
      qos: 2,
      retain: true,
      properties: {
        payloadFormat: 1,
        messageExpiry: 100,
        contentType: "t",
        responseTopic: "re",
        correlationData: bytesOf(0),
        userProperties: [["n", "v".repeat(150)]],
      },
    } as const;
    for (const qos of [0, 1, 2] as const) {
      for (const alias of ["none", "define", "use"] as const) {
        for (const expiry of [undefined, 7]) {
          for (const identifiers of [[], [1, 268_435_455]]) {
            const { messageExpiry: _, ...rest } = message.properties;
            const sent = { ...message, properties: expiry === undefined ? rest : message.properties };
            const template = encodePublishTemplate(sent, { qos, retain: true, protocolVersion: 5, identifiers, alias });
            const packetId = qos === 0 ? undefined : 0x1234;
            const fields = { packetId, dup: qos > 0, messageExpiry: expiry, alias: 300 };
            const read = readAsClient(publishFromTemplate(template, fields));
            assert.ok(read.cmd === "publish");
            assert.deepEqual(
              [read.topic, read.qos, read.retain, read.dup, read.messageId, read.payload.length],
              [alias === "use" ? "" : message.topic, qos, true, qos > 0, packetId, 200],
            );
            const { userProperties, ...others } = read.properties ?? {};
            assert.deepEqual({ ...userProperties }, { n: "v".repeat(150) });
            assert.deepEqual(others, {
              payloadFormatIndicator: true,
              contentType: "t",
              responseTopic: "re",
              correlationData: bytesOf(0),
              ...(expiry !== undefined && { messageExpiryInterval: 7 }),
              ...(alias !== "none" && { topicAlias: 300 }),
              ...(identifiers.length > 0 && { subscriptionIdentifier: identifiers }),
            });
          }
        }
      }
    }
  });
});

describe(`${malformedV5.length} malformed packets of MQTT 5 are refused`, () => {
  for (const { name, bytes, first, code, connack, reason } of malformedV5) {
    test(name, () => {
      const { packets, refusal } = first ? decode(bytes) : decode(validConnectV5, bytes);
      assert.equal(refusal?.code, code, refusal?.message);
      assert.equal(refusal?.connack, connack);
      assert.equal(refusal?.reason, reason);
      assert.equal(packets.length, first ? 0 : 1, "only the CONNECT was delivered");
    });
  }

  test("their names are unique", () => {
    assert.equal(new Set(malformedV5.map(({ name }) => name)).size, malformedV5.length);
  });
});

describe("each packet with all its properties", () => {
  for (const [name, bytes, first] of fullPackets) {
    test(`${name} is read, and truncated at any byte it is refused`, () => {
      decodeOne(bytes);
      const [head, body] = [bytes.subarray(0, 1), bytes.subarray(2)];
      assert.equal(bytes.readUInt8(1), body.length, "one byte of remaining length");
      for (let length = 0; length < body.length; length++) {
        const cut = Buffer.concat([head, bytesOf(length), body.subarray(0, length)]);
        const { refusal, packets } = first ? decode(cut) : decode(validConnectV5, cut);
        if (isWhole(name, length, body)) assert.equal(refusal, undefined, `${length} bytes`);
        else assert.ok(refusal && packets.length === (first ? 0 : 1), `${length} bytes`);
        // Where the packet goes on, it is waited for.
        const partly = bytes.subarray(0, 2 + length);
        assert.equal((first ? decode(partly) : decode(validConnectV5, partly)).refusal, undefined);
      }
    });

    test(`${name} comes out the same however it is split`, () => {
      const stream = first ? bytes : Buffer.concat([validConnectV5, bytes]);
      const whole = decode(stream);
      for (let at = 1; at < stream.length; at++) {
        assert.deepEqual(decode(stream.subarray(0, at), stream.subarray(at)), whole, `split at ${at}`);
      }
    });
  }

  test("every packet that carries properties is among them", () => {
    assert.deepEqual(
      fullPackets.map(([name]) => name),
      withProperties.map(([name]) => name),
    );
  });
});

/** A packet that may end there: acks and DISCONNECT leave out what they don't need; a PUBLISH has any payload. */
function isWhole(name: string, length: number, body: Buffer): boolean {
  if (name === "PUBLISH") return length === body.length - 1;
  if (name === "DISCONNECT") return length <= 1;
  return ["PUBACK", "PUBREC", "PUBREL", "PUBCOMP"].includes(name) && (length === 2 || length === 3);
}

test("20,000 mutated streams of MQTT 5 never throw, and come out the same however they are split", () => {
  const { refused, passed } = fuzzV5({ seed: 20_261_125, rounds: 20_000 });
  assert.ok(refused > 5000 && passed > 5000, `${refused} refused, ${passed} packets passed`);
});
