/** Kafka's producer over config changes: kept, with its connections, where its options are the same; else replaced under load. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtemp, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import mqtt from "mqtt";
import { eventually } from "../helpers/eventually.ts";
import { startKafka, type Kafka } from "../helpers/kafka.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { spawnGateway, type SpawnedGateway } from "../helpers/spawned-gateway.ts";

const found = await startKafka();
const options = {
  skip: found ? (process.platform === "linux" ? false : "reads /proc") : "no Kafka",
  timeout: 60_000,
};
after(() => found?.stop());

function kafka(): Kafka {
  assert.ok(found);
  return found;
}

interface Shape {
  readonly limit?: number;
  readonly region?: string;
  readonly banned?: string;
  readonly maxBatchBytes?: number;
}

interface Running {
  readonly gateway: SpawnedGateway;
  readonly topic: string;
  /** Returns the changes, as the log has them. */
  readonly change: (shape: Shape) => Promise<unknown>;
  readonly write: (text: string) => Promise<void>;
}

async function start(t: TestContext, more: object = {}): Promise<Running> {
  const topic = `reload-${randomUUID()}`;
  await kafka().createTopic(topic);
  const folder = await mkdtemp(join(tmpdir(), "sluice-reload-kafka-"));
  const write = (text: string): Promise<void> => writeFile(join(folder, "sluice.yaml"), text);
  const yaml = ({ limit = 0, region = "eu", banned = "nobody", maxBatchBytes = 1_000_000 }: Shape): string =>
    toYaml([
      {
        kind: "MQTTProxy",
        name: "mqttproxy",
        host: "127.0.0.1",
        port: 0,
        maxAllowedConnection: limit,
        rules: [{ when: { packetType: "Publish" }, pipeline: "publish" }],
      },
      {
        kind: "Pipeline",
        name: "publish",
        data: { region },
        filters: [
          { name: "control", kind: "ConnectControl", bannedClients: [banned] },
          {
            name: "kafka",
            kind: "KafkaMQTT",
            backend: kafka().brokers,
            topic: { default: topic },
            maxBatchBytes,
            ...more,
          },
        ],
      },
      { kind: "AdminAPI", name: "admin-api", port: 0 },
    ]);
  await write(yaml({}));
  const gateway = await spawnGateway(join(folder, "sluice.yaml"));
  t.after(async () => {
    await gateway.stop();
    await rm(folder, { recursive: true });
  });
  return {
    gateway,
    topic,
    write,
    async change(shape) {
      const from = gateway.logs.length;
      await write(yaml(shape));
      return (await gateway.reloaded(from))["changed"];
    },
  };
}

/** The local ports of a process' established connections to the brokers. */
async function connectionsToKafka(pid: number): Promise<number[]> {
  const links = await Promise.all(
    (await readdir(`/proc/${pid}/fd`)).map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")),
  );
  const own = new Set(links.flatMap((link) => /^socket:\[(\d+)\]$/.exec(link)?.[1] ?? []));
  const ports = new Set(kafka().brokers.map((broker) => Number(broker.split(":").at(-1))));
  const port = (address: string | undefined): number => Number.parseInt(address?.split(":").at(-1) ?? "", 16);
  const tables = await Promise.all(["tcp", "tcp6"].map((table) => readFile(`/proc/${pid}/net/${table}`, "utf8")));
  const established = "01";
  return tables
    .flatMap((table) => table.split("\n").map((line) => line.trim().split(/\s+/)))
    .filter(([, , remote, state]) => ports.has(port(remote)) && state === established)
    .filter((columns) => own.has(columns[9] ?? ""))
    .map(([, local]) => port(local))
    .toSorted((a, b) => a - b);
}

test("the producer keeps its TCP connections through changes of everything but itself", options, async (t) => {
  const { gateway, change, write, topic } = await start(t);
  const client = await mqtt.connectAsync(`mqtt://127.0.0.1:${gateway.port}`, { clientId: "c", reconnectPeriod: 0 });
  t.after(() => client.endAsync(true));
  const publish = (n: number): Promise<unknown> => client.publishAsync("a", String(n), { qos: 1 });
  await publish(0);
  const before = await connectionsToKafka(gateway.pid);
  assert.ok(before.length > 0, "no connection to Kafka was found");
  const shapes: Shape[] = [
    { limit: 100 },
    { limit: 100, region: "us" },
    { limit: 100, region: "us", banned: "somebody" },
  ];
  for (const [n, shape] of shapes.entries()) {
    assert.equal(((await change(shape)) as string[]).length > 0, true);
    await publish(n + 1);
  }
  const from = gateway.logs.length;
  await write("kind: Nonsense\n");
  assert.equal((await gateway.reloaded(from)).msg, "The config was not changed");
  await publish(4);
  assert.deepEqual(await connectionsToKafka(gateway.pid), before);

  // Its own options differ: another producer, with connections of its own, and the old one's are closed.
  assert.deepEqual(await change({ ...shapes.at(-1), maxBatchBytes: 500_000 }), [
    "change KafkaMQTT publish/kafka (maxBatchBytes)",
  ]);
  await publish(5);
  await eventually(async () => {
    const now = await connectionsToKafka(gateway.pid);
    return now.length > 0 && now.every((port) => !before.includes(port));
  }, true);
  const records = await kafka().consume(topic, { count: 6 });
  assert.deepEqual(
    records.map(({ value }) => String(value)),
    ["0", "1", "2", "3", "4", "5"],
  );
  t.diagnostic(`${before.length} connections kept through ${shapes.length + 1} reloads`);
});

test(
  "a producer replaced 6 times under load: nothing lost, nothing twice, each client's in order",
  options,
  async (t) => {
    const { gateway, change, topic } = await start(t);
    const clients = await Promise.all(
      Array.from({ length: 12 }, (_, n) =>
        mqtt.connectAsync(`mqtt://127.0.0.1:${gateway.port}`, { clientId: `c${n}`, reconnectPeriod: 0 }),
      ),
    );
    let closed = 0;
    for (const client of clients) client.on("close", () => closed++);
    let isOver = false;
    const publishing = clients.map(async (client) => {
      let count = 0;
      while (!isOver) {
        // A window, so that packets are in the old producer and behind it when the new one comes.
        await Promise.all(Array.from({ length: 20 }, () => client.publishAsync("a", String(count++), { qos: 1 })));
      }
      return count;
    });
    for (let n = 1; n <= 6; n++) {
      assert.deepEqual(await change({ maxBatchBytes: 1_000_000 - n * 100_000 }), [
        "change KafkaMQTT publish/kafka (maxBatchBytes)",
      ]);
    }
    isOver = true;
    const sent = await Promise.all(publishing);
    assert.equal(closed, 0, "a client was disconnected");
    await Promise.all(clients.map((client) => client.endAsync()));
    const total = sent.reduce((sum, each) => sum + each, 0);
    const records = await kafka().consume(topic);
    assert.equal(records.length, total);
    for (const [n, count] of sent.entries()) {
      assert.deepEqual(
        records.filter(({ key }) => key === `c${n}`).map(({ value }) => Number(String(value))),
        Array.from({ length: count }, (_, index) => index),
      );
    }
    t.diagnostic(`${total} records through 6 changes of the producer`);
  },
);

test("a buffered filter replaced 4 times under load: all is acknowledged, sent, and in order", options, async (t) => {
  const { gateway, change, topic } = await start(t, { ack: "buffered", buffer: { dir: "buffer" } });
  const url = `mqtt://127.0.0.1:${gateway.port}`;
  const connect = (n: number) => mqtt.connectAsync(url, { clientId: `c${n}`, reconnectPeriod: 0 });
  const clients = await Promise.all(Array.from({ length: 5 }, (_, n) => connect(n)));
  let isOver = false;
  const publishing = clients.map(async (client) => {
    let count = 0;
    while (!isOver) {
      await Promise.all(Array.from({ length: 20 }, () => client.publishAsync("a", String(count++), { qos: 1 })));
    }
    return count;
  });
  for (let n = 1; n <= 4; n++) await change({ maxBatchBytes: 1_000_000 - n * 100_000 });
  isOver = true;
  const sent = await Promise.all(publishing);
  await Promise.all(clients.map((client) => client.endAsync()));
  await eventually(() => gateway.metric("sluice_kafka_buffer_records"), 0, 20_000);
  const records = await kafka().consume(topic);
  for (const [n, count] of sent.entries()) {
    const numbers = records.filter(({ key }) => key === `c${n}`).map(({ value }) => Number(String(value)));
    assert.deepEqual(
      [...new Set(numbers)],
      Array.from({ length: count }, (_, index) => index),
    );
  }
});
