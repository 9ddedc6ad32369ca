/** Devices publish through a gateway while its Kafka is killed and started again; nothing acknowledged may be missing. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { connectAsync } from "mqtt";
import { eventually } from "./eventually.ts";
import { startTestGateway } from "./gateway.ts";
import type { Kafka } from "./kafka.ts";
import { toYaml } from "./probed-gateway.ts";

export interface Outage {
  /** How long Kafka is away, its start not counted. */
  readonly downMs: number;
  readonly clients: number;
  readonly messagesPerClient: number;
  /** Seconds after which the gateway gives a PUBLISH up, so that devices have to send it again. */
  readonly timeout: number;
}

export async function publishThroughOutage(t: TestContext, kafka: Kafka, outage: Outage): Promise<void> {
  const topic = `outage-${randomUUID()}`;
  await kafka.createTopic(topic);
  const gateway = await startTestGateway(
    toYaml([
      {
        kind: "MQTTProxy",
        name: "mqttproxy",
        host: "127.0.0.1",
        port: 0,
        faultGrace: 1,
        rules: [{ when: { packetType: "Publish" }, pipeline: "publish" }],
      },
      {
        kind: "Pipeline",
        name: "publish",
        timeout: outage.timeout,
        filters: [
          {
            name: "kafka",
            kind: "KafkaMQTT",
            backend: kafka.brokers,
            topic: { default: topic },
            deliveryTimeoutMs: outage.timeout * 1000,
          },
        ],
      },
    ]),
  );
  t.after(() => gateway.stop());

  const acked = new Set<string>();
  const down = { from: Infinity, to: Infinity };
  let ackedDuringOutage = 0;
  const intervalMs = (outage.downMs + 3000) / outage.messagesPerClient;
  const devices = Array.from({ length: outage.clients }, async (_, index) => {
    const client = await connectAsync(gateway.url(), { clientId: `dev-${index}`, clean: false, reconnectPeriod: 200 });
    client.on("error", () => undefined);
    t.after(() => client.endAsync(true));
    const attempt = (payload: string): Promise<boolean> =>
      client.publishAsync(`from/${index}`, payload, { qos: 1 }).then(
        () => true,
        () => false,
      );
    /** The library gives up what was published while it was sending older messages again: the device's turn. */
    async function publish(payload: string): Promise<void> {
      while (!(await attempt(payload))) {
        if (client.disconnecting) return;
        await sleep(50);
      }
      acked.add(payload);
      if (performance.now() > down.from && performance.now() < down.to) ackedDuringOutage++;
    }
    const published: Promise<void>[] = [];
    for (let n = 0; n < outage.messagesPerClient; n++) {
      published.push(publish(`${index}-${n}`));
      await sleep(intervalMs);
    }
    await Promise.all(published);
    await client.endAsync();
  });

  await eventually(() => acked.size > outage.clients, true, 30_000);
  await kafka.kill();
  down.from = performance.now();
  const ackedBefore = acked.size;
  await sleep(outage.downMs);
  down.to = performance.now();
  await kafka.restart();
  await Promise.all(devices);

  const total = outage.clients * outage.messagesPerClient;
  assert.ok(ackedBefore < total, "everything was acknowledged before the outage");
  // PUBACKs that were on their way when Kafka died.
  assert.ok(ackedDuringOutage < total / 10, `${ackedDuringOutage} acknowledged while Kafka was away`);
  assert.equal(acked.size, total);
  const records = await kafka.consume(topic);
  const stored = new Set(records.map(({ value }) => String(value)));
  assert.deepEqual(
    [...acked].filter((payload) => !stored.has(payload)),
    [],
  );
  const reconnects = (await gateway.metric("sluice_connects_accepted_total")) - outage.clients;
  assert.ok(reconnects > 0, "no device had to send anything again");
  t.diagnostic(
    `${total} published, ${ackedBefore} acknowledged before the outage and ${ackedDuringOutage} in it, ${reconnects} reconnects, ${records.length} records`,
  );
}
