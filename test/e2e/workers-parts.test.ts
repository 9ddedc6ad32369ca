/** What parts of a gateway have to do with workers: isolated filters, presence, the drain, changes under load, crash loops. */
import assert from "node:assert/strict";
import { cp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { createCrashPublisher, createCrashSubscriber } from "../helpers/crash-clients.ts";
import { eventually } from "../helpers/eventually.ts";
import { rogueFolder } from "../helpers/isolated.ts";
import { publishPacket } from "../helpers/raw-client.ts";
import { allRun, gated, proxyYaml as proxy, startWorkers, type WorkersGateway } from "../helpers/workers.ts";

const pipeline = (filter: string): string => `kind: Pipeline\nname: pub\nfilters: [${filter}]`;
const gatedFilter = (options = ""): string => pipeline(`{ name: gated, kind: Gated${options} }`);
const yaml = (options = "", more = ""): string => [proxy(more), gatedFilter(options)].join("\n---\n");

async function reload(gateway: WorkersGateway, text: string): Promise<string> {
  const from = gateway.process.logs.length;
  await gateway.write(text);
  gateway.process.signal("SIGHUP");
  return (await gateway.process.reloaded(from)).msg;
}

test("an isolated filter has a thread in each worker: one that is stuck harms its own worker's packets alone", async (t) => {
  const isolated = (deadline: number): string =>
    [
      proxy("faultGrace: 1"),
      pipeline(
        `{ name: rogue, kind: Rogue, isolate: { deadline: ${deadline} }, onCreate: "", onValidate: "", text: "" }`,
      ),
    ].join("\n---\n");
  const gateway = await startWorkers(t, isolated(0.5), "workers: 2", (folder) =>
    cp(join(rogueFolder, "rogue"), join(folder, "plugins/rogue"), { recursive: true }),
  );
  const listener = await gateway.connect(1, "listener");
  await listener.subscribe("edited/#", 0);
  const clients = [await gateway.connect(0, "c0"), await gateway.connect(1, "c1")];
  for (const each of clients) {
    await each.publish("up", "edit me");
    assert.equal((await listener.expect("publish")).payload.toString(), "EDIT ME");
  }
  clients[0]?.send(publishPacket("up", "loop", 77));
  for (let n = 0; n < 5; n++) {
    await clients[1]?.publish("up", "edit on");
    assert.equal((await listener.expect("publish")).payload.toString(), "EDIT ON");
  }
  await clients[0]?.closed;
  await eventually(async () => await gateway.metric("sluice_isolated_restarts_total", { reason: "stuck" }), 1);
  const back = await gateway.connect(0, "c0");
  await back.publish("up", "edit again");
  assert.equal((await listener.expect("publish")).payload.toString(), "EDIT AGAIN");
  // What is changed is every worker's, and closes nothing.
  assert.equal(await reload(gateway, isolated(0.6)), "The config has changed");
  for (const each of [back, clients[1]]) {
    await each?.publish("up", "edit new");
    assert.equal((await listener.expect("publish")).payload.toString(), "EDIT NEW");
  }
  gateway.kill(0);
  await back.closed;
  await allRun(gateway);
  const revived = await gateway.connect(0, "c0");
  await revived.publish("up", "edit last");
  assert.equal((await listener.expect("publish")).payload.toString(), "EDIT LAST");
});

test("presence: the number of a client's connection grows from worker to worker, and over the end of one", async (t) => {
  const gateway = await startWorkers(t, yaml("", "presence: { pipeline: pub, topic: presence }"));
  for (const worker of [0, 1, 0, 1]) await gateway.connect(worker, "dev", { clean: worker === 0 });
  gateway.kill(1);
  await eventually(async () => await gateway.metric("sluice_connections"), 0);
  await gateway.connect(0, "dev");
  type Told = { event: string; clientId: string; reason?: string; connection: number };
  const told = async (): Promise<Told[]> =>
    (await gated(gateway))
      .map((line) => JSON.parse(/^\d of 2 presence (.*)$/.exec(line)?.[1] ?? "{}") as Told)
      .filter(({ clientId }) => clientId === "dev");
  await eventually(async () => (await told()).length, 9);
  const events = await told();
  const numbers = events.flatMap(({ event, connection }) => (event === "connected" ? [connection] : []));
  assert.deepEqual(
    numbers,
    [...new Set(numbers)].toSorted((a, b) => a - b),
  );
  assert.deepEqual(
    numbers.map((number) => events.find((each) => each.event === "disconnected" && each.connection === number)?.reason),
    ["takenOver", "takenOver", "takenOver", "workerEnded", undefined],
  );
});

test("drain.rate is that of all workers together, however their clients are shared out", async (t) => {
  const gateway = await startWorkers(t, yaml(), "workers: 2\ndrain: { timeout: 30, rate: 10 }");
  const clients = [await gateway.connect(1, "other")];
  for (let n = 0; n < 15; n++) clients.push(await gateway.connect(0, `c${n}`));
  const closedAt: number[] = [];
  for (const each of clients) void each.closed.then(() => closedAt.push(performance.now()));
  await gateway.process.stop();
  await Promise.all(clients.map(({ closed }) => closed));
  const took = (closedAt.at(-1) ?? 0) - (closedAt[0] ?? 0);
  // Each worker closes its first one at once.
  assert.ok(took > 1250 && took < 2500, `16 clients were closed within ${Math.round(took)} ms`);
});

test("changes of the config under load, good ones and bad ones: no connection ends, nothing is lost", async (t) => {
  const gateway = await startWorkers(t, yaml());
  const { port } = gateway.process;
  const publishers = ["p0", "p1", "p2", "p3"].map((id, at) => createCrashPublisher(id, at < 2 ? 1 : 2, 20));
  const subscribers = [createCrashSubscriber("s1", 1), createCrashSubscriber("s2", 2)];
  const all = [...subscribers, ...publishers];
  for (const each of all) await each.connect(port);
  const more = async (): Promise<void> => {
    const acked = publishers.map((each) => each.acked.size);
    await eventually(() => publishers.every((each, n) => each.acked.size > (acked[n] ?? 0) + 50), true);
  };
  for (const [text, outcome] of [
    [yaml("", "retryInterval: 11"), "The config has changed"],
    [yaml(", failIn: 1"), "The config was not changed"],
    [yaml(", failIn: 7"), "The config has changed"],
    [`${yaml()}\nnonsense: 1`, "The config was not changed"],
    [yaml("", "listeners: [{ name: second, port: 0 }]"), "The config has changed"],
    [yaml(", failIn: 0"), "The config was not changed"],
    [yaml(), "The config has changed"],
  ] as const) {
    await more();
    assert.equal(await reload(gateway, text), outcome);
  }
  await more();
  await Promise.all(publishers.map((each) => each.finish()));
  assert.deepEqual(
    all.filter((each) => each.isClosed()).map(({ clientId }) => clientId),
    [],
  );
  const published = publishers.flatMap((each) => [...each.acked]);
  for (const each of subscribers) {
    await eventually(() => published.filter((payload) => !each.got.has(payload)).length, 0);
    assert.deepEqual(each.doubles, []);
  }
  for (const each of all) each.destroy();
});

test("a worker that ends again and again is started again more and more seldom; the others serve, and /readyz says so", async (t) => {
  const gateway = await startWorkers(t, yaml());
  const stays = await gateway.connect(0, "stays");
  await writeFile(join(gateway.folder, "die-1"), "");
  gateway.kill(1);
  await eventually(async () => await gateway.metric("sluice_worker_restarts_total", { reason: "exit 9" }), 3, 20_000);
  const ready = await gateway.readyz();
  assert.deepEqual(
    [ready.status, JSON.parse(ready.text)],
    [200, { ready: true, unhealthy: [{ name: "workers", detail: "1 of 2 run" }] }],
  );
  const startedAt = gateway.process.logs.flatMap(({ msg, worker, time }) =>
    msg === "A worker is started" && worker === 1 ? [Date.parse(String(time))] : [],
  );
  const pauses = startedAt.slice(1).map((at, n) => at - (startedAt[n] ?? 0));
  // After the first, which had run: 0.2 s, doubled each time.
  for (const [n, least] of [400, 800].entries()) assert.ok((pauses[n + 1] ?? 0) >= least, pauses.join(", "));
  await stays.publish("t", "x");
  // A change is made by those that run, and is what the other comes back with.
  assert.equal(await reload(gateway, yaml("", "retryInterval: 11")), "The config has changed");
  await rm(join(gateway.folder, "die-1"));
  await allRun(gateway);
  await eventually(async () => (await gateway.readyz()).status, 200);
  const other = await gateway.connect(1, "other");
  await other.publish("t", "y");
  assert.deepEqual(await stays.flush(), []);
  // With none of them there is nobody to connect to.
  for (const worker of [0, 1]) await writeFile(join(gateway.folder, `die-${worker}`), "");
  for (const worker of [0, 1]) gateway.kill(worker);
  await eventually(async () => (await gateway.readyz()).status, 503);
  for (const worker of [0, 1]) await rm(join(gateway.folder, `die-${worker}`));
  await eventually(async () => (await gateway.readyz()).status, 200, 20_000);
});

test("another number of workers is refused while the gateway runs; the plan says so before", async (t) => {
  const gateway = await startWorkers(t, yaml());
  const client = await gateway.connect(1, "c");
  for (const workers of [1, 3]) {
    const change = async (query: string) =>
      await gateway.api(`/objects${query}`, {
        method: "PUT",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ kind: "Gateway", name: "gateway", workers, plugins: { dirs: ["./plugins"] } }),
      });
    const planned = await change("?dryRun=true");
    assert.equal(planned.status, 200);
    assert.match(
      JSON.stringify(planned.body),
      new RegExp(`refused without a restart: workers, 2 now and ${workers} then`),
    );
    const refused = await change("");
    assert.equal(refused.status, 409);
    assert.match(
      JSON.stringify(refused.body),
      new RegExp(`runs with workers: 2, and takes ${workers} when it is restarted`),
    );
  }
  assert.equal((await gateway.pids()).length, 2);
  await client.publish("t", "x");
  assert.deepEqual(await client.flush(), []);
});
