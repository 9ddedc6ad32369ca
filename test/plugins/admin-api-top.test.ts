/** `sluice top` against a gateway that works, and against none. */
import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import { test, type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { runCommand } from "@sluice/testkit";
import type { CommandIo } from "../../kernel/plugin.ts";
import { parseExposition, sumOf } from "../../plugins/admin-api/exposition.ts";
import { compare, formatView, type LiveView } from "../../plugins/admin-api/live-view.ts";
import top from "../../plugins/admin-api/top.ts";
import { eventually } from "../helpers/eventually.ts";
import { startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, publishPacket } from "../helpers/raw-client.ts";

/** A gateway in which two clients are connected and one of them publishes all the time, each tenth in vain. */
async function startBusyGateway(t: TestContext) {
  const gateway = await startProbedGateway(t, { brokerMode: true, faultGrace: 3600 }, { Publish: {} });
  gateway.probes.Publish.handle = (ctx) => {
    if (ctx.type === "Publish" && String(ctx.packet.payload) === "bad") throw new Error("no");
  };
  const subscriber = await connectRaw(gateway.port(), "subscriber");
  await subscriber.subscribe("a/#", 0);
  subscriber.onPacket = () => undefined;
  const publisher = await connectRaw(gateway.port(), "publisher");
  publisher.onPacket = () => undefined;
  let id = 0;
  const timer = setInterval(() => {
    for (let n = 0; n < 10; n++) publisher.send(publishPacket("a/b", n === 0 ? "bad" : "good", (id++ % 60_000) + 1));
  }, 10);
  t.after(() => {
    clearInterval(timer);
    publisher.destroy();
    subscriber.destroy();
  });
  await gateway.probes.Publish.entered(100);
  return gateway;
}

test("--json --once: the rates of one interval, as the traffic was", async (t) => {
  const { api, probes, metric } = await startBusyGateway(t);
  const before = probes.Publish.seen.length;
  const { code, stdout, stderr } = await runCommand(top, ["--once", "--json", "--interval", "1", "--api", api]);
  const rate = probes.Publish.seen.length - before;
  assert.deepEqual([code, stderr], [0, ""]);
  const view = JSON.parse(stdout) as LiveView;
  const [proxy] = view.proxies;
  const [filter] = view.filters;
  assert.ok(proxy && filter && view.proxies.length === 1 && view.filters.length === 1);
  const isNear = (actual: number, expected: number): boolean => actual > 0.5 * expected && actual < 1.5 * expected;
  assert.ok(view.seconds >= 0.9, stdout);
  assert.deepEqual([proxy.proxy, proxy.clients], ["mqttproxy", 2]);
  assert.deepEqual([filter.filter, filter.kind], ["on-Publish/probe", "Probe"]);
  assert.ok(isNear(proxy.in, rate) && isNear(filter.packets, rate), stdout);
  assert.ok(isNear(proxy.out, 0.9 * rate) && isNear(proxy.acks, 0.9 * rate), stdout);
  assert.ok(isNear(proxy.unacknowledged, 0.1 * rate) && isNear(filter.faults, 0.1 * rate), stdout);
  assert.ok(view.cpu > 0 && view.memoryBytes > 1e6 && view.heapBytes > 1e6, stdout);
  assert.deepEqual(proxy.queued, await metric("sluice_queued_messages"));
});

test("--once: one table and the end", async (t) => {
  const { api } = await startBusyGateway(t);
  const { code, stdout } = await runCommand(top, ["--once", "--interval", "0.2"], { env: { SLUICE_API: api } });
  assert.equal(code, 0);
  assert.match(stdout, /^http:\/\/127\.0\.0\.1:\d+ {3}CPU \d+ % {3}memory \d+ MB/);
  assert.match(stdout, /^PROXY +CLIENTS +CONNECTS\/S +IN\/S .*\nmqttproxy +2 +0 +\d+/m);
  assert.match(stdout, /^FILTER +KIND +PACKETS\/S .*\non-Publish\/probe +Probe +\d+/m);
  assert.ok(!stdout.includes("\u001b"), "no terminal");
});

test("on a terminal it is written in place until the user ends it; elsewhere one table follows the other", async (t) => {
  const { api } = await startBusyGateway(t);
  for (const isTTY of [true, false]) {
    const stdout = Object.assign(new PassThrough(), { isTTY });
    let text = "";
    stdout.on("data", (chunk: Buffer) => (text += chunk.toString()));
    const ended = new AbortController();
    const io = { stdout, stderr: new PassThrough(), env: {}, signal: ended.signal } as unknown as CommandIo;
    const running = top.run(["--interval", "0.1", "--api", api], io);
    await eventually(() => text.split("PROXY").length > 3, true);
    ended.abort();
    assert.equal(await running, 0);
    const [clears, homes] = [text.split("\u001b[2J").length - 1, text.split("\u001b[H").length - 1];
    assert.equal(clears, isTTY ? 1 : 0);
    assert.equal(homes >= 3, isTTY);
    if (!isTTY) assert.ok(!text.includes("\u001b"));
  }
});

test("exit 3 where nothing answers, 2 for wrong usage, 1 where it is no gateway's metrics", async () => {
  const dead = await runCommand(top, ["--once", "--api", "http://127.0.0.1:9"]);
  assert.deepEqual([dead.code, dead.stdout], [3, ""]);
  assert.match(dead.stderr, /can't reach a gateway at http:\/\/127\.0\.0\.1:9/);
  const wrong = await runCommand(top, ["--interval", "fast"]);
  assert.deepEqual([wrong.code, wrong.stderr], [2, '--interval must be 0.1 to 3600 seconds, not "fast".\n']);
});

test("a blocked event loop and a garbage collection show in the metrics", async (t) => {
  const gateway = await startProbedGateway(t);
  const read = async () => parseExposition(await gateway.gateway.host.metrics.text());
  assert.ok(sumOf(await read(), "sluice_event_loop_delay_seconds", { stat: "max" }) < 0.3);
  // Looked at every 20 ms, so the loop has to turn before and after.
  await sleep(50);
  for (const until = performance.now() + 400; performance.now() < until;);
  await sleep(50);
  const delay = (await read()).get("sluice_event_loop_delay_seconds") ?? [];
  const byStat = Object.fromEntries(delay.map(({ labels, value }) => [labels["stat"], value]));
  assert.deepEqual(Object.keys(byStat), ["p50", "p99", "max"]);
  assert.ok((byStat["max"] ?? 0) > 0.3 && (byStat["max"] ?? 9) < 5, JSON.stringify(byStat));
  assert.ok((byStat["p50"] ?? 9) < (byStat["max"] ?? 0));
  let garbage: unknown[] = [];
  await eventually(async () => {
    garbage = Array.from({ length: 100_000 }, () => ({}));
    return sumOf(await read(), "sluice_gc_pause_seconds_count", { kind: "minor" }) > 0;
  }, true);
  assert.ok(garbage.length > 0);
  assert.ok(sumOf(await read(), "sluice_gc_pause_seconds_sum") > 0);
});

/** Two readings of a page as a gateway's with Kafka both ways, a second apart. */
function readPages(): LiveView {
  const page = (n: number): string =>
    [
      'sluice_connections{proxy="p"} 1',
      `sluice_packets_sent_total{proxy="p",type="puback"} ${100 * n}`,
      `sluice_packets_sent_total{proxy="p",type="pingresp"} ${7 * n}`,
      'sluice_kafka_connected{filter="pub/sink"} 0',
      `sluice_kafka_queue_records{filter="pub/sink"} ${5 * n}`,
      `sluice_kafka_buffer_records{filter="pub/sink"} ${1000 * n}`,
      'sluice_kafka_buffer_age_seconds{filter="pub/sink"} 12.34',
      'sluice_kafka_source_connected{service="down"} 2',
      `sluice_kafka_source_records_total{service="down",outcome="published"} ${40 * n}`,
      `sluice_kafka_source_records_total{service="down",outcome="skipped"} ${2 * n}`,
      'sluice_kafka_source_lag_records{service="down",topic="a"} 30',
      'sluice_kafka_source_lag_records{service="down",topic="b"} 3',
      'sluice_kafka_source_queue_records{service="down"} 4',
      'sluice_kafka_source_inflight_records{service="down"} 1',
      'sluice_event_loop_delay_seconds{worker="0",stat="p99"} 0.002',
      'sluice_event_loop_delay_seconds{worker="1",stat="p99"} 0.005',
    ].join("\n");
  return compare({ at: 1, metrics: parseExposition(page(1)) }, { at: 2, metrics: parseExposition(page(2)) });
}

test("Kafka both ways: whether it is there, what waits in memory and on disk, and the lag", () => {
  const view = readPages();
  assert.equal(view.proxies[0]?.acks, 100);
  assert.deepEqual(view.filters, [
    {
      filter: "pub/sink",
      kind: "-",
      packets: 0,
      faults: 0,
      waiting: 10,
      kafka: "away",
      buffered: 2000,
      bufferAge: 12.34,
    },
  ]);
  assert.deepEqual(view.sources, [{ source: "down", records: 42, lag: 33, waiting: 5, kafka: "connected" }]);
  assert.equal(view.eventLoopDelayMs.p99, 5);
  const text = formatView(view, "http://gateway");
  assert.match(text, /^pub\/sink +- +0 +0 +10 +away +2000 +12\.3$/m);
  assert.match(text, /^SOURCE +RECORDS\/S +LAG +WAITING +KAFKA\ndown +42 +33 +5 +connected$/m);
});

test("Prometheus' text: labels with quotes, backslashes and line ends come back as they were", () => {
  const text = '# HELP a b\n# TYPE a gauge\na{x="1,\\"}\\n\\\\",y=""} 2.5\na{x="2"} +Inf\nb 3\nno sample\n';
  const found = parseExposition(text);
  assert.deepEqual([...found.keys()], ["a", "b"]);
  assert.deepEqual(found.get("a"), [
    { labels: { x: '1,"}\n\\', y: "" }, value: 2.5 },
    { labels: { x: "2" }, value: Infinity },
  ]);
  assert.equal(sumOf(found, "b"), 3);
});
