/** $SYS/broker: what a proxy tells its subscribers of itself. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { eventually } from "../helpers/eventually.ts";
import { startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, publishPacket, type RawClient } from "../helpers/raw-client.ts";

/** Topic -> payload of what has been delivered by now. */
async function told(client: RawClient): Promise<Map<string, string>> {
  const packets = (await client.flush()).filter((packet) => packet.cmd === "publish");
  return new Map(packets.map(({ topic, payload }) => [topic, String(payload)]));
}

test("is off unless it is asked for; `#` never has it [MQTT-4.7.2-1]", async (t) => {
  const gateway = await startProbedGateway(t, { brokerMode: true });
  const client = await connectRaw(gateway.port(), "c");
  await client.subscribe("$SYS/#");
  assert.equal((await told(client)).size, 0);
  const everything = await connectRaw(gateway.port(), "all");
  await everything.subscribe("#");
  await gateway.reload(gateway.yaml({ brokerMode: true, sysInterval: 3600 }));
  await eventually(async () => (await told(client)).has("$SYS/broker/uptime"), true);
  assert.equal((await told(everything)).size, 0);
});

test("who subscribes gets the usual topics at once, and again each interval", async (t) => {
  const gateway = await startProbedGateway(t, { brokerMode: true, sysInterval: 1 });
  const other = await connectRaw(gateway.port(), "other");
  await other.subscribe("b", 1);
  await other.publish("a", "x");
  const client = await connectRaw(gateway.port(), "c");
  await client.subscribe("$SYS/broker/#", 0);
  const first = await told(client);
  assert.deepEqual([...first.keys()].toSorted(), [
    "$SYS/broker/clients/connected",
    "$SYS/broker/clients/disconnected",
    "$SYS/broker/clients/maximum",
    "$SYS/broker/clients/total",
    "$SYS/broker/messages/received",
    "$SYS/broker/messages/sent",
    "$SYS/broker/publish/messages/dropped",
    "$SYS/broker/publish/messages/received",
    "$SYS/broker/publish/messages/sent",
    "$SYS/broker/retained messages/count",
    "$SYS/broker/store/messages/bytes",
    "$SYS/broker/store/messages/count",
    "$SYS/broker/subscriptions/count",
    "$SYS/broker/uptime",
    "$SYS/broker/version",
  ]);
  assert.match(first.get("$SYS/broker/version") ?? "", /^sluice version \d/);
  let last = first;
  await eventually(async () => {
    last = new Map([...last, ...(await told(client))]);
    return ["clients/connected", "subscriptions/count", "publish/messages/received"].map((name) =>
      last.get(`$SYS/broker/${name}`),
    );
  }, ["2", "2", "1"]);
});

test("nobody else publishes there, and it is forgotten when it is switched off", async (t) => {
  const gateway = await startProbedGateway(t, { brokerMode: true, sysInterval: 3600 });
  const listener = await connectRaw(gateway.port(), "listener");
  await listener.subscribe("$SYS/#");
  await told(listener);
  const liar = await connectRaw(gateway.port(), "liar");
  liar.send(publishPacket("$SYS/broker/version", "fake", 1));
  await liar.expect("puback");
  assert.equal((await told(listener)).size, 0);
  assert.equal(await gateway.metric("sluice_messages_dropped_total", { reason: "sys_topic" }), 1);
  await gateway.reload(gateway.yaml({ brokerMode: true }));
  const late = await connectRaw(gateway.port(), "late");
  await late.subscribe("$SYS/#");
  assert.equal((await told(late)).size, 0);
  assert.equal(await gateway.metric("sluice_retained_messages"), 0);
});
