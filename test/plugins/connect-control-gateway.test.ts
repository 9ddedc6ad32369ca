/** ConnectControl through the front door, with real clients. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { connectAsync } from "mqtt";
import type { MqttClient } from "mqtt";
import { startTestGateway } from "../helpers/gateway.ts";

const yaml = `
kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
brokerMode: true
rules:
- when: { packetType: Connect }
  pipeline: control
- when: { packetType: Subscribe }
  pipeline: control
- when: { packetType: Publish }
  pipeline: control
---
kind: Pipeline
name: control
protocol: MQTT
filters:
- name: control
  kind: ConnectControl
  bannedClients: [ban1]
  bannedClientRe: ^phone
  bannedTopics: [secret/#]
`;

test("L50: banned clients stay out, banned topics reach nobody", async (t) => {
  const gateway = await startTestGateway(yaml);
  t.after(() => gateway.stop());
  const connect = async (clientId: string, options: object = {}): Promise<MqttClient> => {
    const client = await connectAsync(gateway.url(), { clientId, reconnectPeriod: 0, ...options });
    t.after(() => client.endAsync(true));
    return client;
  };

  for (const clientId of ["ban1", "phone-7"]) {
    await assert.rejects(connect(clientId), { code: 5 }, clientId);
  }
  await assert.rejects(connect("good", { will: { topic: "secret/x", payload: Buffer.from("gone"), qos: 0 } }), {
    code: 5,
  });

  const reader = await connect("reader");
  const writer = await connect("writer");
  const granted = await reader
    .subscribeAsync(["news", "secret/x", "#", "+/x"], { qos: 1 })
    .catch((error: Error) => error);
  assert.ok(granted instanceof Error, "mqtt.js reports the refused topic filters as an error");
  const received: string[] = [];
  reader.on("message", (topic) => received.push(topic));
  const arrived = new Promise((resolve) => reader.once("message", resolve));
  await writer.publishAsync("news", "hello", { qos: 1 });
  await arrived;
  assert.deepEqual(received, ["news"]);

  const closed = new Promise<void>((resolve) => writer.once("close", resolve));
  writer.publish("secret/x", "psst", { qos: 0 });
  await closed;
  // Whatever the reader was to get has come before this answer.
  await reader.unsubscribeAsync("news");
  assert.deepEqual(received, ["news"]);
  assert.equal(await gateway.metric("sluice_connect_control_refusals_total", { packet: "Connect" }), 3);
  assert.equal(await gateway.metric("sluice_connect_control_refusals_total", { packet: "Subscribe" }), 3);
  assert.equal(await gateway.metric("sluice_connect_control_refusals_total", { packet: "Publish" }), 1);
});
