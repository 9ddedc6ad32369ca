/** What one gateway of a cluster knows of the others: whom a message matches, who has it, who is connected where. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { connectAsync, type IClientOptions, type IPublishPacket, type MqttClient } from "mqtt";
import { eventually } from "../helpers/eventually.ts";
import { startCluster } from "../helpers/gateway-cluster.ts";
import type { TestGateway } from "../helpers/gateway.ts";
import { startNats } from "../helpers/nats.ts";
import { sluice } from "../helpers/sluice.ts";

const nats = await startNats();
const urls = nats?.urls ?? [];
after(() => nats?.stop());

describe("two gateways on NATS", { skip: !nats }, () => {
  let one: TestGateway;
  let two: TestGateway;
  const clients: MqttClient[] = [];
  before(async () => {
    const presence = "presence: { pipeline: presence, topic: presence }\nretained: { maxMessages: 40 }";
    const options = `replicas: 1
---
kind: Pipeline
name: presence
filters: [{ name: presence, kind: FileMQTT, dir: presence, topic: { default: presence } }]`;
    [one, two] = (await startCluster({ urls, namespace: "v", options, proxy: presence }, ["one", "two"])) as [
      TestGateway,
      TestGateway,
    ];
  });
  after(async () => {
    await Promise.all(clients.map((client) => client.endAsync(true)));
    await Promise.all([one, two].map((gateway) => gateway.stop()));
  });

  async function connect(gateway: TestGateway, clientId: string, options: IClientOptions = {}) {
    const got: IPublishPacket[] = [];
    const client = await connectAsync(gateway.url(), {
      clientId,
      protocolVersion: 5,
      reconnectPeriod: 0,
      ...options,
    });
    clients.push(client);
    client.on("message", (_, __, packet) => got.push(packet));
    return { client, got, payloads: () => got.map(({ payload }) => payload.toString()) };
  }

  async function publish(gateway: TestGateway, body: object, query = ""): Promise<Record<string, unknown>> {
    const response = await fetch(`${gateway.api}/apis/v2/mqttproxy/mqttproxy/topics/publish${query}`, {
      method: "POST",
      body: JSON.stringify(body),
    });
    assert.equal(response.status, 200);
    return (await response.json()) as Record<string, unknown>;
  }

  const lasting: IClientOptions = { clean: false, properties: { sessionExpiryInterval: 600 } };

  test("matched: an HTTP publish counts clients at both, says who is not counted, and no publisher is told 0x10", async () => {
    const here = await connect(one, "count-here");
    const there = await connect(two, "count-there");
    await here.client.subscribeAsync("count/#", { qos: 1 });
    await there.client.subscribeAsync("count/both", { qos: 1 });
    await there.client.subscribeAsync("count-there", { qos: 0 });
    const uncounted = ["absent"];
    assert.deepEqual(await publish(one, { topic: "count/both", qos: 1 }), { matched: 2, connected: 2, uncounted });
    assert.deepEqual(await publish(one, { topic: "count-there" }), { matched: 1, connected: 1, uncounted });
    assert.deepEqual(await publish(one, { topic: "count-nobody" }), { matched: 0, connected: 0, uncounted });
    const list = [{ topic: "count/both" }, { topic: "count-there" }];
    assert.deepEqual(await publish(one, list), [
      { matched: 2, connected: 2, uncounted },
      { matched: 1, connected: 1, uncounted },
    ]);
    assert.deepEqual(await publish(one, { topic: "t", qos: 1, clientID: "count-there" }), { matched: 1, connected: 1 });
    for (const topic of ["count-there", "count-nobody"]) {
      const ack = await here.client.publishAsync(topic, "x", { qos: 1 });
      assert.equal((ack as { reasonCode?: number } | undefined)?.reasonCode ?? 0, 0, topic);
    }
    const { stdout } = await sluice(one.folder, ["publish", "mqttproxy", "count-nobody", "x", "--api", one.api]);
    assert.match(stdout, /^no connected client is subscribed to this topic \(clients that are away are not counted\)$/m);
  });

  test("wait=acked: clients connected to the other node are waited for, absent ones are told apart", async () => {
    const here = await connect(one, "acked-here", lasting);
    const there = await connect(two, "acked-there", lasting);
    const away = await connect(two, "acked-away", lasting);
    const slow = await connect(two, "acked-slow", { customHandleAcks: () => undefined });
    const members = [await connect(two, "acked-m1"), await connect(two, "acked-m2")];
    for (const { client } of [here, there, away]) await client.subscribeAsync("acked", { qos: 1 });
    await slow.client.subscribeAsync("acked-slow", { qos: 1 });
    for (const { client } of members) await client.subscribeAsync("$share/g/acked-shared", { qos: 2 });
    await away.client.endAsync();

    const { clients: told, ...rest } = await publish(one, { topic: "acked", qos: 1 }, "?wait=acked&timeout=10s");
    assert.deepEqual(
      (told as { clientID: string }[]).toSorted((a, b) => (a.clientID < b.clientID ? -1 : 1)),
      ["acked-here", "acked-there"].map((clientID) => ({ clientID, outcome: "delivered" })),
    );
    assert.deepEqual(rest, {
      matched: 2,
      connected: 2,
      uncounted: ["absent"],
      outcomes: { delivered: 2, queued: 0, refused: 0, timeout: 0 },
    });

    const waiting = await publish(one, { topic: "acked-slow", qos: 1 }, "?wait=acked&timeout=500ms");
    assert.deepEqual(waiting["clients"], [{ clientID: "acked-slow", outcome: "timeout" }]);

    const toAbsent = { clientID: "acked-away", topic: "t", qos: 1 };
    assert.deepEqual(await publish(one, toAbsent, "?wait=acked"), {
      matched: 1,
      connected: 0,
      clients: [{ clientID: "acked-away", outcome: "queued" }],
      outcomes: { delivered: 0, queued: 1, refused: 0, timeout: 0 },
    });

    const shared = await publish(one, { topic: "acked-shared", qos: 2 }, "?wait=acked&timeout=10s");
    assert.deepEqual([shared["matched"], shared["outcomes"]], [1, { delivered: 1, queued: 0, refused: 0, timeout: 0 }]);
    assert.match((shared["clients"] as { clientID: string }[])[0]?.clientID ?? "", /^acked-m[12]$/);

    const back = await connect(one, "acked-away", lasting);
    await eventually(() => back.got.map(({ topic }) => topic).toSorted(), ["acked", "t"]);
  });
});
