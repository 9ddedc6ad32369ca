/** All gateways of a cluster are restarted one after the other, under load. */
import assert from "node:assert/strict";
import type { TestContext } from "node:test";
import { createLoad, type LoadClient, type LoadOptions, type LoadReport } from "./cluster-load.ts";
import { eventually } from "./eventually.ts";
import { spawnNode, type SpawnedNode } from "./gateway-cluster.ts";
import type { Nats } from "./nats.ts";

export interface RestartReport extends LoadReport {
  /** Of each client, how often it was dropped. */
  readonly drops: readonly number[];
  /** Of each client, how often the gateway that it was connected to was stopped. */
  readonly stops: readonly number[];
}

/**
 * @param o.namespace unique on these servers
 * @param o.isBeside a new gateway is there before the old one is stopped; else each is started again under its name
 */
export async function restartAll(
  t: TestContext,
  nats: Nats,
  o: Omit<LoadOptions, "gatewayFor"> & { readonly namespace: string; readonly isBeside: boolean },
): Promise<RestartReport> {
  /** Those that new connections go to, the newest last. */
  const serving = new Set<SpawnedNode>();
  const placed = new Map<LoadClient, SpawnedNode>();
  const stops = new Map<LoadClient, number>();

  async function start(node: SpawnedNode): Promise<void> {
    await node.start();
    await eventually(() => node.isReady(), true, 60_000);
    serving.add(node);
  }

  function clientsOf(node: SpawnedNode): LoadClient[] {
    return [...placed].flatMap(([client, at]) => (at === node ? [client] : []));
  }

  /** As a load balancer does for connections that last: where there are the fewest. */
  function pick(client: LoadClient | undefined): SpawnedNode | undefined {
    if (client) placed.delete(client);
    let best: SpawnedNode | undefined;
    for (const node of serving) if (!best || clientsOf(node).length <= clientsOf(best).length) best = node;
    if (client && best) placed.set(client, best);
    return best;
  }

  const make = (name: string): Promise<SpawnedNode> => spawnNode(t, { urls: nats.urls, namespace: o.namespace }, name);
  const nodes = await Promise.all(["n1", "n2", "n3"].map(make));
  await Promise.all(nodes.map(start));
  const load = createLoad(t, { ...o, gatewayFor: (client) => pick(client)?.gateway() });
  const isSettled = (): boolean => load.everybody.every((each) => !each.isClosed() && !load.isBusy(each));
  await load.start();

  for (const node of nodes) {
    if (o.isBeside) await start(await make(`${node.name}b`));
    await eventually(isSettled, true, 60_000);
    serving.delete(node);
    for (const client of clientsOf(node)) stops.set(client, (stops.get(client) ?? 0) + 1);
    assert.equal(await node.stop(), 0);
    if (!o.isBeside) await start(node);
    await eventually(isSettled, true, 60_000);
  }
  const report = await load.end();
  return {
    ...report,
    drops: load.everybody.map((each) => load.connects(each) - 1),
    stops: load.everybody.map((each) => stops.get(each) ?? 0),
  };
}
