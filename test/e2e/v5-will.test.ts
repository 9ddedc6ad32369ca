/** Wills of MQTT 5: their delay, their properties, and what ends them. */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { test } from "node:test";
import { eventually } from "../helpers/eventually.ts";
import { publishes, startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, type RawClient } from "../helpers/raw-client.ts";

interface WillOptions {
  readonly delay?: number;
  readonly expiry?: number;
  readonly clean?: boolean;
}

function connect(
  port: number,
  clientId: string,
  { delay, expiry = 100, clean = false }: WillOptions = {},
): Promise<RawClient> {
  const properties = delay === undefined ? {} : { willDelayInterval: delay };
  return connectRaw(
    port,
    clientId,
    {
      clean,
      properties: { sessionExpiryInterval: expiry },
      will: { topic: `will/${clientId}`, payload: "gone", qos: 1, retain: false, properties },
    },
    { protocolVersion: 5 },
  );
}

async function drop(client: RawClient): Promise<void> {
  client.destroy();
  await client.closed;
}

test("[MQTT-3.1.2-8] a will without a delay is published at once, with its properties less the delay", async (t) => {
  const { port } = await startProbedGateway(t, { brokerMode: true });
  const watcher = await connectRaw(port(), "watcher", {}, { protocolVersion: 5 });
  await watcher.subscribe("will/#", 1);
  const client = await connectRaw(
    port(),
    "c",
    {
      will: {
        topic: "will/c",
        payload: "gone",
        qos: 1,
        retain: true,
        properties: {
          payloadFormatIndicator: true,
          messageExpiryInterval: 60,
          contentType: "t",
          responseTopic: "re",
          correlationData: Buffer.from([1]),
          userProperties: { a: "b" },
        },
      },
    },
    { protocolVersion: 5 },
  );
  await drop(client);
  const { payload, qos, retain, properties } = await watcher.expect("publish");
  assert.deepEqual([payload.toString(), qos, retain], ["gone", 1, false]);
  const { userProperties, ...others } = properties ?? {};
  assert.deepEqual({ ...userProperties }, { a: "b" });
  assert.deepEqual(others, {
    payloadFormatIndicator: true,
    messageExpiryInterval: 60,
    contentType: "t",
    responseTopic: "re",
    correlationData: Buffer.from([1]),
  });
  const late = await connectRaw(port(), "late", {}, { protocolVersion: 5 });
  await late.subscribe("will/#", 1);
  assert.equal((await late.expect("publish")).retain, true, "[MQTT-3.1.2-15]");
});

test("[MQTT-3.1.3-9] a client that comes back within the delay has no will published, one that does not has", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
  for (const id of ["back", "away"]) await drop(await connect(port(), id, { delay: 1 }));
  await connect(port(), "back", { delay: 1 });
  await sleep(300);
  assert.equal(probes.Publish.seen.length, 0);
  await probes.Publish.entered(1);
  await sleep(200);
  assert.deepEqual(
    publishes(probes.Publish).map(({ packet, origin }) => [packet.topic, origin]),
    [["will/away", "will"]],
  );
});

test("[MQTT-3.1.2-8] the end of the session ends the delay: its expiry, a clean start, a removal", async (t) => {
  const { port, probes, gateway } = await startProbedGateway(t, {}, { Publish: {} });
  await drop(await connect(port(), "expires", { delay: 1000, expiry: 1 }));
  await drop(await connect(port(), "none", { delay: 1000, expiry: 0 }));
  await probes.Publish.entered(1);
  await drop(await connect(port(), "cleans", { delay: 1000 }));
  await connect(port(), "cleans", { clean: true });
  await probes.Publish.entered(2);
  await drop(await connect(port(), "removed", { delay: 1000 }));
  await gateway.host.proxies.get("mqttproxy")?.sessions.remove("removed");
  await probes.Publish.entered(4);
  assert.deepEqual(
    publishes(probes.Publish)
      .map(({ packet }) => packet.topic)
      .toSorted(),
    ["will/cleans", "will/expires", "will/none", "will/removed"],
  );
});

test("[MQTT-3.14.4-3] [MQTT-3.1.2-10] DISCONNECT 0 takes the will away, 4 and errors don't", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
  for (const reasonCode of [0, 4, 0x80]) {
    const client = await connect(port(), `c${reasonCode}`);
    client.send({ cmd: "disconnect", reasonCode });
    await client.expectClose();
  }
  await probes.Publish.entered(2);
  await sleep(50);
  assert.deepEqual(
    publishes(probes.Publish).map(({ packet }) => packet.topic),
    ["will/c4", "will/c128"],
  );
});

test("[MQTT-3.1.4-3] a takeover publishes the will of the older connection, unless its delay lets the session go on", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
  await connect(port(), "now");
  await connect(port(), "now");
  await probes.Publish.entered(1);
  await connect(port(), "later", { delay: 1 });
  await connect(port(), "later", { delay: 1 });
  await sleep(1200);
  assert.deepEqual(
    publishes(probes.Publish).map(({ packet }) => packet.topic),
    ["will/now"],
  );
});

test("a stop publishes the wills that wait, and none of those who were connected", async (t) => {
  const { port, probes, gateway } = await startProbedGateway(t, {}, { Publish: {} });
  await drop(await connect(port(), "away", { delay: 1000 }));
  await connect(port(), "here", { delay: 1000 });
  const sessions = gateway.host.proxies.get("mqttproxy")?.sessions;
  await eventually(async () => (await sessions?.query())?.map(({ connected }) => connected), [false, true]);
  await gateway.stop();
  assert.deepEqual(
    publishes(probes.Publish).map(({ packet }) => packet.topic),
    ["will/away"],
  );
});
