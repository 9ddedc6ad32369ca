/** Sessions of a cluster whose time is over, whatever has become of the node that had them. */
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { createTestHost } from "@sluice/testkit";
import { createDepartures } from "../../kernel/departures.ts";
import type { Message } from "../../kernel/plugin.ts";
import { encodeOwnership } from "../../kernel/session-records.ts";
import { createSessionSweep } from "../../kernel/session-sweep.ts";
import { createTestCluster, type TestCluster, type TestNode } from "../helpers/cluster.ts";
import { eventually } from "../helpers/eventually.ts";
import { connect } from "../helpers/store-contract.ts";

const metric = "sluice_cluster_sessions_expired_total";

const clusters: TestCluster[] = [];
afterEach(async () => {
  for (const cluster of clusters.splice(0)) await cluster.stop();
});

/** With so many nodes: a, b, c. */
async function open(count: number, o: Parameters<typeof createTestCluster>[0] = {}) {
  const cluster = createTestCluster({ sweepMs: 20, silenceMs: 0, ...o });
  clusters.push(cluster);
  const nodes: TestNode[] = [];
  for (const id of ["a", "b", "c"].slice(0, count)) nodes.push(await cluster.node(id));
  return { cluster, nodes: nodes as [TestNode, TestNode, TestNode], sessions: () => sessionsOf(cluster) };
}

function sessionsOf({ memory }: TestCluster): string[] {
  return memory.owned("p").filter((clientId) => !clientId.startsWith("\u0000"));
}

async function countOf(nodes: readonly TestNode[]): Promise<number> {
  const counts = await Promise.all(nodes.map((node) => node.metric(metric)));
  return counts.reduce((sum, count) => sum + count, 0);
}

function message(topic: string, payload = "x"): Message {
  return { topic, payload: Buffer.from(payload), qos: 1, retain: false };
}

test("a session whose node has died expires from when that was last known to be there, is deleted once, and counted", async () => {
  const { cluster, nodes, sessions } = await open(3);
  const [a, b, c] = nodes;
  const client = await connect(c.proxy, "s", { expirySec: 100, filters: [["t", 1]] });
  await connect(c.proxy, "forever", { filters: [["t", 1]] });
  await connect(c.proxy, "longer", { expirySec: 1000 });
  await a.proxy.publish(message("t"));
  await eventually(() => client.got.length, 1);
  cluster.pass(5000);
  const diedAt = Date.now() + 5000;
  c.kill();
  cluster.pass(90_000);
  const listed = async () => (await b.proxy.query()).map(({ clientId, expiresAt }) => [clientId, expiresAt]);
  const [forever, longer, short] = await listed();
  assert.deepEqual([forever, longer?.[0], short?.[0]], [["forever", undefined], "longer", "s"]);
  assert.ok(Math.abs(Number(short?.[1]) - (diedAt + 100_000)) < 1000, "100 s after the node was heard of last");
  cluster.pass(11_000);
  await eventually(sessions, ["forever", "longer"]);
  assert.deepEqual(cluster.memory.recordsOf("p", "s"), []);
  assert.equal(await countOf([a, b]), 1);
  assert.equal((await connect(b.proxy, "s")).handle.present, false);
  const back = await connect(b.proxy, "forever");
  assert.equal(back.handle.present, true);
  await eventually(() => back.topics(), ["t"]);
});

test("a client that comes after the time is over has a new session, also where nobody has deleted the old one", async () => {
  const { cluster, nodes } = await open(2, { sweepMs: 1e6 });
  const [a, b] = nodes;
  await connect(b.proxy, "s", { expirySec: 100, filters: [["t", 1]] });
  b.kill();
  cluster.pass(99_000);
  assert.equal((await connect(a.proxy, "s", { expirySec: 100 })).handle.present, true);
  const c = await cluster.node("c");
  await connect(c.proxy, "other", { expirySec: 100, filters: [["t", 1]] });
  c.kill();
  cluster.pass(101_000);
  assert.equal((await connect(a.proxy, "other", { expirySec: 100 })).handle.present, false);
});

test("a session that was left at a node which has died since expires", async () => {
  const { cluster, nodes, sessions } = await open(2);
  const [a, b] = nodes;
  const client = await connect(b.proxy, "s", { expirySec: 3600, filters: [["t", 1]] });
  await client.handle.close();
  b.kill();
  cluster.pass(3_599_000);
  await connect(a.proxy, "other", { expirySec: 1 });
  assert.deepEqual(sessions(), ["s", "other"]);
  cluster.pass(2000);
  await eventually(sessions, ["other"]);
  assert.equal(await countOf([a]), 1);
});

test("all nodes die at once: their sessions expire from what they had written down last", async () => {
  const { cluster, nodes, sessions } = await open(1);
  const [a] = nodes;
  await connect(a.proxy, "s", { expirySec: 3600 });
  await connect(a.proxy, "longer", { expirySec: 7200 });
  await connect(a.proxy, "forever", {});
  const isNode = (clientId: string) => clientId.startsWith("\u0000node/");
  await eventually(() => cluster.memory.owned("p").filter(isNode).length, 1);
  a.kill();
  cluster.pass(3_500_000);
  const later = await cluster.node("b");
  assert.equal(sessions().length, 3);
  cluster.pass(150_000);
  await eventually(sessions, ["longer", "forever"]);
  assert.equal(await countOf([later]), 1);
  cluster.pass(3_600_000);
  await eventually(sessions, ["forever"]);
  await (await connect(later.proxy, "forever", { expirySec: 0 })).handle.close();
  await eventually(() => cluster.memory.owned("p").filter(isNode), [], 15_000);
});

test("a node that was only out of reach keeps its sessions; one that expired meanwhile is closed", async () => {
  const { cluster, nodes, sessions } = await open(2);
  const [a, b] = nodes;
  const kept = await connect(b.proxy, "kept", { expirySec: 100 });
  await eventually(() => cluster.memory.owned("p").length, 2);
  const short = await connect(b.proxy, "short", { expirySec: 5 });
  b.memory.cutOff();
  cluster.pass(50_000);
  await eventually(sessions, ["kept"]);
  assert.deepEqual([kept.state.lost, short.state.lost], ["", ""]);
  b.memory.rejoin();
  await eventually(() => short.state.lost, "takenOver");
  cluster.pass(60_000);
  await kept.handle.subscribe("t", {
    qos: 1,
    noLocal: false,
    retainAsPublished: false,
    retainHandling: 0,
    identifier: 0,
  });
  await a.proxy.publish(message("t"));
  await eventually(() => kept.topics(), ["t"]);
  assert.deepEqual(sessions(), ["kept"]);
});

test("the node that had it and the one that looks end a session at the same time: it is ended once", async () => {
  const { cluster, nodes, sessions } = await open(3);
  const [, , c] = nodes;
  for (let n = 0; n < 50; n++) await (await connect(c.proxy, `s${n}`, { expirySec: 10 })).handle.close();
  cluster.memory.faults.delayMs = 5;
  cluster.pass(11_000);
  await eventually(sessions, []);
  cluster.memory.faults.delayMs = 0;
  await eventually(() => countOf(nodes), 50);
});

test("one that fails half-way is finished by the next look", async () => {
  const { cluster, nodes, sessions } = await open(2);
  const [a, b] = nodes;
  await connect(b.proxy, "s", { expirySec: 10, filters: [["t", 1]] });
  b.kill();
  cluster.memory.faults.failRemovals = 1;
  cluster.pass(11_000);
  await eventually(async () => (await a.proxy.query()).length, 0);
  assert.deepEqual(sessions(), ["s"]);
  assert.equal(await countOf([a]), 0);
  cluster.memory.faults.failRemovals = 0;
  await eventually(sessions, []);
  assert.deepEqual(cluster.memory.recordsOf("p", "s"), []);
  assert.equal(await countOf([a]), 1);
});

test("a member of a shared subscription that has expired is none any more, and the last one ends it", async () => {
  const { cluster, nodes } = await open(3);
  const [a, b, c] = nodes;
  const groups = () => cluster.memory.owned("p").filter((clientId) => clientId.startsWith("\u0000$share"));
  const filters: [string, 1][] = [["$share/g/t", 1]];
  await connect(c.proxy, "dead", { expirySec: 100, filters });
  const left = await connect(b.proxy, "left", { expirySec: 200, filters });
  await left.handle.close();
  const clean = await connect(a.proxy, "clean", { clean: true, filters });
  c.kill();
  b.kill();
  await a.proxy.publish(message("t", "1"));
  await eventually(() => clean.payloads(), ["1"]);
  clean.settleAll();
  await clean.handle.close();
  cluster.pass(101_000);
  await eventually(() => countOf([a]), 1);
  assert.deepEqual(groups(), ["\u0000$share/g/t"]);
  cluster.pass(100_000);
  await eventually(groups, []);
  assert.equal(await countOf([a]), 2);
});

test("a clean start on another node ends the membership of the session before it", async () => {
  const { cluster, nodes } = await open(2);
  const [a, b] = nodes;
  const groups = () => cluster.memory.owned("p").filter((clientId) => clientId.startsWith("\u0000$share"));
  const first = await connect(a.proxy, "s", { filters: [["$share/g/t", 1]] });
  await first.handle.close();
  assert.equal(groups().length, 1);
  await connect(b.proxy, "s", { cleanStart: true });
  await eventually(groups, []);
});

test("a look at many sessions takes its time, so that it is never much of a node's work", async () => {
  const { nodes } = await open(1);
  const { engine } = nodes[0].memory;
  const cluster = engine.open("q", { onMessage: () => undefined, onInterrupted: () => undefined });
  const count = 2000;
  for (let n = 0; n < count; n++) {
    const ownership = { node: "z", incarnation: "gone", session: "", expirySec: 1, connectedAt: 0, connection: 1 };
    const others = { absentSince: 1, username: undefined, address: "", direct: [] };
    await cluster.records.claim(`s${n}`, encodeOwnership({ clientId: `s${n}`, ...ownership, ...others }), 0);
  }
  const { host, close } = createTestHost();
  const ended = new Set<string>();
  const sweep = createSessionSweep({
    engine,
    cluster,
    departures: createDepartures({ engine, cluster, now: Date.now, silenceMs: 0, doubted: () => undefined }),
    logger: host.log,
    now: Date.now,
    everyMs: 1e6,
    isOther: () => false,
    expire: async (clientId) => void ended.add(clientId),
    expireAt: () => assert.fail("all of them are due"),
  });
  const startedAt = performance.now();
  sweep.peerGone();
  await eventually(() => ended.size, count);
  assert.ok(performance.now() - startedAt > 900, "2,000 a second");
  await sweep.close();
  close();
});
