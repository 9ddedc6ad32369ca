/** Three gateways that share three NATS servers. */
import type { TestContext } from "node:test";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "./eventually.ts";
import { startTestGateway, type TestGateway } from "./gateway.ts";
import { spawnGateway, type SpawnedGateway } from "./spawned-gateway.ts";

export interface ClusterOptions {
  readonly urls: readonly string[];
  /** Unique on these servers. */
  readonly namespace: string;
  /** More lines of the NATSCluster document. */
  readonly options?: string;
  /** More lines of the MQTTProxy document. */
  readonly proxy?: string;
  /** More documents. */
  readonly documents?: string;
}

export function clusterYaml(
  { urls, namespace, options = "", proxy = "", documents = "" }: ClusterOptions,
  nodeName: string,
): string {
  return `
kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
brokerMode: true
${proxy}
---
kind: NATSCluster
name: cluster
servers: ${JSON.stringify(urls)}
namespace: ${namespace}
nodeName: ${nodeName}
shards: 2
${options}
${documents}
---
kind: AdminAPI
name: admin-api
port: 0
`;
}

/** In this process; each knows a NATS server of its own first. */
export async function startCluster(options: ClusterOptions, names = ["n1", "n2", "n3"]): Promise<TestGateway[]> {
  const gateways = await Promise.all(
    names.map(async (name, at) => {
      const urls = [...options.urls.slice(at), ...options.urls.slice(0, at)];
      return startTestGateway(clusterYaml({ ...options, urls }, name));
    }),
  );
  await Promise.all(gateways.map((gateway) => joined(gateway)));
  return gateways;
}

/** Resolves once the node can make messages safe. */
export async function joined({ gateway }: TestGateway): Promise<void> {
  await eventually(() => gateway.host.health().find(({ name }) => name === "cluster")?.ok, true, 30_000);
}

export interface SpawnedNode {
  readonly name: string;
  gateway(): SpawnedGateway;
  /** It runs, and has joined: what `/readyz?strict` says. */
  isReady(): Promise<boolean>;
  /** SIGKILL; resolves when it has gone. */
  kill(): Promise<void>;
  /** SIGTERM; resolves with the exit code. */
  stop(): Promise<number | null>;
  start(): Promise<void>;
}

/** A process of its own. Ends with the test. */
export async function spawnNode(t: TestContext, options: ClusterOptions, name: string): Promise<SpawnedNode> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-cluster-"));
  const config = join(folder, "sluice.yaml");
  await writeFile(config, clusterYaml(options, name));
  let running: SpawnedGateway | undefined;
  t.after(async () => {
    await running?.stop();
    await rm(folder, { recursive: true, force: true });
  });
  return {
    name,
    gateway() {
      if (!running) throw new Error(`${name} does not run`);
      return running;
    },
    async isReady() {
      if (!running) return false;
      const answer = await fetch(`${running.api}/readyz?strict`).catch(() => undefined);
      await answer?.body?.cancel();
      return answer?.ok ?? false;
    },
    async kill() {
      const ending = running;
      running = undefined;
      ending?.signal("SIGKILL");
      await ending?.stop();
    },
    async stop() {
      const ending = running;
      running = undefined;
      return (await ending?.stop()) ?? null;
    },
    async start() {
      running = await spawnGateway(config);
    },
  };
}
