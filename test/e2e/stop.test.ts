/** The gateway stops: what is under way is finished, what was acknowledged is kept, everything is closed. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { connectAsync } from "mqtt";
import { startTestGateway } from "../helpers/gateway.ts";
import { startProbedGateway, toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw, openRawClient, publishPacket } from "../helpers/raw-client.ts";

test("PUBLISHes under way when the gateway stops are acknowledged before their connection is closed", async (t) => {
  const { port, probes, gateway, api } = await startProbedGateway(t, {}, { Publish: { concurrent: true } });
  const gate = Promise.withResolvers<void>();
  probes.Publish.handle = () => gate.promise;
  const client = await connectRaw(port(), "busy");
  const idle = await connectRaw(port(), "idle");
  const unknown = await openRawClient(port());
  client.send(publishPacket("a/b", "1", 1), publishPacket("a/b", "2", 2));
  await probes.Publish.entered(2);

  const stopped = gateway.stop();
  await assert.rejects(openRawClient(port()), { code: "ECONNREFUSED" });
  // Nothing new is taken.
  client.send(publishPacket("a/b", "3", 3));
  gate.resolve();
  const acks = await client.expectMany("puback", 2);
  assert.deepEqual(
    acks.map(({ messageId }) => messageId),
    [1, 2],
  );
  await client.expectClose();
  await idle.expectClose();
  await unknown.expectClose();
  await stopped;
  assert.equal(probes.Publish.seen.length, 2);
  assert.ok(probes.Publish.closed);
  await assert.rejects(fetch(`${api}/apis/v2/healthz`));
});

test("a filter that never answers holds a stop no longer than its deadline", async (t) => {
  const { port, probes, gateway } = await startProbedGateway(t, {}, { Publish: { timeout: 0.5 }, Disconnect: {} });
  probes.Publish.handle = () => new Promise(() => undefined);
  const client = await connectRaw(port(), "busy");
  client.send(publishPacket("a/b", "1", 1));
  await probes.Publish.entered(1);
  const from = performance.now();
  await gateway.stop();
  const took = performance.now() - from;
  assert.ok(took < 3000, `took ${took} ms`);
  await client.expectClose();
  assert.equal(probes.Disconnect.seen.length, 1);
  assert.ok(probes.Publish.closed);
});

test("a client that reads nothing does not hold a stop", async (t) => {
  const { port, gateway } = await startProbedGateway(t, { brokerMode: true });
  const deaf = await connectRaw(port(), "deaf");
  await deaf.subscribe("flood");
  deaf.socket.pause();
  const publisher = await connectRaw(port(), "publisher");
  for (let n = 0; n < 100; n++) await publisher.publish("flood", Buffer.alloc(100_000));
  const from = performance.now();
  await gateway.stop();
  const took = performance.now() - from;
  assert.ok(took < 6000, `took ${took} ms`);
  deaf.destroy();
});

test("nothing that was acknowledged is missing from FileMQTT's file after a stop under load", async (t) => {
  const gateway = await startTestGateway(
    toYaml([
      {
        kind: "MQTTProxy",
        name: "mqttproxy",
        host: "127.0.0.1",
        port: 0,
        rules: [{ when: { packetType: "Publish" }, pipeline: "sink" }],
      },
      {
        kind: "Pipeline",
        name: "sink",
        filters: [{ name: "file", kind: "FileMQTT", dir: "data", topic: { default: "records" } }],
      },
    ]),
  );
  t.after(() => gateway.stop());
  const acked: string[] = [];
  const clients = await Promise.all(
    Array.from({ length: 5 }, async (_, index) => {
      const client = await connectAsync(gateway.url(), { clientId: `c${index}`, reconnectPeriod: 0 });
      client.on("error", () => undefined);
      return client;
    }),
  );
  const ended = clients.map((client, index) => {
    let next = 0;
    const publish = (): void => {
      const payload = `${index}-${next++}`;
      client.publish("a/b", payload, { qos: 1 }, (error) => {
        if (error) return;
        acked.push(payload);
        publish();
      });
    };
    for (let n = 0; n < 20; n++) publish();
    return new Promise<void>((resolve) => client.once("close", () => resolve()));
  });
  while (acked.length < 2000) await new Promise((resolve) => setTimeout(resolve, 5));
  await gateway.gateway.stop();
  await Promise.all(ended);
  for (const client of clients) client.end(true);
  const lines = (await readFile(join(gateway.folder, "data", "records.ndjson"), "utf8")).trimEnd().split("\n");
  const records = lines.map(
    (line) => JSON.parse(line) as { value: string; key: string; headers: Record<string, string> },
  );
  const written = new Set(records.map(({ value }) => value));
  assert.deepEqual(
    acked.filter((payload) => !written.has(payload)),
    [],
  );
  assert.ok(records.every(({ key, headers }) => headers["clientID"] === key && headers["mqttTopic"] === "a/b"));
  // Each client's in their order.
  for (const index of clients.keys()) {
    const own = records.map(({ value }) => value.split("-").map(Number)).filter(([client]) => client === index);
    assert.deepEqual(
      own.map(([, n]) => n),
      own.map((_, n) => n),
    );
  }
});

test("clients are closed at drain.rate, and those whose turn has not come are served until it does", async (t) => {
  const yaml = (drain: string) => `
kind: Gateway
name: gateway
drain: ${drain}
---
kind: MQTTProxy
name: mqttproxy
port: 0
brokerMode: true
`;
  const { url, gateway } = await startTestGateway(yaml("{timeout: 20, rate: 50}"));
  t.after(() => gateway.stop());
  const closedAt: number[] = [];
  const clients = await Promise.all(
    Array.from({ length: 25 }, async (_, n) => {
      const client = await connectAsync(url(), { clientId: `c${n}`, reconnectPeriod: 0 });
      client.on("close", () => closedAt.push(performance.now()));
      return client;
    }),
  );
  const from = performance.now();
  const stopped = gateway.stop();
  const last = clients.at(-1);
  assert.ok(last);
  await last.publishAsync("t", "still served", { qos: 1 });
  assert.equal(last.connected, true);
  await stopped;
  while (closedAt.length < 25) await new Promise((resolve) => setTimeout(resolve, 5));
  const took = Math.max(...closedAt) - from;
  assert.ok(took > 350 && took < 10_000, `25 clients at 50 a second took ${took} ms`);
});
