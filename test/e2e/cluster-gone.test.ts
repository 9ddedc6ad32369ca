/** A gateway of a cluster that is killed, or stopped, on a real NATS: the wills and the sessions of its clients. */
import assert from "node:assert/strict";
import { after, describe, test, type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { eventually } from "../helpers/eventually.ts";
import { spawnNode, startCluster } from "../helpers/gateway-cluster.ts";
import type { TestGateway } from "../helpers/gateway.ts";
import { longTest } from "../helpers/long-test.ts";
import { startNats } from "../helpers/nats.ts";
import { connectRaw, openRawClient, type RawClient } from "../helpers/raw-client.ts";
import { withWill } from "../helpers/will-packet.ts";

const nats = await startNats();
after(() => nats?.stop());

const v5 = { protocolVersion: 5 } as const;

/** Two gateways here, `n1` and `n2`, and a process `n3`. */
async function start(t: TestContext, namespace: string) {
  const options = { urls: nats?.urls ?? [], namespace, options: "replicas: 1" };
  const nodes = (await startCluster(options, ["n1", "n2"])) as [TestGateway, TestGateway];
  t.after(() => Promise.all(nodes.map((node) => node.stop())));
  const doomed = await spawnNode(t, options, "n3");
  await doomed.start();
  await eventually(() => doomed.isReady(), true, 30_000);
  return { nodes, doomed, wills: await watch(nodes[0].port()) };
}

/** The wills that a subscriber gets, by client. */
async function watch(port: number): Promise<readonly string[]> {
  const watcher = await connectRaw(port, "watcher", {}, v5);
  await watcher.subscribe("will/#", 0);
  const wills: string[] = [];
  watcher.onPacket = (packet) => {
    if (packet.cmd !== "publish") return;
    assert.deepEqual({ ...packet.properties?.userProperties }, { of: packet.topic });
    wills.push(packet.topic.slice("will/".length));
  };
  return wills;
}

function join(port: number, id: string, delaySec: number): Promise<RawClient> {
  return connectRaw(port, id, withWill(`will/${id}`, delaySec), v5);
}

async function drop(client: RawClient): Promise<void> {
  client.destroy();
  await client.closed;
}

describe("a gateway of a cluster is gone", { skip: !nats }, () => {
  test("killed: wills come once, when they are due, and sessions expire from when it was last heard of", async (t) => {
    const { nodes, doomed, wills } = await start(t, "gk");
    const [one, two] = nodes;
    const { port } = doomed.gateway();
    const doomedClient = await join(port, "now", 0);
    await join(port, "later", 14);
    await drop(await join(port, "waits", 16));
    await drop(await join(port, "cancelled", 16));
    await drop(await join(port, "back before", 30));
    await (await join(port, "polite", 0)).disconnect();
    const short = await connectRaw(port, "short", { clean: false, properties: { sessionExpiryInterval: 4 } }, v5);
    await short.subscribe("t", 1);
    await short.subscribe("$share/g/t", 1);
    const lasting = await connectRaw(port, "lasting", { clean: false, properties: { sessionExpiryInterval: 600 } }, v5);
    await lasting.subscribe("t", 1);
    const publisher = await connectRaw(one.port(), "publisher", {}, v5);
    await publisher.publish("t", "sent before");
    await lasting.expect("publish");
    // By now everything that was asked of NATS in the background has been.
    await sleep(300);
    await join(two.port(), "back before", 30);
    await doomed.kill();
    const killedAt = performance.now();
    await doomedClient.closed;

    await eventually(() => wills, ["now"], 20_000);
    // Its delay goes on at the node that has taken it over; now the client is back at another.
    await join(two.port(), "cancelled", 16);
    await eventually(() => wills, ["now", "later", "waits"], 20_000);
    assert.ok(performance.now() - killedAt > 11_000, "a delay counts from when the node was heard of last");

    const sessions = async () =>
      (await two.gateway.host.proxies.get("mqttproxy")!.sessions.query()).map(({ clientId }) => clientId);
    assert.equal((await sessions()).includes("short"), false);
    assert.equal((await sessions()).includes("lasting"), true);
    const expired = async () =>
      (await one.metric("sluice_cluster_sessions_expired_total")) +
      (await two.metric("sluice_cluster_sessions_expired_total"));
    await eventually(expired, 1, 20_000);
    const v5Session = { clean: false, properties: { sessionExpiryInterval: 600 } };
    const anew = await openRawClient(two.port(), v5);
    assert.equal((await anew.connect({ clientId: "short", ...v5Session })).sessionPresent, false);
    const again = await openRawClient(two.port(), v5);
    assert.equal((await again.connect({ clientId: "lasting", ...v5Session })).sessionPresent, true);
    const redelivered = await again.expect("publish");
    assert.deepEqual([redelivered.payload.toString(), redelivered.dup], ["sent before", true], "[MQTT-3.3.1-1]");
    await publisher.publish("t", "new");
    assert.equal((await again.expect("publish")).dup, false);
    assert.deepEqual(wills, ["now", "later", "waits"]);
    for (const client of [anew, again, publisher]) client.destroy();
  });

  test("stopped: what waits is published by another when it is due, and nothing of clients that were connected", async (t) => {
    const { doomed, wills } = await start(t, "gs");
    const { port } = doomed.gateway();
    await join(port, "connected", 0);
    await join(port, "connected, with a delay", 1);
    await drop(await join(port, "waits", 5));
    await sleep(300);
    const startedAt = performance.now();
    await doomed.gateway().stop();
    assert.deepEqual(wills, []);
    await eventually(() => wills, ["waits"], 20_000);
    assert.ok(performance.now() - startedAt > 2000, "not because its node was stopped");
    await sleep(1500);
    assert.deepEqual(wills, ["waits"]);
  });

  longTest("with workers: the wills of either side, and a client that comes back to the other", async (t) => {
    const documents = "---\nkind: Gateway\nworkers: 2";
    const options = { urls: nats?.urls ?? [], namespace: "gw", options: "replicas: 1", documents };
    const [left, doomed] = [await spawnNode(t, options, "n1"), await spawnNode(t, options, "n3")];
    await Promise.all([left.start(), doomed.start()]);
    for (const node of [left, doomed]) await eventually(() => node.isReady(), true, 30_000);
    const other = left.gateway().port;
    const wills = await watch(other);
    const { port } = doomed.gateway();
    await join(port, "now", 0);
    await join(port, "later", 12);
    await drop(await join(port, "waits", 12));
    await drop(await join(port, "cancelled", 4));
    await join(port, "taken over", 3);
    await sleep(300);
    await join(other, "cancelled", 4);
    await join(other, "taken over", 3);
    await doomed.kill();
    await eventually(() => wills.toSorted(), ["later", "now", "waits"], 30_000);
    await sleep(500);
    assert.deepEqual(wills.toSorted(), ["later", "now", "waits"]);
  });
});
