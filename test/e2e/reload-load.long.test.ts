/** 2,000 connected clients publish and receive while the config changes 100 times; a third of the changes are broken. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import mqtt, { type MqttClient } from "mqtt";
import { generate } from "selfsigned";
import { eventually } from "../helpers/eventually.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { spawnGateway } from "../helpers/spawned-gateway.ts";

const plain = 1800;
const secure = 200;
const reloads = 100;
/** Of each client, so that two cores have some air. */
const publishEveryMs = 2000;
const baselineMs = 20_000;
const reloadEveryMs = 400;
/** In the gateway's process: writes what is in use after a collection, as a line of its log. */
const heapReporter = `data:text/javascript,process.on("SIGUSR2", () => {
  gc();
  console.log(JSON.stringify({ msg: "heap", bytes: process.memoryUsage().heapUsed }));
});`;

function yaml(n: number): string {
  const rules = [
    { when: { packetType: "Connect" }, pipeline: "connect" },
    { when: { packetType: "Publish" }, pipeline: "publish" },
  ];
  const filters = ["one", "two"].map((name) => ({
    name,
    kind: "ConnectControl",
    // One of the two changes each time, the other one is kept.
    bannedClients: [`${name}-${name === "one" ? n : 0}`],
  }));
  return toYaml([
    {
      kind: "MQTTProxy",
      name: "plain",
      host: "127.0.0.1",
      port: 0,
      brokerMode: true,
      rules,
      retryInterval: 20 + (n % 10),
      clientPublishLimit: { requestRate: 1000 + n },
    },
    {
      kind: "MQTTProxy",
      name: "secure",
      host: "127.0.0.1",
      port: 0,
      brokerMode: true,
      rules,
      useTLS: true,
      certificate: [{ name: "c", certFile: "tls.crt", keyFile: "tls.key" }],
    },
    { kind: "Pipeline", name: "connect", filters: [{ name: "control", kind: "ConnectControl", bannedClients: ["x"] }] },
    {
      kind: "Pipeline",
      name: "publish",
      data: { n: String(n) },
      flow: n % 2 === 0 ? [{ filter: "one" }, { filter: "two" }] : [{ filter: "two" }, { filter: "one" }],
      filters,
    },
    { kind: "AdminAPI", name: "admin-api", port: 0 },
  ]);
}

function percentile(values: readonly number[], part: number): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length * part)] ?? Number.NaN;
}

test("2,000 clients at QoS 1 through 100 reloads: none dropped, nothing lost, all in order", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sluice-reload-load-"));
  t.after(() => rm(folder, { recursive: true }));
  const file = join(folder, "sluice.yaml");
  const pairs = await Promise.all(
    ["a", "b"].map((value) => generate([{ name: "commonName", value }], { keySize: 2048 })),
  );
  const certify = async (n: number): Promise<void> => {
    const pair = pairs[n % 2];
    assert.ok(pair);
    await writeFile(join(folder, "tls.crt"), pair.cert);
    await writeFile(join(folder, "tls.key"), pair.private);
  };
  await certify(0);
  await writeFile(file, yaml(0));
  // Read when it is told to, so that each of the changes is one.
  const gateway = await spawnGateway(file, ["--no-watch"], ["--expose-gc", "--import", heapReporter]);
  t.after(() => gateway.stop());
  const heap = async (): Promise<number> => {
    const from = gateway.logs.length;
    gateway.signal("SIGUSR2");
    return Number((await gateway.logged(({ msg }) => msg === "heap", from))["bytes"]);
  };

  const urls = [await gateway.url("plain"), await gateway.url("secure")];
  const clients: MqttClient[] = [];
  const got: number[][] = [];
  const latencies: number[][] = [[], []];
  let phase = 0;
  let closed = 0;
  for (let at = 0; at < plain + secure; at += 50) {
    await Promise.all(
      Array.from({ length: 50 }, async (_, offset) => {
        const n = at + offset;
        const url = urls[n < plain ? 0 : 1];
        assert.ok(url);
        const client = await mqtt.connectAsync(url, {
          clientId: `c${n}`,
          reconnectPeriod: 0,
          rejectUnauthorized: false,
        });
        const own: number[] = [];
        got[n] = own;
        clients[n] = client;
        client.on("close", () => closed++);
        client.on("message", (_topic, payload) => {
          const [count, sentAt, sentIn] = payload.toString().split(" ").map(Number);
          own.push(count ?? Number.NaN);
          latencies[sentIn ?? 0]?.push(performance.now() - (sentAt ?? 0));
        });
        await client.subscribeAsync(`to/${n}`, { qos: 1 });
      }),
    );
  }

  let isOver = false;
  const publishing = clients.map(async (client, n) => {
    let count = 0;
    await sleep((n / clients.length) * publishEveryMs);
    while (!isOver) {
      const next = sleep(publishEveryMs);
      await client.publishAsync(`to/${n}`, `${count++} ${performance.now()} ${phase}`, { qos: 1 });
      await next;
    }
    return count;
  });
  await sleep(baselineMs);
  const heapBefore = await heap();
  phase = 1;
  const outcomes: Record<string, number> = {};
  for (let n = 1; n <= reloads; n++) {
    if (n % 3 === 0) {
      await writeFile(file, `${yaml(n)}\n---\nkind: Nonsense\nname: x\n`);
    } else {
      if (n % 5 === 0) await certify(n);
      await writeFile(file, yaml(n));
    }
    const from = gateway.logs.length;
    gateway.signal("SIGHUP");
    const { msg } = await gateway.reloaded(from);
    outcomes[msg] = (outcomes[msg] ?? 0) + 1;
    await sleep(reloadEveryMs);
  }
  isOver = true;
  const sent = await Promise.all(publishing);
  assert.deepEqual(outcomes, { "The config has changed": 67, "The config was not changed": 33 });
  await eventually(() => got.map((own) => own.length), sent, 30_000);
  assert.equal(closed, 0, "connections were dropped");
  for (const [n, own] of got.entries())
    assert.deepEqual(
      own,
      Array.from({ length: sent[n] ?? 0 }, (_, i) => i),
    );

  const total = sent.reduce((sum, each) => sum + each, 0);
  const [without = [], during = []] = latencies;
  const ms = (values: readonly number[], part: number): string => `${percentile(values, part).toFixed(1)} ms`;
  t.diagnostic(`${total} messages of ${clients.length} clients through ${reloads} reloads, 33 of them broken`);
  t.diagnostic(`without reloads: p50 ${ms(without, 0.5)}, p99 ${ms(without, 0.99)} of ${without.length}`);
  t.diagnostic(`with reloads: p50 ${ms(during, 0.5)}, p99 ${ms(during, 0.99)} of ${during.length}`);
  const heapAfter = await heap();
  const mb = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  t.diagnostic(`heap in use: ${mb(heapBefore)} before, ${mb(heapAfter)} after`);
  assert.ok(heapAfter < heapBefore * 1.5, "the heap has grown");
  await Promise.all(clients.map((client) => client.endAsync(true)));
});
