/**
 * What a message through NATS costs and how long it takes: `node test/bench/cluster-latency.ts`. CPU of this process for
 * an append by the lean publisher and by the library's own, in turn; then publish to delivery at another gateway's client
 * beside the same gateway's. Three NATS servers and two gateways on this machine.
 */
import { connect } from "../../plugins/nats-cluster/node_modules/@nats-io/transport-node/lib/mod.js";
import { jetstream } from "../../plugins/nats-cluster/node_modules/@nats-io/jetstream/lib/mod.js";
import { setTimeout as sleep } from "node:timers/promises";
import { connectAsync, type MqttClient } from "mqtt";
import { startCluster } from "../helpers/gateway-cluster.ts";
import { startNats } from "../helpers/nats.ts";
import { messageOf, startNode } from "../helpers/nats-engine.ts";

const rounds = 3;
const perRound = 8000;
const windowSize = 1024;

const nats = await startNats({ nodes: 3 });
if (!nats) process.exit(1);

async function windowed(count: number, send: (n: number) => Promise<unknown>): Promise<{ us: number; rate: number }> {
  const cpu = process.cpuUsage();
  const startedAt = performance.now();
  let next = 0;
  const one = async (): Promise<void> => {
    while (next < count) await send(next++);
  };
  await Promise.all(Array.from({ length: windowSize }, one));
  const { user, system } = process.cpuUsage(cpu);
  return { us: (user + system) / count, rate: (count / (performance.now() - startedAt)) * 1000 };
}

const node = await startNode(nats.urls, "bench", { shards: 1 });
const raw = await connect({ servers: nats.urls });
const js = jetstream(raw);
const payload = Buffer.alloc(200, "x").toString();
const body = Buffer.alloc(200, "x");
const results: Record<string, { us: number; rate: number }[]> = { engine: [], library: [] };
for (let round = 0; round <= rounds; round++) {
  const engine = await windowed(perRound, (n) => node.proxy.log.append(messageOf(`bench/${n % 1000}`, payload)));
  const library = await windowed(perRound, (n) => js.publish(`t.m.0.p.n.bench.${n % 1000}.~`, body));
  // The first warms up.
  if (round > 0) {
    results["engine"]?.push(engine);
    results["library"]?.push(library);
  }
}
for (const [name, all] of Object.entries(results)) {
  const best = all.toSorted((a, b) => a.us - b.us)[0];
  console.log(`append, ${name}: ${best?.us.toFixed(1)} us CPU a message, ${Math.round(best?.rate ?? 0)} a second`);
}
await raw.close();
await node.engine.stop();

const gateways = await startCluster({ urls: nats.urls, namespace: "lat" }, ["n1", "n2"]);
const [here, there] = gateways;
const publisher = await connectAsync(here?.url() ?? "", { clientId: "publisher" });

async function latencies(client: MqttClient, qos: 0 | 1): Promise<number[]> {
  const found: number[] = [];
  const listen = (_: string, message: Buffer): void => void found.push(performance.now() - Number(message.toString()));
  client.on("message", listen);
  for (let n = 0; n < 1000; n++) {
    publisher.publish(`lat/${qos}`, String(performance.now()), { qos });
    await sleep(2);
  }
  await sleep(500);
  client.off("message", listen);
  return found.toSorted((a, b) => a - b);
}

for (const [name, gateway] of [
  ["the same gateway", here],
  ["another gateway", there],
] as const) {
  for (const qos of [0, 1] as const) {
    const client = await connectAsync(gateway?.url() ?? "", { clientId: `subscriber${qos}` });
    await client.subscribeAsync(`lat/${qos}`, { qos });
    const all = await latencies(client, qos);
    const at = (share: number): string => (all[Math.floor(all.length * share)] ?? Number.NaN).toFixed(2);
    console.log(`QoS ${qos} to a client of ${name}: ${all.length} of 1000, p50 ${at(0.5)} ms, p99 ${at(0.99)} ms`);
    await client.endAsync();
  }
}
await publisher.endAsync();
for (const gateway of gateways) await gateway.stop();
await nats.stop();
