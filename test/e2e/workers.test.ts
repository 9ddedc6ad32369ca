/** One gateway of several processes: what is right in one is right across all of them. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { eventually } from "../helpers/eventually.ts";
import { startWorkers, type WorkersGateway } from "../helpers/workers.ts";

const broker = "kind: MQTTProxy\nname: mqttproxy\nport: 0\nbrokerMode: true";

type Sessions = { readonly sessions: readonly { readonly sessionID: string }[] };

suite("brokerMode", () => {
  let gateway: WorkersGateway;
  const cleanups: (() => Promise<void>)[] = [];
  before(async () => {
    gateway = await startWorkers({ after: (clean) => void cleanups.push(clean) }, broker);
  });
  after(async () => {
    for (const clean of cleanups) await clean();
  });

  test("a client that connects again at another worker takes its session over: one connection, what was queued", async () => {
    const first = await gateway.connect(0, "dev", { clean: false });
    await first.subscribe("cmd", 1);
    const publisher = await gateway.connect(1, "backend");
    await publisher.publish("cmd", "1");
    assert.equal((await first.expect("publish")).payload.toString(), "1");
    const second = await gateway.connect(1, "dev", { clean: false });
    await first.closed;
    // It was not acknowledged.
    const again = await second.expect("publish");
    assert.deepEqual([again.payload.toString(), again.dup], ["1", true]);
    second.send({ cmd: "puback", messageId: again.messageId ?? 0 });
    await publisher.publish("cmd", "2");
    assert.equal((await second.expect("publish")).payload.toString(), "2");
    assert.equal(await gateway.metric("sluice_connections"), 2);
    assert.equal(await gateway.metric("sluice_sessions"), 2);
    assert.equal(await gateway.metric("sluice_connections_closed_total", { reason: "takenOver" }), 1);
  });

  test("brokerMode: each subscriber gets a message once, at whichever worker it and the publisher are", async () => {
    const subscribers = [
      await gateway.connect(0, "s0"),
      await gateway.connect(1, "s1"),
      await gateway.connect(0, "s2"),
      await gateway.connect(1, "s3"),
    ];
    for (const each of subscribers) await each.subscribe("a/#", 1);
    for (const worker of [0, 1]) {
      const publisher = await gateway.connect(worker, `p${worker}`);
      for (let n = 0; n < 20; n++) await publisher.publish("a/b", `${worker} ${n}`);
    }
    const expected = [0, 1].flatMap((worker) => Array.from({ length: 20 }, (_, n) => `${worker} ${n}`));
    for (const each of subscribers) {
      const got = await each.expectMany("publish", 40);
      assert.deepEqual(
        got.map(({ payload }) => payload.toString()),
        expected,
      );
      for (const { messageId } of got) each.send({ cmd: "puback", messageId: messageId ?? 0 });
      assert.deepEqual(await each.flush(), []);
    }
  });

  test("brokerMode: retained messages, shared subscriptions and QoS 2 know no workers", async () => {
    const publisher = await gateway.connect(0, "p");
    publisher.send({ cmd: "publish", topic: "r", payload: "kept", qos: 1, messageId: 1, dup: false, retain: true });
    await publisher.expect("puback");
    const late = await gateway.connect(1, "late");
    late.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "r", qos: 2 }] });
    await late.expect("suback");
    const kept = await late.expect("publish");
    assert.deepEqual([kept.payload.toString(), kept.retain], ["kept", true]);
    late.send({ cmd: "puback", messageId: kept.messageId ?? 0 });

    publisher.send({ cmd: "publish", topic: "r", payload: "twice", qos: 2, messageId: 2, dup: false, retain: false });
    await publisher.expect("pubrec");
    publisher.send({ cmd: "pubrel", messageId: 2 });
    await publisher.expect("pubcomp");
    const exact = await late.expect("publish");
    assert.deepEqual([exact.payload.toString(), exact.qos], ["twice", 2]);
    late.send({ cmd: "pubrec", messageId: exact.messageId ?? 0 });
    await late.expect("pubrel");
    // Its PUBCOMP is lost with the connection: the next one, elsewhere, gets the PUBREL again and no message.
    late.destroy();
    await late.closed;

    const members = [await gateway.connect(0, "m0"), await gateway.connect(1, "m1")];
    for (const each of members) assert.equal(await each.subscribe("$share/g/work", 1), 1);
    for (let n = 0; n < 10; n++) await publisher.publish("work", String(n));
    const shares = await Promise.all(members.map((each) => each.flush()));
    assert.deepEqual(
      shares.map((each) => each.length),
      [5, 5],
    );
  });

  test("QoS 2 to a client goes on where it was, from another worker", async () => {
    const queued = await gateway.metric("sluice_queued_messages");
    const sub = await gateway.connect(0, "sub", { clean: false });
    await sub.subscribe("t", 2);
    const publisher = await gateway.connect(1, "p");
    for (const [messageId, payload] of [
      [1, "released"],
      [2, "sent"],
    ] as const) {
      publisher.send({ cmd: "publish", topic: "t", payload, qos: 2, messageId, dup: false, retain: false });
      await publisher.expect("pubrec");
      publisher.send({ cmd: "pubrel", messageId });
      await publisher.expect("pubcomp");
    }
    const [released, sent] = await sub.expectMany("publish", 2);
    sub.send({ cmd: "pubrec", messageId: released?.messageId ?? 0 });
    await sub.expect("pubrel");
    sub.destroy();
    const back = await gateway.connect(1, "sub", { clean: false });
    assert.equal((await back.expect("pubrel")).messageId, released?.messageId);
    const again = await back.expect("publish");
    assert.deepEqual([again.messageId, again.payload.toString(), again.dup], [sent?.messageId, "sent", true]);
    for (const messageId of [released?.messageId ?? 0]) back.send({ cmd: "pubcomp", messageId });
    back.send({ cmd: "pubrec", messageId: again.messageId ?? 0 });
    await back.expect("pubrel");
    back.send({ cmd: "pubcomp", messageId: again.messageId ?? 0 });
    await eventually(async () => await gateway.metric("sluice_queued_messages"), queued);
  });

  test("HTTP publish reaches clients of every worker, and tells what became of it at each", async () => {
    const clients = [await gateway.connect(0, "c0"), await gateway.connect(1, "c1")];
    for (const each of clients) await each.subscribe("order", 1);
    const away = await gateway.connect(0, "away", { clean: false });
    await away.subscribe("order", 1);
    await away.disconnect();
    const answer = gateway.api("/mqttproxy/mqttproxy/topics/publish?wait=acked&timeout=5s", {
      method: "POST",
      body: JSON.stringify({ topic: "order", qos: 1, payload: "x" }),
    });
    for (const each of clients) each.send({ cmd: "puback", messageId: (await each.expect("publish")).messageId ?? 0 });
    const { status, body: found } = await answer;
    const body = found as { matched: number; connected: number; clients: { clientID: string; outcome: string }[] };
    assert.deepEqual([status, body.matched, body.connected], [200, 3, 2]);
    assert.deepEqual(body.clients.map(({ clientID, outcome }) => `${clientID} ${outcome}`).toSorted(), [
      "away queued",
      "c0 delivered",
      "c1 delivered",
    ]);
    const { status: direct } = await gateway.api("/mqttproxy/mqttproxy/topics/publish", {
      method: "POST",
      body: JSON.stringify({ topic: "only/you", qos: 0, payload: "x", clientID: "c1" }),
    });
    assert.equal(direct, 200);
    assert.equal((await clients[1]?.expect("publish"))?.topic, "only/you");
  });

  test("wills: published from any worker; one that waits is forgotten when its client is back at another", async () => {
    const watcher = await gateway.connect(0, "watcher");
    await watcher.subscribe("will/+", 0);
    const at1 = await gateway.connect(1, "dead", {
      will: { topic: "will/dead", payload: Buffer.from("x"), qos: 0, retain: false },
    });
    at1.destroy();
    assert.equal((await watcher.expect("publish")).topic, "will/dead");

    const delayed = (topic: string, seconds: number) => ({
      protocolVersion: 5 as const,
      clean: false,
      properties: { sessionExpiryInterval: 600 },
      will: {
        topic,
        payload: Buffer.from("x"),
        qos: 0 as const,
        retain: false,
        properties: { willDelayInterval: seconds },
      },
    });
    const v5 = { protocolVersion: 5 as const };
    const moved = await gateway.connect(0, "moved", delayed("will/moved", 2), v5);
    moved.destroy();
    const gone = await gateway.connect(0, "gone", delayed("will/gone", 3), v5);
    gone.destroy();
    const removed = await gateway.connect(1, "removed", delayed("will/removed", 600), v5);
    removed.destroy();
    const back = await gateway.connect(1, "moved", { ...delayed("will/later", 600) }, v5);
    assert.equal((await watcher.expect("publish")).topic, "will/gone");
    const { status } = await gateway.api("/mqttproxy/mqttproxy/sessions", {
      method: "DELETE",
      body: JSON.stringify({ sessions: [{ sessionID: "removed" }] }),
    });
    assert.ok(status < 300);
    assert.equal((await watcher.expect("publish")).topic, "will/removed", "its session has ended");
    // The first one's delay was over before that of the second.
    await back.flush();
    assert.deepEqual(await watcher.flush(), []);
  });
});

test("maxAllowedConnection and connectionLimit are one limit of all workers", async (t) => {
  const gateway = await startWorkers(
    t,
    `${broker}\nmaxAllowedConnection: 3\nconnectionLimit: { requestRate: 6, timePeriod: 3600 }`,
  );
  const open: Awaited<ReturnType<typeof gateway.open>>[] = [];
  const codeOf = async (clientId: string): Promise<number> => {
    const client = await gateway.open();
    open.push(client);
    client.send({ cmd: "connect", protocolId: "MQTT", protocolVersion: 4, clientId, clean: true, keepalive: 60 });
    return (await client.expect("connack")).returnCode ?? -1;
  };
  assert.deepEqual([await codeOf("a"), await codeOf("b"), await codeOf("c")], [0, 0, 0]);
  assert.deepEqual([await codeOf("d"), await codeOf("a")], [3, 0], "full, but one's own place may be taken over");
  assert.equal(await gateway.metric("sluice_connects_refused_total", { reason: "serverBusy" }), 1);
  // Those were five.
  assert.equal(await codeOf("b"), 0);
  assert.deepEqual([await codeOf("c"), await codeOf("a")], [3, 3]);
  assert.equal(await gateway.metric("sluice_connects_refused_total", { reason: "connectionRateExceeded" }), 2);
  for (const each of open) each.destroy();
});

test("sessions are listed and removed, counted and told of as those of one gateway", async (t) => {
  const gateway = await startWorkers(t, `${broker}\nsysInterval: 1`);
  const watcher = await gateway.connect(0, "watcher");
  const clients = [await gateway.connect(0, "c0"), await gateway.connect(1, "c1")];
  for (const each of clients) for (let n = 0; n < 5; n++) await each.publish("t", "x");
  assert.equal(await gateway.metric("sluice_packets_received_total", { type: "publish" }), 10);
  assert.equal(await gateway.metric("sluice_connections"), 3);
  await watcher.subscribe("$SYS/broker/#", 0);
  const told = new Map<string, string>();
  watcher.onPacket = (packet) => {
    if (packet.cmd === "publish") told.set(packet.topic, packet.payload.toString());
  };
  await eventually(() => told.get("$SYS/broker/clients/connected"), "3");
  await eventually(() => told.get("$SYS/broker/publish/messages/received"), "10");
  const { body } = await gateway.api("/mqttproxy/mqttproxy/session/query");
  assert.deepEqual(
    (body as Sessions).sessions.map(({ sessionID }) => sessionID),
    ["c0", "c1", "watcher"],
  );
  for (const id of ["c0", "c1"]) {
    const { status } = await gateway.api("/mqttproxy/mqttproxy/sessions", {
      method: "DELETE",
      body: JSON.stringify({ sessions: [{ sessionID: id }] }),
    });
    assert.ok(status < 300);
  }
  for (const each of clients) await each.closed;
  await eventually(async () => await gateway.metric("sluice_connections"), 1);
});
