/** The store of a worker: in memory on the other side of a stream. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, connect as connectTcp, type Socket } from "node:net";
import { test } from "node:test";
import { createTestHost } from "@sluice/testkit";
import { createMemoryStore } from "../../kernel/memory-store.ts";
import { systemClock } from "../../kernel/host.ts";
import type { Message } from "../../kernel/plugin.ts";
import { createRemoteStore, type RemoteProxyStore } from "../../kernel/remote-store.ts";
import { createStoreServer, type ServedProxy } from "../../kernel/store-server.ts";
import { window } from "../../kernel/store-wire.ts";
import type { StoreLink } from "../../kernel/store-link.ts";
import type { ProxyStore, Store, StoreOptions } from "../../kernel/store.ts";
import { eventually } from "../helpers/eventually.ts";
import { connect, storeContract } from "../helpers/store-contract.ts";

/** The two ends of a stream. */
async function pair(): Promise<[Socket, Socket]> {
  const server = createServer({ noDelay: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  const near = connectTcp({ port, host: "127.0.0.1", noDelay: true });
  const [far] = (await once(server, "connection")) as [Socket];
  server.close();
  return [near, far];
}

interface Served {
  readonly inner: Store;
  /** As another worker would have it. */
  worker(): Promise<{ readonly store: Store; readonly link: StoreLink; readonly near: Socket }>;
  stop(): Promise<void>;
}

/** @param before what a publish waits for, as one that is written to disk does */
async function serve(maxConnections = 0, before?: () => Promise<void>): Promise<Served> {
  const { host, close } = createTestHost();
  const node = { id: "n", incarnation: "1" };
  const inner = createMemoryStore({ node, log: host.log, metrics: host.metrics, now: Date.now });
  await inner.start();
  close();
  const proxies = new Map<string, ServedProxy>();
  const server = createStoreServer((name) => proxies.get(name), systemClock);
  const workers: { store: Store; link: StoreLink }[] = [];
  return {
    inner,
    async worker() {
      const [near, far] = await pair();
      const link = server.connect(far);
      const remote = createRemoteStore({ node, caps: inner.caps, stream: near });
      const store: Store = {
        ...remote,
        open(name, options) {
          const opened = inner.open(name, options);
          if (!proxies.has(name)) {
            proxies.set(name, {
              name,
              store: before ? withDelay(opened, before) : opened,
              maxConnections,
              hasPresence: false,
              admit: () => true,
              now: () => Date.now(),
              lost: () => undefined,
              willsLost: () => undefined,
            });
          }
          return remote.open(name);
        },
      };
      workers.push({ store, link });
      return { store, link, near };
    },
    async stop() {
      for (const { store, link } of workers) {
        await store.stop();
        await link.closed;
      }
      await inner.stop();
    },
  };
}

function withDelay(store: ProxyStore, before: () => Promise<void>): ProxyStore {
  const publish: ProxyStore["publish"] = async (message, how) => {
    await before();
    return store.publish(message, how);
  };
  return Object.create(store, { publish: { value: publish } }) as ProxyStore;
}

async function start(): Promise<Store> {
  const served = await serve();
  const { store } = await served.worker();
  return { ...store, stop: () => served.stop() };
}

const options: StoreOptions = {
  queue: { maxMessages: 10, maxBytes: 1 << 26, maxTotalBytes: 1 << 30, onFull: "dropOldest" },
  retained: { maxMessages: 10, maxBytes: 1e6 },
  topicCacheSize: 10,
  onDropped() {},
  now: Date.now,
};
const publish = (topic: string, payload = "x"): Message => ({
  topic,
  payload: Buffer.from(payload),
  qos: 1,
  retain: false,
});

storeContract(start, { ahead: window.count });

test("two workers: a session is one worker's at a time, and its messages come to whoever has it", async (t) => {
  const served = await serve();
  t.after(() => served.stop());
  const [a, b] = [await served.worker(), await served.worker()];
  const [here, there] = [a.store.open("p", options), b.store.open("p", options)];
  const old = await connect(here, "c", { filters: [["t", 1]] });
  await there.publish(publish("t", "1"));
  await eventually(() => old.payloads(), ["1"]);
  const fresh = await connect(there, "c");
  assert.equal(old.state.lost, "takenOver");
  assert.deepEqual([fresh.handle.present, [...fresh.handle.subscriptions.keys()]], [true, ["t"]]);
  assert.ok((fresh.handle.ordinal ?? 0) > (old.handle.ordinal ?? 0));
  await eventually(() => fresh.got.map(({ again }) => again), [true]);
  old.handle.settle(old.last());
  fresh.handle.settle(fresh.last());
  await here.publish(publish("t", "2"));
  await eventually(() => fresh.payloads(), ["1", "2"]);
  // What still runs for the old connection counts for the new one: the client may send it again there.
  await here.publish(publish("nobody"), { from: "c", inbound: { handle: old.handle, packetId: 5 } });
  await old.handle.inbound.add(6);
  await eventually(() => [5, 6, 7].map((id) => fresh.handle.inbound.has(id)), [true, true, false]);
  assert.equal(await here.remove("c"), true);
  await eventually(() => fresh.state.lost, "removed");
});

test("a worker that is gone: its clients count as away, their sessions are kept, what it waits for fails", async (t) => {
  const served = await serve();
  t.after(() => served.stop());
  const [a, b] = [await served.worker(), await served.worker()];
  const [here, there] = [a.store.open("p", options), b.store.open("p", options)];
  const stays = await connect(here, "stays", { filters: [["t", 1]] });
  await connect(here, "clean", { clean: true, filters: [["t", 1]] });
  await there.publish(publish("t", "in flight"));
  await eventually(() => stays.got.length, 1);
  const waiting = here.query();
  a.near.destroy();
  await assert.rejects(async () => await waiting, { code: "STORE_CLOSED" });
  await a.link.closed;
  assert.equal(a.store.health().durable, false);
  await assert.rejects(async () => await here.publish(publish("t")), { code: "STORE_CLOSED" });
  assert.deepEqual(
    (await there.query()).map(({ clientId, connected }) => [clientId, connected]),
    [["stays", false]],
  );
  const back = await connect(there, "stays");
  await eventually(() => back.payloads(), ["in flight"]);
});

for (const fails of [false, true]) {
  test(`a worker is gone while a QoS 2 message is made safe, which ${fails ? "fails" : "is done"}: the client's next one is told`, async (t) => {
    const gate = Promise.withResolvers<void>();
    const served = await serve(0, () => gate.promise);
    t.after(() => served.stop());
    const [a, b] = [await served.worker(), await served.worker()];
    const [here, there] = [a.store.open("p", options), b.store.open("p", options)];
    const told: [string, number, string][] = [];
    (there as RemoteProxyStore).siblings.listen({
      underWay: () => [],
      join: () => false,
      begunElsewhere(clientId, packetId) {
        told.push([clientId, packetId, "begun"]);
        return ({ kind }) => void told.push([clientId, packetId, kind]);
      },
      back: () => undefined,
      ended: () => undefined,
      speakFor: () => undefined,
    });
    const old = await connect(here, "c");
    const lost = assert.rejects(
      async () => await here.publish(publish("t"), { from: "c", inbound: { handle: old.handle, packetId: 5 } }),
      { code: "STORE_CLOSED" },
    );
    // Behind it on the same stream.
    await here.query();
    a.near.destroy();
    await lost;
    await a.link.closed;
    const fresh = await connect(there, "c");
    assert.deepEqual([told, fresh.handle.inbound.has(5)], [[["c", 5, "begun"]], false]);
    if (fails) gate.reject(new Error("the disk is full"));
    else gate.resolve();
    await eventually(() => told[1], ["c", 5, fails ? "fault" : "passed"]);
    assert.equal(fresh.handle.inbound.has(5), !fails);
  });
}

test("bytes that mean nothing end a worker's stream, and no other", async (t) => {
  const served = await serve();
  t.after(() => served.stop());
  const [a, b] = [await served.worker(), await served.worker()];
  const [here, there] = [a.store.open("p", options), b.store.open("p", options)];
  await connect(here, "c", { filters: [["t", 1]] });
  a.near.write(Buffer.from([0, 0, 0, 2, 99, 99]));
  await a.link.closed;
  assert.deepEqual(
    (await there.query()).map(({ connected }) => connected),
    [false],
  );
});

test("a client's messages keep their order where one of them has to wait", async (t) => {
  const served = await serve();
  t.after(() => served.stop());
  const [a, b] = [await served.worker(), await served.worker()];
  const [here, there] = [a.store.open("p", options), b.store.open("p", options)];
  const slow = await connect(here, "slow", { credit: 1, filters: [["both", 1]] });
  const quick = await connect(here, "quick", { filters: [["#", 1]] });
  for (let n = 0; n < 9; n++) await there.publish(publish("both", String(n)), { from: "p" });
  quick.settleAll();
  let done = 0;
  const all = [publish("both", "waits"), publish("only", "follows")].map(async (each) => {
    await there.publish(each, { from: "p" });
    done++;
  });
  await there.publish(publish("only", "another's"), { from: "q" });
  await eventually(() => quick.payloads().at(-1), "another's");
  assert.equal(done, 0);
  for (let n = 0; n < 9; n++) {
    await eventually(() => slow.got.length > n, true);
    slow.handle.settle(slow.last());
  }
  await Promise.all(all);
  assert.deepEqual(quick.payloads().slice(-3), ["another's", "waits", "follows"]);
});

test("a connection that takes nothing is handed a window of deliveries, in number and bytes, and no more", async (t) => {
  const served = await serve();
  t.after(() => served.stop());
  const { store } = await served.worker();
  const here = store.open("p", { ...options, queue: { ...options.queue, maxMessages: 10_000 } });
  const sub = await connect(here, "s", { credit: 5000, filters: [["t", 1]] });
  sub.state.room = false;
  const inflight = async (): Promise<number | undefined> => (await here.query())[0]?.inflight;
  for (let n = 0; n < 300; n++) await here.publish(publish("t", String(n)));
  assert.equal(await inflight(), window.count);
  sub.state.room = true;
  sub.handle.resume();
  await eventually(() => sub.got.length, 300);
  sub.settleAll();
  sub.got.length = 0;
  sub.state.room = false;
  for (let n = 0; n < 20; n++) await here.publish(publish("t", "x".repeat(200_000)));
  await eventually(inflight, Math.floor(window.bytes / 200_000));
  sub.state.room = true;
  sub.handle.resume();
  await eventually(() => sub.got.length, 20);
});

test("as many clients as maxAllowedConnection lets it, of all workers; who has a place may take it over", async (t) => {
  const served = await serve(2);
  t.after(() => served.stop());
  const [a, b] = [await served.worker(), await served.worker()];
  const [here, there] = [a.store.open("p", options), b.store.open("p", options)];
  const one = await connect(here, "1");
  await connect(there, "2");
  await assert.rejects(connect(there, "3"), { code: "PROXY_FULL" });
  await connect(there, "1");
  assert.equal(one.state.lost, "takenOver");
});
