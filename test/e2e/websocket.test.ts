/** MQTT over WebSocket (section 6 of both specifications): the upgrade, frames of any shape, what ends the connection. */
import assert from "node:assert/strict";
import { connect as connectTcp } from "node:net";
import { suite, test } from "node:test";
import { connectAsync } from "mqtt";
import mqttPacket, { type Packet } from "mqtt-packet";
import { generate } from "selfsigned";
import { eventually } from "../helpers/eventually.ts";
import { publishes, startProbedGateway } from "../helpers/probed-gateway.ts";
import { openRawClient, publishPacket } from "../helpers/raw-client.ts";
import { frame, opcodes, openWebSocket, type RawWebSocket } from "../helpers/web-socket.ts";

const listeners = [{ name: "web", protocol: "ws", host: "127.0.0.1", port: 0 }];
const protocols = "mqtt";

const bytesOf = (...packets: Packet[]): Buffer => Buffer.concat(packets.map((each) => mqttPacket.generate(each)));

const connectPacket = (clientId: string): Packet => ({
  cmd: "connect",
  protocolId: "MQTT",
  protocolVersion: 4,
  clientId,
  clean: true,
  keepalive: 0,
});

/** Connected, its CONNACK taken. */
async function connect(port: number, clientId = "web"): Promise<RawWebSocket> {
  const client = await openWebSocket(port, { protocols });
  client.socket.write(frame(opcodes.binary, bytesOf(connectPacket(clientId))));
  assert.deepEqual(await client.bytes(4), Buffer.from([0x20, 2, 0, 0]));
  return client;
}

/** Takes the close frame, which must have this code. */
async function expectClose(client: RawWebSocket, code: number): Promise<void> {
  const { opcode, payload } = await client.next();
  assert.deepEqual([opcode, payload.readUInt16BE(0)], [opcodes.close, code]);
}

for (const protocol of ["ws", "wss"] as const) {
  test(`${protocol}: a client library connects, publishes and is delivered to, beside the proxy's own port`, async (t) => {
    const { cert, private: key } = await generate([{ name: "commonName", value: "localhost" }], { keyType: "ec" });
    const gateway = await startProbedGateway(t, {
      brokerMode: true,
      certificate: [{ name: "c", cert, key }],
      listeners: [{ name: "web", protocol, host: "127.0.0.1", port: 0, path: "/a/b" }],
    });
    const client = await connectAsync(`${protocol}://localhost:${gateway.listenerPort("web")}/a/b`, {
      ca: cert,
      reconnectPeriod: 0,
    });
    const plain = await connectAsync(gateway.url(), { reconnectPeriod: 0 });
    const arrived = new Promise<Buffer>((resolve) => client.on("message", (_, payload) => resolve(payload)));
    await client.subscribeAsync("to/web", { qos: 1 });
    await client.publishAsync("from/web", "x", { qos: 1 });
    const payload = Buffer.alloc(900_000, "0123456789");
    await plain.publishAsync("to/web", payload, { qos: 1 });
    assert.ok((await arrived).equals(payload));
    await Promise.all([client.endAsync(), plain.endAsync()]);
  });
}

suite("frames", () => {
  /** Three packets, answered by ten bytes. */
  const packets = (clientId: string): Buffer =>
    bytesOf(connectPacket(clientId), publishPacket("a/b", "payload", 7), { cmd: "pingreq" });
  const answers = Buffer.from([0x20, 2, 0, 0, 0x40, 2, 0, 7, 0xd0, 0]);

  test("[MQTT-6.0.0-2] packets may be split and joined at every boundary", async (t) => {
    const gateway = await startProbedGateway(t, { listeners });
    const port = gateway.listenerPort("web");
    const { length } = packets("c");
    const shapes: [name: string, (bytes: Buffer) => Buffer[]][] = [
      ["all in one message", (bytes) => [frame(opcodes.binary, bytes)]],
      ["a message for each byte", (bytes) => [...bytes].map((byte) => frame(opcodes.binary, Buffer.from([byte])))],
      [
        "a fragment for each byte, with pings and empty ones in between",
        (bytes) => [
          ...[...bytes].flatMap((byte, index) => [
            frame(index === 0 ? opcodes.binary : opcodes.continuation, Buffer.from([byte]), false),
            frame(opcodes.continuation, "", false),
            frame(opcodes.pong, "unasked"),
          ]),
          frame(opcodes.continuation, ""),
        ],
      ],
      [
        "each byte of the frames by itself",
        (bytes) => [...frame(opcodes.binary, bytes)].map((byte) => Buffer.from([byte])),
      ],
      ["empty messages around it", (bytes) => ["", bytes, ""].map((each) => frame(opcodes.binary, each))],
      ...Array.from({ length: length - 1 }, (_, index): [string, (bytes: Buffer) => Buffer[]] => [
        `two messages, the second from byte ${index + 1}`,
        (bytes) => [bytes.subarray(0, index + 1), bytes.subarray(index + 1)].map((each) => frame(opcodes.binary, each)),
      ]),
    ];
    for (const [name, shape] of shapes) {
      const client = await openWebSocket(port, { protocols });
      for (const piece of shape(packets("c"))) client.socket.write(piece);
      assert.deepEqual(await client.bytes(answers.length), answers, name);
      client.socket.destroy();
    }
    await eventually(() => gateway.metric("sluice_connections"), 0);
  });

  test("[MQTT-6.0.0-1] a text message closes the connection, and nothing of it is taken for MQTT", async (t) => {
    const gateway = await startProbedGateway(t, { listeners }, { Publish: {} });
    const port = gateway.listenerPort("web");
    const stranger = await openWebSocket(port, { protocols });
    stranger.socket.write(frame(opcodes.text, bytesOf(connectPacket("text"))));
    await expectClose(stranger, 1003);
    const client = await connect(port);
    const texts = [frame(opcodes.text, "hello"), frame(opcodes.binary, bytesOf(publishPacket("a", "after", 1)))];
    client.socket.write(Buffer.concat(texts));
    await expectClose(client, 1003);
    client.socket.write(frame(opcodes.close, Buffer.from([0x03, 0xeb])));
    await client.closed;
    assert.deepEqual(publishes(gateway.probes.Publish), []);
    assert.equal(await gateway.metric("sluice_packets_refused_total", { code: "MALFORMED_PACKET" }), 2);
    assert.equal(await gateway.metric("sluice_connects_accepted_total"), 1);
    // One that never answers the close frame is not waited for for long.
    await stranger.closed;
  });

  test("a ping is answered with what it carried; who never reads the answers is closed", async (t) => {
    const gateway = await startProbedGateway(t, { listeners });
    const client = await connect(gateway.listenerPort("web"));
    client.socket.write(Buffer.concat([frame(opcodes.ping, "are you there?"), frame(opcodes.ping, "")]));
    for (const payload of ["are you there?", ""])
      assert.deepEqual(await client.next(), { opcode: opcodes.pong, isLast: true, payload: Buffer.from(payload) });
    client.socket.pause();
    const pings = Buffer.concat(Array.from({ length: 10_000 }, () => frame(opcodes.ping, Buffer.alloc(125))));
    let isClosed = false;
    void client.closed.then(() => (isClosed = true));
    const flood = setInterval(() => client.socket.write(pings), 1);
    await eventually(() => gateway.metric("sluice_connections"), 0, 20_000);
    clearInterval(flood);
    client.socket.resume();
    await client.closed;
    assert.ok(isClosed);
  });

  test("a message over the limit is refused by its head; fragments by what they add up to; a packet by its own", async (t) => {
    const gateway = await startProbedGateway(t, { listeners, maxPacketBytes: 1000 });
    const port = gateway.listenerPort("web");
    const head = await connect(port);
    const announced = frame(opcodes.binary, Buffer.alloc(65_537));
    // The head and the mask: of the body nothing ever comes.
    head.socket.write(announced.subarray(0, 14));
    await expectClose(head, 1009);
    const fragments = await connect(port);
    fragments.socket.write(frame(opcodes.binary, Buffer.alloc(40_000), false));
    fragments.socket.write(frame(opcodes.continuation, Buffer.alloc(40_000), false).subarray(0, 10));
    await expectClose(fragments, 1009);
    // Several packets in one message: it may exceed what one packet may not.
    const joined = await connect(port);
    const many = Array.from({ length: 60 }, (_, index) => publishPacket("a", "x".repeat(900), index + 1));
    joined.socket.write(frame(opcodes.binary, bytesOf(...many)));
    assert.equal((await joined.bytes(60 * 4)).length, 240);
    joined.socket.write(frame(opcodes.binary, bytesOf(publishPacket("a", "x".repeat(1000), 61)).subarray(0, 5)));
    await expectClose(joined, 1000);
    assert.equal(await gateway.metric("sluice_packets_refused_total", { code: "PACKET_TOO_LARGE" }), 3);
  });

  test("frames that break the rules of WebSocket close the connection, and harm nobody", async (t) => {
    const gateway = await startProbedGateway(t, { listeners });
    const port = gateway.listenerPort("web");
    const other = await connect(port, "other");
    const unmasked = Buffer.from([0x82, 2, 0xc0, 0]);
    const reserved = frame(opcodes.binary, "x");
    reserved.writeUInt8(reserved.readUInt8(0) | 0x40, 0);
    const broken: [string, Buffer, number][] = [
      ["not masked", unmasked, 1002],
      ["a reserved bit", reserved, 1002],
      ["an unknown opcode", frame(3, "x"), 1002],
      ["a continuation of nothing", frame(opcodes.continuation, "x"), 1002],
      ["a fragmented ping", frame(opcodes.ping, "x", false), 1002],
      ["a ping that is too long", frame(opcodes.ping, "x".repeat(126)), 1002],
      ["text that is no UTF-8", frame(opcodes.text, Buffer.from([0xff])), 1007],
    ];
    for (const [index, [name, bytes, code]] of broken.entries()) {
      const client = await connect(port, `broken-${index}`);
      client.socket.write(bytes);
      const { opcode, payload } = await client.next();
      assert.deepEqual([opcode, payload.readUInt16BE(0)], [opcodes.close, code], name);
      client.socket.destroy();
    }
    await eventually(() => gateway.metric("sluice_connections"), 1);
    other.socket.write(frame(opcodes.binary, bytesOf({ cmd: "pingreq" })));
    assert.deepEqual(await other.bytes(2), Buffer.from([0xd0, 0]));
    other.socket.destroy();
  });
});

suite("the end of a connection", () => {
  test("a refused CONNECT: first its CONNACK, then a close frame", async (t) => {
    const gateway = await startProbedGateway(t, { listeners }, { Connect: {} });
    gateway.probes.Connect.handle = (ctx) => ctx.reject("notAuthorized");
    const client = await openWebSocket(gateway.listenerPort("web"), { protocols });
    client.socket.write(frame(opcodes.binary, bytesOf(connectPacket("c"))));
    assert.deepEqual(await client.bytes(4), Buffer.from([0x20, 2, 0, 5]));
    await expectClose(client, 1000);
    await client.closed;
  });

  test("a close frame without a DISCONNECT is a lost connection: the will is published", async (t) => {
    const gateway = await startProbedGateway(t, { listeners }, { Publish: {} });
    const client = await openWebSocket(gateway.listenerPort("web"), { protocols });
    const will = { topic: "will", payload: Buffer.from("gone"), qos: 0 as const, retain: false };
    client.socket.write(frame(opcodes.binary, bytesOf({ ...connectPacket("c"), will } as Packet)));
    await client.bytes(4);
    client.socket.write(frame(opcodes.close, Buffer.from([0x03, 0xe9])));
    await expectClose(client, 1001);
    await client.closed;
    await gateway.probes.Publish.entered(1);
    assert.deepEqual(
      publishes(gateway.probes.Publish).map(({ origin, packet }) => [origin, packet.topic]),
      [["will", "will"]],
    );
    assert.equal(await gateway.metric("sluice_connections_closed_total", { reason: "connectionLost" }), 1);
  });

  test("packets behind which the client closes at once are all taken", async (t) => {
    const gateway = await startProbedGateway(t, { listeners }, { Publish: {} });
    const client = await openWebSocket(gateway.listenerPort("web"), { protocols });
    const many = Array.from({ length: 50 }, (_, index) => publishPacket("a", "x".repeat(5000), index + 1));
    const all = bytesOf(connectPacket("c"), ...many, { cmd: "disconnect" });
    client.socket.end(Buffer.concat([frame(opcodes.binary, all), frame(opcodes.close, "")]));
    await gateway.probes.Publish.entered(50);
    await eventually(() => gateway.metric("sluice_connections_closed_total", { reason: "disconnect" }), 1);
  });
});

suite("the upgrade", () => {
  test("wants the path, a subprotocol of MQTT and HTTP; all else is answered, closed and counted", async (t) => {
    const gateway = await startProbedGateway(t, { listeners });
    const port = gateway.listenerPort("web");
    const refused: [name: string, status: number, options: Parameters<typeof openWebSocket>[1]][] = [
      ["another path", 404, { protocols, path: "/" }],
      ["a path below it", 404, { protocols, path: "/mqtt/x" }],
      // [MQTT-6.0.0-3]
      ["no subprotocol", 400, {}],
      ["another subprotocol", 400, { protocols: "chat, mqtt2" }],
    ];
    for (const [name, status, options] of refused) {
      const client = await openWebSocket(port, options);
      assert.equal(client.status, status, name);
      await client.closed;
    }
    for (const method of ["GET", "POST"]) {
      const answer = await fetch(`http://127.0.0.1:${port}/mqtt`, { method });
      assert.deepEqual([answer.status, answer.headers.get("upgrade")], [426, "websocket"]);
    }
    for (const bytes of [bytesOf(connectPacket("c")), `GET /mqtt HTTP/1.1\r\nX: ${"x".repeat(10_000)}\r\n\r\n`]) {
      const socket = connectTcp(port, "127.0.0.1");
      socket.write(bytes);
      const answer = (await socket.toArray()) as Buffer[];
      assert.match(Buffer.concat(answer).toString("latin1"), /^HTTP\/1.1 400 /);
    }
    await eventually(() => gateway.metric("sluice_connects_refused_total", { reason: "upgrade" }), refused.length + 4);
    await eventually(() => gateway.metric("sluice_connections_pending"), 0);
  });

  test("[MQTT-6.0.0-4] names the subprotocol that it has chosen; a query is no part of the path", async (t) => {
    const gateway = await startProbedGateway(t, { listeners });
    const port = gateway.listenerPort("web");
    for (const [offered, chosen] of [
      ["mqtt", "mqtt"],
      ["chat, mqttv3.1 ,mqtt", "mqtt"],
      ["mqttv3.1", "mqttv3.1"],
    ]) {
      const client = await openWebSocket(port, { protocols: offered, path: "/mqtt?token=x" });
      assert.deepEqual([client.status, client.headers.get("sec-websocket-protocol")], [101, chosen]);
      // Not asked for, not given: a small message that inflates to a huge one is no concern here.
      assert.equal(client.headers.has("sec-websocket-extensions"), false);
      client.socket.destroy();
    }
  });

  test("is for pages of the origins that are named, and for clients that are no pages", async (t) => {
    const origins = ["https://app.example.com", "http://localhost:8080"];
    const gateway = await startProbedGateway(t, {
      listeners: [
        { ...listeners[0], origins },
        { ...listeners[0], name: "all" },
      ],
    });
    const statusFor = async (listener: string, origin: string | undefined): Promise<number> => {
      const headers = origin === undefined ? [] : [`Origin: ${origin}`];
      const client = await openWebSocket(gateway.listenerPort(listener), { protocols, headers });
      client.socket.destroy();
      return client.status;
    };
    for (const origin of [undefined, ...origins, "HTTPS://APP.example.com"])
      assert.equal(await statusFor("web", origin), 101, origin);
    for (const origin of [
      "https://evil.example.com",
      "http://app.example.com",
      "https://app.example.com:444",
      "null",
    ]) {
      assert.equal(await statusFor("web", origin), 403, origin);
      assert.equal(await statusFor("all", origin), 101, origin);
    }
  });

  test("has its deadline, and CONNECT has its own after it", async (t) => {
    const gateway = await startProbedGateway(t, { listeners, handshakeTimeout: 1, connectTimeout: 2 });
    const port = gateway.listenerPort("web");
    const from = performance.now();
    const silent = await openRawClient(port);
    const halfway = await openRawClient(port);
    halfway.send(Buffer.from("GET /mqtt HTTP/1.1\r\nHost: "));
    const answered = await openRawClient(port);
    // Told why, and does not go.
    answered.socket.allowHalfOpen = true;
    answered.send(Buffer.from("GET /mqtt HTTP/1.1\r\nHost: x\r\n\r\n"));
    const upgraded = await openWebSocket(port, { protocols });
    await Promise.all([silent.closed, halfway.closed]);
    assert.ok(performance.now() - from > 950);
    await eventually(() => gateway.metric("sluice_connections_pending"), 1);
    await expectClose(upgraded, 1000);
    assert.ok(performance.now() - from > 1950);
    await eventually(() => gateway.metric("sluice_connects_refused_total", { reason: "upgrade" }), 3);
    answered.destroy();
  });
});

suite("back-pressure", () => {
  test("while the pipeline holds maxInWork packets, nothing more is read from the WebSocket", async (t) => {
    const gateway = await startProbedGateway(t, { listeners, maxInWork: 10 }, { Publish: { concurrent: true } });
    const gate = Promise.withResolvers<void>();
    gateway.probes.Publish.handle = () => gate.promise;
    const client = await connect(gateway.listenerPort("web"));
    const count = 400;
    const bytes = bytesOf(
      ...Array.from({ length: count }, (_, index) => publishPacket("a", "x".repeat(60_000), index + 1)),
    );
    // In messages that have nothing to do with the packets' bounds.
    for (let at = 0; at < bytes.length; at += 50_000)
      client.socket.write(frame(opcodes.binary, bytes.subarray(at, at + 50_000)));
    await gateway.probes.Publish.entered(10);
    await eventually(() => gateway.metric("sluice_connection_pauses_total", { reason: "work" }), 1);
    // A few MB fit into the system's buffers; the rest is still the client's.
    let waiting = client.socket.writableLength;
    for (let same = 0; same < 20;) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      same = client.socket.writableLength === waiting ? same + 1 : 0;
      waiting = client.socket.writableLength;
    }
    assert.ok(waiting > 5_000_000, `the client still holds ${waiting} of ${bytes.length} bytes`);
    assert.equal(gateway.probes.Publish.seen.length, 10);
    gate.resolve();
    const acks = await client.bytes(count * 4);
    assert.deepEqual(
      Array.from({ length: count }, (_, index) => acks.readUInt16BE(4 * index + 2)),
      Array.from({ length: count }, (_, index) => index + 1),
    );
    client.socket.destroy();
  });

  test("what a subscriber does not read waits in its session, and comes in order once it reads", async (t) => {
    const gateway = await startProbedGateway(t, { listeners, brokerMode: true, maxInflight: 1000 });
    const subscriber = await connect(gateway.listenerPort("web"), "slow");
    subscriber.socket.write(
      frame(opcodes.binary, bytesOf({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "t", qos: 0 }] })),
    );
    assert.deepEqual(await subscriber.bytes(5), Buffer.from([0x90, 3, 0, 1, 0]));
    subscriber.socket.pause();
    const publisher = await openRawClient(gateway.port());
    await publisher.connect({ clientId: "fast" });
    const count = 200;
    const payload = (index: number): Buffer => Buffer.alloc(100_000, String.fromCharCode(65 + (index % 26)));
    for (let index = 0; index < count; index++) await publisher.publish("t", payload(index));
    const queued = async (): Promise<number> => {
      const sessions = await gateway.gateway.host.proxies.get("mqttproxy")?.sessions.query();
      return sessions?.find(({ clientId }) => clientId === "slow")?.queued ?? 0;
    };
    assert.ok((await queued()) > count / 4, `${await queued()} of ${count} wait`);
    subscriber.socket.resume();
    const size = bytesOf(publishPacket("t", payload(0))).length;
    const bytes = await subscriber.bytes(size * count);
    for (let index = 0; index < count; index++) {
      const last = bytes.subarray(index * size, (index + 1) * size).at(-1);
      assert.equal(last, 65 + (index % 26), `message ${index}`);
    }
    assert.equal(await queued(), 0);
    await publisher.disconnect();
    subscriber.socket.destroy();
  });
});
