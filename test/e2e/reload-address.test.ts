/** An address moves between proxies in one change: it is never unbound, and stays where it was if the change is given up. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { connect as connectTcp, createServer, type AddressInfo } from "node:net";
import { test, type TestContext } from "node:test";
import mqtt, { type MqttClient } from "mqtt";
import { eventually } from "../helpers/eventually.ts";
import { findFreePort } from "../helpers/free-port.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";

interface ProxyShape {
  readonly name: string;
  readonly port: number;
  readonly host?: string;
}

const yaml = (...proxies: readonly ProxyShape[]): string =>
  proxies.map((proxy) => JSON.stringify({ kind: "MQTTProxy", host: "127.0.0.1", ...proxy })).join("\n---\n");

async function start(t: TestContext, ...proxies: readonly ProxyShape[]): Promise<TestGateway> {
  const gateway = await startTestGateway(yaml(...proxies));
  t.after(() => gateway.stop());
  return gateway;
}

async function connect(t: TestContext, port: number, clientId: string): Promise<MqttClient> {
  const client = await mqtt.connectAsync(`mqtt://127.0.0.1:${port}`, { clientId, reconnectPeriod: 0 });
  t.after(() => client.endAsync(true));
  return client;
}

/** Which of the gateway's proxies a client that connects here now belongs to. */
async function proxyAt(t: TestContext, gateway: TestGateway, port: number): Promise<string[]> {
  const clientId = `probe-${port}-${Math.random()}`;
  const client = await connect(t, port, clientId);
  const found: string[] = [];
  for (const { name, sessions } of gateway.gateway.host.proxies.list()) {
    if ((await sessions.query()).some((session) => session.clientId === clientId)) found.push(name);
  }
  await client.endAsync();
  return found;
}

/** The kernel's number of the socket that listens on 127.0.0.1:port: another one once it was bound anew. */
async function inodeOf(port: number): Promise<string> {
  const hex = port.toString(16).toUpperCase().padStart(4, "0");
  const listening = "0A";
  const rows = (await readFile("/proc/self/net/tcp", "utf8")).split("\n").map((line) => line.trim().split(/\s+/));
  const row = rows.find(([, local, , state]) => local === `0100007F:${hex}` && state === listening);
  assert.ok(row?.[9], `nothing listens on ${port}`);
  return row[9];
}

/** Connects again and again until it is told to end. @returns how many were let in; fails at the first refusal */
function knock(port: number): () => Promise<number> {
  let isOver = false;
  const knocking = (async () => {
    let count = 0;
    for (; !isOver; count++) {
      const socket = connectTcp(port, "127.0.0.1");
      await once(socket, "connect");
      socket.destroy();
    }
    return count;
  })();
  return () => {
    isOver = true;
    return knocking;
  };
}

const actions = (plan: { items: readonly { name: string; action: string }[] } | undefined): Record<string, string> =>
  Object.fromEntries(
    (plan?.items ?? []).filter(({ action }) => action !== "keep").map(({ name, action }) => [name, action]),
  );

test("a renamed proxy takes its port along: never unbound, and the clients of the old name are drained", async (t) => {
  const port = await findFreePort();
  const gateway = await start(t, { name: "old", port });
  const client = await connect(t, port, "c");
  const closed = new Promise<void>((resolve) => client.once("close", () => resolve()));
  const inode = await inodeOf(port);
  const stopKnocking = knock(port);
  const { plan, problems } = await gateway.reload(yaml({ name: "new", port }));
  assert.deepEqual([problems, actions(plan)], [[], { new: "build", old: "drop" }]);
  await closed;
  assert.deepEqual(await proxyAt(t, gateway, port), ["new"]);
  assert.ok((await stopKnocking()) > 0);
  assert.equal(await inodeOf(port), inode);
  assert.equal(await gateway.metric("sluice_connections", { proxy: "old" }), 0);
  // The address is the new one's alone: when that one gives it up, it is free.
  await gateway.reload(yaml({ name: "new", port: 0 }));
  await assert.rejects(connect(t, port, "d"), /ECONNREFUSED/);
});

test("two proxies swap their ports in one change: nothing is bound anew, every connection stays with its proxy", async (t) => {
  const [a, b] = [await findFreePort(), await findFreePort()];
  const gateway = await start(t, { name: "one", port: a }, { name: "two", port: b });
  const clients = [await connect(t, a, "a"), await connect(t, b, "b")];
  const before = [await inodeOf(a), await inodeOf(b)];
  const knocking = [knock(a), knock(b)];
  const { plan, problems } = await gateway.reload(yaml({ name: "one", port: b }, { name: "two", port: a }));
  assert.deepEqual([problems, actions(plan)], [[], { one: "change", two: "change" }]);
  assert.deepEqual(await proxyAt(t, gateway, a), ["two"]);
  assert.deepEqual(await proxyAt(t, gateway, b), ["one"]);
  for (const stop of knocking) assert.ok((await stop()) > 0);
  assert.deepEqual([await inodeOf(a), await inodeOf(b)], before);
  assert.deepEqual([gateway.port("one"), gateway.port("two")], [b, a]);
  for (const client of clients) await client.publishAsync("t", "x", { qos: 1 });
  await eventually(() => gateway.metric("sluice_connections", { proxy: "one" }), 1);
});

test("a port goes to another proxy while its own takes a new one; what is not changed is not bound anew", async (t) => {
  const [a, b, c] = [await findFreePort(), await findFreePort(), await findFreePort()];
  const gateway = await start(t, { name: "one", port: a }, { name: "still", port: b });
  const inodes = [await inodeOf(a), await inodeOf(b)];
  await gateway.reload(yaml({ name: "two", port: a }, { name: "one", port: c }, { name: "still", port: b }));
  assert.deepEqual(await proxyAt(t, gateway, a), ["two"]);
  assert.deepEqual(await proxyAt(t, gateway, c), ["one"]);
  assert.deepEqual([await inodeOf(a), await inodeOf(b)], inodes);
});

test("a swap that is given up leaves each port with its owner, and what was bound for it is free again", async (t) => {
  const [a, b, c] = [await findFreePort(), await findFreePort(), await findFreePort()];
  const gateway = await start(t, { name: "one", port: a }, { name: "two", port: b });
  const client = await connect(t, a, "a");
  const taken = createServer().listen(0, "127.0.0.1");
  await once(taken, "listening");
  t.after(() => taken.close());
  const { port } = taken.address() as AddressInfo;
  const knocking = [knock(a), knock(b)];
  const { plan, problems } = await gateway.reload(
    yaml({ name: "one", port: b }, { name: "two", port: a }, { name: "three", port: c }, { name: "four", port }),
  );
  assert.equal(plan, undefined);
  assert.match(problems[0]?.message ?? "", /another process has it/);
  assert.deepEqual(await proxyAt(t, gateway, a), ["one"]);
  assert.deepEqual(await proxyAt(t, gateway, b), ["two"]);
  for (const stop of knocking) assert.ok((await stop()) > 0);
  await assert.rejects(connect(t, c, "c"), /ECONNREFUSED/);
  await client.publishAsync("t", "x", { qos: 1 });
  // And the same swap without the stranger's port goes through.
  await gateway.reload(yaml({ name: "one", port: b }, { name: "two", port: a }));
  assert.deepEqual(await proxyAt(t, gateway, a), ["two"]);
});

test("a renamed proxy whose port the system chose keeps it where the new name asks for that very port", async (t) => {
  const gateway = await start(t, { name: "old", port: 0 });
  const port = gateway.port("old");
  const inode = await inodeOf(port);
  const { problems } = await gateway.reload(yaml({ name: "new", port }));
  assert.deepEqual(problems, []);
  assert.equal(await inodeOf(port), inode);
});

test("a port that the system chose for a proxy which keeps it is nobody else's, whichever comes first in the config", async (t) => {
  const gateway = await start(t, { name: "one", port: 0 });
  const port = gateway.port("one");
  const both = [
    { name: "one", port: 0 },
    { name: "two", port },
  ];
  for (const proxies of [both, both.toReversed()]) {
    const { plan, problems } = await gateway.reload(yaml(...proxies));
    assert.equal(plan, undefined);
    assert.match(problems[0]?.message ?? "", new RegExp(`can't both listen on 127.0.0.1:${port}; .*set another`));
    assert.deepEqual(await proxyAt(t, gateway, port), ["one"]);
  }
});

test("an address that overlaps one which is still bound is refused with what to do, and nothing changes", async (t) => {
  const port = await findFreePort();
  const gateway = await start(t, { name: "one", port });
  const { plan, problems } = await gateway.reload(yaml({ name: "one", port, host: "0.0.0.0" }));
  assert.equal(plan, undefined);
  assert.match(
    problems[0]?.message ?? "",
    new RegExp(`can't listen on 0.0.0.0:${port}: .*this gateway itself still has 127.0.0.1:${port}.*give that one up`),
  );
  assert.deepEqual(await proxyAt(t, gateway, port), ["one"]);
});
