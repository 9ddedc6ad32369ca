/** Filters with `isolate`: they do their work, their failures are their own, and a change of the config leaves nothing behind. */
import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test, type TestContext } from "node:test";
import { eventually } from "../helpers/eventually.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";
import { rogueFolder } from "../helpers/isolated.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw, openRawClient, publishPacket } from "../helpers/raw-client.ts";
import { spawnGateway } from "../helpers/spawned-gateway.ts";

const base = [
  { kind: "Gateway", plugins: { dirs: [rogueFolder] }, drain: { timeout: 1 } },
  { kind: "AdminAPI", name: "admin-api", port: 0 },
];

/** `rogue` sends what is published through the filters, `plain` through none. */
function config(filters: readonly object[], proxy: object = {}): string {
  return toYaml([
    ...base,
    {
      kind: "MQTTProxy",
      name: "rogue",
      host: "127.0.0.1",
      port: 0,
      brokerMode: true,
      rules: [{ when: { packetType: "Publish" }, pipeline: "publish" }],
      ...proxy,
    },
    { kind: "MQTTProxy", name: "plain", host: "127.0.0.1", port: 0, brokerMode: true },
    { kind: "Pipeline", name: "publish", filters },
  ]);
}

const rogue = (more: object = {}): object => ({ name: "rogue", kind: "Rogue", isolate: { deadline: 0.5 }, ...more });

async function start(t: TestContext, yaml: string): Promise<TestGateway> {
  const gateway = await startTestGateway(yaml);
  t.after(() => gateway.stop());
  return gateway;
}

const threads = async (): Promise<number> => (await readdir("/proc/self/task")).length;

describe("an isolated filter", () => {
  test("gets packets and changes them; the kind is not imported in the gateway's thread", async (t) => {
    const gateway = await start(t, config([rogue()]));
    const client = await connectRaw(gateway.port("rogue"), "dev1");
    await client.subscribe("edited/up");
    await client.publish("up", "result bad");
    client.send(publishPacket("up", "edit me", 7));
    const packets = [await client.expect("publish"), await client.expect("puback")];
    assert.equal((packets[0] as { payload: Buffer }).payload.toString(), "EDIT ME");
    assert.equal("rogueImportedInMainThread" in globalThis, false);
    assert.equal(await gateway.metric("sluice_messages_dropped_total", { reason: "bad" }), 1);
    const shown = gateway.gateway.host.config.documents().find(({ kind }) => kind === "Pipeline");
    assert.deepEqual(shown?.["filters"], [
      {
        name: "rogue",
        kind: "Rogue",
        isolate: { heapMb: 128, deadline: 0.5, maxPackets: 10_000, maxBytes: 67_108_864 },
        onCreate: "",
        onValidate: "",
        text: "",
      },
    ]);
  });

  test("keeps a connection's packets in order, and the limit on what is in work", async (t) => {
    const gateway = await start(t, config([rogue({ kind: "ConcurrentRogue" })], { maxInWork: 10 }));
    const port = gateway.port("rogue");
    const listener = await connectRaw(port, "listener");
    await listener.subscribe("up", 0);
    const client = await connectRaw(port, "dev1");
    const waits = Array.from({ length: 100 }, (_, n) => `wait ${(n * 7) % 5}`);
    client.send(...waits.map((text, n) => publishPacket("up", text, n + 1)));
    const acks = await client.expectMany("puback", 100);
    assert.deepEqual(
      acks.map(({ messageId }) => messageId),
      waits.map((_, n) => n + 1),
    );
    const got = await listener.expectMany("publish", 100);
    assert.deepEqual(
      got.map(({ payload }) => payload.toString()),
      waits,
    );
    assert.ok((await gateway.metric("sluice_connection_pauses_total", { proxy: "rogue", reason: "work" })) > 0);
  });

  test("in an endless loop: its packet gets no PUBACK, all others go on", async (t) => {
    const gateway = await start(t, config([rogue({ isolate: { deadline: 1 } })], { faultGrace: 1 }));
    const victim = await connectRaw(gateway.port("rogue"), "victim");
    const other = await connectRaw(gateway.port("rogue"), "other");
    const plain = await connectRaw(gateway.port("plain"), "plain");
    await other.publish("up", "edit");
    victim.send(publishPacket("up", "loop", 1));
    const closed = victim.expectClose();
    await eventually(() => gateway.metric("sluice_isolated_packets"), 1);
    // Behind the loop, through the same filter: it waits, and passes.
    other.send(publishPacket("up", "edit", 2));
    let flowed = 0;
    while (!victim.isClosed) {
      await plain.publish("elsewhere", "x");
      flowed++;
    }
    await closed;
    assert.ok(flowed > 10, `${flowed} messages beside the loop`);
    assert.equal((await other.expect("puback")).messageId, 2);
    assert.equal(await gateway.metric("sluice_isolated_faults_total", { reason: "stuck" }), 1);
    assert.equal(await gateway.metric("sluice_publishes_unacknowledged_total", { reason: "fault" }), 1);
    assert.equal(
      await gateway.metric("sluice_isolated_restarts_total", { filter: "publish/rogue", reason: "stuck" }),
      1,
    );
    const health = gateway.gateway.host.health().find(({ name }) => name === "publish/rogue");
    assert.equal(health?.ok, true);
  });

  test("of the bundled ones: authentication, mapping and files in threads of their own", async (t) => {
    const text = await readFile(join(import.meta.dirname, "../../config/sluice.yaml"), "utf8");
    const isolated = text
      .replaceAll("dir: ../data", "dir: data")
      .replaceAll(/^( +)(- name: \S+)\n(?= +kind: )/gm, "$1$2\n$1  isolate: worker\n");
    assert.ok(isolated.split("isolate: worker").length > 3);
    const env = { SLUICE_MQTT_PORT: "0" };
    const gateway = await startTestGateway(isolated, { env });
    t.after(() => gateway.stop());
    const refused = await openRawClient(gateway.port());
    await assert.rejects(
      refused.connect({ clientId: "x", username: "test", password: Buffer.from("no") }),
      /CONNACK 4/,
    );
    const client = await connectRaw(gateway.port(), "dev1", { username: "test", password: Buffer.from("test") });
    await client.publish("gateway/gate123/iphone/log", "hi");
    const files = await readdir(join(gateway.folder, "data"), { recursive: true });
    const file = files.find((each) => each.includes("iot_phone") && /json/.test(each));
    assert.ok(file, `there is a file among ${files.join(", ")}`);
    const record = JSON.parse(await readFile(join(gateway.folder, "data", file), "utf8")) as Record<string, unknown>;
    assert.deepEqual([record["value"], (record["headers"] as object as { device: string }).device], ["hi", "iphone"]);
  });
});

describe("a change of the config", () => {
  test("keeps the thread of a filter that is the same, and replaces it where anything differs", async (t) => {
    const gateway = await start(t, config([rogue()]));
    const client = await connectRaw(gateway.port("rogue"), "dev1");
    await client.subscribe("up", 0);
    const heldBy = async (more: object, proxy: object = {}): Promise<string> => {
      const { plan, problems } = await gateway.reload(config([rogue(more)], proxy));
      assert.deepEqual(problems, []);
      assert.ok(plan);
      client.send(publishPacket("up", "held", 1));
      const { payload } = await client.expect("publish");
      await client.expect("puback");
      return payload.toString();
    };
    const hold = async (text: string): Promise<void> => {
      client.send(publishPacket("up", `order 0 ${text}`, 1));
      await client.expect("publish");
      await client.expect("puback");
    };
    await hold("x");
    assert.equal(await heldBy({}, { retryInterval: 20 }), "x");
    assert.equal(await heldBy({ text: "other" }), "");
    await hold("y");
    assert.equal(await heldBy({ text: "other", isolate: { deadline: 0.6 } }), "");
    const { plan } = await gateway.reload(config([rogue({ text: "other", isolate: "worker" })]));
    const item = plan?.items.find(({ name }) => name === "publish/rogue");
    assert.deepEqual([item?.action, item?.fields], ["change", ["isolate"]]);
    assert.equal(await heldBy({ text: "other", isolate: undefined }), "");
    assert.equal(await heldBy({ text: "other" }), "");
  });

  test("again and again leaves no thread and no packet behind", async (t) => {
    const gateway = await start(t, config([rogue()]));
    const client = await connectRaw(gateway.port("rogue"), "dev1");
    await client.publish("up", "edit");
    const before = await threads();
    for (let n = 0; n < 10; n++) {
      const { problems } = await gateway.reload(config([rogue({ text: String(n) })]));
      assert.deepEqual(problems, []);
      await client.publish("up", "edit");
    }
    await eventually(threads, before);
    assert.equal(await gateway.metric("sluice_isolated_packets"), 0);
    assert.equal(await gateway.metric("sluice_isolated_restarts_total"), 0);
  });

  test("to a filter that can't be created, or hangs in create, changes nothing", async (t) => {
    const gateway = await startTestGateway(config([rogue()]), { startDeadlineMs: 2000 });
    t.after(() => gateway.stop());
    const client = await connectRaw(gateway.port("rogue"), "dev1");
    const before = await threads();
    for (const [onCreate, code, message] of [
      ["loop", "PLUGIN_START_TIMEOUT", /was not created within 2 s/],
      ["exit", "FILTER_CREATE_FAILED", /exit code 3/],
      ["throw", "FILTER_CREATE_FAILED", /can't be created: no$/],
      ["host kinds", "FILTER_CREATE_FAILED", /host\.kinds is not available/],
    ] as const) {
      const { problems } = await gateway.reload(config([rogue({ onCreate })]));
      assert.deepEqual([problems.length, problems[0]?.code], [1, code]);
      assert.match(problems[0]?.message ?? "", message);
      await client.publish("up", "edit");
    }
    // Fewer where one of an earlier test was still ending.
    await eventually(async () => (await threads()) <= before, true);
  });

  const wrong: [name: string, filter: object, problem: RegExp][] = [
    [
      "another word",
      rogue({ isolate: "process" }),
      /sluice\.yaml:\d+:\d+ > publish > filters\[0\]\.isolate: must match/,
    ],
    ["an unknown limit", rogue({ isolate: { heapMB: 64, heap: 1 } }), /isolate\.heap: unknown option/],
    ["a limit that is too low", rogue({ isolate: { heapMb: 1 } }), /isolate\.heapMb: must be at least 16/],
    ["a check that fails", rogue({ onValidate: "fault" }), /publish > rogue > onValidate: is a fault/],
    ["a check that ends its thread", rogue({ onValidate: "exit" }), /rogue > kind: Rogue of .* exit code 3/],
    ["an import that does", rogue({ kind: "ImportExit" }), /rogue > kind: ImportExit of .* exit code 7/],
    ["a jump on a result it never has", { ...rogue(), kind: "Nothing" }, /no installed package provides the kind/],
  ];
  for (const [name, filter, problem] of wrong) {
    test(`with ${name} is refused, with its place`, async () => {
      await assert.rejects(startTestGateway(config([filter])), problem);
    });
  }
});

test("a loop that can't be stopped: the filter stays down and says so, the gateway goes on and ends", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sluice-isolation-"));
  t.after(() => rm(folder, { recursive: true }));
  const file = join(folder, "sluice.yaml");
  await writeFile(file, config([rogue()]));
  const gateway = await spawnGateway(file);
  t.after(() => gateway.stop());
  const client = await connectRaw(gateway.port, "dev1");
  const plain = await connectRaw(Number(new URL(await gateway.url("plain")).port), "dev2");
  client.send(publishPacket("up", "unstoppable", 1));
  await gateway.logged(({ msg }) => msg.startsWith("An isolated filter's thread can't be stopped"));
  await plain.publish("elsewhere", "x");
  client.send(publishPacket("up", "edit", 2));
  assert.deepEqual(await client.flush(), []);
  const page = await (await fetch(`${gateway.api}/apis/v2/status/objects`)).text();
  assert.match(page, /hangs in a loop that can't be stopped/);
  await gateway.stop();
});
