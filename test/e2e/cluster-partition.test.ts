/** A gateway that can't reach NATS, or reaches it slowly: what is acknowledged, what is not, and what comes of it later. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, describe, test, type TestContext } from "node:test";
import type { IPublishPacket } from "mqtt-packet";
import { eventually } from "../helpers/eventually.ts";
import { clusterYaml, joined, spawnNode } from "../helpers/gateway-cluster.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";
import { isLong, longTest } from "../helpers/long-test.ts";
import { type NatsLink, startNatsLink } from "../helpers/nats-link.ts";
import { type Nats, startNats } from "../helpers/nats.ts";
import { connectRaw, openRawClient, publishPacket, type RawClient } from "../helpers/raw-client.ts";

/** A proxy that has nothing to do with subscribers, and writes what devices publish to a file. */
const uplink = `
---
kind: MQTTProxy
name: uplink
host: 127.0.0.1
port: 0
rules:
  - when: { packetType: Publish }
    pipeline: to-file
---
kind: Pipeline
name: to-file
filters:
  - { name: sink, kind: FileMQTT, topic: { default: records } }
`;

/** So that what must not be answered fails soon. */
const impatient = "timeouts: { ackMs: 1000, totalMs: 5000 }";

/** An acknowledgement that waits for nothing but this machine; generous, for it may have much else to do. */
const atOnceMs = 1500;

interface Node extends TestGateway {
  readonly link: NatsLink;
}

const started: Nats | undefined = await startNats({ nodes: 3, advertise: false });
after(() => started?.stop());

describe("a gateway whose way to NATS fails", { skip: !started, concurrency: true }, () => {
  const nats = started as Nats;
  let count = 0;

  async function start(
    t: TestContext,
    namespace: string,
    o: { readonly options?: string; readonly proxy?: string; readonly isAway?: boolean } = {},
  ): Promise<Node> {
    const link = await startNatsLink(nats);
    if (o.isAway) link.set("refuse");
    const gateway = await startTestGateway(
      clusterYaml({ urls: link.urls, namespace, documents: uplink, ...o }, `n${++count}`),
    );
    t.after(async () => {
      link.set("pass");
      await gateway.stop();
      await link.close();
    });
    if (!o.isAway) await joined(gateway);
    return { ...gateway, link };
  }

  for (const mode of ["refuse", "hang"] as const) {
    test(`NATS ${mode}: uplink goes on, what subscribers are to get is not acknowledged, and goes on later`, async (t) => {
      const namespace = `cut${mode}`;
      const [a, b] = await Promise.all([
        start(t, namespace, { options: impatient, proxy: "faultGrace: 1" }),
        start(t, namespace),
      ]);
      const device = await connectRaw(a.port("uplink"), "device");
      const subscriber = await connectRaw(b.port(), "subscriber", { clean: false });
      await subscriber.subscribe("cut/x", 1);
      const publisher = await connectRaw(a.port(), "publisher", { clean: false });
      await publisher.publish("cut/x", "before");
      await ackInTime(device, "before");

      a.link.set(mode);
      publisher.send(publishPacket("cut/x", "during", 7));
      for (let n = 0; n < 10; n++) await ackInTime(device, `during ${n}`);
      await eventually(() => readiness(a, "?strict"), { status: 503, store: "unhealthy", ready: true }, 15_000);
      assert.equal((await readiness(a)).status, 200, "devices are not sent elsewhere");
      assert.match(await reasonOf(a), /^NATS: /);
      for (let n = 10; n < 20; n++) await ackInTime(device, `during ${n}`);
      await servesNewDevices(a);
      assert.deepEqual(await Promise.all([publishByHttp(a, "cut/http"), connackOf(a, "lasting")]), [503, 3]);
      // Its message could not be made safe in time: no acknowledgement, and the connection ends.
      await publisher.expectClose(20_000);

      a.link.set("pass");
      await eventually(() => readiness(a, "?strict"), { status: 200, store: "healthy", ready: true }, 20_000);
      const again = await connectRaw(a.port(), "publisher", { clean: false });
      again.send(publishPacket("cut/x", "during", 7, true));
      await again.expect("puback");
      await again.publish("cut/x", "after");
      await eventually(() => [...new Set(payloadsOf(subscriber))], ["before", "during", "after"]);
      assert.deepEqual(await recordsOf(a), [
        "before",
        ...Array.from({ length: 20 }, (_, n) => `during ${n}`),
        "new 1",
        "new 2",
      ]);
      for (const client of [device, subscriber, again]) client.destroy();
    });
  }

  test("NATS is away at start: uplink works, and the node joins when it comes", async (t) => {
    const [late, other] = await Promise.all([start(t, "late", { isAway: true, options: impatient }), start(t, "late")]);
    assert.deepEqual(await readiness(late), { status: 200, store: "unhealthy", ready: true });
    assert.equal((await readiness(late, "?strict")).status, 503);
    assert.match(await reasonOf(late), /^NATS: /);
    await servesNewDevices(late);
    const clean = await connectRaw(late.port(), "clean");
    assert.equal(await clean.subscribe("late/#", 1), 1);
    assert.deepEqual(await Promise.all([publishByHttp(late, "late/http"), connackOf(late, "lasting")]), [503, 3]);

    late.link.set("pass");
    await joined(late);
    assert.equal((await readiness(late, "?strict")).status, 200);
    const publisher = await connectRaw(other.port(), "publisher");
    await eventually(async () => {
      await publisher.publish("late/x", "x");
      return payloadsOf(clean).includes("x");
    }, true);
    const lasting = await connectRaw(late.port(), "lasting", { clean: false });
    assert.equal(await lasting.subscribe("late/#", 1), 1);
    assert.deepEqual(await recordsOf(late), ["new 1", "new 2"]);
    for (const client of [clean, publisher, lasting]) client.destroy();
  });

  for (const mode of ["refuse", "hang"] as const) {
    test(`a client that moves while NATS ${mode}s at its node gets nothing from there any more`, async (t) => {
      const [a, b] = await Promise.all([start(t, `moved${mode}`), start(t, `moved${mode}`)]);
      await movesAway(a.port(), b, {
        cut: () => a.link.set(mode),
        mend: () => a.link.set("pass"),
      });
    });
  }

  test("a client that moves while its gateway stands still gets nothing from there any more", async (t) => {
    const node = await spawnNode(t, { urls: nats.urls, namespace: "still" }, "standing");
    const [b] = await Promise.all([start(t, "still"), node.start()]);
    await eventually(() => node.isReady(), true, 30_000);
    const waitedMs = await movesAway(node.gateway().port, b, {
      cut: () => node.gateway().signal("SIGSTOP"),
      mend: () => node.gateway().signal("SIGCONT"),
    });
    assert.ok(waitedMs > 2900, `the one that stands still was given ${waitedMs} ms for an answer: timeouts.kickMs`);
  });

  test("fence.grace: clients of persistent sessions are closed after it, others are not", async (t) => {
    const [a, b] = await Promise.all([start(t, "grace", { options: "fence: { grace: 5 }" }), start(t, "grace")]);
    const lasting = await connectRaw(a.port(), "lasting", { clean: false });
    await lasting.subscribe("grace/#", 1);
    const clean = await connectRaw(a.port(), "clean");
    const device = await connectRaw(a.port("uplink"), "device");
    const cutAt = performance.now();
    a.link.set("refuse");
    await lasting.closed;
    const tookMs = performance.now() - cutAt;
    assert.ok(tookMs > 4900, `closed after ${tookMs} ms`);
    assert.ok(tookMs < 15_000, `closed after ${tookMs} ms`);
    await clean.flush();
    await ackInTime(device, "x");

    const publisher = await connectRaw(b.port(), "publisher");
    const moved = await openRawClient(b.port());
    assert.equal((await moved.connect({ clientId: "lasting", clean: false })).sessionPresent, true);
    await publisher.publish("grace/1", "x");
    await eventually(() => payloadsOf(moved), ["x"]);
    a.link.set("pass");
    await joined(a);
    // Node a has a session to write down that is another's now.
    await publisher.publish("grace/1", "y");
    await eventually(() => payloadsOf(moved), ["x", "y"]);
    assert.equal(moved.isClosed, false);
    for (const client of [clean, device, publisher, moved]) client.destroy();
  });

  for (const delayMs of isLong ? [300, 1500] : [300]) {
    test(`NATS answers ${2 * delayMs} ms late: acknowledgements wait, within bounds, and nothing is lost`, async (t) => {
      const namespace = `slow${delayMs}`;
      const [a, b] = await Promise.all([start(t, namespace, { options: "maxInFlight: 2" }), start(t, namespace)]);
      const subscriber = await connectRaw(b.port(), "subscriber", { clean: false });
      await subscriber.subscribe("slow/#", 1);
      const device = await connectRaw(a.port("uplink"), "device");
      const publishers = await Promise.all(Array.from({ length: 6 }, (_, n) => connectRaw(a.port(), `publisher ${n}`)));
      a.link.set("delay", delayMs);
      const sentAt = performance.now();
      const acks = publishers.map(async (publisher, n) => {
        publisher.send(publishPacket("slow/x", `message ${n}`, 1));
        await eventually(() => publisher.received.length, 1, 25_000);
        assert.equal((await publisher.expect("puback")).messageId, 1);
        return performance.now() - sentAt;
      });
      await ackInTime(device, "x");
      const tookMs = (await Promise.all(acks)).toSorted((one, other) => one - other);
      const [first = 0] = tookMs;
      const last = tookMs.at(-1) ?? 0;
      assert.ok(first >= 2 * delayMs, `not before NATS has answered: ${first} ms`);
      assert.ok(last >= 6 * delayMs, `two at a time: ${last} ms`);
      const sent = publishers.map((_, n) => `message ${n}`);
      await eventually(() => payloadsOf(subscriber).toSorted(), sent);

      const lasting = await openRawClient(a.port());
      lasting.send({ cmd: "connect", clientId: "lasting", clean: false, protocolId: "MQTT", protocolVersion: 4 });
      await eventually(() => lasting.received.length, 1, 25_000);
      assert.equal((await lasting.expect("connack")).returnCode, 0);
      for (const client of [subscriber, device, ...publishers, lasting]) client.destroy();
    });
  }

  longTest("NATS is too slow to be reached at all: as if it were away", async (t) => {
    const [a, b] = await Promise.all([start(t, "crawl"), start(t, "crawl")]);
    const device = await connectRaw(a.port("uplink"), "device");
    a.link.set("delay", 3000);
    await eventually(() => isJoined(a), false, 20_000);
    await ackInTime(device, "x");
    await servesNewDevices(a);
    a.link.set("pass");
    await joined(a);
    const [subscriber, publisher] = [await connectRaw(b.port(), "s"), await connectRaw(a.port(), "p")];
    await subscriber.subscribe("crawl", 1);
    await publisher.publish("crawl", "x");
    await subscriber.expect("publish");
    for (const client of [device, subscriber, publisher]) client.destroy();
  });

  longTest("NATS has lost its majority: as if it were away", async (t) => {
    const own = await startNats({ nodes: 3 });
    assert.ok(own);
    t.after(() => own.stop());
    const yaml = clusterYaml(
      { urls: own.urls, namespace: "m", options: "fence: { grace: 5 }", documents: uplink },
      "n",
    );
    const gateway = await startTestGateway(yaml);
    t.after(() => gateway.stop());
    await joined(gateway);
    const lasting = await connectRaw(gateway.port(), "lasting", { clean: false });
    await lasting.subscribe("m/#", 1);
    const device = await connectRaw(gateway.port("uplink"), "device");
    const connectedTo = gateway.logs.findLast(({ msg }) => msg === "Connected to NATS")?.["server"];
    for (const server of own.servers) if (!server.url.endsWith(String(connectedTo))) server.pause();
    const pausedAt = performance.now();
    await eventually(
      () => readinessOf(gateway.api, "?strict"),
      { status: 503, store: "unhealthy", ready: true },
      20_000,
    );
    await ackInTime(device, "x");
    if (isLong) {
      await eventually(() => lasting.isClosed, true, 40_000);
      const tookMs = performance.now() - pausedAt;
      assert.ok(tookMs > 4900 && tookMs < 35_000, `closed after ${tookMs} ms`);
    }
    for (const server of own.servers) server.resume();
    await joined(gateway);
    const back = await openRawClient(gateway.port());
    assert.equal((await back.connect({ clientId: "lasting", clean: false })).sessionPresent, true);
    const publisher = await connectRaw(gateway.port(), "publisher");
    await publisher.publish("m/1", "x");
    await eventually(() => payloadsOf(back), ["x"]);
    for (const client of [back, device, publisher]) client.destroy();
  });
});

/** Its old connection stays open, and is told in the end. Answers how long the new one has waited, in milliseconds. */
async function movesAway(
  from: number,
  to: Node,
  { cut, mend }: { readonly cut: () => void; readonly mend: () => void },
): Promise<number> {
  const old = await connectRaw(from, "mover", { clean: false });
  await old.subscribe("moved/1", 1);
  await old.subscribe("moved/2", 2);
  const publisher = await connectRaw(to.port(), "publisher");
  await publisher.publish("moved/1", "first");
  const first = await old.expect("publish");
  old.send({ cmd: "puback", messageId: first.messageId ?? 0 });

  cut();
  const startedAt = performance.now();
  const fresh = await openRawClient(to.port());
  assert.equal((await fresh.connect({ clientId: "mover", clean: false })).sessionPresent, true);
  const waitedMs = performance.now() - startedAt;
  const sent = Array.from({ length: 40 }, (_, n) => `later ${n}`);
  for (const [n, payload] of sent.entries()) {
    const qos = n % 2 === 0 ? 1 : 2;
    publisher.send({ ...publishPacket(`moved/${qos}`, payload, n + 1), qos } as IPublishPacket);
    const answer = await publisher.expect(qos === 1 ? "puback" : "pubrec");
    assert.equal(answer.messageId, n + 1);
  }
  // What has not been settled before the cut may come again.
  await eventually(
    () =>
      payloadsOf(fresh)
        .filter((payload) => payload !== "first")
        .toSorted(),
    sent.toSorted(),
  );

  mend();
  await eventually(() => old.isClosed, true, 30_000);
  assert.deepEqual(payloadsOf(old), [], "what came later was the new connection's alone");
  assert.equal(fresh.isClosed, false);
  await publisher.publish("moved/1", "last");
  await eventually(() => payloadsOf(fresh).at(-1), "last");
  for (const client of [fresh, publisher]) client.destroy();
  return waitedMs;
}

interface Readiness {
  readonly status: number;
  readonly store: string;
  readonly ready: boolean;
}

const readiness = ({ api }: Node, query = ""): Promise<Readiness> => readinessOf(api, query);

async function readinessOf(api: string, query: string): Promise<Readiness> {
  const response = await fetch(`${api}/readyz${query}`);
  const { ready, unhealthy } = (await response.json()) as { ready: boolean; unhealthy: { name: string }[] };
  const store = unhealthy.some(({ name }) => name === "store") ? "unhealthy" : "healthy";
  return { status: response.status, store, ready };
}

async function reasonOf({ api }: Node): Promise<string> {
  const { unhealthy } = (await (await fetch(`${api}/readyz`)).json()) as {
    unhealthy: { name: string; detail: string }[];
  };
  return unhealthy.find(({ name }) => name === "store")?.detail ?? "";
}

function isJoined({ gateway }: Node): boolean {
  return gateway.host.health().find(({ name }) => name === "cluster")?.ok ?? false;
}

async function publishByHttp({ api }: Node, topic: string): Promise<number> {
  const response = await fetch(`${api}/apis/v2/mqttproxy/mqttproxy/topics/publish`, {
    method: "POST",
    body: JSON.stringify({ topic, qos: 1, payload: "x" }),
  });
  await response.body?.cancel();
  return response.status;
}

/** Of a client with a persistent session. */
async function connackOf(node: Node, clientId: string): Promise<number> {
  const client = await openRawClient(node.port());
  client.send({ cmd: "connect", clientId, clean: false, keepalive: 0, protocolId: "MQTT", protocolVersion: 4 });
  await eventually(() => client.received.length, 1, 25_000);
  const { returnCode = -1 } = await client.expect("connack");
  client.destroy();
  return returnCode;
}

let lastId = 100;
async function ackInTime(device: RawClient, payload: string): Promise<void> {
  const id = ++lastId;
  const sentAt = performance.now();
  device.send(publishPacket("records/x", payload, id));
  assert.equal((await device.expect("puback")).messageId, id);
  const tookMs = performance.now() - sentAt;
  assert.ok(tookMs < atOnceMs, `acknowledged after ${tookMs} ms`);
}

/** A clean session, from CONNECT to the end: of a proxy without brokerMode, also as subscriber. */
async function servesNewDevices(node: Node): Promise<void> {
  const startedAt = performance.now();
  const device = await connectRaw(node.port("uplink"), `new-${++lastId}`, {
    will: { topic: "gone", payload: Buffer.from("x"), qos: 1, retain: false },
  });
  assert.equal(await device.subscribe("commands/#", 1), 1);
  await ackInTime(device, "new 1");
  device.send({ ...publishPacket("records/x", "new 2", 9), qos: 2 } as IPublishPacket);
  await device.expect("pubrec");
  device.send({ cmd: "pubrel", messageId: 9 });
  await device.expect("pubcomp");
  device.send({ cmd: "unsubscribe", messageId: 10, unsubscriptions: ["commands/#"] });
  await device.expect("unsuback");
  const tookMs = performance.now() - startedAt;
  assert.ok(tookMs < 2 * atOnceMs, `took ${tookMs} ms`);
  await device.disconnect();
}

async function recordsOf({ folder }: Node): Promise<string[]> {
  const lines = (await readFile(join(folder, "data/records.ndjson"), "utf8")).trim().split("\n");
  return lines.map((line) => (JSON.parse(line) as { value: string }).value);
}

/** Acknowledges what has come. */
function payloadsOf(client: RawClient): string[] {
  return client.received.flatMap((each) => (each.cmd === "publish" ? [each.payload.toString()] : []));
}
