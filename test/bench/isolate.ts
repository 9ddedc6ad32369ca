/** CPU microseconds a packet of a filter in the gateway's thread and in one of its own: `node test/bench/isolate.ts`. */
import { join } from "node:path";
import { inspect } from "../../kernel/isolation.ts";
import { createLane, createPipeline } from "../../kernel/pipeline.ts";
import type { Filter, FilterKind } from "../../kernel/plugin.ts";
import { createPublishContext } from "@sluice/testkit";
import { createTestHost } from "@sluice/testkit";
import { rogueFolder, rogueIsolation } from "../helpers/isolated.ts";

const options = { onCreate: "", onValidate: "", text: "" };
const { default: kind } = (await import(join(rogueFolder, "rogue/rogue.js"))) as { default: FilterKind };
const isolated = await inspect(rogueIsolation("Rogue", { maxPackets: 10_000, maxBytes: 1e8 }), options);

/** As many connections as `lanes` publish, each its next packet when the last one is through. */
async function measure(of: FilterKind, filter: Filter, payload: Buffer, lanes: number, packets: number): Promise<void> {
  const { host, metricValue } = createTestHost();
  const from = { package: "rogue", version: "1.0.0" };
  const instance = { name: "one", kind: of, from, filter, options, close: () => Promise.resolve() };
  const flow = [{ filter: "one", alias: "one", jumpIf: {} }];
  const spec = { name: "bench", flow, filters: [], data: {}, timeoutMs: 30_000 };
  const pipeline = createPipeline(spec, new Map([["one", instance]]), host);
  const { client } = createPublishContext();
  const done = Promise.withResolvers<void>();
  let started = 0;
  let ended = 0;
  function lane(): void {
    const own = createLane();
    function next(): void {
      while (started < packets) {
        started++;
        const packet = { topic: "a/b/c", payload, qos: 1 as const, retain: false, dup: false, packetId: 1 };
        const job = { type: "Publish" as const, origin: "client" as const, packet, client, lane: own };
        const over = (): boolean => ++ended === packets;
        const late = (): void => {
          if (over()) done.resolve();
          next();
        };
        if (!pipeline.run(job, late)) return;
        if (over()) done.resolve();
      }
    }
    next();
  }
  const cpu = process.cpuUsage();
  const since = performance.now();
  for (let n = 0; n < lanes; n++) lane();
  await done.promise;
  const { user, system } = process.cpuUsage(cpu);
  const wall = performance.now() - since;
  const where = of === kind ? "in the gateway's thread" : "isolated";
  const passed = await metricValue("sluice_pipeline_packets_total", { outcome: "passed" });
  console.log(
    `${where.padEnd(24)} ${String(payload.length).padStart(5)} B  ${String(lanes).padStart(4)} at a time  ` +
      `${((user + system) / packets).toFixed(2).padStart(7)} us CPU  ${Math.round(packets / (wall / 1000))}/s  ${passed} passed`,
  );
}

const { host, metricValue } = createTestHost();
const here = await kind.create(options, host);
const there = await isolated.kind.create(options, host);
for (const text of ["", "edit "]) {
  for (const size of [128, 10_000]) {
    const payload = Buffer.from(text.padEnd(size, "x"));
    console.log(text === "" ? "payload kept" : "payload replaced");
    await measure(kind, here, payload, 1, 100_000);
    for (const lanes of [1, 10, 100, 1000]) {
      const packets = size > 1000 ? 20_000 : 20_000 + 100 * lanes;
      const before = (await metricValue("sluice_isolated_batches_total")) ?? 0;
      await measure(isolated.kind, there, payload, lanes, packets);
      const batches = ((await metricValue("sluice_isolated_batches_total")) ?? 0) - before;
      console.log(`${" ".repeat(27)}${(packets / batches).toFixed(1)} packets a message`);
    }
  }
}
await there.close?.();
