/** Clients that hop between nodes while everything goes wrong that may: what must hold afterwards is checked. */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import type { Delivery, SessionHandle } from "../../kernel/store.ts";
import { createTestCluster, type TestNode } from "./cluster.ts";
import { createRandom } from "./random.ts";

export interface ChaosResult {
  readonly acknowledged: number;
  readonly moves: number;
  readonly kills: number;
  readonly duplicates: number;
}

interface Received {
  readonly payload: string;
  readonly qos: number;
}

/** A client with a persistent session: it keeps what a device keeps. */
interface Device {
  readonly id: string;
  readonly filters: [string, 1 | 2][];
  readonly received: Received[];
  /** Packet ids of QoS 2 messages between PUBLISH and PUBREL: a second PUBLISH under one is the same message. */
  readonly known: Set<number>;
  handle: SessionHandle | undefined;
  node: TestNode | undefined;
  work: (() => Promise<void> | void)[];
}

/** @param o.steps of the chaos, each some milliseconds */
export async function runChaos(o: { seed: number; steps: number; kills: boolean }): Promise<ChaosResult> {
  const below = createRandom(o.seed);
  const random = (): number => below(1 << 20) / (1 << 20);
  const cluster = createTestCluster({
    shards: 3,
    random,
    auditMs: 60,
    checkpointMs: 100,
    queue: { maxMessages: 20 },
  });
  const { faults } = cluster.memory;
  let names = 0;
  const start = async (): Promise<TestNode> => await cluster.node(`node${names++}`);
  const nodes = [await start(), await start(), await start()];
  const topics = ["t/0", "t/1", "t/2", "u"];
  const devices: Device[] = Array.from({ length: 6 }, (_, n) => ({
    id: `d${n}`,
    filters: n % 3 === 0 ? [["t/+", 2]] : n % 3 === 1 ? [[topics[n % 4] as string, 1]] : [["#", 2]],
    received: [],
    known: new Set(),
    handle: undefined,
    node: undefined,
    work: [],
  }));
  /** By device, what it must get: everything acknowledged after its subscription was. */
  const acknowledged: { topic: string; payload: string; qos: 1 | 2; publisher: number }[] = [];
  let [moves, kills] = [0, 0];
  const any = <T>(list: readonly T[]): T => list[below(list.length)] as T;

  async function join(device: Device, node: TestNode): Promise<void> {
    let lost = false;
    const handle = await node.proxy.acquire({
      clientId: device.id,
      cleanStart: false,
      expirySec: 0xffff_ffff,
      info: { username: undefined, address: "" },
      onLost() {
        lost = true;
        if (device.handle === handle) device.handle = undefined;
      },
    });
    for (const [filter, qos] of device.filters) {
      if (handle.subscriptions.has(filter)) continue;
      await handle.subscribe(filter, {
        qos,
        noLocal: false,
        retainAsPublished: false,
        retainHandling: 0,
        identifier: 0,
      });
    }
    if (lost) return;
    device.handle = handle;
    device.node = node;
    device.work = [];
    handle.attach((delivery, again) => {
      if (device.handle !== handle) return false;
      device.work.push(() => react(device, handle, delivery, again));
      return true;
    }, 8);
  }

  async function react(device: Device, handle: SessionHandle, delivery: Delivery, again: boolean): Promise<void> {
    const { packetId, qos, message } = delivery;
    if (qos === 2 && again && delivery.released) {
      device.known.delete(packetId);
      handle.settle(delivery);
      return;
    }
    if (qos === 1 || !device.known.has(packetId)) {
      device.received.push({ payload: message.payload.toString(), qos });
    }
    if (qos === 1) {
      handle.settle(delivery);
      return;
    }
    device.known.add(packetId);
    try {
      // A node that was killed does not answer.
      await Promise.race([handle.release(delivery), sleep(300).then(() => Promise.reject(new Error("no answer")))]);
    } catch {
      return;
    }
    if (device.handle !== handle) return;
    device.work.push(() => {
      device.known.delete(packetId);
      handle.settle(delivery);
    });
  }

  /** A device answers some of what it has got, in order. */
  async function answer(device: Device): Promise<void> {
    const { handle } = device;
    for (let n = below(6); n >= 0 && device.handle === handle; n--) await device.work.shift()?.();
  }

  async function tryToJoin(device: Device, node: TestNode): Promise<void> {
    try {
      await join(device, node);
      moves++;
    } catch {
      // Refused: it comes again.
    }
  }

  for (const device of devices) await join(device, any(nodes));

  // Each publisher has one message under way at a time for each topic, and sends it until it is acknowledged.
  let publishing = true;
  const publishers = [0, 1, 2].map(async (publisher) => {
    for (let n = 0; publishing; n++) {
      const topic = any(topics);
      const qos = any([1, 2] as const);
      const payload = `${topic} ${publisher} ${n}`;
      for (let attempt = 0; ; attempt++) {
        try {
          // What was not acknowledged may be there all the same: each attempt is a message of its own.
          const message = { topic, payload: Buffer.from(`${payload} ${attempt}`), qos, retain: false };
          const sent = Promise.resolve(any(nodes).proxy.publish(message));
          const done = await Promise.race([sent.then(() => true), sleep(1000).then(() => false)]);
          if (done) break;
        } catch {
          // Not acknowledged.
        }
        if (!publishing) return;
      }
      acknowledged.push({ topic, payload, qos, publisher });
      await sleep(below(30));
    }
  });

  Object.assign(faults, { delayMs: 3, loseLive: 0.1, repeatLive: 0.1, loseAnswers: 0.02, lag: 0.2, timeoutMs: 30 });
  for (let step = 0; step < o.steps; step++) {
    await sleep(below(5));
    const device = any(devices);
    const choice = below(100);
    if (choice < 60) await answer(device);
    else if (choice < 75) void tryToJoin(device, any(nodes));
    else if (choice < 85) {
      const { handle } = device;
      device.handle = undefined;
      void Promise.resolve(handle?.close()).catch(() => undefined);
    } else if (choice < 90) {
      const node = any(nodes);
      node.memory.cutOff();
      setTimeout(() => node.memory.rejoin(), below(80));
    } else if (choice === 99 && o.kills) {
      const at = below(nodes.length);
      const node = nodes[at] as TestNode;
      node.kill();
      kills++;
      for (const each of devices) if (each.node === node) each.handle = undefined;
      nodes[at] = await start();
    }
  }
  publishing = false;
  await Promise.all(publishers);
  Object.assign(faults, { loseLive: 0, repeatLive: 0, loseAnswers: 0, lag: 0 });
  await sleep(150);
  for (const node of nodes) node.memory.rejoin();

  // Everything is well again: each device gets what it is still to get.
  const wanted = (device: Device) =>
    acknowledged.filter(({ topic }) => device.filters.some(([filter]) => fits(filter, topic)));
  const until = performance.now() + 60_000;
  for (const device of devices) {
    device.handle = undefined;
    while (!device.handle && performance.now() < until) {
      await tryToJoin(device, any(nodes));
      await sleep(10);
    }
  }
  const missingOf = (device: Device): string[] => {
    const got = new Set(device.received.map(({ payload }) => payload.slice(0, payload.lastIndexOf(" "))));
    return wanted(device).flatMap(({ payload }) => (got.has(payload) ? [] : [payload]));
  };
  while (performance.now() < until && devices.some((device) => missingOf(device).length > 0)) {
    for (const device of devices) {
      if (!device.handle) await tryToJoin(device, any(nodes));
      while (device.work.length > 0) await device.work.shift()?.();
    }
    await sleep(5);
  }
  await sleep(100);
  for (const device of devices) while (device.work.length > 0) await device.work.shift()?.();

  let duplicates = 0;
  for (const device of devices) {
    assert.deepEqual(missingOf(device), [], `${device.id} lacks acknowledged messages (seed ${o.seed})`);
    const seen = new Set<string>();
    const lastOf = new Map<string, number>();
    for (const { payload, qos } of device.received) {
      if (seen.has(payload)) {
        assert.ok(qos < 2, `${device.id}: ${payload} came twice at QoS 2 (seed ${o.seed})`);
        duplicates++;
        continue;
      }
      seen.add(payload);
      const [topic = "", publisher = "", n = ""] = payload.split(" ");
      const key = `${topic} ${publisher}`;
      assert.ok(
        (lastOf.get(key) ?? -1) <= Number(n),
        `${device.id}: ${payload} came too late (seed ${o.seed}, QoS ${qos})`,
      );
      lastOf.set(key, Number(n));
    }
  }
  await cluster.stop();
  return { acknowledged: acknowledged.length, moves, kills, duplicates };
}

function fits(filter: string, topic: string): boolean {
  return filter === "#" || filter === topic || (filter === "t/+" && topic.startsWith("t/"));
}
