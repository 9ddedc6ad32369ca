/**
 * The fault harness by hand: `node test/faults/run.ts --messages 200000 --minutes 5 --faults 12 [--clients 50]
 * [--ack kafka|buffered] [--seed 1] [--kinds hang,killGateway,...] [--fault-seconds 2,10]`. Needs Java 17+ and Maven (or their cached jars).
 * With `--outage SECONDS [--rate 2000] [--clients 50]` Kafka is away once, that long, with a disk buffer: prints what devices
 * notice, memory, and how fast the buffer drains.
 * Prints what was acknowledged, found, missing, duplicated and out of order; ends with 1 where anything was lost or out of order.
 */
import { parseArgs } from "node:util";
import { startKafka, type Kafka } from "../helpers/kafka.ts";
import { startFaultProxy, type FaultProxy } from "./fault-proxy.ts";
import { runFaults, type FaultKind } from "./harness.ts";
import { describeOutage, runOutage } from "./outage.ts";
import { describe } from "./report.ts";

const { values } = parseArgs({
  options: {
    messages: { type: "string", default: "20000" },
    minutes: { type: "string", default: "1" },
    faults: { type: "string", default: "6" },
    clients: { type: "string", default: "50" },
    ack: { type: "string", default: "kafka" },
    seed: { type: "string", default: String(Date.now() % 100_000) },
    kinds: { type: "string" },
    outage: { type: "string" },
    rate: { type: "string", default: "2000" },
    "fault-seconds": { type: "string", default: "2,10" },
  },
});

const [least = 2, most = least] = values["fault-seconds"].split(",").map(Number);
let proxy: FaultProxy | undefined;
const kafka = await startKafka({
  own: true,
  async secondListener(port) {
    proxy = await startFaultProxy(port);
    return proxy.port;
  },
});
if (!kafka || !proxy) process.exit(2);
const startedAt = performance.now();
const print = (line: string): void => {
  process.stdout.write(`${((performance.now() - startedAt) / 1000).toFixed(1).padStart(6)} s  ${line}\n`);
};
try {
  if (values.outage === undefined) await inflictFaults(kafka, proxy);
  else await outlast(kafka, Number(values.outage));
} finally {
  await kafka.stop();
  await proxy.close();
}

async function outlast(broker: Kafka, outageSeconds: number): Promise<void> {
  const rate = Number(values.rate);
  print(`Kafka away for ${outageSeconds} s, ${rate} messages a second of 128 bytes, ack: buffered`);
  const clients = Number(values.clients);
  const result = await runOutage({ kafka: broker, outageSeconds, rate, clients, payloadBytes: 128, print });
  process.stdout.write(`\n${describeOutage(result)}\n`);
  process.exitCode = result.missing + result.outOfOrder + result.reconnects > 0 ? 1 : 0;
}

async function inflictFaults(broker: Kafka, network: FaultProxy): Promise<void> {
  print(`seed ${values.seed}, ${values.messages} messages, ack: ${values.ack}`);
  const result = await runFaults({
    kafka: broker,
    proxy: network,
    messages: Number(values.messages),
    seconds: Number(values.minutes) * 60,
    faults: Number(values.faults),
    clients: Number(values.clients),
    ack: values.ack === "buffered" ? "buffered" : "kafka",
    seed: Number(values.seed),
    faultSeconds: [least, most],
    ...(values.kinds === undefined ? {} : { kinds: values.kinds.split(",") as FaultKind[] }),
    print,
  });
  process.stdout.write(
    `\n${describe(result)}\ngateway's memory        ${Math.round(result.peakRss / 1e6)} MB at most\n`,
  );
  process.exitCode = result.missing.length + result.outOfOrder.length > 0 ? 1 : 0;
}
