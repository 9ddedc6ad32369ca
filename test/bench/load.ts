/**
 * The load generator by itself, against any MQTT server that runs:
 *
 *   node test/bench/load.ts --port 1883 [--host 127.0.0.1] [--clients 50] [--qos 1] [--window 32] [--bytes 128]
 *     [--topic bench/load] [--topics 1] [--rate 5000] [--seconds 5] [--rounds 1] [--pid N] [--user test --password test]
 *
 * Prints, a round, messages a second, CPU microseconds a message of the server's process (found by its port, or --pid)
 * and of the generator, and the times to the ack.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { createGenerator } from "./generator.ts";
import { minus, shareOf } from "./load/latencies.ts";
import { listenerOf, usageOf } from "./usage.ts";

const text = (value: string) => ({ type: "string", default: value }) as const;
const { values } = parseArgs({
  options: {
    host: text("127.0.0.1"),
    port: text("1883"),
    clients: text("50"),
    qos: text("1"),
    window: text("32"),
    bytes: text("128"),
    topic: text("bench/load"),
    topics: text("1"),
    seconds: text("5"),
    rounds: text("1"),
    rate: { type: "string" },
    pid: { type: "string" },
    user: { type: "string" },
    password: { type: "string" },
  },
});
const port = Number(values.port);
const pid = values.pid === undefined ? listenerOf(port) : Number(values.pid);
const many = Number(values.topics);
const generator = createGenerator();
try {
  const load = await generator.start("publishers", {
    address: { host: values.host, port },
    clients: Number(values.clients),
    qos: values.qos === "0" ? 0 : 1,
    window: Number(values.window),
    payloadBytes: Number(values.bytes),
    topics:
      many === 1
        ? [values.topic]
        : Array.from({ length: many }, (_, n) => `${values.topic}/${String(n).padStart(6, "0")}`),
    rate: values.rate === undefined ? undefined : Number(values.rate),
    username: values.user,
    password: values.password,
  });
  await sleep(1000);
  for (let round = 0; round < Number(values.rounds); round++) {
    const before = await load.read();
    const used = pid === undefined ? undefined : usageOf(pid);
    await sleep(Number(values.seconds) * 1000);
    const after = await load.read();
    const cpuUs = pid === undefined || !used ? Number.NaN : usageOf(pid).cpuUs - used.cpuUs;
    const messages = after.acked - before.acked;
    const times = minus(after.latencies, before.latencies);
    const ms = (share: number) => shareOf(times, share).toFixed(2);
    console.log(
      `${Math.round((messages * 1000) / (after.at - before.at))}/s, server ${(cpuUs / messages).toFixed(2)} us of CPU a ` +
        `message, generator ${((after.cpuUs - before.cpuUs) / messages).toFixed(2)} us, ack p50 ${ms(0.5)} ms, p99 ${ms(0.99)} ms`,
    );
  }
  const { sent, acked } = await load.stop();
  console.log(`${sent} sent, ${acked} answered`);
} finally {
  await generator.close();
}
