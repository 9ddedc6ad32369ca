/** The benchmark counts right: all that a sound server does, and what one that loses messages leaves out. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createServer, type Socket } from "node:net";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import mqttPacket from "mqtt-packet";
import { judge, tableOf } from "../bench/report.ts";
import { pictureOf } from "../bench/picture.ts";
import { minus, shareOf } from "../bench/load/latencies.ts";
import { createLatencies } from "../bench/load/latencies.ts";
import { type Row, rows } from "../bench/rows.ts";
import { type Result, runRows } from "../bench/run-rows.ts";
import type { ServerKind } from "../bench/servers/server.ts";
import { serverKind } from "../bench/servers/kinds.ts";
import { sluice } from "../bench/servers/sluice.ts";
import { startKafka } from "../helpers/kafka.ts";
import { longTest } from "../helpers/long-test.ts";

const kafka = await startKafka();
await kafka?.stop();

function named(...names: string[]): Row[] {
  return names.map((name) => rows.find((row) => row.name === name)!);
}

async function run(kinds: readonly ServerKind[], ...names: string[]): Promise<Result[]> {
  return runRows({ rows: named(...names), kinds, seconds: 1, rounds: 1, progress: () => undefined });
}

/** Acknowledges every PUBLISH and delivers all but every tenth. */
function lossy(): ServerKind {
  return {
    name: "lossy",
    setups: ["broker"],
    async start() {
      const subscribers = new Set<Socket>();
      const sockets = new Set<Socket>();
      let published = 0;
      const server = createServer((socket) => {
        sockets.add(socket);
        socket.on("error", () => undefined).on("close", () => subscribers.delete(socket));
        const parser = mqttPacket.parser();
        socket.on("data", (chunk: Buffer) => parser.parse(chunk));
        parser.on("packet", (packet) => {
          if (packet.cmd === "connect") {
            socket.write(mqttPacket.generate({ cmd: "connack", returnCode: 0, sessionPresent: false }));
          } else if (packet.cmd === "subscribe") {
            subscribers.add(socket);
            socket.write(mqttPacket.generate({ cmd: "suback", messageId: packet.messageId!, granted: [1] }));
          } else if (packet.cmd === "publish") {
            socket.write(mqttPacket.generate({ cmd: "puback", messageId: packet.messageId! }));
            if (++published % 10 > 0) for (const each of subscribers) each.write(mqttPacket.generate(packet));
          }
        });
      });
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      const { port } = server.address() as { port: number };
      return {
        address: { host: "127.0.0.1", port },
        pid: process.pid,
        async stop() {
          for (const socket of sockets) socket.destroy();
          await new Promise((resolve) => server.close(resolve));
        },
      };
    },
  };
}

longTest("what it says of the gateway is so: nothing is lost, and each figure is there", async () => {
  const names = ["ingest-qos1", "ingest-qos0", "fan-out-10", "fan-out-10-qos0", "http-10"];
  const results = await run([sluice], ...names);
  assert.deepEqual(
    results.map(({ row, server, error }) => [row, server, error]),
    names.map((name) => [name, "sluice", undefined]),
  );
  for (const { row, best } of results) {
    assert.ok(best);
    assert.equal(best.lost, 0, row);
    // CPU comes in hundredths of a second.
    assert.ok(best.cpuUs! > 0.1 && best.cpuUs! < 5000, `${row}: ${best.cpuUs} us`);
    assert.ok(best.generatorUs! > 0 && best.rate! > 100, row);
  }
});

test("a server that loses messages is found out, and goes on being measured", async () => {
  const [result] = await run([lossy()], "fan-out-10-single");
  assert.ok(result?.best, result?.error);
  const { lost = 0 } = result.best;
  assert.ok(lost >= 10 && lost % 10 === 0, `${lost} lost`);
  assert.match(tableOf(judge(rows, [result], "lossy")), /LOST [1-9]/);
});

/** In the short form a test of twenty seconds is none. */

longTest(
  "what Kafka has not got is lost, however well it was acknowledged",
  async () => {
    const elsewhere: ServerKind = {
      ...sluice,
      name: "elsewhere",
      start: (need) => sluice.start({ ...need, kafka: { ...need.kafka!, topic: `${need.kafka!.topic}-other` } }),
    };
    const [sound, lost] = [await run([sluice], "kafka-qos1"), await run([elsewhere], "kafka-qos1")];
    assert.equal(sound[0]?.best?.lost, 0, sound[0]?.error);
    const { best, error } = lost[0]!;
    assert.ok(best, error);
    assert.ok(best.lost! > 0 && best.lost! >= best.rate! * 0.5 * 0.9, `${best.lost} of ${best.rate}/s`);
  },
  { skip: !kafka },
);

test("a server that can't be started fails its own rows alone", async () => {
  const results = await run([sluice, serverKind("exit 3 # {port}")], "ingest-qos1");
  const [ours, theirs] = results;
  assert.ok(ours?.best);
  assert.match(theirs?.error ?? "", /has ended/);
  assert.throws(() => serverKind("nothing"), /--vs nothing: give .*aedes/);
  assert.throws(() => serverKind("easegress"), /say where its binary is/);
});

test("times in buckets give shares that are a few percent off at most", () => {
  const latencies = createLatencies();
  const before = latencies.read();
  for (let ms = 1; ms <= 1000; ms++) latencies.add(ms);
  const counts = minus(latencies.read(), before);
  for (const share of [0.01, 0.5, 0.99, 1]) {
    const found = shareOf(counts, share);
    assert.ok(found >= share * 1000 && found <= share * 1000 * 1.05, `${share}: ${found}`);
  }
  assert.ok(Number.isNaN(shareOf([], 0.5)));
});

test("goals come from Easegress where it is measured, else from Mosquitto's share of it", () => {
  const result = (row: string, server: string, cpuUs: number): Result => {
    const best = { cpuUs };
    return { row, server, rounds: [best], best, error: undefined };
  };
  const ours = [result("kafka-qos1", "sluice", 8), result("ingest-qos1", "mosquitto", 5)];
  const [kafkaRow] = judge(rows, ours, "sluice");
  assert.ok(kafkaRow?.goal);
  assert.equal(Math.round(kafkaRow.goal.limit * 100) / 100, 7.4);
  assert.equal(kafkaRow.goal.isMet, false);
  const [beside] = judge(rows, [...ours, result("kafka-qos1", "easegress", 25)], "sluice");
  assert.deepEqual([beside?.goal?.limit, beside?.goal?.isMet], [10, true]);
  const svg = pictureOf(judge(rows, ours, "sluice"), { note: "", isSvg: true });
  assert.match(svg, /^<svg [^]*<\/svg>$/);
  assert.match(svg, /class="figure missed">8.00</);
});

test("the command writes a table, JSON and a picture", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sluice-bench-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const [json, html] = [join(folder, "out.json"), join(folder, "out.html")];
  const file = join(import.meta.dirname, "../bench/bench.ts");
  const args = ["--rows", "connects", "--seconds", "0.5", "--rounds", "1", "--json", json, "--html", html];
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [file, ...args]);
  assert.match(stdout, /5,000 connects \[connects\].*\n  sluice +\S+ us a connect/);
  assert.match(stderr, /1\/1 connects, sluice: /);
  const data = JSON.parse(await readFile(json, "utf8")) as { rows: { name: string; results: Result[] }[] };
  assert.ok(data.rows[0]?.results[0]?.best?.rate);
  assert.match(await readFile(html, "utf8"), /<svg [^]*5,000 connects/);
});
