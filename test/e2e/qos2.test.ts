/** QoS 2 both ways, in MQTT 3.1.1 and 5: exactly once between client and gateway, across connections. */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { suite, test } from "node:test";
import { connectAsync } from "mqtt";
import type { Packet } from "mqtt-packet";
import { publishes, startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, type RawClient } from "../helpers/raw-client.ts";
import { createRandom } from "../helpers/random.ts";

type Version = 4 | 5;

function qos2(topic: string, payload: string, messageId: number, dup = false): Packet {
  return { cmd: "publish", topic, payload, qos: 2, messageId, dup, retain: false };
}

/** A client whose session outlives its connection. */
function stay(port: number, id: string, protocolVersion: Version, clean = false): Promise<RawClient> {
  const properties = protocolVersion === 5 ? { properties: { sessionExpiryInterval: 600 } } : {};
  return connectRaw(port, id, { clean, ...properties }, { protocolVersion });
}

async function complete(client: RawClient, messageId: number): Promise<void> {
  assert.equal((await client.expect("pubrec")).messageId, messageId);
  client.send({ cmd: "pubrel", messageId });
  assert.equal((await client.expect("pubcomp")).messageId, messageId);
}

for (const version of [4, 5] as const) {
  suite(`MQTT ${version === 4 ? "3.1.1" : "5"}`, () => {
    test("[MQTT-4.3.3-8] [MQTT-4.3.3-11] PUBLISH, PUBREC, PUBREL, PUBCOMP; then the id is free [MQTT-4.3.3-12]", async (t) => {
      const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
      const client = await stay(port(), "a", version);
      for (const payload of ["one", "two"]) {
        client.send(qos2("a/b", payload, 7));
        await complete(client, 7);
      }
      assert.deepEqual(
        publishes(probes.Publish).map(({ packet }) => String(packet.payload)),
        ["one", "two"],
      );
    });

    test("the PUBREC is withheld until the pipeline has resolved", async (t) => {
      const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
      const gate = Promise.withResolvers<void>();
      probes.Publish.handle = () => gate.promise;
      const client = await stay(port(), "a", version);
      client.send(qos2("a/b", "x", 1));
      await probes.Publish.entered(1);
      assert.deepEqual(await client.flush(), []);
      gate.resolve();
      await complete(client, 1);
    });

    test("[MQTT-4.6.0-3] PUBRECs and PUBACKs leave in the order of the PUBLISHes", async (t) => {
      const { port, probes } = await startProbedGateway(t, {}, { Publish: { concurrent: true } });
      const gates = new Map<string, () => void>();
      probes.Publish.handle = (ctx) =>
        new Promise((resolve) => {
          assert.ok(ctx.type === "Publish");
          gates.set(String(ctx.packet.payload), resolve);
        });
      const client = await stay(port(), "a", version);
      client.send(qos2("a", "1", 1), { ...qos2("a", "2", 2), qos: 1 } as Packet, qos2("a", "3", 3));
      await probes.Publish.entered(3);
      for (const payload of ["3", "2", "1"]) gates.get(payload)?.();
      assert.equal((await client.expect("pubrec")).messageId, 1);
      assert.equal((await client.expect("puback")).messageId, 2);
      assert.equal((await client.expect("pubrec")).messageId, 3);
    });

    test("[MQTT-4.3.3-10] sent again it is answered again, and runs the pipeline once: while it is there, and after", async (t) => {
      const { port, probes, metric } = await startProbedGateway(t, {}, { Publish: {} });
      const gate = Promise.withResolvers<void>();
      probes.Publish.handle = () => gate.promise;
      const client = await stay(port(), "a", version);
      client.send(qos2("a/b", "x", 5), qos2("a/b", "x", 5, true));
      await probes.Publish.entered(1);
      gate.resolve();
      assert.equal((await client.expect("pubrec")).messageId, 5);
      assert.deepEqual(await client.flush(), [], "one PUBREC for both");
      client.send(qos2("a/b", "x", 5, true));
      assert.equal((await client.expect("pubrec")).messageId, 5);
      client.destroy();
      await client.closed;

      const back = await stay(port(), "a", version);
      back.send(qos2("a/b", "x", 5, true));
      await complete(back, 5);
      assert.equal(probes.Publish.seen.length, 1);
      assert.equal(await metric("sluice_publishes_repeated_total"), 3);
    });

    test("a client that comes back while its message is in the pipeline gets the outcome of that run", async (t) => {
      const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
      const gate = Promise.withResolvers<void>();
      probes.Publish.handle = () => gate.promise;
      const first = await stay(port(), "a", version);
      first.send(qos2("a/b", "x", 5));
      await probes.Publish.entered(1);
      first.destroy();
      await first.closed;
      const second = await stay(port(), "a", version);
      second.send(qos2("a/b", "x", 5, true));
      assert.deepEqual(await second.flush(), []);
      gate.resolve();
      await complete(second, 5);
      assert.equal(probes.Publish.seen.length, 1);
    });

    test("a message whose pipeline ends between two connections is not run again", async (t) => {
      const { port, probes, metric } = await startProbedGateway(t, {}, { Publish: {} });
      const gate = Promise.withResolvers<void>();
      probes.Publish.handle = () => gate.promise;
      const first = await stay(port(), "a", version);
      first.send(qos2("a/b", "x", 5));
      await probes.Publish.entered(1);
      first.destroy();
      await first.closed;
      gate.resolve();
      await sleep(20);
      const second = await stay(port(), "a", version);
      second.send(qos2("a/b", "x", 5, true));
      await complete(second, 5);
      assert.equal(probes.Publish.seen.length, 1);
      assert.equal(await metric("sluice_publishes_repeated_total"), 1);
    });

    test("[MQTT-3.1.2-4] a clean start forgets the ids: the same one is a new message", async (t) => {
      const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
      const first = await stay(port(), "a", version);
      first.send(qos2("a/b", "old", 5));
      await first.expect("pubrec");
      first.destroy();
      await first.closed;
      const second = await stay(port(), "a", version, true);
      second.send(qos2("a/b", "new", 5));
      await complete(second, 5);
      assert.deepEqual(
        publishes(probes.Publish).map(({ packet }) => String(packet.payload)),
        ["old", "new"],
      );
    });

    test("a fault withholds the PUBREC; sent again on the next connection it is run again", async (t) => {
      const { port, probes } = await startProbedGateway(t, { faultGrace: 0 }, { Publish: {} });
      let runs = 0;
      probes.Publish.handle = () => {
        if (++runs === 1) throw new Error("away");
      };
      const first = await stay(port(), "a", version);
      first.send(qos2("a/b", "x", 5));
      if (version === 5) assert.equal((await first.expectLast("disconnect")).reasonCode, 0x83);
      else await first.expectClose();
      const second = await stay(port(), "a", version);
      second.send(qos2("a/b", "x", 5, true));
      await complete(second, 5);
      assert.equal(runs, 2);
    });

    test("[MQTT-2.2.1-5] a PUBREL for an id that is not known is answered with a PUBCOMP for it", async (t) => {
      const { port } = await startProbedGateway(t);
      const client = await stay(port(), "a", version);
      client.send({ cmd: "pubrel", messageId: 99 });
      const pubcomp = await client.expect("pubcomp");
      assert.equal(pubcomp.messageId, 99);
      if (version === 5) assert.equal(pubcomp.reasonCode, 0x92);
      client.send({ cmd: "pubrec", messageId: 98 });
      const pubrel = await client.expect("pubrel");
      assert.equal(pubrel.messageId, 98);
      if (version === 5) assert.equal(pubrel.reasonCode, 0x92);
    });

    test("[MQTT-4.3.3-4] a delivery: PUBLISH, PUBREC, PUBREL, PUBCOMP; lower where one side is lower [MQTT-3.8.4-8]", async (t) => {
      const { port } = await startProbedGateway(t, { brokerMode: true });
      const subscriber = await stay(port(), "sub", version);
      assert.equal(await subscriber.subscribe("two", 2), 2);
      assert.equal(await subscriber.subscribe("one", 1), 1);
      const publisher = await stay(port(), "pub", version);
      publisher.send(qos2("two", "a", 1));
      await complete(publisher, 1);
      const publish = await subscriber.expect("publish");
      assert.deepEqual([publish.qos, publish.dup, publish.payload.toString()], [2, false, "a"]);
      const messageId = publish.messageId as number;
      subscriber.send({ cmd: "pubrec", messageId });
      assert.equal((await subscriber.expect("pubrel")).messageId, messageId);
      subscriber.send({ cmd: "pubcomp", messageId });
      publisher.send(qos2("one", "b", 2));
      await complete(publisher, 2);
      assert.equal((await subscriber.expect("publish")).qos, 1);
      await publisher.publish("two", "c");
      assert.equal((await subscriber.expect("publish")).qos, 1);
    });

    test("[MQTT-4.4.0-1] on a new connection: PUBLISH with DUP before the PUBREC, PUBREL and nothing else after it", async (t) => {
      const { port } = await startProbedGateway(t, { brokerMode: true });
      const first = await stay(port(), "sub", version);
      await first.subscribe("t", 2);
      const publisher = await stay(port(), "pub", version);
      for (const [index, payload] of ["a", "b"].entries()) {
        publisher.send(qos2("t", payload, index + 1));
        await complete(publisher, index + 1);
      }
      const [a, b] = await first.expectMany("publish", 2);
      first.send({ cmd: "pubrec", messageId: a?.messageId as number });
      await first.expect("pubrel");
      first.destroy();
      await first.closed;

      const second = await stay(port(), "sub", version);
      assert.equal((await second.expect("pubrel")).messageId, a?.messageId, "[MQTT-4.3.3-6]");
      const again = await second.expect("publish");
      assert.deepEqual([again.messageId, again.dup, again.payload.toString()], [b?.messageId, true, "b"]);
      second.send({ cmd: "pubcomp", messageId: a?.messageId as number });
      second.send({ cmd: "pubrec", messageId: b?.messageId as number });
      await second.expect("pubrel");
      second.send({ cmd: "pubcomp", messageId: b?.messageId as number });
      await second.flush();
      await second.disconnect();
      const third = await stay(port(), "sub", version);
      assert.deepEqual(await third.flush(), [], "both are settled");
    });
  });
}

test("a retry of MQTT 3.1.1 on the same connection sends PUBREL where PUBREC has come, else PUBLISH with DUP", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true, retryInterval: 1 });
  const subscriber = await stay(port(), "sub", 4);
  await subscriber.subscribe("t", 2);
  const publisher = await stay(port(), "pub", 4);
  publisher.send(qos2("t", "a", 1));
  await complete(publisher, 1);
  const { messageId = 0 } = await subscriber.expect("publish");
  const again = await subscriber.expect("publish");
  assert.deepEqual([again.messageId, again.dup], [messageId, true]);
  subscriber.send({ cmd: "pubrec", messageId });
  await subscriber.expect("pubrel");
  assert.equal((await subscriber.expect("pubrel")).messageId, messageId);
  subscriber.send({ cmd: "pubcomp", messageId });
  assert.deepEqual(await subscriber.flush(), []);
});

test("[MQTT-4.4.0-1] MQTT 5 resends on a new connection alone", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true, retryInterval: 1 });
  const subscriber = await stay(port(), "sub", 5);
  await subscriber.subscribe("t", 2);
  const publisher = await stay(port(), "pub", 5);
  await publisher.publish("t", "a");
  await subscriber.expect("publish");
  await sleep(1300);
  assert.deepEqual(await subscriber.flush(), []);
});

test("[MQTT-4.3.3-9] [MQTT-4.4.0-2] a PUBREC with an error ends it: the id is free for a new message", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
  probes.Publish.handle = (ctx) => ctx.reject("notAuthorized");
  const client = await stay(port(), "a", 5);
  for (let n = 1; n <= 2; n++) {
    client.send(qos2("a/b", "x", 5));
    const pubrec = await client.expect("pubrec");
    assert.deepEqual([pubrec.messageId, pubrec.reasonCode], [5, 0x87]);
    assert.equal(probes.Publish.seen.length, n);
  }
});

test("[MQTT-4.3.3-4] a subscriber's PUBREC with an error settles the delivery without a PUBREL", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const subscriber = await stay(port(), "sub", 5);
  await subscriber.subscribe("t", 2);
  const publisher = await stay(port(), "pub", 5);
  publisher.send(qos2("t", "a", 1));
  await complete(publisher, 1);
  const { messageId = 0 } = await subscriber.expect("publish");
  subscriber.send({ cmd: "pubrec", messageId, reasonCode: 0x97 });
  assert.deepEqual(await subscriber.flush(), []);
  await subscriber.disconnect();
  const back = await stay(port(), "sub", 5);
  assert.deepEqual(await back.flush(), []);
});

test("[MQTT-4.3.3-7] [MQTT-4.3.3-13] an expiry ends no exchange that has begun, in either direction", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const subscriber = await stay(port(), "sub", 5);
  await subscriber.subscribe("t", 2);
  const publisher = await stay(port(), "pub", 5);
  publisher.send({ ...qos2("t", "x", 1), properties: { messageExpiryInterval: 1 } } as Packet);
  await publisher.expect("pubrec");
  const { messageId } = await subscriber.expect("publish");
  subscriber.destroy();
  await subscriber.closed;
  await sleep(1200);
  publisher.send({ cmd: "pubrel", messageId: 1 });
  assert.equal((await publisher.expect("pubcomp")).reasonCode, 0);
  const back = await stay(port(), "sub", 5);
  const again = await back.expect("publish");
  assert.deepEqual([again.messageId, again.dup], [messageId, true]);
});

/** Hands `limit` packets to `handle`, then drops the connection; before that if `done` says so. */
async function talk(
  client: RawClient,
  limit: number,
  handle: (packet: Packet) => void,
  done: () => boolean,
): Promise<void> {
  let left = limit;
  client.onPacket = (packet) => {
    if (left <= 0) return;
    handle(packet);
    if (--left === 0 || done()) client.destroy();
  };
  for (const packet of client.received.slice()) client.onPacket(packet);
  await client.closed;
}

/** The sender's side of QoS 2, as a device with a memory has it. */
async function sendAll(port: number, version: Version, payloads: readonly string[], cut: () => number): Promise<void> {
  const open = new Map<number, { payload: string; released: boolean }>();
  let next = 0;
  const isDone = (): boolean => next === payloads.length && open.size === 0;
  while (!isDone()) {
    const client = await stay(port, "pub", version);
    const fill = (): void => {
      while (open.size < 10 && next < payloads.length) {
        const payload = payloads[next++] ?? "";
        open.set(next, { payload, released: false });
        client.send(qos2("t", payload, next));
      }
    };
    for (const [messageId, { payload, released }] of open) {
      client.send(released ? { cmd: "pubrel", messageId } : qos2("t", payload, messageId, true));
    }
    fill();
    await talk(
      client,
      cut(),
      (packet) => {
        const messageId = packet.messageId ?? 0;
        const message = open.get(messageId);
        if (packet.cmd === "pubrec") {
          if (message) message.released = true;
          client.send({ cmd: "pubrel", messageId });
        } else if (packet.cmd === "pubcomp") {
          open.delete(messageId);
          fill();
        }
      },
      isDone,
    );
  }
}

/** The receiver's side. */
async function receiveAll(port: number, version: Version, count: number, cut: () => number): Promise<string[]> {
  const known = new Set<number>();
  const got: string[] = [];
  const isDone = (): boolean => got.length >= count && known.size === 0;
  while (!isDone()) {
    const client = await stay(port, "sub", version);
    await talk(
      client,
      cut(),
      (packet) => {
        const messageId = packet.messageId ?? 0;
        if (packet.cmd === "publish") {
          if (!known.has(messageId)) got.push(String(packet.payload));
          known.add(messageId);
          client.send({ cmd: "pubrec", messageId });
        } else if (packet.cmd === "pubrel") {
          known.delete(messageId);
          client.send({ cmd: "pubcomp", messageId });
        }
      },
      isDone,
    );
  }
  return got;
}

for (const version of [4, 5] as const) {
  test(`exactly once and in order from device to device in version ${version}, though both break off again and again`, async (t) => {
    const { port } = await startProbedGateway(t, { brokerMode: true }, { Publish: { concurrent: true } });
    const subscriber = await stay(port(), "sub", version);
    await subscriber.subscribe("t", 2);
    await subscriber.disconnect();
    const payloads = Array.from({ length: 400 }, (_, n) => String(n));
    const random = createRandom(7);
    const cut = (): number => 1 + random(40);
    const received = receiveAll(port(), version, payloads.length, cut);
    await sendAll(port(), version, payloads, cut);
    assert.deepEqual(await received, payloads);
  });

  test(`mqtt.js sends and takes QoS 2 in version ${version}, its connection breaking`, async (t) => {
    const { url } = await startProbedGateway(t, { brokerMode: true });
    const properties = version === 5 ? { properties: { sessionExpiryInterval: 600 } } : {};
    const options = { protocolVersion: version, clean: false, reconnectPeriod: 5, ...properties };
    const subscriber = await connectAsync(url(), { ...options, clientId: "sub" });
    const publisher = await connectAsync(url(), { ...options, clientId: "pub" });
    t.after(() => Promise.all([publisher.endAsync(true), subscriber.endAsync(true)]));
    const got: string[] = [];
    const all = Promise.withResolvers<void>();
    const payloads = Array.from({ length: 100 }, (_, n) => String(n));
    subscriber.on("message", (_topic, payload) => {
      got.push(String(payload));
      if (got.length === payloads.length) all.resolve();
    });
    await subscriber.subscribeAsync("t", { qos: 2 });
    for (const [index, payload] of payloads.entries()) {
      await publisher.publishAsync("t", payload, { qos: 2 });
      if (index % 20 === 19) subscriber.stream.destroy();
    }
    await all.promise;
    assert.deepEqual(got, payloads);
  });
}
