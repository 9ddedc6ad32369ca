/**
 * CPU of KafkaMQTT a message, against a real Kafka: `node test/bench/kafka.ts [messages] [options as JSON]`. 50 clients
 * keep 20 messages of 128 bytes under way each. Prints CPU microseconds of this process and messages a second.
 */
import { randomUUID } from "node:crypto";
import kind from "../../plugins/kafka/index.ts";
import { createPublishContext } from "@sluice/testkit";
import { createFilterMaker } from "@sluice/testkit";
import { createTestHost } from "@sluice/testkit";
import { startKafka } from "../helpers/kafka.ts";

const [messages = "300000", options = "{}"] = process.argv.slice(2);
const kafka = await startKafka({ own: true });
if (!kafka) process.exit(1);
const topic = `bench-${randomUUID()}`;
await kafka.createTopic(topic, 4);
const { host, close } = createTestHost({ name: "publish/kafka" });
const maker = createFilterMaker(kind, new URL("../../plugins/kafka/schema.json", import.meta.url));
const config = { backend: kafka.brokers, topic: { default: topic }, ...(JSON.parse(options) as object) };
const filter = await maker.build(config, host);
const payload = Buffer.alloc(128, "x");

/** The contexts are made before the clock starts: in the gateway they are the kernel's. */
async function run(count: number): Promise<{ cpu: number; seconds: number }> {
  const contexts = Array.from({ length: 1000 }, (_, index) =>
    createPublishContext({ topic: "a/b/c", payload, clientId: `client-${index % 50}`, username: "user" }),
  );
  let next = 0;
  const cpu = process.cpuUsage();
  const start = performance.now();
  await Promise.all(
    contexts.map(async (context) => {
      while (next++ < count) await filter.handle(context);
    }),
  );
  const used = process.cpuUsage(cpu);
  return { cpu: (used.user + used.system) / count, seconds: (performance.now() - start) / 1000 };
}

await run(20_000);
for (let round = 0; round < 3; round++) {
  const { cpu, seconds } = await run(Number(messages));
  process.stdout.write(
    `${cpu.toFixed(1)} us CPU a message, ${Math.round(Number(messages) / seconds)} messages a second\n`,
  );
}
await filter.close?.();
close();
await kafka.stop();
