/** What clients of a worker that is killed leave behind: their wills and the news that they are gone. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { eventually } from "../helpers/eventually.ts";
import { longTest } from "../helpers/long-test.ts";
import { withWill } from "../helpers/will-packet.ts";
import { allRun, gated, proxyYaml as proxy, startWorkers, type WorkersGateway } from "../helpers/workers.ts";

const yaml = (options = "", more = ""): string =>
  `${proxy(more)}\n---\nkind: Pipeline\nname: pub\nfilters: [{ name: gated, kind: Gated${options} }]`;

const presence = "presence: { pipeline: pub, topic: presence }";

const v5 = { protocolVersion: 5 as const };

/** The topics of the wills that the pipelines were given, by whichever worker. */
async function wills(gateway: WorkersGateway): Promise<string[]> {
  return (await gated(gateway)).map((line) => line.split(" ")[3] ?? "").filter((topic) => topic.startsWith("will/"));
}

test("a worker is killed: its clients' wills are published once by another, in time, and no others", async (t) => {
  const gateway = await startWorkers(t, yaml("", presence));
  const watcher = await gateway.connect(1, "watcher", {}, v5);
  await watcher.subscribe("will/#", 1);
  for (const id of ["now", "later", "back", "waits", "polite"]) {
    await gateway
      .connect(0, id, withWill(`will/${id}`, { later: 1, back: 600, waits: 2 }[id] ?? 0), v5)
      .then((client) => {
        if (id === "polite") return client.disconnect();
        // Its delay goes on from when its connection ended.
        if (id === "waits") client.destroy();
        return undefined;
      });
  }
  const silent = await gateway.connect(0, "silent", {}, v5);
  const other = await gateway.connect(1, "other", withWill("will/other"), v5);
  await eventually(async () => await gateway.metric("sluice_connections"), 6);
  const killedAt = performance.now();
  gateway.kill(0);
  await silent.closed;
  const next = async (): Promise<string> => {
    const packet = await watcher.expect("publish");
    watcher.send({ cmd: "puback", messageId: packet.messageId ?? 0 });
    assert.deepEqual({ ...packet.properties?.userProperties }, { of: packet.topic });
    return packet.topic;
  };
  assert.equal(await next(), "will/now");
  const back = await gateway.connect(1, "back", { clean: false, properties: { sessionExpiryInterval: 600 } }, v5);
  assert.equal(await next(), "will/later");
  assert.ok(performance.now() - killedAt > 900);
  assert.equal(await next(), "will/waits");
  assert.ok(performance.now() - killedAt < 2500);
  await allRun(gateway);
  assert.deepEqual([await back.flush(), await other.flush(), await watcher.flush()], [[], [], []]);
  assert.deepEqual((await wills(gateway)).toSorted(), ["will/later", "will/now", "will/waits"]);
  const told = (await gated(gateway)).flatMap((line) => {
    const [, topic, payload] = /^1 of 2 (\S+) (.*)$/.exec(line) ?? [];
    if (topic !== "presence") return [];
    const { event, reason, clientId } = JSON.parse(payload ?? "") as Record<string, string>;
    return event === "disconnected" && reason === "workerEnded" ? [String(clientId)] : [];
  });
  assert.deepEqual(
    told.toSorted((a, b) => a.localeCompare(b)),
    ["back", "later", "now", "silent"],
  );
  assert.equal(await gateway.metric("sluice_connections_closed_total", { reason: "workerEnded" }), 4);
});

test("wills that are in a pipeline when the worker is killed, and those that no worker is there for, are not lost", async (t) => {
  const gateway = await startWorkers(t, yaml(", gate: open"));
  const inPipeline = await gateway.connect(0, "in", withWill("will/in"), v5);
  inPipeline.destroy();
  await eventually(() => gated(gateway), ["0 of 2 will/in gone"]);
  const clients = [
    await gateway.connect(0, "a", withWill("will/a"), v5),
    await gateway.connect(1, "b", withWill("will/b"), v5),
  ];
  await writeFile(join(gateway.folder, "open"), "");
  gateway.kill(0);
  gateway.kill(1);
  for (const each of clients) await each.closed;
  await allRun(gateway);
  await eventually(async () => [...new Set(await wills(gateway))].toSorted(), ["will/a", "will/b", "will/in"]);
});

longTest("a will that ends one worker after the other is given up after the second", async (t) => {
  const gateway = await startWorkers(t, yaml(", gate: open"));
  const poison = await gateway.connect(0, "poison", withWill("will/poison"), v5);
  gateway.kill(0);
  await poison.closed;
  await eventually(() => gated(gateway), ["1 of 2 will/poison gone"]);
  gateway.kill(1);
  await allRun(gateway);
  assert.deepEqual(await gated(gateway), ["1 of 2 will/poison gone"]);
  assert.equal(await gateway.metric("sluice_messages_dropped_total", { reason: "workerEnded" }), 1);
});

test("a stop publishes no wills, save those that wait: also those that wait for a worker that is gone", async (t) => {
  const gateway = await startWorkers(t, yaml());
  const left = await gateway.connect(0, "left", withWill("will/left", 600), v5);
  gateway.kill(0);
  await left.closed;
  await allRun(gateway);
  const clients = [
    await gateway.connect(0, "x", withWill("will/x"), v5),
    await gateway.connect(1, "y", withWill("will/y"), v5),
  ];
  assert.equal(await gateway.process.stop(), 0);
  for (const each of clients) await each.closed;
  assert.deepEqual(await wills(gateway), ["will/left"]);
});
