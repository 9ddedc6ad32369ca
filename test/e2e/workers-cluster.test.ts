/** A gateway with workers as one node of a cluster: they know nothing of other nodes, and the other node nothing of them. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import { createCrashPublisher, createCrashSubscriber } from "../helpers/crash-clients.ts";
import { eventually } from "../helpers/eventually.ts";
import { clusterYaml, joined } from "../helpers/gateway-cluster.ts";
import { startTestGateway } from "../helpers/gateway.ts";
import { startNats } from "../helpers/nats.ts";
import { connectRaw } from "../helpers/raw-client.ts";
import { allRun, comeBack, startWorkers } from "../helpers/workers.ts";

const nats = await startNats();
after(() => nats?.stop());

test(
  "two workers and another node: messages, takeovers, sessions, wills, limits of a crash",
  { skip: !nats },
  async (t) => {
    assert.ok(nats);
    const options = { urls: nats.urls, namespace: `w${randomUUID().slice(0, 8)}`, options: "replicas: 1" };
    const [withoutApi = ""] = clusterYaml(options, "many").split("---\nkind: AdminAPI");
    const many = await startWorkers(t, withoutApi.replace(/\n---\n$/, ""));
    const single = await startTestGateway(clusterYaml(options, "single"));
    t.after(() => single.stop());
    await joined(single);
    await eventually(
      async () => JSON.parse((await many.readyz()).text) as object,
      { ready: true, unhealthy: [] },
      30_000,
    );

    // Messages: by MQTT and HTTP, from and to each, with a shared subscription and a retained message over all.
    const w0 = await many.connect(0, "w0");
    const w1 = await many.connect(1, "w1");
    const other = await connectRaw(single.port(), "other");
    const all = [w0, w1, other];
    for (const each of all) assert.equal(await each.subscribe("all/#", 1), 1);
    const published: string[] = [];
    const senders = [await many.connect(0, "p0"), await many.connect(1, "p1"), await connectRaw(single.port(), "p2")];
    for (const [at, each] of senders.entries()) {
      await each.publish("all/mqtt", `mqtt ${at}`);
      published.push(`mqtt ${at}`);
    }
    const answer = fetch(`${single.api}/apis/v2/mqttproxy/mqttproxy/topics/publish?wait=acked&timeout=20s`, {
      method: "POST",
      body: JSON.stringify({ topic: "all/http", qos: 1, payload: "http" }),
    });
    published.push("http");
    for (const each of all) {
      const got = await each.expectMany("publish", published.length);
      for (const { messageId } of got) each.send({ cmd: "puback", messageId: messageId ?? 0 });
      assert.deepEqual(got.map(({ payload }) => payload.toString()).toSorted(), published.toSorted());
    }
    const { status, body } = await answer.then(async (each) => ({ status: each.status, body: await each.text() }));
    assert.equal(status, 200, body);
    for (const each of all) await each.subscribe("$share/g/jobs", 1);
    for (let n = 0; n < 30; n++) await senders[n % 3]?.publish("jobs", String(n));
    const jobs = (): string[] =>
      all.flatMap(({ received }) =>
        received.flatMap((each) => (each.cmd === "publish" ? [each.payload.toString()] : [])),
      );
    await eventually(() => jobs().length, 30);
    assert.equal(new Set(jobs()).size, 30);
    for (const each of [...all, ...senders]) each.destroy();

    // A session goes from worker to node to worker, with what waits for it, QoS 2 included.
    const first = await many.connect(0, "mover", { clean: false });
    await first.subscribe("moved/#", 2);
    const second = await connectRaw(single.port(), "mover", { clean: false });
    await first.closed;
    second.destroy();
    const publisher = await connectRaw(single.port(), "publisher");
    await publisher.publish("moved/1", "while it was away");
    const third = await many.connect(1, "mover", { clean: false });
    assert.equal((await third.expect("publish")).payload.toString(), "while it was away");
    third.destroy();

    // A worker is killed: wills at once, sessions found by clients wherever they come, nothing acknowledged lost.
    await publisher.subscribe("will/#", 1);
    const dead = await many.connect(0, "dead", {
      will: { topic: "will/dead", payload: Buffer.from("x"), qos: 1, retain: false },
    });
    const lasting = { clean: false, properties: { sessionExpiryInterval: 600 } };
    const delayed = await many.connect(
      0,
      "delayed",
      {
        ...lasting,
        will: {
          topic: "will/never",
          payload: Buffer.from("x"),
          qos: 1,
          retain: false,
          properties: { willDelayInterval: 4 },
        },
      },
      { protocolVersion: 5 },
    );
    const publishers = [createCrashPublisher("p1", 1, 20), createCrashPublisher("p2", 2, 20)];
    const subscribers = [
      createCrashSubscriber("s1", 1),
      createCrashSubscriber("s2", 2),
      createCrashSubscriber("s3", 2),
    ];
    const devices = [...subscribers, ...publishers];
    for (const each of devices) await each.connect(each.clientId === "s3" ? single.port() : many.process.port);
    const enough = async (): Promise<void> => {
      const acked = publishers.map((each) => each.acked.size);
      await eventually(() => publishers.every((each, n) => each.acked.size > (acked[n] ?? 0) + 50), true, 30_000);
    };
    await enough();
    many.kill(0);
    await Promise.all([dead.closed, delayed.closed]);
    assert.equal((await publisher.expect("publish")).topic, "will/dead");
    // Back at the other node, within its delay.
    const resumed = await connectRaw(single.port(), "delayed", lasting, { protocolVersion: 5 });
    for (const each of devices) if (each.isClosed()) await comeBack(each, many.process.port);
    await enough();
    await allRun(many);
    await Promise.all(publishers.map((each) => each.finish()));
    const acked = publishers.flatMap((each) => [...each.acked]);
    for (const each of subscribers) {
      await eventually(() => acked.filter((payload) => !each.got.has(payload)).length, 0, 30_000);
      assert.deepEqual(each.doubles, []);
    }
    for (const each of devices) each.destroy();
    assert.deepEqual(await publisher.flush(), []);
    assert.deepEqual(await resumed.flush(), []);
  },
);
