/** messageId: what a client sends again has the id that it had before the gateway was killed. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { startFaultProxy, type FaultProxy } from "../faults/fault-proxy.ts";
import { eventually } from "../helpers/eventually.ts";
import { startKafka } from "../helpers/kafka.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw, publishPacket } from "../helpers/raw-client.ts";
import { spawnGateway } from "../helpers/spawned-gateway.ts";

let proxy: FaultProxy | undefined;
const kafka = await startKafka({
  async secondListener(port) {
    proxy = await startFaultProxy(port);
    return proxy.port;
  },
});
after(async () => {
  await kafka?.stop();
  await proxy?.close();
});

test(
  "kill -9 between Kafka's write and the PUBACK: the record is there twice, under one messageId",
  { skip: kafka ? false : "no Kafka", timeout: 90_000 },
  async (t) => {
    assert.ok(kafka && proxy);
    const folder = await mkdtemp(join(tmpdir(), "sluice-message-id-"));
    t.after(() => rm(folder, { recursive: true, force: true }));
    const topic = `ids-${randomUUID()}`;
    await kafka.createTopic(topic, 1);
    const filter = { name: "kafka", kind: "KafkaMQTT", backend: kafka.second, topic: { default: topic } };
    const config = join(folder, "sluice.yaml");
    await writeFile(
      config,
      toYaml([
        {
          kind: "MQTTProxy",
          name: "mqttproxy",
          host: "127.0.0.1",
          port: 0,
          rules: [{ when: { packetType: "Publish" }, pipeline: "publish" }],
        },
        { kind: "Pipeline", name: "publish", filters: [{ ...filter, addHeaders: ["messageId"] }] },
        { kind: "AdminAPI", name: "admin-api", port: 0 },
      ]),
    );
    const first = await spawnGateway(config);
    t.after(() => first.signal("SIGKILL"));
    const before = await connectRaw(first.port, "dev", { clean: false });
    before.send(publishPacket("a/b", "same", 1));
    assert.equal((await before.expect("puback")).messageId, 1);
    proxy.set("mute");
    before.send(publishPacket("a/b", "killed", 2));
    const count = async () => [...(await kafka.endOffsets(topic)).values()][0];
    await eventually(count, 2, 20_000);
    assert.deepEqual(await before.flush(), [], "no PUBACK");
    first.signal("SIGKILL");
    await before.closed;
    proxy.set("pass");

    const second = await spawnGateway(config);
    t.after(() => second.stop());
    const later = await connectRaw(second.port, "dev", { clean: false });
    later.send(publishPacket("a/b", "killed", 2, true));
    assert.equal((await later.expect("puback")).messageId, 2);
    // Under another packet id it is another message.
    later.send(publishPacket("a/b", "same", 3));
    assert.equal((await later.expect("puback")).messageId, 3);
    const records = await kafka.consume(topic);
    assert.deepEqual(
      records.map(({ value }) => String(value)),
      ["same", "killed", "killed", "same"],
    );
    const [same, killed, again, other] = records.map(({ headers }) => headers["messageId"]);
    assert.ok(killed);
    assert.equal(again, killed);
    assert.equal(new Set([same, killed, other]).size, 3);
  },
);
