/** Three gateways on three NATS servers: what clients and backends see. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { connectAsync } from "mqtt";
import { startCluster } from "../helpers/gateway-cluster.ts";
import { createCrashSubscriber } from "../helpers/crash-clients.ts";
import { eventually } from "../helpers/eventually.ts";
import type { TestGateway } from "../helpers/gateway.ts";
import { startNats } from "../helpers/nats.ts";
import { connectRaw, openRawClient } from "../helpers/raw-client.ts";

const nats = await startNats({ nodes: 3 });
const urls = nats?.urls ?? [];
after(() => nats?.stop());

describe("a cluster of three gateways", { skip: !nats }, () => {
  let nodes: TestGateway[] = [];
  before(async () => {
    nodes = await startCluster({ urls, namespace: "e" });
  });
  after(() => Promise.all(nodes.map((node) => node.stop())));

  test("what is published at any node, by HTTP or MQTT, reaches the clients of all, once, in order", async () => {
    const clients = await Promise.all(nodes.map((node, at) => connectRaw(node.port(), `c${at}`)));
    for (const client of clients) await client.subscribe("all/#", 2);
    const sent: string[] = [];
    for (const [at, node] of nodes.entries()) {
      for (let n = 0; n < 5; n++) {
        const payload = `http ${at} ${n}`;
        const response = await fetch(`${node.api}/apis/v2/mqttproxy/mqttproxy/topics/publish`, {
          method: "POST",
          body: JSON.stringify({ topic: "all/http", qos: n % 3, payload }),
        });
        assert.equal(response.status, 200);
        sent.push(payload);
      }
    }
    for (const [at, node] of nodes.entries()) {
      const publisher = await connectAsync(node.url(), { clientId: `p${at}`, protocolVersion: 5 });
      for (let n = 0; n < 5; n++) {
        const properties = { contentType: `t${n}`, userProperties: { a: "b" } };
        await publisher.publishAsync("all/mqtt", `mqtt ${at} ${n}`, { qos: (n % 3) as 0 | 1 | 2, properties });
        sent.push(`mqtt ${at} ${n}`);
      }
      await publisher.endAsync();
    }
    for (const client of clients) {
      const got = (await client.expectMany("publish", sent.length)).map(({ payload }) => payload.toString());
      assert.deepEqual(got.toSorted(), sent.toSorted());
      for (const origin of ["http 0", "http 1", "http 2", "mqtt 0", "mqtt 1", "mqtt 2"]) {
        const reliable = got.filter((each) => each.startsWith(origin) && Number(each.slice(-1)) % 3 > 0);
        assert.deepEqual(
          reliable,
          sent.filter((each) => reliable.includes(each)),
          "in the order they were sent",
        );
      }
    }
    await eventually(
      () => clients.flatMap((client) => client.received.filter(({ cmd }) => cmd === "publish")).length,
      0,
    );
    for (const client of clients) client.destroy();
  });

  test("a client that connects at another node is taken over from the first, with its session", async () => {
    const [one, two] = nodes;
    assert.ok(one && two);
    const first = await connectRaw(one.port(), "mover", { clean: false });
    await first.subscribe("moved/+", 1);
    const second = await openRawClient(two.port());
    const connack = await second.connect({ clientId: "mover", clean: false });
    assert.equal(connack.sessionPresent, true);
    await first.closed;
    const publisher = await connectRaw(one.port(), "publisher");
    await publisher.publish("moved/1", "x");
    assert.equal(String((await second.expect("publish")).payload), "x");
    second.destroy();
    publisher.destroy();
  });

  test("what comes while a persistent client is away waits for it at every node", async () => {
    const [one, two, three] = nodes;
    assert.ok(one && two && three);
    const client = createCrashSubscriber("away", 2, "wait/#");
    await client.connect(one.port());
    client.destroy();
    const publisher = await connectAsync(two.url(), { clientId: "publisher" });
    const sent = Array.from({ length: 300 }, (_, n) =>
      publisher.publishAsync(`wait/${n % 7}`, String(n), { qos: n % 2 === 0 ? 1 : 2 }),
    );
    await Promise.all(sent);
    await client.connect(three.port());
    await eventually(() => client.got.size, 300);
    assert.deepEqual(client.doubles, []);
    client.destroy();
    await publisher.endAsync();
  });

  test("retained messages are everywhere", async () => {
    const [one, two] = nodes;
    assert.ok(one && two);
    const publisher = await connectAsync(one.url(), { clientId: "publisher" });
    await publisher.publishAsync("kept/1", "one", { qos: 1, retain: true });
    await publisher.publishAsync("kept/2", "two", { qos: 0, retain: true });
    await publisher.publishAsync("kept/3", "three", { qos: 1, retain: true });
    await publisher.publishAsync("kept/3", "", { qos: 1, retain: true });
    await eventually(async () => {
      const late = await connectRaw(two.port(), "late");
      await late.subscribe("kept/+", 1);
      const got = await late.expectMany("publish", 2);
      late.destroy();
      return got.map(({ topic, payload, retain }) => `${topic} ${payload.toString()} ${retain}`).toSorted();
    }, ["kept/1 one true", "kept/2 two true"]);
    await publisher.endAsync();
  });

  test("a shared subscription has its members at all nodes, and each message one of them", async () => {
    const members = await Promise.all(nodes.map((node, at) => connectRaw(node.port(), `m${at}`)));
    for (const member of members) await member.subscribe("$share/g/jobs/#", 1);
    const publisher = await connectRaw(nodes[0]?.port() ?? 0, "publisher");
    for (let n = 0; n < 60; n++) await publisher.publish(`jobs/${n}`, String(n));
    const payloads = (): string[] =>
      members.flatMap(({ received }) =>
        received.flatMap((each) => (each.cmd === "publish" ? [each.payload.toString()] : [])),
      );
    await eventually(() => payloads().length, 60);
    assert.equal(new Set(payloads()).size, 60);
    for (const client of [...members, publisher]) client.destroy();
  });

  test("sessions are listed and removed from any node", async () => {
    const [one, two] = nodes;
    assert.ok(one && two);
    const client = await connectRaw(one.port(), "listed", { clean: false });
    await client.subscribe("x/#");
    await eventually(async () => {
      const sessions = (await two.gateway.host.proxies.get("mqttproxy")?.sessions.query()) ?? [];
      return sessions.filter(({ clientId }) => clientId === "listed").map(({ connected }) => connected);
    }, [true]);
    assert.equal(await two.gateway.host.proxies.get("mqttproxy")?.sessions.remove("listed"), true);
    await client.closed;
    await eventually(async () => {
      const sessions = (await one.gateway.host.proxies.get("mqttproxy")?.sessions.query()) ?? [];
      return sessions.some(({ clientId }) => clientId === "listed");
    }, false);
  });
});
