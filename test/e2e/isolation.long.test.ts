/** What others notice of an isolated filter in an endless loop, and what 50 changes of one leave behind: figures. */
import assert from "node:assert/strict";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { eventually } from "../helpers/eventually.ts";
import { rogueFolder } from "../helpers/isolated.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw, publishPacket } from "../helpers/raw-client.ts";
import { spawnGateway, type SpawnedGateway } from "../helpers/spawned-gateway.ts";

const clients = 50;
/** Of each client. */
const everyMs = 50;
const phaseMs = 15_000;
/** In the gateway's process: writes what is in use after a collection, as a line of its log. */
const heapReporter = `data:text/javascript,process.on("SIGUSR2", () => {
  gc();
  console.log(JSON.stringify({ msg: "heap", bytes: process.memoryUsage().heapUsed }));
});`;

const filter = { kind: "Rogue", isolate: { deadline: phaseMs / 1000 + 5 } };

function config(text: string): string {
  const rules = [{ when: { packetType: "Publish" }, pipeline: "publish" }];
  const local = { host: "127.0.0.1", port: 0 };
  return toYaml([
    { kind: "Gateway", plugins: { dirs: [rogueFolder] }, drain: { timeout: 1 } },
    { kind: "AdminAPI", name: "admin-api", port: 0 },
    { kind: "MQTTProxy", name: "rogue", ...local, rules, faultGrace: 1 },
    {
      kind: "MQTTProxy",
      name: "other",
      ...local,
      brokerMode: true,
      rules: [{ when: { packetType: "Publish" }, pipeline: "other" }],
    },
    { kind: "Pipeline", name: "publish", timeout: 60, filters: [{ name: "rogue", ...filter, text }] },
    {
      kind: "Pipeline",
      name: "other",
      filters: [{ name: "control", kind: "ConnectControl", bannedTopics: ["not/this"] }],
    },
  ]);
}

async function start(
  t: TestContext,
  flags: readonly string[] = [],
): Promise<{ gateway: SpawnedGateway; file: string }> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-isolation-"));
  t.after(() => rm(folder, { recursive: true }));
  const file = join(folder, "sluice.yaml");
  await writeFile(file, config("0"));
  const gateway = await spawnGateway(file, ["--no-watch"], flags);
  t.after(() => gateway.stop());
  return { gateway, file };
}

const portOf = async (gateway: SpawnedGateway, proxy: string): Promise<number> =>
  Number(new URL(await gateway.url(proxy)).port);

test("other traffic's latency beside an endless loop", async (t) => {
  const { gateway } = await start(t);
  const victim = await connectRaw(await portOf(gateway, "rogue"), "victim");
  const port = await portOf(gateway, "other");
  const devices = await Promise.all(Array.from({ length: clients }, (_, n) => connectRaw(port, `c${n}`)));

  async function measure(): Promise<number[]> {
    const latencies: number[] = [];
    const until = performance.now() + phaseMs;
    await Promise.all(
      devices.map(async (device, n) => {
        await sleep((n / clients) * everyMs);
        while (performance.now() < until) {
          const next = sleep(everyMs);
          const since = performance.now();
          await device.publish("up", "x");
          latencies.push(performance.now() - since);
          await next;
        }
      }),
    );
    return latencies.toSorted((a, b) => a - b);
  }
  const at = (sorted: readonly number[], part: number): number =>
    sorted[Math.floor(sorted.length * part)] ?? Number.NaN;
  const show = (what: string, sorted: readonly number[]): void =>
    t.diagnostic(
      `${what}: p50 ${at(sorted, 0.5).toFixed(2)} ms, p99 ${at(sorted, 0.99).toFixed(2)} ms of ${sorted.length} PUBACKs`,
    );

  const before = await measure();
  victim.send(publishPacket("up", "loop", 1));
  await eventually(() => gateway.metric("sluice_isolated_packets"), 1);
  const during = await measure();
  assert.equal(await gateway.metric("sluice_isolated_packets"), 1, "it looped all the time");
  await eventually(() => gateway.metric("sluice_isolated_faults_total"), 1, 20_000);
  await victim.expectClose();
  const after = await measure();
  show("before", before);
  show("beside the loop", during);
  show("after", after);
  const usual = at(
    [...before, ...after].toSorted((a, b) => a - b),
    0.99,
  );
  t.diagnostic(`p99 beside the loop is ${(at(during, 0.99) / usual).toFixed(2)} times the usual`);
  assert.ok(during.length > before.length / 2, "all devices went on publishing");
});

test("50 changes of an isolated filter leave no thread and no memory behind", async (t) => {
  const { gateway, file } = await start(t, ["--expose-gc", "--import", heapReporter]);
  const threads = async (): Promise<number> => (await readdir(`/proc/${gateway.pid}/task`)).length;
  const heap = async (): Promise<number> => {
    const from = gateway.logs.length;
    gateway.signal("SIGUSR2");
    return Number((await gateway.logged(({ msg }) => msg === "heap", from))["bytes"]);
  };
  const client = await connectRaw(await portOf(gateway, "rogue"), "dev1");
  const change = async (n: number): Promise<void> => {
    await writeFile(file, config(String(n)));
    const from = gateway.logs.length;
    gateway.signal("SIGHUP");
    assert.equal((await gateway.reloaded(from)).msg, "The config has changed");
    await client.publish("up", "edit");
  };
  for (let n = 1; n <= 5; n++) await change(n);
  const [threadsBefore, heapBefore] = [await threads(), await heap()];
  for (let n = 6; n <= 55; n++) await change(n);
  // Node's pool of four may have filled up meanwhile; a thread left by each change would be fifty.
  await eventually(async () => (await threads()) <= threadsBefore + 4, true);
  const heapAfter = await heap();
  const mb = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  t.diagnostic(`${threadsBefore} threads; heap ${mb(heapBefore)} before, ${mb(heapAfter)} after`);
  assert.ok(heapAfter < heapBefore * 1.25, "the heap has grown");
});
