/**
 * Persistent clients that hop from node to node while messages are published at all of them, one gateway and one NATS
 * server are killed on the way, and everything that was acknowledged has to arrive.
 */
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createCrashPublisher, createCrashSubscriber, type CrashSubscriber } from "./crash-clients.ts";
import { eventually } from "./eventually.ts";
import { spawnNode, type SpawnedNode } from "./gateway-cluster.ts";
import type { Nats } from "./nats.ts";
import { createRandom } from "./random.ts";

export interface ChaosOptions {
  readonly seed: number;
  readonly clients: number;
  /** Of each QoS; every client gets the messages of two of them and of one that publishes by HTTP. */
  readonly publishers: number;
  readonly seconds: number;
  /** Between two hops of any client. */
  readonly hopEveryMs: number;
  /** Between two messages of one publisher. */
  readonly pauseMs: number;
}

export interface ChaosReport {
  /** Messages. */
  readonly acked: number;
  /** Acknowledged messages times the clients that were to get them. */
  readonly required: number;
  readonly hops: number;
  readonly missing: string[];
  /** QoS 2 messages that a client got twice. */
  readonly doubles: string[];
  readonly swapped: string[];
}

const reconnectAtOnce = 40;
const patienceMs = 90_000;

export async function runChaos(t: TestContext, nats: Nats, options: ChaosOptions): Promise<ChaosReport> {
  const random = createRandom(options.seed);
  const names = ["n1", "n2", "n3"];
  const namespace = `chaos${options.seed}`;
  const urlsFrom = (at: number): string[] => [...nats.urls.slice(at), ...nats.urls.slice(0, at)];
  const nodes: SpawnedNode[] = [];
  for (const [at, name] of names.entries()) nodes.push(await spawnNode(t, { urls: urlsFrom(at), namespace }, name));
  const alive = new Set<SpawnedNode>();
  const start = async (node: SpawnedNode): Promise<void> => {
    await node.start();
    await eventually(() => node.isReady(), true, 30_000);
    alive.add(node);
  };
  await Promise.all(nodes.map(start));
  const portOfAny = (): number => [...alive][random(alive.size)]?.gateway().port ?? 0;

  const qoses = [1, 2] as const;
  const publishers = qoses.flatMap((qos) =>
    Array.from({ length: options.publishers }, (_, n) => createCrashPublisher(`q${qos}-${n}`, qos, 4, options.pauseMs)),
  );
  const clients = qoses.flatMap((qos) =>
    Array.from({ length: options.clients / 2 }, (_, n) => {
      const sources = n % options.publishers;
      // One with a wildcard in ten: the log is read otherwise for it.
      const filter = n % 10 === 0 ? `load/+` : `load/q${qos}-${sources}`;
      return { filter, subscriber: createCrashSubscriber(`c${qos}-${n}`, qos, filter) };
    }),
  );
  t.after(() => {
    for (const { subscriber } of clients) subscriber.destroy();
    for (const publisher of publishers) publisher.destroy();
  });

  /** At some node that takes it. */
  async function connect(each: CrashSubscriber | (typeof publishers)[number]): Promise<void> {
    const until = performance.now() + patienceMs;
    for (;;) {
      each.destroy();
      try {
        await each.connect(portOfAny());
        return;
      } catch (error) {
        if (performance.now() > until) throw error;
        await sleep(100);
      }
    }
  }
  const busy = new Set<object>();
  async function reconnect(each: CrashSubscriber | (typeof publishers)[number]): Promise<void> {
    if (busy.has(each)) return;
    busy.add(each);
    try {
      await connect(each);
    } finally {
      busy.delete(each);
    }
  }
  const everybody = [...clients.map(({ subscriber }) => subscriber), ...publishers];
  async function repair(): Promise<void> {
    const lost = everybody.filter((each) => each.isClosed() && !busy.has(each));
    await Promise.all(lost.slice(0, reconnectAtOnce).map(reconnect));
  }

  for (let at = 0; at < clients.length; at += reconnectAtOnce) {
    await Promise.all(clients.slice(at, at + reconnectAtOnce).map(({ subscriber }) => reconnect(subscriber)));
  }
  await Promise.all(publishers.map(reconnect));

  let isOver = false;
  const httpAcked = new Set<string>();
  async function publishByHttp(): Promise<void> {
    for (let n = 1; !isOver; n++) {
      const node = [...alive][random(alive.size)];
      const payload = `http ${n}`;
      try {
        const response = await fetch(`${node?.gateway().api}/apis/v2/mqttproxy/mqttproxy/topics/publish`, {
          method: "POST",
          body: JSON.stringify({ topic: "load/http", qos: 2, payload }),
          signal: AbortSignal.timeout(20_000),
        });
        await response.body?.cancel();
        if (response.status === 200) httpAcked.add(payload);
      } catch {
        // Nobody has said that it was taken.
      }
      await sleep(options.pauseMs);
    }
  }
  let hops = 0;
  async function hop(): Promise<void> {
    while (!isOver) {
      const each = clients[random(clients.length)]?.subscriber;
      if (each && !busy.has(each)) {
        hops++;
        void reconnect(each);
      }
      await sleep(options.hopEveryMs);
    }
  }
  async function keepConnected(): Promise<void> {
    while (!isOver) {
      await repair();
      await sleep(50);
    }
  }
  async function kill(): Promise<void> {
    const [part, , victim] = [(options.seconds * 1000) / 5, 0, nodes[1]];
    const server = nats.servers[2];
    await sleep(part);
    if (victim) {
      alive.delete(victim);
      await victim.kill();
    }
    await sleep(part);
    await server?.kill();
    await sleep(part);
    if (victim) await start(victim);
    await sleep(part);
    await server?.restart();
    await sleep(part);
    isOver = true;
  }
  await Promise.all([publishByHttp(), hop(), keepConnected(), kill()]);

  const finished = Promise.all(publishers.map((publisher) => publisher.finish()));
  let isFinished = false;
  void finished.then(() => (isFinished = true));
  await eventually(
    async () => {
      await repair();
      return isFinished;
    },
    true,
    patienceMs,
  );
  const acked = new Map<string, readonly string[]>(
    publishers.map((each) => [`load/${each.clientId}`, [...each.acked]]),
  );
  acked.set("load/http", [...httpAcked]);
  const due = (filter: string): readonly string[] =>
    filter.endsWith("+") ? [...acked.values()].flat() : (acked.get(filter) ?? []);
  const missingNow = (): string[] =>
    clients.flatMap(({ filter, subscriber }) =>
      due(filter).flatMap((payload) => (subscriber.got.has(payload) ? [] : [`${subscriber.clientId}: ${payload}`])),
    );
  await eventually(
    async () => {
      await repair();
      return missingNow().length;
    },
    0,
    patienceMs,
  ).catch(() => undefined);
  return {
    acked: [...acked.values()].reduce((sum, each) => sum + each.length, 0),
    required: clients.reduce((sum, { filter }) => sum + due(filter).length, 0),
    hops,
    missing: missingNow(),
    doubles: clients.flatMap(({ subscriber }) => subscriber.doubles.map((each) => `${subscriber.clientId}: ${each}`)),
    swapped: clients.flatMap(({ filter, subscriber }) => swapsOf(subscriber, new Set(due(filter)))),
  };
}

/** Of each publisher, acknowledged messages that first came behind a later one. */
function swapsOf({ clientId, got }: CrashSubscriber, acked: ReadonlySet<string>): string[] {
  const lasts = new Map<string, number>();
  const swaps: string[] = [];
  for (const payload of got) {
    if (!acked.has(payload)) continue;
    const [by = "", number = ""] = payload.split(" ");
    const last = lasts.get(by) ?? 0;
    if (Number(number) < last) swaps.push(`${clientId}: ${payload} after ${last}`);
    else lasts.set(by, Number(number));
  }
  return swaps;
}
