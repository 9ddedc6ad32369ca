/** What a filter may do wrong while it replaces another, or is replaced; and what it may count on. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test, type TestContext } from "node:test";
import type { Reloaded } from "../../kernel/reload.ts";
import { openDiary } from "../fixtures/plugins-e2e/probe/adopter.ts";
import { eventually } from "../helpers/eventually.ts";
import { startTestGateway } from "../helpers/gateway.ts";
import { probeDocument, toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw, type RawClient } from "../helpers/raw-client.ts";

type Filters = Record<string, { id: string; create?: string; adopt?: string; close?: string }>;

/** A Publish pipeline of the Adopters given, and a client in front of it. */
async function start(t: TestContext, filters: Filters) {
  const name = randomUUID();
  const notes = openDiary(name);
  const yaml = (next: Filters): string =>
    toYaml([
      { ...probeDocument, drain: { timeout: 0 } },
      {
        kind: "MQTTProxy",
        name: "mqttproxy",
        host: "127.0.0.1",
        port: 0,
        rules: [{ when: { packetType: "Publish" }, pipeline: "publish" }],
      },
      {
        kind: "Pipeline",
        name: "publish",
        filters: Object.entries(next).map(([filter, each]) => ({
          name: filter,
          kind: "Adopter",
          diary: name,
          ...each,
        })),
      },
    ]);
  const gateway = await startTestGateway(yaml(filters), { startDeadlineMs: 200 });
  const client = await connectRaw(gateway.port(), "c");
  t.after(async () => {
    assert.equal(client.isClosed, false, "the client was disconnected");
    client.destroy();
    await gateway.stop();
  });
  return { client, notes, gateway, reload: (next: Filters) => gateway.reload(yaml(next)) };
}

/** Resolves when it is acknowledged. */
const publish = (client: RawClient, payload: string): Promise<void> => client.publish("t", payload);

/** Of the filter `b`: with its line and column. */
function assertProblem({ problems }: Reloaded, code: string, message: string): void {
  const where = problems[0]?.where ?? "nowhere";
  assert.match(where, /^sluice\.yaml:\d+:\d+ > publish > b$/);
  assert.deepEqual(problems, [{ code, where, message }]);
}

test("adopt is called once, with the instance it replaces, before its first packet; the old one is closed after", async (t) => {
  const { client, notes, reload } = await start(t, { a: { id: "a1" }, b: { id: "b1" } });
  await publish(client, "1");
  await reload({ a: { id: "a2" }, b: { id: "b1" } });
  await publish(client, "2");
  await eventually(() => notes.includes("a1 closes"), true);
  // Another flow, the same filters: nobody is replaced.
  await reload({ b: { id: "b1" }, a: { id: "a2" } });
  await publish(client, "3");
  assert.deepEqual(
    notes.filter((line) => line !== "a1 closes"),
    ["a1 handles 1", "b1 handles 1", "a2 adopts a1", "a2 handles 2", "b1 handles 2", "b1 handles 3", "a2 handles 3"],
  );
});

test("an adopt that throws harms nothing: it is logged, and the new instance works", async (t) => {
  const { client, notes, gateway, reload } = await start(t, { a: { id: "a1" } });
  const { plan } = await reload({ a: { id: "a2", adopt: "throw" } });
  assert.equal(plan?.isEmpty, false);
  await publish(client, "1");
  await eventually(() => notes, ["a2 adopts a1", "a1 closes", "a2 handles 1"]);
  assert.ok(gateway.logs.some(({ msg, filter }) => filter === "publish/a" && /could not adopt/.test(String(msg))));
});

test("a close that hangs or throws delays nobody: not the packets, not the next reloads, not the others' close", async (t) => {
  const { client, notes, reload } = await start(t, {
    a: { id: "a1", close: "hang" },
    b: { id: "b1", close: "throw" },
    c: { id: "c1" },
  });
  const from = performance.now();
  for (const n of [2, 3, 4]) {
    const { plan } = await reload({ a: { id: `a${n}` }, b: { id: `b${n}` }, c: { id: `c${n}` } });
    assert.equal(plan?.isEmpty, false);
    await publish(client, String(n));
  }
  await eventually(
    () => notes.filter((line) => line.endsWith("closes")).toSorted(),
    ["a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2", "c3"].map((id) => `${id} closes`),
  );
  assert.ok(performance.now() - from < 5000, "the hanging close was waited for");
});

test("a create that throws, or hangs beyond its deadline, fails the reload; what ran goes on, what was built is closed", async (t) => {
  const { client, notes, reload } = await start(t, { a: { id: "a1" }, b: { id: "b1" } });
  const thrown = await reload({ a: { id: "a2" }, b: { id: "b2", create: "throw" } });
  assert.equal(thrown.plan, undefined);
  assertProblem(thrown, "FILTER_CREATE_FAILED", "Adopter can't be created: can't");
  await publish(client, "1");
  assert.deepEqual(notes, ["a2 closes", "a1 handles 1", "b1 handles 1"]);

  const late = await reload({ a: { id: "a3" }, b: { id: "b3", create: "late" } });
  assert.equal(late.plan, undefined);
  assertProblem(late, "PLUGIN_START_TIMEOUT", "Adopter was not created within 0.2 s");
  await publish(client, "2");
  // The one that was made in the end, when nobody wanted it any more, is closed too.
  await eventually(() => notes.slice(3), ["a3 closes", "a1 handles 2", "b1 handles 2", "b3 closes"]);
  const { plan } = await reload({ a: { id: "a4" }, b: { id: "b4" } });
  assert.equal(plan?.isEmpty, false);
});

test("the last packets of a removed proxy go through its pipeline, also where that is removed with it", async (t) => {
  const name = randomUUID();
  const notes = openDiary(name);
  const first = { kind: "MQTTProxy", name: "first", host: "127.0.0.1", port: 0 };
  const gateway = await startTestGateway(
    toYaml([
      probeDocument,
      first,
      { ...first, name: "second", rules: [{ when: { packetType: "Disconnect" }, pipeline: "bye" }] },
      { kind: "Pipeline", name: "bye", filters: [{ name: "a", kind: "Adopter", diary: name, id: "a1" }] },
    ]),
  );
  t.after(() => gateway.stop());
  const client = await connectRaw(gateway.port("second"), "c");
  const { plan } = await gateway.reload(toYaml([probeDocument, first]));
  assert.equal(plan?.isEmpty, false);
  await client.expectClose();
  await eventually(() => notes, ["a1 handles Disconnect", "a1 closes"]);
});
