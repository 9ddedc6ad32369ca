/** KafkaSource between a real Kafka and real MQTT clients. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test, type TestContext } from "node:test";
import { connectAsync, type IClientOptions, type IPublishPacket, type MqttClient } from "mqtt";
import { eventually } from "../helpers/eventually.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";
import { startKafka, type Kafka } from "../helpers/kafka.ts";
import { openSourceBroker, sourceConfig, type SourceBroker } from "../helpers/kafka-source.ts";

const found = await startKafka();
const opened = found && (await openSourceBroker(found.brokers));
const options = { skip: found ? false : "no Kafka", timeout: 60_000 };
after(async () => {
  await opened?.close();
  await found?.stop();
});

function kafka(): Kafka & { readonly records: SourceBroker } {
  assert.ok(found && opened);
  return { ...found, records: opened };
}

interface Running {
  readonly gateway: TestGateway;
  readonly topic: string;
  readonly group: string;
  config(source: Record<string, unknown>): string;
}

async function run(t: TestContext, source: Record<string, unknown> = {}, partitions = 1): Promise<Running> {
  const topic = `source-${randomUUID()}`;
  const group = `group-${randomUUID()}`;
  await kafka().createTopic(topic, partitions);
  const config: Running["config"] = (changed) =>
    sourceConfig(kafka().brokers, { topics: [topic], group, ...source, ...changed });
  const gateway = await startTestGateway(config({}));
  t.after(() => gateway.stop());
  return { gateway, topic, group, config };
}

interface Device {
  readonly client: MqttClient;
  readonly got: IPublishPacket[];
  readonly texts: () => string[];
}

async function connectDevice(
  t: TestContext,
  gateway: TestGateway,
  o: IClientOptions & { filter?: string } = {},
): Promise<Device> {
  const { filter = "#", ...rest } = o;
  const client = await connectAsync(gateway.url(), { reconnectPeriod: 0, protocolVersion: 5, ...rest });
  t.after(() => client.end(true));
  const got: IPublishPacket[] = [];
  client.on("message", (_topic, _payload, packet) => void got.push(packet));
  if (filter !== "") await client.subscribeAsync(filter, { qos: 1, rap: true });
  return { client, got, texts: () => got.map(({ topic, payload }) => `${topic} ${payload.toString()}`) };
}

const healthOf = ({ gateway }: Running) => gateway.host.health().find(({ name }) => name === "source");
const isConnected = async (running: Running): Promise<void> =>
  eventually(() => Boolean(healthOf(running.gateway as never as Running)?.ok), true, 30_000);

test(
  "records become messages: topic from the key, headers as user properties, the offset committed after",
  options,
  async (t) => {
    const running = await run(t, {
      mqtt: {
        topic: "devices/{{ key }}/commands",
        qos: 1,
        userProperties: "headers",
        properties: { contentType: "{{ headers.type }}", messageExpiry: "{{ headers.ttl }}" },
      },
    });
    const device = await connectDevice(t, running.gateway);
    await kafka().records.produce(running.topic, [
      { key: "d1", value: "on", headers: { type: "text/plain", ttl: "60" } },
      { key: "d2", value: Buffer.from([0, 255, 128]) },
    ]);
    await eventually(() => device.got.length, 2, 20_000);
    const [first, second] = device.got;
    assert.deepEqual(
      [
        first?.topic,
        first?.payload.toString(),
        first?.qos,
        first?.retain,
        first?.properties?.contentType,
        { ...first?.properties?.userProperties },
      ],
      ["devices/d1/commands", "on", 1, false, "text/plain", { type: "text/plain", ttl: "60" }],
    );
    assert.ok((first?.properties?.messageExpiryInterval ?? 0) > 50);
    assert.deepEqual([second?.topic, second?.payload], ["devices/d2/commands", Buffer.from([0, 255, 128])]);
    await eventually(() => kafka().records.committed(running.group, running.topic), { 0: 2 });
  },
);
