/** A record that Kafka never takes: its device gets no further, unless there is a dead-letter pipeline. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import { startTestGateway } from "../helpers/gateway.ts";
import { startKafka } from "../helpers/kafka.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw, publishPacket, type RawClient } from "../helpers/raw-client.ts";

const kafka = await startKafka();
after(() => kafka?.stop());

test(
  "recordTooLarge and illegalTopic end the resend loop in a topic for dead letters, and hold up nothing else",
  { skip: kafka ? false : "no Kafka", timeout: 60_000 },
  async (t) => {
    assert.ok(kafka);
    const [topic, letters] = [`small-${randomUUID()}`, `letters-${randomUUID()}`];
    await kafka.createTopic(topic, 1, { "max.message.bytes": "2000" });
    await kafka.createTopic(letters, 1);
    const sink = { kind: "KafkaMQTT", backend: kafka.brokers };
    const gateway = await startTestGateway(
      toYaml([
        {
          kind: "MQTTProxy",
          name: "mqttproxy",
          host: "127.0.0.1",
          port: 0,
          faultGrace: 0,
          rules: [{ when: { packetType: "Publish" }, pipeline: "publish" }],
          onPoison: "deadLetter",
          deadLetter: { pipeline: "dead", faults: 2 },
        },
        {
          kind: "Pipeline",
          name: "publish",
          filters: [
            {
              name: "sink",
              ...sink,
              topic: { default: topic, template: "{{ levels[1] }}" },
            },
          ],
        },
        {
          kind: "Pipeline",
          name: "dead",
          filters: [{ name: "sink", ...sink, topic: { default: letters }, mqtt: { headerKey: "DEAD_LETTER" } }],
        },
      ]),
    );
    t.after(() => gateway.stop());
    const large = "x".repeat(5000);

    /** The ids of the PUBACKs on one connection, until the last of these has come or the connection has ended. */
    async function connection(...packets: [topic: string, payload: string, id: number][]): Promise<number[]> {
      const client: RawClient = await connectRaw(gateway.port(), "dev", { clean: false });
      for (const [name, payload, id] of packets) client.send(publishPacket(name, payload, id));
      const acked: number[] = [];
      const all = Promise.withResolvers<void>();
      client.onPacket = (packet) => {
        if (packet.cmd === "puback") acked.push(packet.messageId ?? 0);
        if (acked.length === packets.length) all.resolve();
      };
      await Promise.race([all.promise, client.closed]);
      client.destroy();
      return acked.toSorted((a, b) => a - b);
    }

    assert.deepEqual(await connection(["a", "before", 1]), [1]);
    assert.deepEqual(await connection(["a", large, 2]), []);
    assert.deepEqual(await connection(["a", large, 2], ["a", "behind", 3]), [2, 3]);
    assert.deepEqual(await connection(["a/bad$topic", "4", 4]), []);
    assert.deepEqual(await connection(["a/bad$topic", "4", 4]), [4]);
    const read = async (name: string) =>
      (await kafka.consume(name)).map(({ key, value, headers }) => ({
        key,
        value: String(value).slice(0, 10),
        error: headers["error"],
        errorTopic: headers["errorTopic"],
        mqttTopic: headers["mqttTopic"],
      }));
    assert.deepEqual(
      (await read(topic)).map(({ value, error }) => [value, error]),
      [
        ["before", undefined],
        ["behind", undefined],
      ],
    );
    assert.deepEqual(await read(letters), [
      { key: "dev", value: "xxxxxxxxxx", error: "recordTooLarge", errorTopic: "a", mqttTopic: "a" },
      { key: "dev", value: "4", error: "illegalTopic", errorTopic: "a/bad$topic", mqttTopic: "a/bad$topic" },
    ]);
  },
);
