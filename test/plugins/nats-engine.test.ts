/** The engine's primitives over three real servers. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { matches } from "../../kernel/topics.ts";
import { createLayout } from "../../plugins/nats-cluster/layout.ts";
import { connect, headers } from "../../plugins/nats-cluster/node_modules/@nats-io/transport-node/lib/mod.js";
import { eventually } from "../helpers/eventually.ts";
import { startNats, type Nats } from "../helpers/nats.ts";
import { messageOf, startNode, type EngineNode } from "../helpers/nats-engine.ts";

const nats: Nats | undefined = await startNats({ nodes: 3 });

describe("NATSCluster's engine", { skip: !nats }, () => {
  let a: EngineNode;
  let b: EngineNode;
  before(async () => {
    const urls = nats?.urls ?? [];
    // Both find no streams, and make them at once.
    [a, b] = await Promise.all([startNode(urls.slice(0, 1), "a"), startNode(urls.slice(1, 2), "b")]);
  });
  after(async () => {
    await Promise.all([a?.engine.stop(), b?.engine.stop()]);
    await nats?.stop();
  });

  test("nodes know one another", async () => {
    await eventually(() => a.engine.peers().map(({ id, isUp }) => `${id} ${isUp}`), ["b true"]);
    await eventually(() => b.engine.peers().map(({ id, isUp }) => `${id} ${isUp}`), ["a true"]);
  });

  test("QoS 0 goes to the nodes that want it, once, in order, and not to the sender", async () => {
    await Promise.all([
      b.proxy.interest.add({ topicFilter: "live/+" }),
      b.proxy.interest.add({ topicFilter: "live/#" }),
      b.proxy.interest.add({ topicFilter: "live/1" }),
      a.proxy.interest.add({ topicFilter: "live/#" }),
    ]);
    const properties = { contentType: "x", userProperties: [["a", "b"] as const] };
    for (let n = 0; n < 100; n++) {
      assert.ok(a.proxy.send(messageOf("live/1", String(n), { qos: 0, from: "me", properties })));
    }
    assert.ok(a.proxy.send(messageOf("dead/1", "no", { qos: 0 })));
    await eventually(() => b.received.length, 100);
    assert.deepEqual(
      b.received.map(({ message }) => message.payload.toString()),
      Array.from({ length: 100 }, (_, n) => String(n)),
    );
    assert.deepEqual(b.received[0], {
      message: messageOf("live/1", "0", { qos: 0, from: "me", properties }),
      position: undefined,
      previous: undefined,
    });
    assert.equal(a.received.length, 0);
    b.received.length = 0;
  });

  test("what is appended comes to all that want it, with its position and the one before it", async () => {
    await Promise.all([a, b].map(({ proxy }) => proxy.interest.add({ topicFilter: "log/#" })));
    const positions = await Promise.all(
      Array.from({ length: 50 }, (_, n) => a.proxy.log.append(messageOf("log/x", String(n), { qos: 2 }))),
    );
    for (const node of [a, b]) {
      await eventually(() => node.received.length, 50);
      assert.deepEqual(
        node.received.map(({ message, position }) => ({ payload: message.payload.toString(), position })),
        positions.map((position, n) => ({ payload: String(n), position })),
      );
      assert.deepEqual(
        node.received.map(({ previous }) => previous),
        [0, ...positions.slice(0, -1).map(({ seq }) => seq)],
      );
      node.received.length = 0;
    }
  });

  test("a message for one client is for that client alone", async () => {
    await b.proxy.interest.add({ clientId: "c 1" });
    await b.proxy.interest.add({ topicFilter: "#" });
    const message = messageOf("any/topic", "x", { to: "c 1" });
    const position = await a.proxy.log.append(message);
    await eventually(() => b.received.length, 1);
    assert.deepEqual(
      b.received.map((each) => each.message),
      [message],
    );
    const page = await b.proxy.log.read([{ clientId: "c 1" }], new Map(), { maxMessages: 10 });
    assert.deepEqual(page.messages, [{ message, position }]);
    assert.equal(
      (await b.proxy.log.read([{ topicFilter: "any/topic" }], new Map(), { maxMessages: 10 })).messages.length,
      0,
    );
    b.proxy.interest.delete({ topicFilter: "#" });
    b.received.length = 0;
  });

  test("the log is read up to where it is verified, whatever the filters", async () => {
    const topics = Array.from({ length: 40 }, (_, n) => `read/${n % 8}/${n % 3}`);
    const start = await a.proxy.log.end([{ topicFilter: "read/#" }]);
    await Promise.all(topics.map((topic, n) => a.proxy.log.append(messageOf(topic, String(n)))));
    const selections = [
      [{ topicFilter: "read/#" }],
      [{ topicFilter: "read/+/1" }, { topicFilter: "read/1/+" }],
      [...new Set(topics)].slice(0, 20).map((topicFilter) => ({ topicFilter })),
      [{ topicFilter: "read/0/0" }, { topicFilter: "nothing/here" }],
    ];
    for (const selectors of selections) {
      const found = await readAll(selectors, start);
      const expected = topics.flatMap((topic, n) =>
        selectors.some(({ topicFilter }) => matches(topicFilter, topic)) ? [String(n)] : [],
      );
      assert.deepEqual(found.toSorted(), expected.toSorted(), JSON.stringify(selectors));
    }
    const many = Array.from({ length: 2500 }, (_, n) => ({ topicFilter: `nobody/${n}` }));
    const end = await a.proxy.log.end([{ topicFilter: "read/#" }]);
    const page = await b.proxy.log.read([...many, { topicFilter: "read/3/0" }], start, { maxMessages: 100 });
    assert.deepEqual(
      page.messages.map(({ message }) => message.topic),
      ["read/3/0", "read/3/0"],
    );
    assert.equal(page.isEnd, true);
    for (const [shard, seq] of end) assert.ok((page.upTo.get(shard) ?? 0) >= seq);

    async function readAll(selectors: { topicFilter: string }[], from: ReadonlyMap<number, number>): Promise<string[]> {
      const found: string[] = [];
      for (let at = from; ;) {
        const read = await b.proxy.log.read(selectors, at, { maxMessages: 8 });
        found.push(...read.messages.map(({ message }) => message.payload.toString()));
        if (read.isEnd) return found;
        at = read.upTo;
      }
    }
  });

  test("the same dedupeId adds nothing, of whatever node", async () => {
    const first = await a.proxy.log.append(messageOf("dedupe", "1"), { dedupeId: "x:1" });
    assert.deepEqual(await b.proxy.log.append(messageOf("dedupe", "1"), { dedupeId: "x:1" }), first);
    const message = await a.proxy.log.get(first);
    assert.equal(message?.payload.toString(), "1");
    assert.equal(await a.proxy.log.get({ ...first, seq: 1_000_000 }), undefined);
  });

  test("what can't be carried is refused, and harms nothing else", async () => {
    const { log } = a.proxy;
    const refused = [
      messageOf("x".repeat(5000), ""),
      messageOf("x".repeat(600), ""),
      messageOf("a/".repeat(40), ""),
      messageOf("big", "x".repeat(1024 * 1024)),
    ];
    for (const message of refused) await assert.rejects(log.append(message), /can't be stored/);
    assert.equal(a.proxy.send(messageOf("x".repeat(5000), "", { qos: 0 })), false);
    await assert.rejects(a.proxy.interest.add({ topicFilter: "a/".repeat(40) }), /can't be used/);
    const odd = ["*", ">", "a*b/>/~", "a b/\t", ".", "a//b", "$x/y", "温度/😀"];
    await Promise.all(odd.map((topic) => log.append(messageOf(topic, topic))));
    for (const topicFilter of odd) {
      const page = await b.proxy.log.read([{ topicFilter }], new Map(), { maxMessages: 10 });
      assert.deepEqual(
        page.messages.map(({ message }) => message.topic),
        [topicFilter],
      );
    }
    assert.equal(a.interruptions(), 0);
    assert.equal(a.engine.health().durable, true);
  });

  test("a session's owner moves by compare-and-set, and who has lost it can't write", async () => {
    const [one, two] = [a.proxy.records, b.proxy.records];
    assert.equal(await one.owner("c"), undefined);
    const first = await one.claim("c", Buffer.from("a1"), 0);
    assert.ok("revision" in first);
    assert.equal(
      await one.write("c", first.revision, [
        { key: "sub", value: Buffer.from("s") },
        { key: "o.1", value: Buffer.from("x") },
      ]),
      "written",
    );
    const taken = await two.claim("c", Buffer.from("b1"), 0);
    assert.deepEqual(taken, { taken: true, by: { value: Buffer.from("a1"), revision: first.revision } });
    const second = await two.claim("c", Buffer.from("b1"), first.revision);
    assert.ok("revision" in second && second.revision > first.revision);
    assert.equal(await one.write("c", first.revision, [{ key: "sub", value: Buffer.from("stale") }]), "fenced");
    // A server that is behind may still show the old owner, for a moment.
    await eventually(() => one.load("c", first.revision), "fenced");
    assert.deepEqual(
      await two.load("c", second.revision),
      new Map([
        ["sub", Buffer.from("s")],
        ["o.1", Buffer.from("x")],
      ]),
    );
    await two.write("c", second.revision, [
      { key: "o.1", value: undefined },
      { key: "i.3", value: Buffer.alloc(0), ttlMs: 60_000 },
    ]);
    await eventually(
      () => two.load("c", second.revision),
      new Map([
        ["sub", Buffer.from("s")],
        ["i.3", Buffer.alloc(0)],
      ]),
    );
    const listed = [];
    for await (const piece of one.list(["sub", "cur"])) listed.push(...piece);
    assert.deepEqual(listed, [
      { owner: { value: Buffer.from("b1"), revision: second.revision }, records: new Map([["sub", Buffer.from("s")]]) },
    ]);
    assert.equal(await one.remove("c", first.revision), "fenced");
    assert.equal(await two.remove("c", second.revision), "written");
    assert.equal(await two.remove("c", second.revision), "written");
    assert.equal(await two.owner("c"), undefined);
    const third = await one.claim("c", Buffer.from("a2"), 0);
    assert.ok("revision" in third && third.revision > second.revision);
    assert.deepEqual(await one.load("c", third.revision), new Map());
  });

  test("of many claims at once one wins, and the writes of a session go on meanwhile", async () => {
    for (let round = 0; round < 10; round++) {
      const outcomes = await Promise.all(
        [a, b, a, b].map(({ proxy }, n) => proxy.records.claim(`race ${round}`, Buffer.from(String(n)), 0)),
      );
      assert.equal(outcomes.filter((each) => "revision" in each).length, 1);
    }
    const owned = await a.proxy.records.claim("busy", Buffer.from("a"), 0);
    assert.ok("revision" in owned);
    const writing = Array.from({ length: 20 }, (_, n) =>
      a.proxy.records.write("busy", owned.revision, [{ key: `o.${n}`, value: Buffer.from(String(n)) }]),
    );
    assert.deepEqual(new Set(await Promise.all(writing)), new Set(["written"]));
  });

  test("more records than a server shows at once are loaded", async () => {
    const { records } = a.proxy;
    const owned = await records.claim("large", Buffer.from("a"), 0);
    assert.ok("revision" in owned);
    const changes = Array.from({ length: 1100 }, (_, n) => ({ key: `o.${n}`, value: Buffer.from(String(n)) }));
    assert.equal(await records.write("large", owned.revision, changes), "written");
    const loaded = await b.proxy.records.load("large", owned.revision);
    assert.ok(loaded !== "fenced");
    assert.equal(loaded.size, 1100);
  });

  test("retained messages: the last by position, cleared ones gone, over 1,024 of them", async () => {
    const { retained } = a.proxy;
    const set = (
      topic: string,
      payload: string,
      seq?: number,
      room = { mayAdd: true, mayGrow: true },
    ): Promise<boolean> =>
      retained.set(
        messageOf(topic, payload, { retain: true }),
        seq === undefined ? undefined : { shard: 0, seq },
        room,
      );
    await set("r/1", "new", 10);
    await set("r/1", "old", 9);
    await set("r/2", "", 5);
    await set("r/2", "late", 4);
    await set("r/3", "x");
    assert.deepEqual(await matchAll("r/+"), ["r/1 new", "r/3 x"]);
    await set("r/1", "", 11);
    assert.deepEqual(await matchAll("r/1"), []);
    await Promise.all(Array.from({ length: 1500 }, (_, n) => set(`many/${n}`, String(n))));
    assert.equal((await matchAll("many/#")).length, 1500);
    await eventually(async () => {
      await b.proxy.retained.recount();
      return b.proxy.retained.counts.messages;
    }, 1503);
    const perMessage = b.proxy.retained.counts.bytes / 1503;
    assert.ok(perMessage > 40 && perMessage < 400, `${perMessage} bytes a message`);

    for (const seq of [undefined, 20]) {
      assert.equal(await set(`full/${seq}`, "x", seq, { mayAdd: false, mayGrow: true }), false);
      assert.equal(await set("r/1", "x", seq && seq + 1, { mayAdd: false, mayGrow: true }), false, "cleared is none");
      assert.equal(await set("r/3", "yy", seq && seq + 2, { mayAdd: false, mayGrow: false }), false);
      assert.equal(await set("r/3", String(seq).slice(0, 1), seq && seq + 3, { mayAdd: false, mayGrow: false }), true);
    }
    assert.deepEqual([await matchAll("full/#"), await matchAll("r/#")], [[], ["r/3 2"]]);

    async function matchAll(topicFilter: string): Promise<string[]> {
      const found: string[] = [];
      for await (const piece of b.proxy.retained.match(topicFilter)) {
        found.push(...piece.map(({ topic, payload }) => `${topic} ${payload.toString()}`));
      }
      return found.toSorted();
    }
  });

  test("wills are found by incarnation", async () => {
    const { wills } = a.proxy;
    await wills.put("c/1", Buffer.from("one"));
    await wills.put("c/2", Buffer.from("two"));
    await wills.delete("c/1");
    const found = [];
    for await (const piece of b.proxy.wills.of(a.engine.node.incarnation)) found.push(...piece);
    assert.deepEqual(found, [{ clientId: "c/2", value: Buffer.from("two") }]);
    await b.proxy.wills.drop(a.engine.node.incarnation, "c/2");
    for await (const piece of b.proxy.wills.of(a.engine.node.incarnation)) assert.fail(String(piece.length));
  });

  test("words between nodes", async () => {
    const heard: string[] = [];
    b.engine.control.handle("echo", (body, from) => Buffer.concat([Buffer.from(`${from}:`), body]));
    b.engine.control.handle("big", async () => Buffer.alloc(3 * 1024 * 1024, "x"));
    b.engine.control.handle("bad", () => {
      throw new Error("no");
    });
    b.engine.control.handle("note", (body, from) => void heard.push(`${from} ${body.toString()}`));
    const { control } = a.engine;
    assert.equal((await control.request("b", "echo", Buffer.from("hi"), 1000)).toString(), "a:hi");
    assert.equal((await control.request("b", "big", Buffer.alloc(0), 5000)).length, 3 * 1024 * 1024);
    await assert.rejects(control.request("b", "bad", Buffer.alloc(0), 1000), /could not answer/);
    await assert.rejects(control.request("b", "unknown", Buffer.alloc(0), 1000), /could not answer/);
    const started = performance.now();
    await assert.rejects(control.request("nobody", "echo", Buffer.alloc(0), 5000), /nobody answers/);
    assert.ok(performance.now() - started < 2000, "there is no waiting for a node that is not there");
    control.broadcast("note", Buffer.from("x"));
    await eventually(() => heard, ["a x"]);
  });

  test("several writes of a session go as one; where the servers take no more batches, one by one", async () => {
    const records = a.proxy.records;
    const batches = async (outcome: string): Promise<number> => {
      const line = new RegExp(`^sluice_nats_batches_total\\{.*outcome="${outcome}".*\\} (\\d+)$`, "m");
      return Number(line.exec(await a.metrics())?.[1] ?? 0);
    };
    const owned = await records.claim("batched", Buffer.from("a"), 0);
    assert.ok("revision" in owned);
    const changes = (payload: string, count = 20) =>
      Array.from({ length: count }, (_, n) => ({ key: `o.${n}`, value: Buffer.from(payload) }));
    /** Of a server that may be behind: what is there in the end. */
    const stored = async (): Promise<Set<string>> => {
      const loaded = await b.proxy.records.load("batched", owned.revision);
      assert.ok(loaded !== "fenced");
      return new Set([...loaded].map(([key, value]) => `${key} ${value.toString()}`));
    };
    const expected = (payload: string): Set<string> => new Set(changes(payload).map(({ key }) => `${key} ${payload}`));
    const atFirst = await batches("written");
    assert.equal(await records.write("batched", owned.revision, changes("one")), "written");
    await eventually(stored, expected("one"));
    assert.equal((await batches("written")) - atFirst, 1);
    assert.equal(await records.write("batched", owned.revision + 1, changes("stale")), "fenced");
    assert.deepEqual(await stored(), expected("one"), "none of them");

    // As many as a server keeps of a stream that are not complete.
    const raw = await connect({ servers: [...(nats?.urls ?? [])] });
    const { base } = createLayout("t", 2).of("p").session("batched");
    for (let n = 0; n < 60; n++) {
      const head = headers();
      head.set("Nats-Batch-Id", `incomplete ${n}`);
      head.set("Nats-Batch-Sequence", "1");
      raw.publish(`${base}.x`, "never there", { headers: head });
    }
    await raw.flush();
    const [written, apart] = [await batches("written"), await batches("apart")];
    assert.equal(await records.write("batched", owned.revision, changes("two")), "written");
    await eventually(stored, expected("two"));
    assert.deepEqual([(await batches("written")) - written, (await batches("apart")) - apart], [0, 1]);
    assert.equal(await records.write("batched", owned.revision, changes("three")), "written");
    await eventually(stored, expected("three"));
    assert.deepEqual(
      [(await batches("written")) - written, (await batches("apart")) - apart],
      [0, 1],
      "not tried again at once",
    );
    await raw.close();
  });
});
