/** What the benchmark measures beside the gateway: each way to name a server starts it, or finds it, and ends it. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { parseAllDocuments } from "yaml";
import { rows } from "../bench/rows.ts";
import { type Result, runRows } from "../bench/run-rows.ts";
import { proxyDocuments } from "../bench/servers/documents.ts";
import { serverKind } from "../bench/servers/kinds.ts";
import type { ServerKind, Setup } from "../bench/servers/server.ts";
import { sluice } from "../bench/servers/sluice.ts";
import { startKafka } from "../helpers/kafka.ts";

const root = join(import.meta.dirname, "../..");
const identity = { cert: "a certificate", key: "a key" };
const kafka = { brokers: ["127.0.0.1:9092"], topic: "bench-topic" };

async function temporary(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-bench-servers-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

async function measure(kind: ServerKind, ...names: string[]): Promise<Result[]> {
  const chosen = names.map((name) => rows.find((row) => row.name === name)!);
  return runRows({ rows: chosen, kinds: [kind], seconds: 0.5, rounds: 1, progress: () => undefined });
}

function isSound(results: readonly Result[], names: readonly string[]): void {
  assert.deepEqual(
    results.map(({ row, error }) => [row, error]),
    names.map((name) => [name, undefined]),
  );
  for (const { row, best } of results) {
    assert.equal(best?.lost, 0, row);
    assert.ok(best.cpuUs! > 0.1 && best.cpuUs! < 5000, `${row}: ${best.cpuUs} us`);
  }
}

/** `a.b` of every key, lists left out, and numbers, which name levels. */
function keysOf(value: unknown, path = ""): string[] {
  if (Array.isArray(value)) return value.flatMap((item) => keysOf(item, path));
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) => {
    const own = /^\d+$/.test(key) ? path : `${path}.${key}`;
    return [own, ...keysOf(inner, own)];
  });
}

test("Easegress: the objects have the keys of its documentation alone, and what its KafkaMQTT can't do without", async () => {
  const pages = await Promise.all(
    ["mqttproxy", "topic-mapper"].map((name) => readFile(join(root, `test/fixtures/doc-yaml/${name}.yaml`), "utf8")),
  );
  const read = (text: string): unknown[] => parseAllDocuments(text).map((document) => document.toJS() as unknown);
  const documented = new Set(pages.flatMap((text) => read(text).flatMap((document) => keysOf(document))));
  assert.ok(documented.has(".filters.policies.headers") && documented.has(".certificate.cert"));
  for (const setup of ["broker", "tls", "kafka", "mapper"] as const satisfies readonly Setup[]) {
    const documents = proxyDocuments({ setup, folder: "", kafka, identity }, 1883).flatMap(read);
    assert.deepEqual(
      documents.flatMap((document) => keysOf(document)).filter((key) => !documented.has(key)),
      [],
      setup,
    );
    const [proxy, pipeline] = documents as [
      { kind: string; port: number; rules?: object[]; certificate?: object[] },
      { name: string; flow: object[]; filters: { name: string; kind: string; mqtt?: object }[] } | undefined,
    ];
    assert.deepEqual([proxy.kind, proxy.port], ["MQTTProxy", 1883]);
    if (setup === "tls") assert.deepEqual(proxy.certificate, [{ name: "bench", ...identity }]);
    if (!pipeline) continue;
    assert.deepEqual(proxy.rules, [{ when: { packetType: "Publish" }, pipeline: pipeline.name }]);
    assert.deepEqual(
      pipeline.flow,
      pipeline.filters.map(({ name }) => ({ filter: name })),
    );
    // Its schema refuses a KafkaMQTT without it.
    assert.ok(pipeline.filters.at(-1)?.mqtt);
  }
});

test("--vs easegress=PATH gives a server its options, waits for it, measures it and ends it", async (t) => {
  const folder = await temporary(t);
  const binary = join(folder, "easegress-server");
  const standIn = join(root, "test/fixtures/easegress-stand-in.ts");
  await writeFile(binary, `#!/bin/sh\nexec "${process.execPath}" "${standIn}" "$@"\n`);
  await chmod(binary, 0o755);
  const names = ["ingest-qos1", "fan-out-10", "http"];
  isSound(await measure(serverKind(`easegress=${binary}`), ...names), names);
});

test("--vs host:port measures a server that runs, finds its process, and leaves it running", async (t) => {
  const server = await sluice.start({ setup: "broker", folder: await temporary(t), kafka: undefined, identity });
  t.after(() => server.stop());
  const kind = serverKind(`${server.address.host}:${server.address.port}`);
  assert.equal((await kind.start({ setup: "broker", folder: "", kafka: undefined, identity })).pid, server.pid);
  for (let turn = 0; turn < 2; turn++) isSound(await measure(kind, "ingest-qos1"), ["ingest-qos1"]);
  const [unreachable] = await measure(serverKind("127.0.0.1:9"), "idle");
  assert.equal(unreachable?.error, "nothing listens on 127.0.0.1:9");
});

test("--vs 'command {port}' runs a command with variables before it, as the shell does", async (t) => {
  const folder = await temporary(t);
  const config = join(folder, "sluice.yaml");
  await writeFile(
    config,
    "kind: MQTTProxy\nname: m\nport: ${MQTT_PORT}\nbrokerMode: true\n---\nkind: AdminAPI\nname: admin-api\nport: 0\n",
  );
  const kind = serverKind(`MQTT_PORT={port} "${process.execPath}" ${root}/kernel/cli.ts run -c '${config}' --no-watch`);
  isSound(await measure(kind, "ingest-qos1"), ["ingest-qos1"]);
});

test(
  "a goal's yardstick is measured too where its row was not asked for, and each row says whether it is met",
  {
    skip: !existsSync("/usr/sbin/mosquitto"),
  },
  async (t) => {
    const folder = await temporary(t);
    const html = join(folder, "out.html");
    const args = ["--rows", "http", "--vs", "mosquitto", "--seconds", "0.5", "--rounds", "1", "--html", html];
    const { stdout } = await promisify(execFile)(process.execPath, [join(root, "test/bench/bench.ts"), ...args]);
    assert.match(
      stdout,
      /^HTTP publish, .*\[http\] {2}goal <= [\d.]+ \(18\.\d+ of mosquitto's ingest-qos1\): (met|MISSED by)/,
    );
    assert.match(stdout, /\n {2}sluice +[\d.]+ us a request .*\ngoals: [01] of 1 met\n$/);
    assert.match(await readFile(html, "utf8"), /class="goal"/);
  },
);

/** In the short form a test of twenty seconds is none. */
const testLong = process.env["SLUICE_TEST_LONG"] ? test : () => undefined;

void testLong("the load publishes to Kafka's topic, as Easegress wants it", async (t) => {
  const broker = await startKafka();
  if (!broker) {
    t.skip("no Kafka");
    return;
  }
  await broker.stop();
  const folder = await temporary(t);
  const binary = join(folder, "easegress-server");
  const standIn = join(root, "test/fixtures/easegress-stand-in.ts");
  await writeFile(binary, `#!/bin/sh\nexec "${process.execPath}" "${standIn}" "$@"\n`);
  await chmod(binary, 0o755);
  const names = ["kafka-qos1", "mapper-qos1"];
  isSound(await measure(serverKind(`easegress=${binary}`), ...names), names);
});

void testLong(
  "--vs mochi builds and measures the Go module",
  { skip: !existsSync("/usr/local/go/bin/go") },
  async () => {
    isSound(await measure(serverKind("mochi"), "ingest-qos1", "fan-out-10"), ["ingest-qos1", "fan-out-10"]);
  },
);
