/** NATSCluster's engine while servers die, hang and lag. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { eventually } from "../helpers/eventually.ts";
import { isLong, longTest } from "../helpers/long-test.ts";
import { startNats, type Nats } from "../helpers/nats.ts";
import { messageOf, startNode, type EngineNode } from "../helpers/nats-engine.ts";

/** All of the servers, one after the other; else one. */
const started: Nats | undefined = await startNats({ nodes: 3 });

describe("NATSCluster while its servers fail", { skip: !started }, () => {
  const nats = started as Nats;
  let a: EngineNode;
  let b: EngineNode;
  before(async () => {
    [a, b] = await Promise.all([
      startNode(nats.urls, "a", { shards: 1, timeouts: { ackMs: 1000, totalMs: 18_000, kickMs: 3000 } }),
      startNode(nats.urls, "b", { shards: 1 }),
    ]);
  });
  after(async () => {
    await Promise.all([a?.engine.stop(), b?.engine.stop()]);
    await nats?.stop();
  });

  async function readAll(node: EngineNode, topicFilter: string): Promise<string[]> {
    const found: string[] = [];
    for (let at: ReadonlyMap<number, number> = new Map(); ;) {
      const page = await node.proxy.log.read([{ topicFilter }], at, { maxMessages: 500 });
      found.push(...page.messages.map(({ message }) => message.payload.toString()));
      if (page.isEnd) return found;
      at = page.upTo;
    }
  }

  test("a listener that throws does not end the connection", async () => {
    const thrower = await startNode(nats.urls, "thrower", {
      shards: 1,
      listener: {
        onMessage(message) {
          if (message.payload.toString() === "bad") throw new Error("no");
          heard.push(message.payload.toString());
        },
      },
    });
    const heard: string[] = [];
    await thrower.proxy.interest.add({ topicFilter: "throw" });
    await a.proxy.log.append(messageOf("throw", "bad"));
    await a.proxy.log.append(messageOf("throw", "good"));
    await eventually(() => heard, ["good"]);
    assert.equal(thrower.interruptions(), 0);
    await thrower.engine.stop();
  });

  test("a server is killed under load: what was confirmed is there, once, in order, and no owner is fenced", async () => {
    const topics = ["kill/0", "kill/1", "kill/2"];
    const confirmed = new Map(topics.map((topic) => [topic, [] as string[]]));
    const owned = await a.proxy.records.claim("owner", Buffer.from("a"), 0);
    assert.ok("revision" in owned);
    let isOver = false;
    let written = 0;
    async function append(topic: string): Promise<void> {
      for (let n = 0; !isOver; n += 20) {
        const batch = Array.from({ length: 20 }, (_, at) => String(n + at).padStart(6, "0"));
        const outcomes = await Promise.allSettled(
          batch.map((payload) => a.proxy.log.append(messageOf(topic, payload))),
        );
        for (const [at, { status }] of outcomes.entries()) {
          if (status === "fulfilled") confirmed.get(topic)?.push(batch[at] ?? "");
        }
      }
    }
    async function write(): Promise<void> {
      assert.ok("revision" in owned);
      while (!isOver) {
        const outcome = await a.proxy.records
          .write("owner", owned.revision, [{ key: "cur", value: Buffer.from(String(written)) }])
          .catch(() => "unanswered");
        assert.notEqual(outcome, "fenced");
        written++;
      }
    }
    async function kill(): Promise<void> {
      for (const server of isLong ? nats.servers : nats.servers.slice(0, 1)) {
        await sleep(500);
        await server.kill();
        await sleep(1500);
        await server.restart();
        await nats.settled();
      }
      await sleep(500);
      isOver = true;
    }
    await Promise.all([...topics.map(append), write(), kill()]);
    await eventually(() => b.engine.health().durable, true, 20_000);
    for (const topic of topics) {
      const stored = await readAll(b, topic);
      const expected = confirmed.get(topic) ?? [];
      assert.ok(expected.length > 100, `${expected.length} confirmed`);
      const there = new Set(stored);
      assert.deepEqual(
        expected.filter((payload) => !there.has(payload)),
        [],
        "nothing is missing",
      );
      assert.equal(there.size, stored.length, "nothing is doubled");
      const inOrder = stored.filter((payload) => expected.includes(payload));
      assert.deepEqual(inOrder, inOrder.toSorted(), "nothing is swapped");
    }
    assert.ok(written > 20);
  });

  longTest("a server that has hung and is behind hides nothing from those who ask it", async () => {
    const lagging = nats.servers[2];
    assert.ok(lagging);
    // This one knows the lagging server alone: what it reads directly is read there.
    const reader = await startNode([lagging.url], "reader", { shards: 1 });
    const topics = Array.from({ length: 12 }, (_, n) => `lag/${n}`);
    lagging.pause();
    const sent = await Promise.all(
      Array.from({ length: 3000 }, async (_, n) => {
        await a.proxy.log.append(messageOf(topics[n % 12] ?? "", String(n)));
        return String(n);
      }),
    );
    lagging.resume();
    const end = await a.proxy.log.end([{ topicFilter: "lag/#" }]);
    for (const selectors of [[{ topicFilter: "lag/#" }], topics.map((topicFilter) => ({ topicFilter }))]) {
      const found = new Set<string>();
      let at: ReadonlyMap<number, number> = new Map();
      const until = performance.now() + 20_000;
      while ((at.get(0) ?? 0) < (end.get(0) ?? 0)) {
        assert.ok(performance.now() < until, "the end is reached");
        const page = await reader.proxy.log.read(selectors, at, { maxMessages: 1000 });
        for (const { message } of page.messages) found.add(message.payload.toString());
        at = page.upTo;
      }
      assert.deepEqual(
        sent.filter((payload) => !found.has(payload)),
        [],
      );
    }
    await reader.engine.stop();
  });

  test("a node that starts while NATS is away joins when it comes, with what it wanted", async () => {
    for (const server of nats.servers) await server.kill();
    const late = await startNode(nats.urls, "late", { shards: 1, wait: false });
    await eventually(() => a.engine.health().live, false, 20_000);
    assert.equal(late.engine.health().durable, false);
    assert.match(late.engine.health().reasons.join(), /NATS/);
    assert.equal(late.proxy.send(messageOf("late", "x", { qos: 0 })), false);
    const adding = late.proxy.interest.add({ topicFilter: "late" }).catch(() => undefined);
    const appending = a.proxy.log.append(messageOf("late", "waited"));
    await Promise.all(nats.servers.map((server) => server.restart()));
    await appending;
    await adding;
    await eventually(() => late.engine.health().durable && a.engine.health().durable, true, 30_000);
    assert.ok(a.interruptions() > 0);
    await eventually(async () => {
      await a.proxy.log.append(messageOf("late", "now"));
      return late.received.length > 0;
    }, true);
    await late.engine.stop();
  });
});
