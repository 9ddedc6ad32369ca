/** What HTTP publish knows of its messages: what became of them at each client, one client alone, retained ones. */
import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { connectAsync, type IPublishPacket } from "mqtt";
import { eventually } from "../helpers/eventually.ts";
import { startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, openRawClient, type RawClient } from "../helpers/raw-client.ts";

interface Answer {
  readonly status: number;
  readonly body: {
    readonly matched: number;
    readonly connected: number;
    readonly clients?: { readonly clientID: string; readonly outcome: string }[];
    readonly outcomes?: Record<string, number>;
  };
}

async function start(t: TestContext, proxy: object = {}) {
  const gateway = await startProbedGateway(t, proxy);
  const port = gateway.port();

  async function publish(message: object, query = ""): Promise<Answer> {
    const url = `${gateway.api}/apis/v2/mqttproxy/mqttproxy/topics/publish${query}`;
    const response = await fetch(url, { method: "POST", body: JSON.stringify(message) });
    return { status: response.status, body: (await response.json()) as Answer["body"] };
  }

  async function subscribed(clientId: string, topicFilter: string, qos: 0 | 1 = 1): Promise<RawClient> {
    const client = await openRawClient(port);
    await client.connect({ clientId, clean: false });
    await client.subscribe(topicFilter, qos);
    return client;
  }

  return { gateway, port, publish, subscribed };
}

async function acknowledge(client: RawClient): Promise<void> {
  const { messageId } = await client.expect("publish");
  assert.ok(messageId);
  client.send({ cmd: "puback", messageId });
}

test("wait=acked tells of each client: delivered once it has acknowledged, queued, or not in time", async (t) => {
  const { publish, subscribed } = await start(t);
  const acks = await subscribed("acks", "t");
  const qos0 = await subscribed("qos0", "t", 0);
  await subscribed("silent", "t");
  const away = await subscribed("away", "t");
  await away.disconnect();
  const answer = publish({ topic: "t", qos: 1, payload: "x" }, "?wait=acked&timeout=500ms");
  await acknowledge(acks);
  await qos0.expect("publish");
  const { status, body } = await answer;
  assert.deepEqual([status, body.matched, body.connected], [200, 4, 3]);
  assert.deepEqual(
    body.clients?.toSorted((a, b) => (a.clientID < b.clientID ? -1 : 1)),
    [
      { clientID: "acks", outcome: "delivered" },
      { clientID: "away", outcome: "queued" },
      { clientID: "qos0", outcome: "delivered" },
      { clientID: "silent", outcome: "timeout" },
    ],
  );
  assert.deepEqual(body.outcomes, { delivered: 2, queued: 1, refused: 0, timeout: 1 });
});

test("it answers as soon as everybody has acknowledged, and at once where nobody is subscribed", async (t) => {
  const { publish, subscribed } = await start(t);
  const client = await subscribed("c", "t");
  const from = performance.now();
  const answer = publish({ topic: "t", qos: 1 }, "?wait=acked&timeout=60s");
  await acknowledge(client);
  assert.deepEqual((await answer).body.clients, [{ clientID: "c", outcome: "delivered" }]);
  assert.deepEqual((await publish({ topic: "nobody", qos: 1 }, "?wait=acked&timeout=60s")).body, {
    matched: 0,
    connected: 0,
    clients: [],
    outcomes: { delivered: 0, queued: 0, refused: 0, timeout: 0 },
  });
  assert.ok(performance.now() - from < 30_000);
});

test("a client that leaves while it is waited for has it queued, or has refused it with its session", async (t) => {
  const { port, publish, subscribed } = await start(t);
  const kept = await subscribed("kept", "t");
  const clean = await connectRaw(port, "clean");
  await clean.subscribe("t");
  const answer = publish({ topic: "t", qos: 1 }, "?wait=acked&timeout=30s");
  await Promise.all([kept.expect("publish"), clean.expect("publish")]);
  kept.destroy();
  clean.destroy();
  const { clients = [] } = (await answer).body;
  assert.deepEqual(
    clients.toSorted((a, b) => (a.clientID < b.clientID ? -1 : 1)),
    [
      { clientID: "clean", outcome: "refused" },
      { clientID: "kept", outcome: "queued" },
    ],
  );
});

test("to one client, subscribed or not; nobody else gets it", async (t) => {
  const { port, publish, subscribed } = await start(t);
  const all = await subscribed("all", "#");
  const one = await connectRaw(port, "one");
  const answer = publish({ clientID: "one", topic: "cmd/reboot", qos: 1, payload: "now" }, "?wait=acked");
  const { topic, payload, messageId } = await one.expect("publish");
  assert.deepEqual([topic, String(payload)], ["cmd/reboot", "now"]);
  assert.ok(messageId);
  one.send({ cmd: "puback", messageId });
  assert.deepEqual((await answer).body.clients, [{ clientID: "one", outcome: "delivered" }]);
  await publish({ clientID: "one", payload: "hi" });
  assert.equal((await one.expect("publish")).topic, "$direct");
  assert.deepEqual((await publish({ clientID: "unknown", topic: "a" })).body, { matched: 0, connected: 0 });
  assert.deepEqual(await all.flush(), []);
});

test("a retained message waits for who subscribes later, and an empty one clears it", async (t) => {
  const { port, publish, subscribed } = await start(t);
  await publish({ topic: "state/1", payload: "on", qos: 1, retain: true });
  const first = await subscribed("first", "state/+");
  const { payload, retain } = await first.expect("publish");
  assert.deepEqual([String(payload), retain], ["on", true]);
  await publish({ topic: "state/1", retain: true });
  const second = await connectRaw(port, "second");
  await second.subscribe("state/+");
  assert.deepEqual(await second.flush(), []);
});

test("a list of messages to one topic arrives in its order", async (t) => {
  const { publish, subscribed } = await start(t);
  const client = await subscribed("c", "t/#");
  const messages = Array.from({ length: 300 }, (_, n) => ({ topic: `t/${n % 3}`, payload: String(n) }));
  const { status } = await publish(messages);
  assert.equal(status, 200);
  const got = await client.expectMany("publish", 300);
  for (const lane of [0, 1, 2]) {
    const own = got.filter(({ topic }) => topic === `t/${lane}`).map(({ payload }) => Number(payload));
    assert.deepEqual(
      own,
      messages.map((_, n) => n).filter((n) => n % 3 === lane),
    );
  }
});

test("a message that nobody could be told of in time is still delivered", async (t) => {
  const { gateway, publish, subscribed } = await start(t);
  const client = await subscribed("slow", "t");
  const { body } = await publish({ topic: "t", qos: 1, payload: "x" }, "?wait=acked&timeout=50ms");
  assert.deepEqual(body.clients, [{ clientID: "slow", outcome: "timeout" }]);
  await acknowledge(client);
  await eventually(async () => {
    const [session] = (await gateway.gateway.host.proxies.get("mqttproxy")?.sessions.query()) ?? [];
    return session?.inflight;
  }, 0);
});

test("MQTT 5: what is posted with properties arrives with them, and the device's answer with its correlation", async (t) => {
  const { gateway, port, publish } = await start(t, { brokerMode: true });
  const device = await connectAsync(gateway.url(), { clientId: "dev1", protocolVersion: 5, reconnectPeriod: 0 });
  const backend = await connectRaw(port, "backend");
  await backend.subscribe("answers/#");
  device.on("message", (_topic, payload, { properties }) => {
    const { responseTopic, correlationData } = properties ?? {};
    assert.ok(responseTopic && correlationData);
    device.publish(responseTopic, `${String(payload)} ${String(correlationData)}`, { qos: 1 });
  });
  const received = new Promise<[topic: string, packet: IPublishPacket]>((resolve) =>
    device.once("message", (topic, _payload, packet) => resolve([topic, packet])),
  );
  const answer = publish(
    {
      clientID: "dev1",
      topic: "cmd/read",
      qos: 2,
      payload: "temperature",
      properties: {
        payloadFormat: 1,
        messageExpiry: 60,
        contentType: "text/plain",
        responseTopic: "answers/1",
        correlationData: "req-7",
        userProperties: [
          ["b", "1"],
          ["a", "2"],
          ["b", "3"],
        ],
      },
    },
    "?wait=acked",
  );
  const [topic, packet] = await received;
  assert.deepEqual([topic, packet.qos], ["cmd/read", 2]);
  const { messageExpiryInterval = 0, userProperties, ...properties } = packet.properties ?? {};
  assert.ok(messageExpiryInterval >= 58 && messageExpiryInterval <= 60);
  assert.deepEqual(
    { ...properties, ...userProperties },
    {
      payloadFormatIndicator: true,
      contentType: "text/plain",
      responseTopic: "answers/1",
      correlationData: Buffer.from("req-7"),
      a: "2",
      b: ["1", "3"],
    },
  );
  assert.deepEqual((await answer).body.clients, [{ clientID: "dev1", outcome: "delivered" }]);
  const reply = await backend.expect("publish");
  assert.deepEqual([reply.topic, String(reply.payload)], ["answers/1", "temperature req-7"]);
  await device.endAsync(true);
});

test("MQTT 5: properties that can't be sent are refused", async (t) => {
  const { publish } = await start(t);
  const { status } = await publish({ topic: "a", properties: { responseTopic: "a/+" } });
  assert.equal(status, 400);
});
