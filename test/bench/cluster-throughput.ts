/**
 * Messages a second a node, and what each costs: `node test/bench/cluster-throughput.ts [--rounds 2] [--seconds 2]`. One
 * publisher, or 100 of them, and a subscriber of all: at a gateway alone, at one gateway of a cluster, at two of it. Three
 * NATS servers that sync each write, and three gateways, all processes of this machine; CPU is what the kernel says of
 * them, so that rates, which the generator and the servers share two cores for, say less than the microseconds.
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { clusterYaml } from "../helpers/gateway-cluster.ts";
import { startNats } from "../helpers/nats.ts";
import { type SpawnedGateway, spawnGateway } from "../helpers/spawned-gateway.ts";
import { createGenerator } from "./generator.ts";
import { usageOf } from "./usage.ts";

const text = (value: string) => ({ type: "string", default: value }) as const;
const { values } = parseArgs({ options: { rounds: text("2"), seconds: text("2") } });
const seconds = Number(values.seconds);

const started = await startNats({ nodes: 3 });
if (!started) process.exit(1);
const nats = started;
const folder = await mkdtemp(join(tmpdir(), "sluice-throughput-"));

async function spawn(name: string, yaml: string): Promise<SpawnedGateway> {
  const file = join(folder, `${name}.yaml`);
  await writeFile(file, yaml);
  return spawnGateway(file);
}

const cluster = { urls: nats.urls, namespace: "tp" };
const alone = await spawn("alone", clusterYaml(cluster, "").replace(/---\nkind: NATSCluster[^]*?(?=---)/, ""));
const one = await spawn("one", clusterYaml(cluster, "one"));
const two = await spawn("two", clusterYaml({ ...cluster, urls: nats.urls.toReversed() }, "two"));
for (const { api } of [one, two]) {
  while (!(await fetch(`${api}/readyz?strict`)).ok) await sleep(100);
}

interface Figures {
  readonly rate: number;
  /** CPU microseconds a message: of the gateway that takes it, of the one that delivers it, of the NATS servers. */
  readonly publishing: number;
  readonly delivering: number;
  readonly servers: number;
}

async function measure(
  {
    from,
    to,
    qos,
    clients,
    topics,
  }: { from: SpawnedGateway; to: SpawnedGateway; qos: 0 | 1; clients: number; topics: number },
  topic: string,
): Promise<Figures> {
  const generators = [createGenerator(), createGenerator()] as const;
  try {
    const at = ({ port }: SpawnedGateway) => ({ host: "127.0.0.1", port });
    const common = { qos, payloadBytes: 128 };
    const prefix = topic.replaceAll("/", "-");
    const subscriber = await generators[0].start("fanOut", {
      ...common,
      address: at(to),
      subscribers: 1,
      window: 0,
      topic: `${topic}/+`,
      prefix,
    });
    const publisher = await generators[1].start("publishers", {
      ...common,
      address: at(from),
      clients,
      window: 200 / clients,
      topics: Array.from({ length: topics }, (_, n) => `${topic}/${String(n).padStart(3, "0")}`),
    });
    await sleep(700);
    const cpu = (pids: readonly number[]): number => pids.reduce((sum, pid) => sum + usageOf(pid).cpuUs, 0);
    const pids = [[from.pid], [to.pid], nats.servers.map(({ pid }) => pid)];
    const [before, cpuBefore] = [await subscriber.read(), pids.map(cpu)];
    await sleep(seconds * 1000);
    const [after, cpuAfter] = [await subscriber.read(), pids.map(cpu)];
    const count = (after.received ?? 0) - (before.received ?? 0);
    const each = cpuAfter.map((us, n) => (us - cpuBefore[n]!) / count);
    await publisher.stop();
    await subscriber.stop();
    const rate = (count / (after.at - before.at)) * 1000;
    return { rate, publishing: each[0]!, delivering: each[1]!, servers: each[2]! };
  } finally {
    for (const generator of generators) await generator.close();
  }
}

const ways = [
  ["a gateway alone", alone, alone],
  ["in a cluster, the same gateway", one, one],
  ["in a cluster, another gateway", one, two],
] as const;
const loads = [
  { qos: 0, clients: 1, topics: 1, load: "one publisher" },
  { qos: 1, clients: 1, topics: 1, load: "one publisher, one topic" },
  { qos: 1, clients: 1, topics: 100, load: "one publisher, 100 topics" },
  { qos: 1, clients: 100, topics: 100, load: "100 publishers" },
] as const;
const cases = loads.flatMap((load) => ways.map(([name, from, to]) => ({ ...load, name, from, to })));
const found = new Map(cases.map((each) => [each, [] as Figures[]]));
try {
  for (let round = 0; round < Number(values.rounds); round++) {
    for (const [n, each] of cases.entries()) {
      found.get(each)!.push(await measure(each, `tp/${round}/${n}`));
    }
  }
  console.log("| To one subscriber | Messages a second | us: takes it | us: delivers it | us: NATS |");
  console.log("| --- | ---: | ---: | ---: | ---: |");
  for (const [{ qos, load, name, from, to }, all] of found) {
    const best = all.toSorted((a, b) => b.rate - a.rate)[0]!;
    const isOne = from === to;
    const cells = [
      Math.round(best.rate).toLocaleString("en"),
      best.publishing.toFixed(1),
      isOne ? "the same" : best.delivering.toFixed(1),
      from === alone ? "-" : best.servers.toFixed(1),
    ];
    console.log(`| QoS ${qos}, ${load}, ${name} | ${cells.join(" | ")} |`);
  }
} finally {
  for (const gateway of [alone, one, two]) await gateway.stop();
  await nats.stop();
  await rm(folder, { recursive: true, force: true });
}
