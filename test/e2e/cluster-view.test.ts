/** What one gateway of a cluster knows of the others: whom a message matches, who has it, who is connected where. */
import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { connectAsync, type IClientOptions, type IPublishPacket, type MqttClient } from "mqtt";
import { eventually } from "../helpers/eventually.ts";
import { spawnNode, startCluster } from "../helpers/gateway-cluster.ts";
import type { TestGateway } from "../helpers/gateway.ts";
import { longTest } from "../helpers/long-test.ts";
import { startNats } from "../helpers/nats.ts";
import { sluice } from "../helpers/sluice.ts";

const nats = await startNats();
const urls = nats?.urls ?? [];
after(() => nats?.stop());

describe("two gateways on NATS", { skip: !nats }, () => {
  let one: TestGateway;
  let two: TestGateway;
  const clients: MqttClient[] = [];
  before(async () => {
    const presence = "presence: { pipeline: presence, topic: presence }\nretained: { maxMessages: 40 }";
    const options = `replicas: 1
---
kind: Pipeline
name: presence
filters: [{ name: presence, kind: FileMQTT, dir: presence, topic: { default: presence } }]`;
    [one, two] = (await startCluster({ urls, namespace: "v", options, proxy: presence }, ["one", "two"])) as [
      TestGateway,
      TestGateway,
    ];
  });
  after(async () => {
    await Promise.all(clients.map((client) => client.endAsync(true)));
    await Promise.all([one, two].map((gateway) => gateway.stop()));
  });

  async function connect(gateway: TestGateway, clientId: string, options: IClientOptions = {}) {
    const got: IPublishPacket[] = [];
    const client = await connectAsync(gateway.url(), {
      clientId,
      protocolVersion: 5,
      reconnectPeriod: 0,
      ...options,
    });
    clients.push(client);
    client.on("message", (_, __, packet) => got.push(packet));
    return { client, got, payloads: () => got.map(({ payload }) => payload.toString()) };
  }

  async function publish(gateway: TestGateway, body: object, query = ""): Promise<Record<string, unknown>> {
    const response = await fetch(`${gateway.api}/apis/v2/mqttproxy/mqttproxy/topics/publish${query}`, {
      method: "POST",
      body: JSON.stringify(body),
    });
    assert.equal(response.status, 200);
    return (await response.json()) as Record<string, unknown>;
  }

  function closing(client: MqttClient): Promise<void> {
    return new Promise((resolve) => client.once("close", () => resolve()));
  }

  const lasting: IClientOptions = { clean: false, properties: { sessionExpiryInterval: 600 } };

  test("matched: an HTTP publish counts clients at both, says who is not counted, and no publisher is told 0x10", async () => {
    const here = await connect(one, "count-here");
    const there = await connect(two, "count-there");
    await here.client.subscribeAsync("count/#", { qos: 1 });
    await there.client.subscribeAsync("count/both", { qos: 1 });
    await there.client.subscribeAsync("count-there", { qos: 0 });
    const uncounted = ["absent"];
    assert.deepEqual(await publish(one, { topic: "count/both", qos: 1 }), { matched: 2, connected: 2, uncounted });
    assert.deepEqual(await publish(one, { topic: "count-there" }), { matched: 1, connected: 1, uncounted });
    assert.deepEqual(await publish(one, { topic: "count-nobody" }), { matched: 0, connected: 0, uncounted });
    const list = [{ topic: "count/both" }, { topic: "count-there" }];
    assert.deepEqual(await publish(one, list), [
      { matched: 2, connected: 2, uncounted },
      { matched: 1, connected: 1, uncounted },
    ]);
    assert.deepEqual(await publish(one, { topic: "t", qos: 1, clientID: "count-there" }), { matched: 1, connected: 1 });
    const codes: (number | undefined)[] = [];
    here.client.on("packetreceive", (packet) => {
      if (packet.cmd === "puback" || packet.cmd === "pubrec") codes.push(packet.reasonCode ?? 0);
    });
    for (const qos of [1, 2] as const) {
      for (const topic of ["count-there", "count-nobody"]) await here.client.publishAsync(topic, "x", { qos });
    }
    assert.deepEqual(codes, [0, 0, 0, 0]);
    const { stdout } = await sluice(one.folder, ["publish", "mqttproxy", "count-nobody", "x", "--api", one.api]);
    assert.match(
      stdout,
      /^no connected client is subscribed to this topic \(clients that are away are not counted\)$/m,
    );
  });

  test("wait=acked: clients connected to the other node are waited for, absent ones are told apart", async () => {
    const here = await connect(one, "acked-here", lasting);
    const there = await connect(two, "acked-there", lasting);
    const away = await connect(two, "acked-away", lasting);
    const slow = await connect(two, "acked-slow", { customHandleAcks: () => undefined });
    const members = [await connect(two, "acked-m1"), await connect(two, "acked-m2")];
    for (const { client } of [here, there, away]) await client.subscribeAsync("acked", { qos: 1 });
    await slow.client.subscribeAsync("acked-slow", { qos: 1 });
    for (const { client } of members) await client.subscribeAsync("$share/g/acked-shared", { qos: 2 });
    await away.client.endAsync();

    const { clients: told, ...rest } = await publish(one, { topic: "acked", qos: 1 }, "?wait=acked&timeout=10s");
    assert.deepEqual(
      (told as { clientID: string }[]).toSorted((a, b) => (a.clientID < b.clientID ? -1 : 1)),
      ["acked-here", "acked-there"].map((clientID) => ({ clientID, outcome: "delivered" })),
    );
    assert.deepEqual(rest, {
      matched: 2,
      connected: 2,
      uncounted: ["absent"],
      outcomes: { delivered: 2, queued: 0, refused: 0, timeout: 0 },
    });

    const waiting = await publish(one, { topic: "acked-slow", qos: 1 }, "?wait=acked&timeout=500ms");
    assert.deepEqual(waiting["clients"], [{ clientID: "acked-slow", outcome: "timeout" }]);

    const toAbsent = { clientID: "acked-away", topic: "t", qos: 1 };
    assert.deepEqual(await publish(one, toAbsent, "?wait=acked"), {
      matched: 1,
      connected: 0,
      clients: [{ clientID: "acked-away", outcome: "queued" }],
      outcomes: { delivered: 0, queued: 1, refused: 0, timeout: 0 },
    });

    const shared = await publish(one, { topic: "acked-shared", qos: 2 }, "?wait=acked&timeout=10s");
    assert.deepEqual([shared["matched"], shared["outcomes"]], [1, { delivered: 1, queued: 0, refused: 0, timeout: 0 }]);
    assert.match((shared["clients"] as { clientID: string }[])[0]?.clientID ?? "", /^acked-m[12]$/);

    const back = await connect(one, "acked-away", lasting);
    await eventually(() => back.got.map(({ topic }) => topic).toSorted(), ["acked", "t"]);
  });

  test("QoS, all properties, identifiers and RETAIN as published are kept from one to the other", async () => {
    const subscriber = await connect(two, "kept-sub");
    const plain = await connect(two, "kept-plain");
    await subscriber.client.subscribeAsync("kept/#", { qos: 2, rap: true, properties: { subscriptionIdentifier: 7 } });
    await subscriber.client.subscribeAsync("kept/+", { qos: 1, properties: { subscriptionIdentifier: 268_435_455 } });
    await plain.client.subscribeAsync("kept/#", { qos: 1 });
    const sent = {
      payloadFormatIndicator: true,
      messageExpiryInterval: 100,
      contentType: "text/plain; ü",
      responseTopic: "answer/here",
      correlationData: Buffer.from([0, 255, 10]),
      userProperties: { a: ["1", "2"], b: "three" },
    };
    const publisher = await connect(one, "kept-pub");
    for (const qos of [0, 1, 2] as const) {
      await publisher.client.publishAsync(`kept/${qos}`, `q${qos}`, { qos, retain: qos > 0, properties: sent });
    }
    await publish(one, {
      topic: "kept/http",
      qos: 2,
      payload: "http",
      properties: {
        payloadFormat: 1,
        messageExpiry: 100,
        contentType: sent.contentType,
        responseTopic: sent.responseTopic,
        correlationData: "id",
        userProperties: [
          ["a", "1"],
          ["a", "2"],
          ["b", "three"],
        ],
      },
    });
    await eventually(() => [subscriber.got.length, plain.got.length], [4, 4]);
    const byTopic = (got: IPublishPacket[]) => new Map(got.map((packet) => [packet.topic, packet]));
    for (const [topic, { qos, retain, properties }] of byTopic(subscriber.got)) {
      const isHttp = topic === "kept/http";
      assert.equal(qos, isHttp ? 2 : Number(topic.at(-1)), topic);
      assert.equal(retain, topic === "kept/1" || topic === "kept/2", topic);
      const { messageExpiryInterval, subscriptionIdentifier, ...rest } = properties ?? {};
      const { messageExpiryInterval: _, ...others } = sent;
      assert.deepEqual(
        { ...rest, userProperties: { ...rest.userProperties } },
        { ...others, ...(isHttp ? { correlationData: Buffer.from("id") } : {}) },
      );
      assert.ok(messageExpiryInterval !== undefined && messageExpiryInterval > 90 && messageExpiryInterval <= 100);
      assert.deepEqual(
        [subscriptionIdentifier].flat().toSorted((x, y) => Number(x) - Number(y)),
        [7, 268_435_455],
        topic,
      );
    }
    for (const [topic, { qos, retain, properties }] of byTopic(plain.got)) {
      assert.equal(qos, topic === "kept/0" ? 0 : 1);
      assert.deepEqual([retain, properties?.subscriptionIdentifier], [false, undefined]);
    }

    // Retained, with what it came with, at the other node.
    const late = await connect(two, "kept-late");
    await late.client.subscribeAsync("kept/2", { qos: 2, properties: { subscriptionIdentifier: 9 } });
    await eventually(() => late.got.length, 1);
    const [found] = late.got;
    const { subscriptionIdentifier, messageExpiryInterval, userProperties, ...rest } = found?.properties ?? {};
    const { userProperties: pairs, messageExpiryInterval: _, ...others } = sent;
    assert.deepEqual([found?.retain, found?.qos, subscriptionIdentifier, rest], [true, 2, 9, others]);
    assert.deepEqual({ ...userProperties }, pairs);
    assert.ok(messageExpiryInterval !== undefined && messageExpiryInterval <= 100);
    for (const topic of ["kept/1", "kept/2"]) await publisher.client.publishAsync(topic, "", { qos: 1, retain: true });
  });

  test("what waits for a client counts its expiry down, and goes when that is over; noLocal holds where it moves", async () => {
    const mover = await connect(one, "mover", lasting);
    await mover.client.subscribeAsync("moved/#", { qos: 1, nl: true });
    await mover.client.publishAsync("moved/own/1", "own at one", { qos: 1 });
    await mover.client.endAsync();
    const publisher = await connect(two, "moved-pub");
    const expiring = (messageExpiryInterval: number) => ({ qos: 1 as const, properties: { messageExpiryInterval } });
    await publisher.client.publishAsync("moved/short", "gone", expiring(1));
    await publisher.client.publishAsync("moved/long", "there", expiring(100));
    // Nothing but time makes it older.
    await new Promise((resolve) => setTimeout(resolve, 2100));
    const moved = await connect(two, "mover", lasting);
    await eventually(() => moved.payloads(), ["there"]);
    const left = moved.got[0]?.properties?.messageExpiryInterval ?? 0;
    assert.ok(left >= 90 && left <= 98, `${left} s are left of 100`);
    await moved.client.publishAsync("moved/own/2", "own at two", { qos: 1 });
    await moved.client.publishAsync("moved/own/3", "own at two", { qos: 0 });
    await moved.client.endAsync();
    const back = await connect(one, "mover", lasting);
    await publisher.client.publishAsync("moved/last", "last", { qos: 1 });
    await eventually(() => back.payloads(), ["last"]);
  });

  test("what one publisher sends without waiting arrives at the other in its order, of each topic and QoS", async () => {
    const subscriber = await connect(two, "order-sub");
    await subscriber.client.subscribeAsync("order/#", { qos: 2 });
    const publisher = await connect(one, "order-pub");
    const qosOf = (n: number) => [1, 2, 0, 1, 1, 2][n % 6] as 0 | 1 | 2;
    const topicOf = (n: number): number => Math.floor(n / 6) % 3;
    const all = Array.from({ length: 300 }, (_, n) =>
      publisher.client.publishAsync(`order/${topicOf(n)}`, String(n), { qos: qosOf(n) }),
    );
    await Promise.all(all);
    await eventually(() => subscriber.got.length, 300);
    const numbers = (wanted: (n: number) => boolean) => subscriber.payloads().map(Number).filter(wanted);
    const expected = Array.from({ length: 300 }, (_, n) => n);
    // A client has a message of QoS 2 only with its PUBREL, which a later one of QoS 1 may overtake (section 4.6).
    for (const qos of [0, 1, 2]) {
      for (const topic of [0, 1, 2]) {
        const fits = (n: number): boolean => qosOf(n) === qos && topicOf(n) === topic;
        assert.deepEqual(numbers(fits), expected.filter(fits));
      }
    }
  });

  test("a node gets what its clients want, and nothing else", async () => {
    const here = await connect(one, "interest-here");
    await here.client.subscribeAsync("interest/one/#", { qos: 1 });
    const received = (): Promise<number> => two.metric("sluice_nats_received_total");
    const wanted = await connect(two, "interest-there");
    await wanted.client.subscribeAsync("interest/two", { qos: 1 });
    const atFirst = await received();
    for (let n = 0; n < 60; n++) {
      await here.client.publishAsync(`interest/one/${n}`, "x", { qos: (n % 2) as 0 | 1 });
      if (n % 10 === 0) await here.client.publishAsync("interest/two", "x", { qos: n % 20 === 0 ? 0 : 1 });
    }
    await eventually(() => [here.got.length, wanted.got.length], [60, 6]);
    assert.equal((await received()) - atFirst, 6);
    await wanted.client.unsubscribeAsync("interest/two");
    for (const qos of [0, 1] as const) await here.client.publishAsync("interest/two", "x", { qos });
    await wanted.client.subscribeAsync("interest/last", { qos: 1 });
    await here.client.publishAsync("interest/last", "x", { qos: 1 });
    await eventually(() => wanted.got.length, 7);
    assert.equal((await received()) - atFirst, 7, "not what it does not want any more");
  });

  test("retained messages are bounded over both nodes; a topic that has one keeps being replaced", async () => {
    const publishers = [await connect(one, "full-1"), await connect(two, "full-2")] as const;
    const drops = (node: TestGateway): Promise<number> =>
      node.metric("sluice_messages_dropped_total", { reason: "retained_full" });
    const dropped = async (): Promise<number> => (await drops(one)) + (await drops(two));
    let sent = 0;
    const send = (at: 0 | 1): Promise<unknown> => {
      const n = sent++;
      return publishers[at].client.publishAsync(`full/${n}`, "first", { qos: n % 2 === 0 ? 1 : 2, retain: true });
    };
    for (let n = 0; n < 40; n++) await send((n % 2) as 0 | 1);
    assert.equal(await dropped(), 0);
    // Until each has heard of what the other has set.
    for (const [at, node] of [one, two].entries()) {
      await eventually(async () => {
        await send(at as 0 | 1);
        return (await drops(node)) > 0;
      }, true);
    }
    const full = { sent, dropped: await dropped() };
    for (let n = 0; n < 20; n++) await send((n % 2) as 0 | 1);
    assert.deepEqual([sent, await dropped()], [full.sent + 20, full.dropped + 20], "no more of them are kept");

    const reader = await connect(one, "full-reader");
    await reader.client.subscribeAsync("full/#", { qos: 1 });
    await eventually(() => reader.got.length, sent - (await dropped()));
    for (const qos of [0, 1] as const) {
      const payload = `${qos}`.repeat(5);
      await publishers[qos].client.publishAsync("full/0", payload, { qos, retain: true });
      const { client, payloads } = await connect(qos === 0 ? two : one, `full-again-${qos}`);
      await eventually(async () => {
        await client.subscribeAsync("full/0", { qos: 1 });
        return payloads().at(-1);
      }, payload);
    }
    assert.equal(await dropped(), full.dropped + 20);
    await publishers[1].client.publishAsync("full/0", "", { qos: 1, retain: true });
    const late = await connect(two, "full-late");
    await late.client.subscribeAsync("full/#", { qos: 1 });
    await eventually(() => late.got.length, sent - (await dropped()) - 1);
  });

  test("sessions are listed and removed from the other node; connections are numbered over both", async () => {
    const first = await connect(one, "seen", lasting);
    await first.client.subscribeAsync("seen/#", { qos: 1 });
    const isClosed = closing(first.client);
    const second = await connect(two, "seen", lasting);
    await isClosed;
    const told = async (): Promise<unknown[]> => {
      const events = await Promise.all([one, two].map((node) => presenceOf(node, "seen")));
      return events.flat();
    };
    await eventually(async () => (await told()).length, 3);
    const [connected, gone, again] = (await told()) as { event: string; connection: number }[];
    assert.deepEqual([connected?.event, gone?.event, again?.event], ["connected", "disconnected", "connected"]);
    assert.equal(gone?.connection, connected?.connection);
    assert.ok((again?.connection ?? 0) > (connected?.connection ?? 0));

    const listed = await sluice(one.folder, ["sessions", "list", "mqttproxy", "--query", "seen/", "--api", one.api]);
    assert.match(listed.stdout, /^seen +(?:yes|true|connected)/m);
    const kicked = closing(second.client);
    const response = await fetch(`${one.api}/apis/v2/mqttproxy/mqttproxy/sessions`, {
      method: "DELETE",
      body: JSON.stringify({ sessions: [{ sessionID: "seen" }] }),
    });
    assert.deepEqual(await response.json(), { removed: 1 });
    await kicked;
    const query = await fetch(`${two.api}/apis/v2/mqttproxy/mqttproxy/session/query?page=1&page_size=10&q=seen/`);
    assert.deepEqual(await query.json(), { sessions: [], total: 0 });
  });

  longTest("sluice cluster status names a node that has died, and one that has left", async (t) => {
    const options = { urls, namespace: "v", options: "replicas: 1" };
    const three = await spawnNode(t, options, "three");
    await three.start();
    const [four] = await startCluster(options, ["four"]);
    const status = () => sluice(one.folder, ["cluster", "status", "--api", one.api]);
    await eventually(async () => (await status()).stdout.match(/^(?:two|three|four) +up/gm)?.length, 3, 20_000);
    await three.kill();
    await four?.stop();
    const silent = await status();
    assert.equal(silent.code, 1);
    assert.match(silent.stdout, /^four +left +-/m);
    assert.match(silent.stdout, /^three: does not answer$/m);
    await eventually(async () => (await status()).stdout.match(/^three: .*/gm), ["three: is down"], 20_000);
    assert.match((await status()).stdout, /^three +down +- +-/m);
  });

  async function presenceOf(node: TestGateway, clientId: string): Promise<unknown[]> {
    const folder = join(node.folder, "presence");
    const files = await readdir(folder).catch(() => []);
    const texts = await Promise.all(files.map((file) => readFile(join(folder, file), "utf8").catch(() => "")));
    return texts
      .join("")
      .split("\n")
      .filter((line) => line.includes(clientId))
      .map((line) => JSON.parse((JSON.parse(line) as { value: string }).value) as unknown);
  }
});
