/** Clients that devices run, in both protocol versions: Eclipse Paho's for Python and for Java. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { FilterContext } from "../../kernel/plugin.ts";
import { findJavaClient, findPythonClient } from "../helpers/paho.ts";
import { publishes, startProbedGateway } from "../helpers/probed-gateway.ts";

const [python, java] = [await findPythonClient(), await findJavaClient()];

function checkUser(ctx: FilterContext): void {
  assert.ok(ctx.type === "Connect");
  const { username, password } = ctx.packet;
  if (username !== "user" || String(password) !== "secret") ctx.reject("badUserNameOrPassword");
}

// Python's overlooks that a PUBREC refuses, sends the PUBREL that must not follow, and tells the answer to that.
for (const { name, client, refusedAtQos2 } of [
  { name: "Python's paho", client: python, refusedAtQos2: 0x92 },
  { name: "Java's Paho", client: java, refusedAtQos2: 0x87 },
]) {
  for (const version of ["3.1.1", "5"] as const) {
    test(`${name}, MQTT ${version}: each QoS, sessions, wills, refusals, both modes`, { skip: !client }, async (t) => {
      assert.ok(client);
      const pipelines = { Connect: {}, Publish: {}, Subscribe: {} };
      const broker = await startProbedGateway(t, { brokerMode: true }, pipelines);
      broker.probes.Connect.handle = checkUser;
      broker.probes.Publish.handle = (ctx) => {
        if (ctx.type === "Publish" && ctx.packet.topic === "refused/1") ctx.reject("notAuthorized");
      };
      broker.probes.Subscribe.handle = (ctx) => {
        if (ctx.type !== "Subscribe") return;
        for (const each of ctx.packet.subscriptions) each.refused = each.topicFilter === "refused/#";
      };
      const proxy = await startProbedGateway(t, {}, { Connect: {}, Publish: {} });
      proxy.probes.Connect.handle = checkUser;

      const lines = await client(String(broker.port()), String(proxy.port()), version);
      const isV5 = version === "5";
      assert.deepEqual(lines, [
        `refused connect ${isV5 ? 0x86 : 4}`,
        "subscribed 2",
        ...[0, 1, 2].flatMap((qos) => [1, 2, 3, 4, 5].map((n) => `echo echo/${qos} ${qos}-${n} ${qos} 0`)),
        "retained kept/1 kept 1 1",
        "session 0",
        "session 1",
        ...[1, 2].flatMap((qos) => [1, 2, 3].map((n) => `queued away/${qos} away-${n} ${qos} 0`)),
        "will wills/mortal gone 1",
        ...(isV5 ? ["properties answers/1 00016964 text/plain b=1,a=2,b=3"] : []),
        `refused subscribe ${isV5 ? 0x87 : 0x80}`,
        ...(isV5 ? ["refused publish 135"] : []),
        // Nobody subscribes to it: 16.
        `then ${isV5 ? 16 : 0}`,
        ...(isV5 ? [`refused publish ${refusedAtQos2}`] : []),
        "done",
      ]);
      assert.deepEqual(
        publishes(proxy.probes.Publish).map(({ packet, client: { id, username } }) => [
          id,
          username,
          packet.topic,
          String(packet.payload),
          packet.qos,
        ]),
        [0, 1, 2].map((qos) => ["proxied", "user", "to/pipeline", `proxied-${qos}`, qos]),
      );
    });
  }
}
