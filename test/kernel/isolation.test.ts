/** A filter in a thread of its own: what crosses, and what becomes of packets when the thread ends. */
import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { inspect } from "../../kernel/isolation.ts";
import { createConnectContext, createPublishContext, createSubscribeContext } from "@sluice/testkit";
import { eventually } from "../helpers/eventually.ts";
import { createTestHost } from "@sluice/testkit";
import { createIsolated, rogueIsolation } from "../helpers/isolated.ts";

describe("what crosses", () => {
  test("the packet, the client, and the values of both maps, there", async (t) => {
    const { publish } = await createIsolated(t);
    const { data } = await publish("show", {
      clientId: "dev1",
      username: "u",
      topic: "a/b",
      data: { PIPELINE: { site: "x" }, headers: { a: "1" }, bytes: Buffer.from("abc") },
    });
    const { client, packet, data: seen, ...rest } = data.get("shown") as Record<string, unknown>;
    assert.deepEqual(rest, { type: "Publish", origin: "client" });
    assert.deepEqual(client, {
      id: "dev1",
      username: "u",
      address: "127.0.0.1",
      protocolVersion: 4,
      certificate: undefined,
      data: [],
    });
    assert.deepEqual(packet, {
      topic: "a/b",
      payload: Buffer.from("show"),
      qos: 1,
      retain: false,
      dup: false,
      packetId: 1,
    });
    assert.deepEqual(seen, [
      ["PIPELINE", { site: "x" }],
      ["headers", { a: "1" }],
      ["bytes", Buffer.from("abc")],
    ]);
    assert.deepEqual(data.get("kinds"), [true, true]);
  });

  test("what the filter replaces, and sets or deletes in the maps, back", async (t) => {
    const { publish } = await createIsolated(t);
    const edited = await publish("edit this");
    assert.deepEqual(
      [edited.packet.topic, edited.packet.payload, edited.packet.qos, edited.result],
      ["edited/a/b/c", Buffer.from("EDIT THIS"), 0, undefined],
    );
    const kept = {};
    const { data, client } = await publish("data", { data: { gone: 1, kept } });
    assert.deepEqual([...data.keys()], ["kept", "made"]);
    assert.equal(data.get("kept"), kept, "what was not touched is the same object");
    assert.deepEqual(data.get("made"), { list: [1, new Map([["a", 1]])], bytes: Buffer.from("x") });
    assert.deepEqual([...client.data], [["count", 1]]);
  });

  test("an empty payload, and one that is a part of something larger", async (t) => {
    const { filter } = await createIsolated(t);
    for (const payload of [Buffer.alloc(0), Buffer.from("xxedit mexx").subarray(2, 9)]) {
      const ctx = createPublishContext({ payload });
      await filter.handle(ctx);
      assert.deepEqual(ctx.packet.payload, Buffer.from(payload.toString().toUpperCase()));
    }
  });

  test("results, verdicts and errors", async (t) => {
    const { publish } = await createIsolated(t);
    assert.equal((await publish("result odd")).result, "odd");
    assert.deepEqual((await publish("drop")).decision, { outcome: "drop" });
    assert.deepEqual((await publish("refuse quotaExceeded")).decision, { outcome: "reject", reason: "quotaExceeded" });
    assert.deepEqual((await publish("disconnect banned")).decision, { outcome: "disconnect", reason: "banned" });
    await assert.rejects(publish("throw"), { message: "no", code: "E_NO", poison: true });
    await assert.rejects(publish("reject"), { message: "later" });
  });

  test("packets of other types", async (t) => {
    const { filter } = await createIsolated(t);
    const connect = createConnectContext({ password: "secret", username: "u" });
    await filter.handle(connect);
    assert.deepEqual(connect.client.data.get("password"), Buffer.from("secret"));
    const subscribe = createSubscribeContext({ topicFilters: ["refused/a", "b"] });
    const [first] = subscribe.packet.subscriptions;
    await filter.handle(subscribe);
    assert.equal(subscribe.packet.subscriptions[0], first, "the list that the proxy holds is the one written to");
    assert.deepEqual(
      subscribe.packet.subscriptions.map(({ qos, refused }) => [qos, refused]),
      [
        [0, true],
        [0, false],
      ],
    );
  });

  test("the end of the packet's deadline", async (t) => {
    const { filter, publish } = await createIsolated(t, "ConcurrentRogue");
    const controller = new AbortController();
    const ctx = { ...createPublishContext({ payload: "signal" }), signal: controller.signal };
    const answer = filter.handle(ctx);
    await publish("wait 1");
    controller.abort();
    await answer;
    assert.equal((await publish("held")).packet.payload.toString(), "aborted");
  });

  test("log lines, up to a limit; metrics; health", async (t) => {
    const { publish, logs, metricValue, filter } = await createIsolated(t);
    await publish("log 150");
    await eventually(() => logs.length, 100);
    assert.deepEqual(Object.keys(logs[0]?.fields ?? {}), ["n", "call"]);
    assert.equal(await metricValue("sluice_isolated_log_lines_dropped_total"), 50);
    await publish("order 0 x");
    assert.equal(await metricValue("rogue_packets_total", { what: "Publish" }), 2);
    assert.equal(await metricValue("rogue_size_bytes_sum"), 16);
    assert.equal(await metricValue("rogue_last_bytes"), 9);
    await eventually(() => metricValue("rogue_held", { by: "rogue" }), 1);
    await eventually(() => filter.health?.(), { ok: false, detail: "1 held" });
  });

  test("host.publish, with its outcome or its error", async (t) => {
    const seen: unknown[] = [];
    const { publish } = await createIsolated(
      t,
      "Rogue",
      {},
      {},
      {
        overrides: {
          publish(proxy, message) {
            seen.push([proxy, message]);
            if (message.topic === "bad")
              return Promise.reject(Object.assign(new Error("no"), { code: "TOPIC_INVALID" }));
            return Promise.resolve({ matched: 1, connected: 1, durable: true });
          },
        },
      },
    );
    const { packet } = await publish("publish up");
    assert.deepEqual(JSON.parse(packet.payload.toString()), { matched: 1, connected: 1, durable: true });
    const payload = Buffer.from("from a thread");
    assert.deepEqual(seen, [["mqttproxy", { topic: "up", payload, qos: 1, retain: false }]]);
    await assert.rejects(publish("publish bad"), { message: "no", code: "TOPIC_INVALID" });
  });

  test("nothing that can't be cloned: that packet fails, those beside it don't", async (t) => {
    const { publish, metricValue } = await createIsolated(t, "ConcurrentRogue");
    const code = "ISOLATION_NOT_CLONEABLE";
    const [there, back, fine] = await Promise.allSettled([
      publish("edit", { data: { callback: () => 1 } }),
      publish("function"),
      publish("edit"),
    ]);
    assert.ok(there?.status === "rejected" && back?.status === "rejected" && fine?.status === "fulfilled");
    for (const { reason } of [there, back] as { reason: { code: string; message: string } }[]) {
      assert.equal(reason.code, code);
      assert.match(reason.message, /^pipeline\/filter: "callback" of ctx\.data can't be copied/);
    }
    assert.equal(fine.value.packet.payload.toString(), "EDIT");
    assert.equal(await metricValue("sluice_isolated_faults_total", { reason: "notCloneable" }), 2);
  });

  test("values that contain themselves, and Buffers in them", async (t) => {
    const { publish } = await createIsolated(t);
    const value: Record<string, unknown> = { list: [{ bytes: Buffer.from("x") }] };
    value["self"] = value;
    const { data } = await publish("show", { data: { value } });
    const shown = new Map((data.get("shown") as { data: [string, typeof value][] }).data);
    const seen = shown.get("value");
    assert.ok(seen);
    assert.equal(seen["self"], seen);
    // Strict: no Uint8Array will do.
    assert.deepEqual(seen["list"], [{ bytes: Buffer.from("x") }]);
    let deep: unknown = {};
    for (let n = 0; n < 100_000; n++) deep = { deep };
    await assert.rejects(publish("show", { data: { deep } }), { code: "ISOLATION_NOT_CLONEABLE" });
    assert.equal((await publish("edit")).packet.payload.toString(), "EDIT");
  });

  test("what the host can't offer is refused when it is asked for, at create", async (t) => {
    const { publish } = await createIsolated(t);
    await assert.rejects(publish("host config"), {
      code: "ISOLATION_REFUSED",
      message: /host\.config is not available/,
    });
    const options = { onCreate: "host drain", onValidate: "", text: "" };
    const { kind } = await inspect(rogueIsolation("Rogue"), options);
    const { host, close } = createTestHost();
    t.after(close);
    await assert.rejects(async () => kind.create(options, host), {
      code: "ISOLATION_REFUSED",
      message: /host\.drain is not available/,
    });
  });
});

describe("when the thread ends", () => {
  const harms: [deed: string, reason: string, detail: RegExp][] = [
    ["loop", "stuck", /more than 1 s without a pause/],
    ["exit", "exit", /exit code 3/],
    ["uncaught", "crash", /nobody catches this/],
    ["unhandled", "crash", /nobody handles this/],
    ["leak", "memory", /more than heapMb allows/],
    ["bigLeak", "memory", /more than heapMb allows/],
    ["bufferLeak", "memory", /more than heapMb allows/],
  ];
  for (const [deed, reason, detail] of harms) {
    test(`by ${deed}: the packet in it fails, those behind it pass through the next one`, async (t) => {
      const { publish, metricValue, logs, filter } = await createIsolated(t, "Rogue", {
        // On a busy machine a leak may take long.
        deadlineMs: deed === "loop" ? 1000 : 30_000,
      });
      assert.equal((await publish("edit a")).packet.payload.toString(), "EDIT A");
      const lost = publish(deed);
      const behind = Promise.all([publish("edit b"), publish("edit c")]);
      await assert.rejects(lost, { code: "ISOLATION_LOST", message: detail });
      assert.deepEqual(filter.health?.().ok, false);
      assert.deepEqual(
        (await behind).map(({ packet }) => packet.payload.toString()),
        ["EDIT B", "EDIT C"],
      );
      assert.equal(await metricValue("sluice_isolated_restarts_total", { reason }), 1);
      assert.equal(await metricValue("sluice_isolated_faults_total", { reason }), 1);
      assert.equal(await metricValue("sluice_isolated_packets"), 0);
      const lines = logs.filter(({ message }) => message.startsWith("An isolated filter's thread has ended"));
      assert.deepEqual(
        lines.map(({ level, fields }) => [level, fields["reason"]]),
        [["error", reason]],
      );
      await eventually(() => filter.health?.().ok, true);
    });
  }

  test("what it had done before is not lost", async (t) => {
    const { publish } = await createIsolated(t);
    const [done, lost] = await Promise.allSettled([publish("edit a"), publish("exit")]);
    assert.deepEqual([done.status, lost.status], ["fulfilled", "rejected"]);
  });

  test("each end makes the wait before the next start longer", async (t) => {
    const { publish, metricValue } = await createIsolated(t);
    const since = performance.now();
    for (let n = 0; n < 4; n++) await assert.rejects(publish("exit"), { code: "ISOLATION_LOST" });
    // Before the second, third and fourth: 100, 200 and 400 ms.
    assert.ok(performance.now() - since >= 690);
    assert.equal(await metricValue("sluice_isolated_restarts_total", { reason: "exit" }), 4);
  });

  test("a filter that waits is not taken for one that hangs", async (t) => {
    const { publish, metricValue } = await createIsolated(t, "ConcurrentRogue", { deadlineMs: 200 });
    await publish("wait 1000");
    assert.equal((await metricValue("sluice_isolated_restarts_total")) ?? 0, 0);
  });

  test("packets enter in the order they came", async (t) => {
    const { publish } = await createIsolated(t, "ConcurrentRogue");
    const packets = await Promise.all([publish("order 20 a"), publish("order 10 b"), publish("order 0 c")]);
    assert.deepEqual(
      packets.map(({ packet }) => packet.payload.toString()),
      ["a,b,c", "a,b,c", "a,b,c"],
    );
  });

  test("more packets, or bytes, than it may hold fail at once, counted", async (t) => {
    const { publish, metricValue, filter } = await createIsolated(t, "ConcurrentRogue", {
      maxPackets: 2,
      maxBytes: 30,
    });
    const held = [publish("wait 300"), publish("wait 300")];
    await assert.rejects(publish("edit"), { code: "ISOLATION_FULL" });
    await Promise.all(held);
    await assert.rejects(publish(`edit ${"x".repeat(30)}`), { code: "ISOLATION_FULL" });
    assert.equal((await publish("edit")).packet.payload.toString(), "EDIT");
    assert.equal(await metricValue("sluice_isolated_faults_total", { reason: "full" }), 2);
    assert.ok(filter);
  });

  test("packets that are never answered don't keep others out once their deadline has passed", async (t) => {
    const { filter, publish } = await createIsolated(t, "ConcurrentRogue", { maxPackets: 5000 });
    const controller = new AbortController();
    const hung = Array.from({ length: 1000 }, () =>
      filter.handle({ ...createPublishContext({ payload: "hang" }), signal: controller.signal }),
    );
    const behind = publish("edit");
    await eventually(async () => (await Promise.race([behind, Promise.resolve("waits")])) === "waits", true);
    controller.abort();
    // Nothing else comes to it meanwhile.
    await Promise.all([...hung, behind]);
  });

  test("packets whose deadline has passed while they waited are not handed over", async (t) => {
    const { filter, publish } = await createIsolated(t, "Rogue", { deadlineMs: 300 });
    await publish("order 0 first");
    const lost = publish("loop");
    const late = createPublishContext({ payload: "order 0 late" });
    // As a run's `signal` does, it shows the end of the deadline when it is asked.
    const expired = filter.handle({ ...late, signal: AbortSignal.timeout(200) });
    await assert.rejects(lost);
    await expired;
    assert.equal((await publish("order 0 now")).packet.payload.toString(), "now");
  });
});

describe("import and check, in a thread", () => {
  const options = { onCreate: "", onValidate: "", text: "" };

  test("never in this one", async () => {
    const { kind, faults } = await inspect(rogueIsolation("Rogue"), { ...options, onValidate: "fault" });
    assert.deepEqual(faults, [{ field: ["onValidate"], message: "is a fault" }]);
    assert.deepEqual(JSON.parse(JSON.stringify(kind)), {
      kind: "Rogue",
      packets: ["Connect", "Publish", "Subscribe", "Disconnect"],
      results: ["odd", "bad"],
      discards: ["bad"],
    });
    assert.equal("rogueImportedInMainThread" in globalThis, false);
  });

  test("what hangs or ends there is an error here", async () => {
    const hangs = { code: "PLUGIN_START_TIMEOUT" };
    await assert.rejects(inspect(rogueIsolation("ImportLoop"), options, 500), hangs);
    await assert.rejects(inspect(rogueIsolation("Rogue"), { ...options, onValidate: "loop" }, 500), hangs);
    const exits = { code: "PLUGIN_BROKEN", message: /exit code 7/ };
    await assert.rejects(inspect(rogueIsolation("ImportExit"), options), exits);
    await assert.rejects(inspect(rogueIsolation("Missing"), options), { code: "PLUGIN_BROKEN" });
    const other = { ...rogueIsolation("Rogue").source, kind: "Other" };
    await assert.rejects(inspect(rogueIsolation("Rogue", { source: other }), options), {
      code: "PLUGIN_BROKEN",
      message: /says kind "Rogue" where the manifest says "Other"/,
    });
  });
});

test(
  "the thread gives way to the gateway's where cores are scarce",
  { skip: process.platform !== "linux" },
  async (t) => {
    const nice = async (): Promise<number> => {
      const stats = await Promise.all(
        (await readdir("/proc/self/task")).map((id) => readFile(`/proc/self/task/${id}/stat`, "utf8").catch(() => "")),
      );
      // Behind the name, which may hold anything: the 17th field.
      return stats.filter((stat) => stat.split(") ").at(-1)?.split(" ")[16] === "10").length;
    };
    // Those of the tests before may still be ending.
    await eventually(nice, 0);
    await createIsolated(t);
    await eventually(nice, 1);
  },
);

describe("close", () => {
  test("lets the filter close itself", async (t) => {
    const { filter, logs, publish } = await createIsolated(t);
    await publish("edit");
    await filter.close?.();
    assert.equal(logs.at(-1)?.message, "closed");
    const ctx = createPublishContext({ payload: "edit" });
    assert.throws(() => filter.handle(ctx), { code: "ISOLATION_LOST" });
  });

  test("ends the thread where that takes too long", async (t) => {
    const { filter, logs } = await createIsolated(t, "Rogue", {}, { onCreate: "wait 1" });
    await filter.close?.();
    assert.equal(logs.at(-1)?.message, "An isolated filter did not close in time; its thread is ended");
  });

  test("while the thread is started again, starts no other", async (t) => {
    const { filter, publish } = await createIsolated(t);
    await assert.rejects(publish("exit"));
    const waiting = publish("edit");
    await Promise.all([filter.close?.(), assert.rejects(waiting, { code: "ISOLATION_LOST" })]);
  });
});
