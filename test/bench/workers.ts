/**
 * One process against two workers: `node test/bench/workers.ts [seconds a run] [rounds] [workload]`. CPU microseconds of the gateway's
 * processes (main process and workers) a message, and messages a second, medians of alternating rounds; with a Kafka where
 * one can be started. The load comes from a process of its own, whose CPU is not counted.
 */
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import mqttPacket, { type Packet } from "mqtt-packet";
import { startKafka } from "../helpers/kafka.ts";
import { spawnGateway } from "../helpers/spawned-gateway.ts";
import { childrenOf } from "../helpers/workers.ts";

interface Load {
  readonly clients: number;
  /** PUBLISHes a client leaves unacknowledged. */
  readonly window: number;
  /** Subscribers at QoS 0, each of which gets everything. */
  readonly subscribers: number;
}

interface Workload extends Load {
  readonly name: string;
  readonly config: string;
}

const ticksPerSecond = 100;

if (process.argv[2] === "--load") await generate(JSON.parse(process.argv[3] ?? "{}") as Load & { port: number });
else await main(Number(process.argv[2] ?? 3), Number(process.argv[3] ?? 3), process.argv[4] ?? "");

/** @param only a part of the names of workloads */
async function main(seconds: number, rounds: number, only: string): Promise<void> {
  const kafka = "Kafka".includes(only) ? await startKafka({ own: true }) : undefined;
  const proxy = "kind: MQTTProxy\nname: mqttproxy\nport: 0";
  const workloads: Workload[] = [
    { name: "QoS 1, window 32", config: proxy, clients: 50, window: 32, subscribers: 0 },
    { name: "QoS 1, window 1", config: proxy, clients: 200, window: 1, subscribers: 0 },
    { name: "fan-out to 10, QoS 0", config: `${proxy}\nbrokerMode: true`, clients: 4, window: 16, subscribers: 10 },
  ];
  if (kafka) {
    const topic = `bench-${randomUUID()}`;
    await kafka.createTopic(topic, 4);
    const rule = "rules: [{ when: { packetType: Publish }, pipeline: pub }]";
    const filter = `{ name: kafka, kind: KafkaMQTT, backend: ${JSON.stringify(kafka.brokers)}, topic: { default: ${topic} } }`;
    const config = `${proxy}\n${rule}\n---\nkind: Pipeline\nname: pub\nfilters: [${filter}]`;
    workloads.push({ name: "QoS 1 -> Kafka, window 32", config, clients: 50, window: 32, subscribers: 0 });
  }
  for (const workload of workloads.filter(({ name }) => name.includes(only))) {
    const results = new Map<number, { cpu: number; rate: number }[]>([
      [1, []],
      [2, []],
    ]);
    for (let round = 0; round < rounds; round++) {
      for (const [workers, found] of results) found.push(await measure(workload, workers, seconds));
    }
    for (const [workers, found] of results) {
      const [cpu, rate] = [median(found.map((each) => each.cpu)), median(found.map((each) => each.rate))];
      const what = workload.subscribers > 0 ? "delivery" : "message";
      process.stdout.write(
        `${workload.name.padEnd(28)} workers: ${workers}  ${cpu.toFixed(2)} us CPU a ${what}, ${Math.round(rate)} a second\n`,
      );
    }
  }
  await kafka?.stop();
}

async function measure(workload: Workload, workers: number, seconds: number): Promise<{ cpu: number; rate: number }> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-bench-"));
  const file = join(folder, "sluice.yaml");
  const documents = [`kind: Gateway\nname: gateway\nworkers: ${workers}`, workload.config];
  await writeFile(file, [...documents, "kind: AdminAPI\nname: admin-api\nport: 0"].join("\n---\n"));
  const gateway = await spawnGateway(file, ["--no-watch"]);
  const load = spawn(
    process.execPath,
    [import.meta.filename, "--load", JSON.stringify({ ...workload, port: gateway.port })],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  let count = 0;
  load.stdout.setEncoding("utf8").on("data", (text: string) => {
    count = Number(text.trim().split("\n").at(-1));
  });
  await once(load.stdout, "data");
  await sleep(1000);
  const pids = [gateway.pid, ...(await childrenOf(gateway.pid))];
  const [from, cpuFrom, at] = [count, await cpuOf(pids), performance.now()];
  await sleep(seconds * 1000);
  const [messages, cpu, ms] = [count - from, (await cpuOf(pids)) - cpuFrom, performance.now() - at];
  load.kill("SIGKILL");
  await gateway.stop();
  await rm(folder, { recursive: true, force: true });
  return { cpu: (cpu * 1e6) / messages, rate: (messages * 1000) / ms };
}

/** Seconds, of all of them. */
async function cpuOf(pids: readonly number[]): Promise<number> {
  let ticks = 0;
  for (const pid of pids) {
    const stat = await readFile(`/proc/${pid}/stat`, "utf8");
    const [user = 0, system = 0] = stat
      .slice(stat.lastIndexOf(")") + 2)
      .split(" ")
      .slice(11, 13)
      .map(Number);
    ticks += user + system;
  }
  return ticks / ticksPerSecond;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

/** The process of the load: writes frames that are made once, counts what comes back by its bytes, and prints the count. */
async function generate({ port, clients, window, subscribers }: Load & { port: number }): Promise<void> {
  const payload = Buffer.alloc(128, "x");
  const publish = mqttPacket.generate({
    cmd: "publish",
    topic: "bench/topic/name",
    payload,
    qos: 1,
    messageId: 1,
    dup: false,
    retain: false,
  });
  const delivery = publish.length - 2;
  const pubackBytes = 4;
  let acks = 0;
  let deliveries = 0;

  async function open(clientId: string): Promise<ReturnType<typeof connect>> {
    const socket = connect({ port, host: "127.0.0.1", noDelay: true });
    const hello: Packet = {
      cmd: "connect",
      protocolId: "MQTT",
      protocolVersion: 4,
      clientId,
      clean: true,
      keepalive: 0,
    };
    socket.write(mqttPacket.generate(hello));
    await once(socket, "data");
    return socket;
  }

  for (let n = 0; n < subscribers; n++) {
    const socket = await open(`sub-${n}`);
    socket.write(
      mqttPacket.generate({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "bench/#", qos: 0 }] }),
    );
    await once(socket, "data");
    let rest = 0;
    socket.on("data", (chunk: Buffer) => {
      rest += chunk.length;
      deliveries += Math.floor(rest / delivery);
      rest %= delivery;
    });
  }
  for (let n = 0; n < clients; n++) {
    const socket = await open(`pub-${n}`);
    // Ids are the generator's to choose: those of one window, again and again, in the order of their acks.
    const frames = Array.from({ length: window }, (_, index) => {
      const frame = Buffer.from(publish);
      frame.writeUInt16BE(index + 1, frame.length - payload.length - 2);
      return frame;
    });
    let next = 0;
    let rest = 0;
    const send = (count: number): void => {
      const batch: Buffer[] = [];
      for (let each = 0; each < count; each++) batch.push(frames[next++ % window] ?? publish);
      socket.write(batch.length === 1 ? (batch[0] ?? publish) : Buffer.concat(batch));
    };
    socket.on("data", (chunk: Buffer) => {
      rest += chunk.length;
      const count = Math.floor(rest / pubackBytes);
      rest %= pubackBytes;
      acks += count;
      if (count > 0) send(count);
    });
    send(window);
  }
  setInterval(() => process.stdout.write(`${subscribers > 0 ? deliveries : acks}\n`), 20);
}
