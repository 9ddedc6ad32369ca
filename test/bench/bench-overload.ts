/** Twice what the gateway can take: `npm run bench:overload -- [--setup broker|kafka] [--seconds 60] [--json file]`. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { startKafka } from "../helpers/kafka.ts";
import { createGenerator } from "./generator.ts";
import { linesOf, overload } from "./overload.ts";
import { sluice } from "./servers/sluice.ts";

const { values } = parseArgs({
  options: {
    setup: { type: "string", default: "broker" },
    seconds: { type: "string", default: "60" },
    json: { type: "string" },
  },
});
const setup = values.setup === "kafka" ? "kafka" : "broker";
const kafka = setup === "kafka" ? await startKafka() : undefined;
const topic = `bench-overload-${Date.now()}`;
await kafka?.createTopic(topic, 4);
const folder = await mkdtemp(join(tmpdir(), "sluice-bench-"));
const [flooding, probing] = [createGenerator(), createGenerator()];
const identity = { cert: "", key: "" };
const server = await sluice.start({ setup, folder, identity, kafka: kafka && { brokers: kafka.brokers, topic } });
try {
  const found = await overload({ server, flooding, probing, seconds: Number(values.seconds), requests: 600 });
  console.log(linesOf(found));
  if (values.json) await writeFile(values.json, `${JSON.stringify(found, undefined, 2)}\n`);
} finally {
  await server.stop();
  await Promise.all([flooding.close(), probing.close()]);
  await kafka?.stop();
  await rm(folder, { recursive: true, force: true });
}
