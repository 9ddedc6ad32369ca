/** Wills of clients whose node is gone, over the engine in memory: with a delay, cancelled, and passed on. */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, test } from "node:test";
import type { SessionHandle } from "../../kernel/store.ts";
import { createWills } from "../../kernel/will.ts";
import { createTestCluster, type TestCluster, type TestNode } from "../helpers/cluster.ts";
import { eventually } from "../helpers/eventually.ts";

const clusters: TestCluster[] = [];
afterEach(async () => {
  for (const cluster of clusters.splice(0)) await cluster.stop();
});

const clock = {
  now: () => Date.now(),
  setTimeout(callback: () => void, ms: number) {
    const timer = setTimeout(callback, ms).unref();
    return { clear: () => clearTimeout(timer) };
  },
};

interface Node extends TestNode {
  /** With a will. @param delaySec of it */
  join(clientId: string, delaySec: number, o?: { expirySec?: number; cleanStart?: boolean }): Promise<SessionHandle>;
  /** The connection breaks, and the will waits. */
  drop(clientId: string): void;
  isAlive: boolean;
}

/** Nodes that do with wills what a proxy does, with what they have published: `node: client`. */
async function open(...ids: string[]) {
  const cluster = createTestCluster();
  clusters.push(cluster);
  const published: string[] = [];
  const nodes: Node[] = [];
  for (const id of ids) {
    const clients = new Map<string, { handle: SessionHandle; delaySec: number }>();
    const wills = createWills(clock);
    const publish = (clientId: string, done: () => void): void => {
      if (!node.isAlive) return;
      published.push(`${id}: ${clientId}`);
      done();
    };
    function closed(clientId: string): void {
      const { handle, delaySec } = clients.get(clientId)!;
      clients.delete(clientId);
      void handle.close();
      const done = (): void => handle.willDone?.();
      if (delaySec > 0) wills.wait(clientId, delaySec, () => publish(clientId, done), done);
      else publish(clientId, done);
    }
    const inner = await cluster.node(id, {
      onOrphanedWill({ client: { id: clientId } }, dueAt) {
        const { promise, resolve } = Promise.withResolvers<void>();
        const delaySec = (dueAt - Date.now()) / 1000;
        if (delaySec > 0) wills.wait(clientId, delaySec, () => publish(clientId, resolve), resolve);
        else publish(clientId, resolve);
        return promise;
      },
      onElsewhere: (clientId, resumed) => wills.back(clientId, resumed),
    });
    const node: Node = {
      ...inner,
      isAlive: true,
      async join(clientId, delaySec, { expirySec = 100, cleanStart = false } = {}) {
        const handle = await inner.proxy.acquire({
          clientId,
          cleanStart,
          expirySec,
          info: { username: "u", address: "" },
          onLost: () => closed(clientId),
          will: {
            will: { topic: "w", payload: Buffer.from([1, 2]), qos: 1, retain: false, delaySec },
            client: { id: clientId, username: "u", address: "", protocolVersion: 5 },
          },
        });
        clients.set(clientId, { handle, delaySec });
        wills.back(clientId, handle.present);
        return handle;
      },
      drop: closed,
      kill() {
        node.isAlive = false;
        inner.kill();
      },
    };
    nodes.push(node);
  }
  return { cluster, nodes: nodes as [Node, Node, Node], published };
}

/** Nothing more comes. */
async function only(published: readonly string[], expected: readonly string[]): Promise<void> {
  await eventually(() => published.toSorted(), expected.toSorted());
  await sleep(300);
  assert.deepEqual(published.toSorted(), expected.toSorted());
}

test("a delay counts from when the node was last heard of, whether its client was connected or away", async () => {
  const { nodes, published } = await open("a", "b", "c");
  const [, , c] = nodes;
  await c.join("connected", 0.3);
  await c.join("away", 0.3);
  await c.join("at once", 0);
  await c.join("ended with its node", 0.3, { expirySec: 0 });
  c.drop("away");
  await sleep(20);
  const startedAt = performance.now();
  c.kill();
  await eventually(() => published.length, 2);
  assert.ok(performance.now() - startedAt < 200, "those without a delay come at once [MQTT-3.1.2-8]");
  await only(published, ["a: at once", "a: ended with its node", "a: connected", "a: away"]);
});

test("a client that comes back elsewhere has none published, before its node is found dead or after", async () => {
  const { nodes, published } = await open("a", "b", "c");
  const [a, b, c] = nodes;
  for (const clientId of ["early", "late", "gone", "new"]) await c.join(clientId, 0.3);
  for (const clientId of ["early", "late", "gone"]) c.drop(clientId);
  await sleep(20);
  await b.join("early", 0.3);
  c.kill();
  await sleep(50);
  await b.join("late", 0.3);
  await a.join("new", 0.3, { cleanStart: true });
  // The session that had it has ended, and with that its delay [MQTT-3.1.3-9].
  await eventually(() => published, ["a: new"]);
  await only(published, ["a: new", "a: gone"]);
});

test("a client that is taken over by another node within the delay", async () => {
  const { nodes, published } = await open("a", "b");
  const [a, b] = nodes;
  await a.join("resumes", 0.2);
  await a.join("anew", 0.2);
  await b.join("resumes", 0.2);
  await b.join("anew", 0.2, { cleanStart: true });
  await only(published, ["a: anew"]);
});

test("who has taken a will over dies, too: a third node publishes it, once", async () => {
  const { nodes, published } = await open("a", "b", "c");
  const [a, , c] = nodes;
  await c.join("s", 0.4);
  c.drop("s");
  await sleep(20);
  c.kill();
  await sleep(50);
  a.kill();
  await only(published, ["b: s"]);
});

test("the node that was to see to them dies before it hears of it", async () => {
  const { nodes, published } = await open("a", "b", "c");
  const [a, b, c] = nodes;
  await c.join("s", 0);
  await c.join("later", 0.1);
  // What a does about the death of c does not get through.
  a.isAlive = false;
  a.memory.mute();
  c.kill();
  await sleep(50);
  assert.equal(b.isAlive, true);
  assert.deepEqual(published, []);
  a.kill();
  await only(published, ["b: s", "b: later"]);
});

test("a node that leaves passes on what waits, and nothing of clients that were connected", async () => {
  const { nodes, published } = await open("a", "b");
  const [a, b] = nodes;
  await b.join("waits", 0.2);
  await b.join("connected", 0);
  b.drop("waits");
  assert.equal(b.proxy.passesWillsOn, true);
  b.isAlive = false;
  await b.store.stop();
  b.memory.leave();
  await only(published, ["a: waits"]);
  assert.equal(a.proxy.passesWillsOn, false, "nobody is left");
});

test("a will that was published by its own node is not published again when that dies", async () => {
  const { nodes, published } = await open("a", "b");
  const [, b] = nodes;
  await b.join("s", 0.05);
  await b.join("here again", 0.05);
  b.drop("s");
  b.drop("here again");
  await b.join("here again", 0.05);
  await eventually(() => published, ["b: s"]);
  await sleep(20);
  b.kill();
  await only(published, ["b: s", "a: here again"]);
});
