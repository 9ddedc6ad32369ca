/** Subscribers that don't read or don't acknowledge: what they lose, what they don't, and that nobody else notices. */
import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { eventually } from "../helpers/eventually.ts";
import type { TestGateway } from "../helpers/gateway.ts";
import { startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, publishPacket, type RawClient } from "../helpers/raw-client.ts";

const numbers = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1);

/** A client that has subscribed to `topic` and reads no more. */
async function connectDeaf(port: number, clientId: string, topic: string, clean = true): Promise<RawClient> {
  const client = await connectRaw(port, clientId, { clean });
  await client.subscribe(topic);
  client.socket.pause();
  return client;
}

async function queuedOf(gateway: TestGateway, clientId: string): Promise<number> {
  const sessions = (await gateway.gateway.host.proxies.get("mqttproxy")?.sessions.query()) ?? [];
  const session = sessions.find((each) => each.clientId === clientId);
  return session ? session.queued + session.inflight : -1;
}

suite("L12: a slow subscriber", { concurrency: true }, () => {
  test("loses QoS 0 messages beyond a bound, counted, and others lose none", async (t) => {
    const gateway = await startProbedGateway(t, { brokerMode: true });
    const port = gateway.port();
    const deaf = await connectDeaf(port, "deaf", "flood");
    const good = await connectRaw(port, "good");
    await good.subscribe("flood");
    const publisher = await connectRaw(port, "publisher");
    const payload = Buffer.alloc(20_000);
    for (let sent = 0; sent < 3000; sent += 100) {
      publisher.send(...numbers(100).map(() => publishPacket("flood", payload)));
      assert.equal((await good.expectMany("publish", 100)).length, 100);
    }
    const dropped = await gateway.metric("sluice_messages_dropped_total", { reason: "qos0_busy" });
    assert.ok(dropped > 0 && dropped < 3000, `${dropped} dropped`);
    assert.ok((await queuedOf(gateway, "deaf")) <= 1000);

    // It reads again: what was kept comes, and all answers.
    deaf.send({ cmd: "subscribe", messageId: 7, subscriptions: [{ topic: "more", qos: 1 }] });
    deaf.send(publishPacket("up", "x", 8));
    deaf.socket.resume();
    const got = await deaf.flush();
    assert.equal(got.filter(({ cmd }) => cmd === "suback").length, 1);
    assert.equal(got.filter(({ cmd }) => cmd === "puback").length, 1);
    await eventually(() => got.length + deaf.received.length - 2 + dropped, 3000);
  });

  test("gets every answer to what it sent while it read nothing", async (t) => {
    const { port } = await startProbedGateway(t, { brokerMode: true });
    const deaf = await connectDeaf(port(), "deaf", "flood");
    const publisher = await connectRaw(port(), "publisher");
    publisher.send(...numbers(500).map(() => publishPacket("flood", Buffer.alloc(20_000))));
    await publisher.flush();
    const sent = 5000;
    for (const n of numbers(sent)) deaf.send({ cmd: "pingreq" }, publishPacket("up", "x", n));
    await publisher.publish("other");
    deaf.socket.resume();
    const kinds = { publish: 0, puback: 0, pingresp: 0 };
    const done = Promise.withResolvers<void>();
    deaf.onPacket = ({ cmd, messageId }) => {
      assert.ok(cmd === "publish" || cmd === "puback" || cmd === "pingresp");
      kinds[cmd]++;
      if (cmd === "puback") assert.equal(messageId, kinds.puback);
      if (kinds.puback === sent && kinds.pingresp === sent) done.resolve();
    };
    await done.promise;
    assert.ok(kinds.publish > 0 && kinds.publish < 500);
  });

  test("gets every QoS 1 message, in order, once it reads", async (t) => {
    const { port, metric } = await startProbedGateway(t, { brokerMode: true });
    const deaf = await connectDeaf(port(), "deaf", "flood");
    const publisher = await connectRaw(port(), "publisher");
    // 30 MB, within the session's bound and far beyond what sockets hold.
    const padding = Buffer.alloc(100_000, " ");
    publisher.send(
      ...numbers(300).map((n) => publishPacket("flood", Buffer.concat([Buffer.from(String(n)), padding]), n)),
    );
    await publisher.expectMany("puback", 300);
    deaf.socket.resume();
    for (const n of numbers(300)) {
      const { payload, messageId } = await deaf.expect("publish");
      assert.equal(Number(payload.toString("utf8", 0, 5)), n);
      deaf.send({ cmd: "puback", messageId: messageId! });
    }
    assert.deepEqual(await deaf.flush(), []);
    assert.equal(await metric("sluice_messages_dropped_total"), 0);
  });

  test("that reads slowly slows its publisher down and loses nothing, however small its queue", async (t) => {
    const gateway = await startProbedGateway(t, { brokerMode: true, maxInflight: 10, queue: { maxMessages: 100 } });
    const port = gateway.port();
    const slow = await connectRaw(port, "slow");
    await slow.subscribe("flood");
    const publisher = await connectRaw(port, "publisher");
    publisher.send(...numbers(2000).map((n) => publishPacket("flood", String(n), n)));
    const other = await connectRaw(port, "other");
    const acks = publisher.expectMany("puback", 2000);
    for (const n of numbers(2000)) {
      const { payload, messageId } = await slow.expect("publish");
      assert.equal(Number(payload), n);
      if (n % 200 === 0) {
        assert.ok((await queuedOf(gateway, "slow")) <= 100);
        await other.publish("elsewhere");
      }
      slow.send({ cmd: "puback", messageId: messageId! });
    }
    await acks;
    assert.equal(await gateway.metric("sluice_messages_dropped_total"), 0);
  });

  test("that acknowledges nothing holds its publishers up for a while, then counts as absent, and stays bounded", async (t) => {
    const gateway = await startProbedGateway(t, { brokerMode: true, maxInflight: 10, queue: { maxMessages: 100 } });
    const port = gateway.port();
    const stuck = await connectRaw(port, "stuck", { clean: false });
    await stuck.subscribe("flood");
    const publisher = await connectRaw(port, "publisher");
    publisher.send(...numbers(500).map((n) => publishPacket("flood", String(n), n)));
    const other = await connectRaw(port, "other");
    await other.publish("elsewhere");
    await publisher.expectMany("puback", 500);
    assert.equal(await queuedOf(gateway, "stuck"), 100);
    assert.equal(await gateway.metric("sluice_messages_dropped_total", { reason: "queue_full" }), 400);
    await other.publish("elsewhere");
    // Those in flight, then the newest.
    const payloads: number[] = [];
    while (payloads.length < 100) {
      const { payload, messageId } = await stuck.expect("publish");
      payloads.push(Number(payload));
      stuck.send({ cmd: "puback", messageId: messageId! });
    }
    assert.deepEqual(payloads, [...numbers(10), ...numbers(90).map((n) => n + 410)]);
  });

  test("that is absent loses its oldest messages beyond its bound, counted", async (t) => {
    const { port, metric } = await startProbedGateway(t, { brokerMode: true, queue: { maxMessages: 10 } });
    const client = await connectRaw(port(), "absent", { clean: false });
    await client.subscribe("a");
    await client.disconnect();
    const publisher = await connectRaw(port(), "publisher");
    for (const n of numbers(15)) await publisher.publish("a", String(n));
    assert.equal(await metric("sluice_messages_dropped_total", { reason: "queue_full" }), 5);
    const again = await connectRaw(port(), "absent", { clean: false });
    const got = await again.expectMany("publish", 10);
    assert.deepEqual(
      got.map(({ payload }) => Number(payload)),
      numbers(15).slice(5),
    );
  });

  test("that is absent loses nothing with onFull: fault: the publisher gets no PUBACK and comes again", async (t) => {
    const { port, metric } = await startProbedGateway(t, {
      brokerMode: true,
      faultGrace: 1,
      queue: { maxMessages: 10, onFull: "fault" },
    });
    const client = await connectRaw(port(), "absent", { clean: false });
    await client.subscribe("a");
    await client.disconnect();
    const publisher = await connectRaw(port(), "publisher");
    for (const n of numbers(10)) await publisher.publish("a", String(n));
    publisher.send(publishPacket("a", "11", 11));
    assert.deepEqual(await publisher.flush(), []);
    await publisher.expectClose();
    assert.equal(await metric("sluice_messages_dropped_total"), 0);

    const again = await connectRaw(port(), "absent", { clean: false });
    for (const { messageId } of await again.expectMany("publish", 10))
      again.send({ cmd: "puback", messageId: messageId! });
    assert.deepEqual(await again.flush(), []);
    const retrying = await connectRaw(port(), "publisher");
    retrying.send(publishPacket("a", "11", 11, true));
    await retrying.expect("puback");
    assert.equal(String((await again.expect("publish")).payload), "11");
  });
});
