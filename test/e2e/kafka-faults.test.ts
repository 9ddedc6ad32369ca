/** The fault harness in short: whatever fails, what was acknowledged is in Kafka, and in order. `test/faults/run.ts` is the long form. */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { startFaultProxy, type FaultProxy } from "../faults/fault-proxy.ts";
import { runFaults, type FaultKind } from "../faults/harness.ts";
import { describe } from "../faults/report.ts";
import { startKafka } from "../helpers/kafka.ts";

let proxy: FaultProxy | undefined;
const found = await startKafka({
  own: true,
  async secondListener(port) {
    proxy = await startFaultProxy(port);
    return proxy.port;
  },
});
after(async () => {
  await found?.stop();
  await proxy?.close();
});

const runs: { ack: "kafka" | "buffered"; kinds: FaultKind[] }[] = [
  { ack: "kafka", kinds: ["hang", "mute", "cut", "killGateway"] },
  { ack: "buffered", kinds: ["refuse", "killGateway", "fillDisk"] },
];
for (const { ack, kinds } of runs) {
  test(`ack: ${ack} through ${kinds.join(", ")}`, { skip: found ? false : "no Kafka", timeout: 150_000 }, async (t) => {
    assert.ok(found && proxy);
    const seed = Number(process.env["SEED"] ?? Date.now() % 100_000);
    const lines: string[] = [`seed ${seed}`];
    const result = await runFaults({
      kafka: found,
      proxy,
      messages: 4000,
      seconds: 8,
      faults: kinds.length,
      clients: 10,
      ack,
      seed,
      faultSeconds: [1, 2],
      kinds,
      print: (line) => void lines.push(line),
    });
    const text = [...lines, describe(result)].join("\n");
    t.diagnostic(text);
    assert.equal(result.acked, 4000, text);
    assert.deepEqual(result.missing, [], text);
    assert.deepEqual(result.outOfOrder, [], text);
    assert.deepEqual(result.unexplained, [], text);
    assert.ok(result.reconnects > 0, text);
  });
}
