/** MQTT 5 with clients that people use: mqtt.js and, where it is installed, mosquitto_pub and mosquitto_sub. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { test, type TestContext } from "node:test";
import { connectAsync, type IClientOptions, type IDisconnectPacket, type IPublishPacket } from "mqtt";
import { eventually } from "../helpers/eventually.ts";
import { startProbedGateway } from "../helpers/probed-gateway.ts";

const hasMosquitto = spawnSync("mosquitto_pub", ["--version"]).error === undefined;
if (!hasMosquitto && process.env["CI"] === "true") throw new Error("mosquitto's clients are not installed");

async function connect(t: TestContext, url: string, options: IClientOptions) {
  const client = await connectAsync(url, { protocolVersion: 5, reconnectPeriod: 0, ...options });
  t.after(() => client.endAsync(true));
  return client;
}

test("mqtt.js: properties, options, identifiers and reasons in both directions", async (t) => {
  const { url, probes } = await startProbedGateway(t, { brokerMode: true }, { Publish: {} });
  const subscriber = await connect(t, url(), { clientId: "sub", properties: { topicAliasMaximum: 3 } });
  const granted = await subscriber.subscribeAsync({ "t/+": { qos: 2, rap: true, nl: false, rh: 0 } }, {
    properties: { subscriptionIdentifier: 7 },
  } as never);
  assert.equal(granted[0]?.qos, 2);
  const arrived = new Promise<[string, Buffer, IPublishPacket]>((resolve) =>
    subscriber.once("message", (...message) => resolve(message)),
  );
  const publisher = await connect(t, url(), { clientId: "pub" });
  await publisher.publishAsync("t/1", "question", {
    qos: 2,
    retain: true,
    properties: {
      responseTopic: "answers/1",
      correlationData: Buffer.from("id"),
      contentType: "text/plain",
      payloadFormatIndicator: true,
      messageExpiryInterval: 60,
      userProperties: { a: ["1", "2"] },
    },
  });
  const [topic, payload, packet] = await arrived;
  assert.deepEqual([topic, String(payload), packet.qos, packet.retain], ["t/1", "question", 2, true]);
  const { userProperties, ...others } = packet.properties ?? {};
  assert.deepEqual({ ...userProperties }, { a: ["1", "2"] });
  assert.deepEqual(others, {
    responseTopic: "answers/1",
    correlationData: Buffer.from("id"),
    contentType: "text/plain",
    payloadFormatIndicator: true,
    messageExpiryInterval: 60,
    subscriptionIdentifier: 7,
    topicAlias: 1,
  });
  probes.Publish.handle = (ctx) => ctx.reject("notAuthorized", "not yours");
  await assert.rejects(
    publisher.publishAsync("t/2", "x", { qos: 1 }),
    (error: { code?: number }) => error.code === 0x87,
  );
});

test("mqtt.js: a refusal's reason, and a takeover's", async (t) => {
  const { url, probes } = await startProbedGateway(t, {}, { Connect: {} });
  const first = await connect(t, url(), { clientId: "same" });
  const told = new Promise<IDisconnectPacket>((resolve) => first.once("disconnect", resolve));
  await connect(t, url(), { clientId: "same" });
  assert.equal((await told).reasonCode, 0x8e);
  probes.Connect.handle = (ctx) => ctx.reject("banned");
  await assert.rejects(
    connectAsync(url(), { protocolVersion: 5, reconnectPeriod: 0 }),
    (error: { code?: number }) => error.code === 0x8a,
  );
});

test("mqtt.js: topic aliases that it chooses itself", async (t) => {
  const { url, probes } = await startProbedGateway(t, {}, { Publish: {} });
  const client = await connect(t, url(), { clientId: "c", autoAssignTopicAlias: true });
  for (let n = 0; n < 6; n++) await client.publishAsync(`t/${n % 2}`, String(n), { qos: 1 });
  assert.deepEqual(
    probes.Publish.seen.map((ctx) => (ctx.type === "Publish" ? ctx.packet.topic : "")),
    ["t/0", "t/1", "t/0", "t/1", "t/0", "t/1"],
  );
});

for (const qos of ["0", "1", "2"]) {
  test(
    `mosquitto_pub and mosquitto_sub -V 5 at QoS ${qos}`,
    { skip: hasMosquitto ? false : "mosquitto's clients are not installed" },
    async (t) => {
      const { port, gateway } = await startProbedGateway(t, { brokerMode: true });
      const at = ["-h", "127.0.0.1", "-p", String(port()), "-V", "5", "-q", qos];
      const format = "%t|%p|%q|%C|%R|%D|%P";
      const subscriber = spawn("mosquitto_sub", [
        ...at,
        "-t",
        "t/#",
        "-C",
        "3",
        "-F",
        format,
        "-c",
        "-i",
        "sub",
        "-x",
        "60",
      ]);
      t.after(() => subscriber.kill());
      const ended = once(subscriber, "close");
      const lines: string[] = [];
      createInterface({ input: subscriber.stdout }).on("line", (line) => lines.push(line));
      const sessions = gateway.host.proxies.get("mqttproxy")?.sessions;
      await eventually(async () => (await sessions?.query())?.[0]?.subscriptions.length, 1);
      for (const payload of ["one", "two", "three"]) {
        const publisher = spawn("mosquitto_pub", [
          ...at,
          "-t",
          "t/x",
          "-m",
          payload,
          "-D",
          "publish",
          "content-type",
          "text/plain",
          "-D",
          "publish",
          "response-topic",
          "re/1",
          "-D",
          "publish",
          "correlation-data",
          "id",
          "-D",
          "publish",
          "user-property",
          "name",
          "value",
        ]);
        assert.deepEqual(await once(publisher, "exit"), [0, null]);
      }
      assert.deepEqual(await ended, [0, null]);
      assert.deepEqual(
        lines,
        ["one", "two", "three"].map((payload) => `t/x|${payload}|${qos}|text/plain|re/1|id|name:value`),
      );
    },
  );
}

test(
  "mosquitto_pub -V 5 is told why it is refused",
  { skip: hasMosquitto ? false : "mosquitto's clients are not installed" },
  async (t) => {
    const { port, probes } = await startProbedGateway(t, {}, { Connect: {}, Publish: {} });
    probes.Publish.handle = (ctx) => ctx.reject("quotaExceeded");
    const args = ["-h", "127.0.0.1", "-p", String(port()), "-V", "5", "-q", "1", "-t", "t", "-m", "x"];
    async function run(): Promise<string> {
      const publisher = spawn("mosquitto_pub", args);
      let text = "";
      publisher.stderr.on("data", (chunk) => (text += String(chunk)));
      await once(publisher, "close");
      return text;
    }
    assert.match(await run(), /Quota exceeded/);
    probes.Connect.handle = (ctx) => ctx.reject("banned");
    assert.match(await run(), /Banned/i);
  },
);
