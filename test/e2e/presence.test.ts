/** Presence: a pipeline hears of clients that come and go. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { PublishContext } from "../../kernel/plugin.ts";
import { eventually } from "../helpers/eventually.ts";
import { type Probe, publishes, startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw } from "../helpers/raw-client.ts";

const presence = { presence: { pipeline: "on-Publish", topic: "presence/of/devices" } };

type Told = Record<string, unknown>;

const bodyOf = ({ packet }: PublishContext): Told => JSON.parse(packet.payload.toString()) as Told;
const told = (probe: Probe): Told[] => publishes(probe).map(bodyOf);

test("a client that comes and goes is told of, with a counter that both messages of a connection share", async (t) => {
  const { probes, port } = await startProbedGateway(t, presence, { Publish: {} });
  const startedAt = Date.now();
  const client = await connectRaw(port(), "dev1", { username: "me" });
  await probes.Publish.entered(1);
  await client.publish("a", "1");
  await client.disconnect();
  await probes.Publish.entered(3);
  const [connected, , disconnected] = publishes(probes.Publish);
  assert.ok(connected && disconnected);
  for (const ctx of [connected, disconnected]) {
    const { topic, qos, retain, dup, packetId } = ctx.packet;
    assert.deepEqual(
      { origin: ctx.origin, id: ctx.client.id, topic, qos, retain, dup, packetId },
      {
        origin: "presence",
        id: "dev1",
        topic: "presence/of/devices",
        qos: 1,
        retain: false,
        dup: false,
        packetId: undefined,
      },
    );
  }
  const { connection, at, ...rest } = bodyOf(connected);
  assert.ok(typeof connection === "number" && connection >= startedAt);
  assert.ok(typeof at === "string" && Date.parse(at) >= startedAt && Date.parse(at) <= Date.now());
  const about = { clientId: "dev1", username: "me", address: "127.0.0.1", protocolVersion: 4 };
  assert.deepEqual(rest, { event: "connected", ...about });
  const { at: _, ...last } = bodyOf(disconnected);
  assert.deepEqual(last, { event: "disconnected", reason: "disconnect", ...about, connection });
});

test("taken over: the old connection's end has the lower counter, whatever comes first", async (t) => {
  const { probes, port } = await startProbedGateway(t, presence, { Publish: {} });
  await connectRaw(port(), "dev1");
  const second = await connectRaw(port(), "dev1");
  await probes.Publish.entered(3);
  second.destroy();
  await probes.Publish.entered(4);
  const events = told(probes.Publish);
  const [first, later] = [...new Set(events.map(({ connection }) => Number(connection)))].toSorted((a, b) => a - b);
  assert.ok(first !== undefined && later !== undefined && later > first);
  assert.deepEqual(
    events.map(({ event, reason, connection }) => [event, reason, connection]),
    [
      ["connected", undefined, first],
      ["disconnected", "takenOver", first],
      ["connected", undefined, later],
      ["disconnected", "connectionLost", later],
    ],
  );
});

test("who is refused was never there; who is there when the gateway stops is told of before it ends", async (t) => {
  const gateway = await startProbedGateway(t, presence, { Connect: {}, Publish: {} });
  gateway.probes.Connect.handle = (ctx) => (ctx.client.id === "evil" ? ctx.reject("banned") : undefined);
  await assert.rejects(connectRaw(gateway.port(), "evil"));
  await connectRaw(gateway.port(), "good");
  await gateway.gateway.stop();
  assert.deepEqual(
    told(gateway.probes.Publish).map(({ event, clientId, reason }) => [event, clientId, reason]),
    [
      ["connected", "good", undefined],
      ["disconnected", "good", "shutdown"],
    ],
  );
});

test("a pipeline that fails harms no client, and is counted", async (t) => {
  const gateway = await startProbedGateway(t, presence, { Publish: {} });
  gateway.probes.Publish.handle = () => {
    throw new Error("away");
  };
  const client = await connectRaw(gateway.port(), "dev1");
  await eventually(() => gateway.metric("sluice_messages_dropped_total", { reason: "presence" }), 1);
  assert.deepEqual(await client.flush(), []);
});

test("it is switched on and off by a change, for clients that are connected too", async (t) => {
  const gateway = await startProbedGateway(t, {}, { Publish: {} });
  const { yaml } = gateway;
  const silent = await connectRaw(gateway.port(), "before");
  await gateway.reload(yaml(presence));
  await connectRaw(gateway.port(), "after");
  await silent.disconnect();
  await gateway.probes.Publish.entered(1);
  assert.deepEqual(
    told(gateway.probes.Publish).map(({ clientId }) => clientId),
    ["after"],
  );
});

test("a pipeline that is not there or takes no PUBLISH, and a topic that is none, are refused with their place", async (t) => {
  const start = (value: object, types = {}) => startProbedGateway(t, { presence: value }, types);
  await assert.rejects(
    start({ pipeline: "on-Publsh", topic: "a" }, { Publish: {} }),
    /sluice\.yaml:\d+:\d+ > mqttproxy > presence\.pipeline: no Pipeline is named "on-Publsh"; did you mean "on-Publish"\?/,
  );
  await assert.rejects(
    start({ pipeline: "on-Publish", topic: "a/+" }, { Publish: {} }),
    /> mqttproxy > presence\.topic: is no topic name: a topic name must not contain the wildcards/,
  );
});
