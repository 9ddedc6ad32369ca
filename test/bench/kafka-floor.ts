/**
 * What a record takes to Kafka and back without a gateway: `node test/bench/kafka-floor.ts [rate] [seconds] [rounds]`. One
 * producer of kafkajs sends what has come since its last batch was answered, as KafkaMQTT does, and the consumer of the row
 * kafka-latency reads it. Prints milliseconds from the send to the answer, and to the moment at which the consumer has it.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { Kafka, logLevel } from "kafkajs";
import { stopIdleTimer } from "../../plugins/kafka/client.ts";
import { startKafka } from "../helpers/kafka.ts";
import { createGenerator } from "./generator.ts";
import { nowMs } from "./load/frames.ts";
import { createLatencies, minus, shareOf } from "./load/latencies.ts";

const [rate = 5000, seconds = 3, rounds = 3] = process.argv.slice(2).map(Number);
const clients = 50;
const kafka = await startKafka();
if (!kafka) process.exit(1);
const topic = `bench-floor-${process.pid}-${Date.now()}`;
await kafka.createTopic(topic, 4);
stopIdleTimer();
const producer = new Kafka({ brokers: kafka.brokers, logLevel: logLevel.NOTHING }).producer({ idempotent: true });
await producer.connect();
const reader = createGenerator();
const consumer = await reader.start("kafkaReader", { brokers: kafka.brokers, topic });
const answered = createLatencies();
let waiting: { key: string; value: Buffer; at: number }[] = [];
let isSending = false;

async function send(): Promise<void> {
  isSending = true;
  while (waiting.length > 0) {
    const messages = waiting;
    waiting = [];
    await producer.send({ topic, messages, acks: -1 });
    const now = nowMs();
    for (const { at } of messages) answered.add(now - at);
  }
  isSending = false;
}

const startedAt = nowMs();
let offered = 0;
const timer = setInterval(() => {
  const now = nowMs();
  for (const due = ((now - startedAt) * rate) / 1000; offered < due; offered++) {
    const value = Buffer.alloc(128, "x");
    value.writeDoubleLE(now);
    waiting.push({ key: `load-${offered % clients}`, value, at: now });
  }
  if (!isSending) void send();
}, 1);

await sleep(1000);
for (let round = 0; round < rounds; round++) {
  const [before, first] = [answered.read(), (await consumer.read()).latencies];
  await sleep(seconds * 1000);
  const [acks, reads] = [minus(answered.read(), before), minus((await consumer.read()).latencies, first)];
  const ms = (times: readonly number[]): string =>
    `p50 ${shareOf(times, 0.5).toFixed(2)}, p99 ${shareOf(times, 0.99).toFixed(2)}`;
  console.log(`answered ${ms(acks)}; readable ${ms(reads)}`);
}
clearInterval(timer);
while (isSending) await sleep(10);
await consumer.stop();
await reader.close();
await producer.disconnect();
await kafka.stop();
