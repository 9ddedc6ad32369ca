/**
 * Persistent clients that hop from node to node while messages are published at all of them, one gateway and one NATS
 * server are killed on the way, and everything that was acknowledged has to arrive.
 */
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createLoad, type LoadOptions, type LoadReport } from "./cluster-load.ts";
import { eventually } from "./eventually.ts";
import { spawnNode, type SpawnedNode } from "./gateway-cluster.ts";
import type { Nats } from "./nats.ts";
import { createRandom } from "./random.ts";

export interface ChaosOptions extends Omit<LoadOptions, "gatewayFor"> {
  readonly seed: number;
  readonly seconds: number;
  /** Between two hops of any client. */
  readonly hopEveryMs: number;
}

export interface ChaosReport extends LoadReport {
  readonly hops: number;
}

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
  const load = createLoad(t, { ...options, gatewayFor: () => [...alive][random(alive.size)]?.gateway() });
  await load.start();

  let isOver = false;
  let hops = 0;
  async function hop(): Promise<void> {
    while (!isOver) {
      const each = load.subscribers[random(load.subscribers.length)];
      if (each && !load.isBusy(each)) {
        hops++;
        void load.reconnect(each);
      }
      await sleep(options.hopEveryMs);
    }
  }
  async function kill(): Promise<void> {
    const [part, victim, server] = [(options.seconds * 1000) / 5, nodes[1], nats.servers[2]];
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
  await Promise.all([hop(), kill()]);
  return { ...(await load.end()), hops };
}
