/** PUBLISH through the pipeline: order, acknowledgements, faults, deadlines, limits. */
import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { connectAsync } from "mqtt";
import type { FilterContext, FilterResult } from "../../kernel/plugin.ts";
import { eventually } from "../helpers/eventually.ts";
import { publishes, startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, openRawClient, publishPacket } from "../helpers/raw-client.ts";

const numbers = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1);

/** A handler that answers each packet when, and in the order, that the test says; by payload. */
function createGates(): { handle: (ctx: FilterContext) => Promise<void>; open(...payloads: string[]): void } {
  const gates = new Map<string, PromiseWithResolvers<void>>();
  return {
    handle(ctx) {
      assert.ok(ctx.type === "Publish");
      const gate = Promise.withResolvers<void>();
      gates.set(String(ctx.packet.payload), gate);
      return gate.promise;
    },
    open(...payloads) {
      for (const payload of payloads) gates.get(payload)?.resolve();
    },
  };
}

test("A02: PUBLISHes at QoS 0 and 1 reach the pipeline in order, with topic and payload", async (t) => {
  const { url, probes } = await startProbedGateway(t, {}, { Publish: {} });
  const client = await connectAsync(url(), { clientId: "a02", reconnectPeriod: 0 });
  for (const qos of [0, 1] as const) {
    await Promise.all(numbers(5).map((n) => client.publishAsync("go-mqtt/sample", `${qos}-${n}`, { qos })));
  }
  await client.endAsync();
  const seen = publishes(probes.Publish);
  assert.deepEqual(
    seen.map(({ packet }) => [packet.topic, String(packet.payload), packet.qos]),
    [0, 1].flatMap((qos) => numbers(5).map((n) => ["go-mqtt/sample", `${qos}-${n}`, qos])),
  );
  assert.ok(seen.every(({ client: { id }, origin }) => id === "a02" && origin === "client"));
  assert.ok(seen.every(({ packet }) => (packet.packetId !== undefined) === (packet.qos === 1)));
});

for (const concurrent of [false, true]) {
  const name = concurrent ? "that answers in any order" : "that takes one packet at a time";
  test(`A05, L25: 30 clients publish 50 messages each, in order, through an asynchronous filter ${name}`, async (t) => {
    const { url, probes } = await startProbedGateway(t, {}, { Publish: { concurrent } });
    probes.Publish.handle = (ctx) => (ctx.type === "Publish" && ctx.packet.payload.length % 2 ? sleep(1) : undefined);
    const ids = numbers(30).map((n) => `a05-${n}`);
    await Promise.all(
      ids.map(async (clientId) => {
        const client = await connectAsync(url(), { clientId, reconnectPeriod: 0 });
        await Promise.all(numbers(50).map((n) => client.publishAsync(`from/${clientId}`, String(n), { qos: 1 })));
        await client.endAsync();
      }),
    );
    const seen = publishes(probes.Publish);
    assert.equal(seen.length, 1500);
    for (const id of ids) {
      const own = seen.filter(({ client }) => client.id === id);
      assert.deepEqual(
        own.map(({ packet }) => Number(packet.payload)),
        numbers(50),
      );
      assert.ok(own.every(({ packet }) => packet.topic === `from/${id}`));
    }
  });
}

test("PUBACKs leave in the order of the PUBLISHes, whichever is ready first", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: { concurrent: true } });
  const gates = createGates();
  probes.Publish.handle = gates.handle;
  const client = await connectRaw(port(), "ordered");
  // Not in the order of their ids.
  client.send(...[30, 10, 20].map((id) => publishPacket("a/b", String(id), id)));
  client.send(publishPacket("a/b", "none"));
  await probes.Publish.entered(4);
  gates.open("20", "10", "none");
  assert.deepEqual(await client.flush(), []);
  gates.open("30");
  const acks = await client.expectMany("puback", 3);
  assert.deepEqual(
    acks.map(({ messageId }) => messageId),
    [30, 10, 20],
  );
});

test("a PUBACK waits for the pipeline, and other clients don't wait with it", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
  const gate = Promise.withResolvers<void>();
  probes.Publish.handle = ({ client }) => (client.id === "slow" ? gate.promise : undefined);
  const slow = await connectRaw(port(), "slow");
  const quick = await connectRaw(port(), "quick");
  slow.send(publishPacket("a/b", "1", 1), publishPacket("a/b", "2", 2));
  await probes.Publish.entered(1);
  for (let n = 0; n < 20; n++) await quick.publish("a/b");
  assert.deepEqual(await slow.flush(), []);
  // The filter takes one packet of a connection at a time.
  assert.equal(publishes(probes.Publish).filter(({ client }) => client.id === "slow").length, 1);
  gate.resolve();
  await slow.expectMany("puback", 2);
});

type Handler = (ctx: FilterContext) => FilterResult | Promise<FilterResult>;

/** What becomes of a QoS 1 PUBLISH: acknowledged, or never and closed at once or after faultGrace. */
const publishOutcomes: Record<string, { handle: Handler; end: "acked" | "closed" | "faulted"; dropped?: string }> = {
  nothing: { handle: () => undefined, end: "acked" },
  "drop()": { handle: (ctx) => ctx.drop(), end: "acked", dropped: "dropped" },
  "reject()": { handle: (ctx) => ctx.reject("payloadFormatInvalid"), end: "acked", dropped: "rejected" },
  "a verdict": { handle: () => "verdict", end: "acked", dropped: "verdict" },
  "disconnect()": { handle: (ctx) => ctx.disconnect("banned"), end: "closed", dropped: "disconnected" },
  "a failure": { handle: () => "failure", end: "faulted", dropped: "failure" },
  "an undeclared result": { handle: () => "nonsense", end: "faulted", dropped: "fault" },
  "a throw": {
    handle() {
      throw new Error("out of order");
    },
    end: "faulted",
    dropped: "fault",
  },
  "a rejection": { handle: () => Promise.reject(new Error("out of order")), end: "faulted", dropped: "fault" },
  "a deadline": { handle: () => new Promise(() => undefined), end: "faulted", dropped: "fault" },
};

suite("L8: each outcome of the Publish pipeline", { concurrency: true }, () => {
  for (const [name, { handle, end, dropped }] of Object.entries(publishOutcomes)) {
    test(`${name}: ${end}`, async (t) => {
      const { port, probes, metric } = await startProbedGateway(t, { faultGrace: 1 }, { Publish: { timeout: 0.2 } });
      probes.Publish.handle = handle;
      const from = performance.now();
      const client = await connectRaw(port(), "c");
      client.send(publishPacket("a/b", "x", 1));
      if (end === "acked") {
        assert.equal((await client.expect("puback")).messageId, 1);
        assert.deepEqual(await client.flush(), []);
      } else {
        await client.expectClose(5000);
        const took = performance.now() - from;
        if (end === "faulted") assert.ok(took > 950, `closed after ${took} ms`);
        const reason = end === "closed" ? "pipeline" : "fault";
        assert.equal(await metric("sluice_connections_closed_total", { reason }), 1);
      }
      // At QoS 0 nobody waits for an ack: only disconnect() closes.
      const careless = await connectRaw(port(), "qos0");
      careless.send(publishPacket("a/b", "x"));
      if (end === "closed") await careless.expectClose();
      else assert.deepEqual(await careless.flush(), []);
      // What the device still has, and will send again, is not lost yet.
      const lost = dropped === undefined ? 0 : end === "acked" ? 2 : 1;
      const labels = dropped === undefined ? {} : { reason: dropped };
      await eventually(() => metric("sluice_messages_dropped_total", labels), lost);
    });
  }
});

test("L1: a filter that throws harms its packet alone, and the device that sends it again is served", async (t) => {
  const { port, url, probes, logs } = await startProbedGateway(t, { faultGrace: 1 }, { Publish: {} });
  let broken = true;
  probes.Publish.handle = (ctx) => {
    if (broken && ctx.type === "Publish" && ctx.packet.topic === "bad") throw new TypeError("not a function");
  };
  const raw = await connectRaw(port(), "raw");
  const other = await connectRaw(port(), "other");
  raw.send(publishPacket("good", "1", 1), publishPacket("bad", "2", 2), publishPacket("good", "3", 3));
  // The hole holds nothing back.
  assert.deepEqual(
    (await raw.expectMany("puback", 2)).map(({ messageId }) => messageId),
    [1, 3],
  );
  await other.publish("good");
  assert.equal(logs.filter(({ msg }) => msg === "A filter failed; its packet is not acknowledged").length, 1);

  const device = await connectAsync(url(), { clientId: "device", clean: false, reconnectPeriod: 100 });
  const published = device.publishAsync("bad", "again", { qos: 1 });
  await probes.Publish.entered(5);
  broken = false;
  await published;
  await device.endAsync();
  const attempts = publishes(probes.Publish).filter(({ client }) => client.id === "device");
  assert.equal(attempts.length, 2);
  await raw.expectClose();
  await other.publish("good");
});

test("what is under way when its client leaves, is lost or is taken over is finished, in order", async (t) => {
  const { port, probes } = await startProbedGateway(t, { brokerMode: true }, { Publish: {} });
  const gates = createGates();
  probes.Publish.handle = gates.handle;
  const watcher = await connectRaw(port(), "watcher");
  await watcher.subscribe("#", 0);
  const leaving = await connectRaw(port(), "leaving");
  leaving.send(publishPacket("a", "leaving 1"), publishPacket("a", "leaving 2", 1), { cmd: "disconnect" });
  const lost = await connectRaw(port(), "lost");
  lost.send(publishPacket("a", "lost 1", 1));
  const old = await connectRaw(port(), "same");
  old.send(publishPacket("a", "old 1", 1));
  await probes.Publish.entered(3);
  lost.destroy();
  const fresh = await connectRaw(port(), "same");
  await Promise.all([leaving.expectClose(), old.expectClose()]);
  gates.open("lost 1", "old 1", "leaving 1");
  await probes.Publish.entered(4);
  gates.open("leaving 2");
  const got = await watcher.expectMany("publish", 4);
  assert.deepEqual(
    got.map(({ payload }) => String(payload)),
    ["lost 1", "old 1", "leaving 1", "leaving 2"],
  );
  // The PUBACK was the old connection's.
  assert.deepEqual(await fresh.flush(), []);
});

test("the deadline of a pipeline tells the filter to stop, and a late answer changes nothing", async (t) => {
  const { port, probes } = await startProbedGateway(
    t,
    { faultGrace: 1 },
    { Publish: { timeout: 0.1, concurrent: true } },
  );
  const late = Promise.withResolvers<void>();
  const aborted = Promise.withResolvers<void>();
  probes.Publish.handle = (ctx) => {
    ctx.signal.addEventListener("abort", () => aborted.resolve(), { once: true });
    return late.promise;
  };
  const client = await connectRaw(port(), "late");
  client.send(publishPacket("a/b", "1", 1));
  await aborted.promise;
  late.resolve();
  assert.deepEqual(await client.flush(), []);
  probes.Publish.handle = () => undefined;
  client.send(publishPacket("a/b", "2", 2));
  assert.equal((await client.expect("puback")).messageId, 2);
});

suite("limits", { concurrency: true }, () => {
  test("maxInWork: no more is read of a client whose packets are under way, and its keep alive stands still", async (t) => {
    const { port, probes } = await startProbedGateway(t, { maxInWork: 4 }, { Publish: { concurrent: true } });
    const gates: PromiseWithResolvers<void>[] = [];
    probes.Publish.handle = ({ client }) => {
      if (client.id !== "eager") return;
      const gate = Promise.withResolvers<void>();
      gates.push(gate);
      return gate.promise;
    };
    const eager = await connectRaw(port(), "eager", { keepalive: 1 });
    eager.send(...numbers(100).map((id) => publishPacket("a/b", String(id), id)));
    await probes.Publish.entered(4);
    const other = await connectRaw(port(), "other");
    for (const started = performance.now(); performance.now() - started < 2500;) {
      await other.publish("a/b");
      await sleep(50);
    }
    assert.equal(gates.length, 4);
    assert.equal(eager.isClosed, false);

    for (let settled = 0; settled < 100;) {
      while (gates.length === settled) await sleep(1);
      assert.ok(gates.length - settled <= 4, `${gates.length - settled} in work`);
      gates[settled++]?.resolve();
    }
    assert.deepEqual(
      (await eager.expectMany("puback", 100)).map(({ messageId }) => messageId),
      numbers(100),
    );
  });

  test("maxInWorkBytes bounds what a client has in work by size", async (t) => {
    const { port, probes } = await startProbedGateway(t, { maxInWorkBytes: 10_000 }, { Publish: { concurrent: true } });
    const gate = Promise.withResolvers<void>();
    probes.Publish.handle = ({ client }) => (client.id === "large" ? gate.promise : undefined);
    const large = await connectRaw(port(), "large");
    large.send(...numbers(20).map((id) => publishPacket("a/b", Buffer.alloc(4000), id)));
    await probes.Publish.entered(3);
    const other = await connectRaw(port(), "other");
    for (let n = 0; n < 20; n++) await other.publish("a/b");
    assert.equal(publishes(probes.Publish).filter(({ client }) => client.id === "large").length, 3);
    gate.resolve();
    await large.expectMany("puback", 20);
  });

  test("A24: a client over clientPublishLimit waits, nothing of it is lost, and others don't wait", async (t) => {
    const { port, url, probes, metric } = await startProbedGateway(
      t,
      { clientPublishLimit: { requestRate: 10, timePeriod: 1 } },
      { Publish: {} },
    );
    const client = await connectAsync(url(), { clientId: "fast", keepalive: 1, reconnectPeriod: 0 });
    const from = performance.now();
    const all = Promise.all(numbers(35).map((n) => client.publishAsync("a/b", String(n), { qos: 1 })));
    await probes.Publish.entered(10);
    await (await connectRaw(port(), "other")).publish("a/b");
    assert.ok(performance.now() - from < 900, "another client had to wait");
    await all;
    const took = performance.now() - from;
    // 10 at once, then 10 a second.
    assert.ok(took > 2000 && took < 5000, `took ${took} ms`);
    await client.endAsync();
    const own = publishes(probes.Publish).filter((each) => each.client.id === "fast");
    assert.deepEqual(
      own.map(({ packet }) => Number(packet.payload)),
      numbers(35),
    );
    assert.ok((await metric("sluice_publishes_delayed_total")) >= 3);
  });

  test("A24: a limit by bytes delays too, and keep alive stands still meanwhile", async (t) => {
    const { port } = await startProbedGateway(t, { clientPublishLimit: { bytesRate: 1000, timePeriod: 1 } });
    const client = await connectRaw(port(), "large", { keepalive: 1 });
    const from = performance.now();
    // 2,500 bytes beyond the limit are paid back by two more periods.
    client.send(publishPacket("a/b", Buffer.alloc(3500), 1), publishPacket("a/b", "", 2));
    assert.equal((await client.expect("puback")).messageId, 1);
    assert.equal((await client.expect("puback")).messageId, 2);
    const took = performance.now() - from;
    assert.ok(took > 1900 && took < 5000, `took ${took} ms`);
  });
});

test("L44: a packet over maxPacketBytes is refused by its header, before its body comes", async (t) => {
  const { port, probes, metric } = await startProbedGateway(t, { maxPacketBytes: 2000 }, { Publish: {} });
  const client = await connectRaw(port(), "c");
  await client.publish("a/b", Buffer.alloc(1900));
  // A PUBLISH of 256 MiB, of which three bytes come.
  client.send(Buffer.from([0x30, 0xff, 0xff, 0xff, 0x7f, 0, 3, 0x61]));
  await client.expectClose();
  assert.equal(await metric("sluice_connections_closed_total", { reason: "packetTooLarge" }), 1);
  assert.equal(probes.Publish.seen.length, 1);

  const early = await openRawClient(port());
  early.send(Buffer.from([0x10, 0xff, 0xff, 0xff, 0x7f]));
  await early.expectClose();
});

test("L18: with maxQos 1 a PUBLISH of QoS 2 closes the connection, and SUBSCRIBE 2 is granted 1", async (t) => {
  const { port, probes } = await startProbedGateway(t, { maxQos: 1 }, { Publish: {} });
  const client = await connectRaw(port(), "two");
  assert.equal(await client.subscribe("a/b", 2), 1);
  client.send({ cmd: "publish", topic: "a/b", payload: "x", qos: 2, messageId: 1, dup: false, retain: false });
  await client.expectClose();
  assert.equal(probes.Publish.seen.length, 0);
});

test("a PUBLISH in many pieces, and many PUBLISHes in one piece", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Publish: {} });
  const client = await connectRaw(port(), "pieces");
  const whole = Buffer.from([0x32, 10, 0, 3, 0x61, 0x2f, 0x62, 0, 9, 0x61, 0x62, 0x63]);
  for (const byte of whole) {
    client.send(Buffer.from([byte]));
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.equal((await client.expect("puback")).messageId, 9);
  client.send(Buffer.concat(Array.from({ length: 500 }, () => whole)));
  await client.expectMany("puback", 500);
  const payloads = publishes(probes.Publish).map(({ packet }) => String(packet.payload));
  assert.deepEqual(new Set(payloads), new Set(["abc"]));
  assert.equal(payloads.length, 501);
});

test("a connection whose work ends within the packet that filled it reads on", async (t) => {
  const { port, probes } = await startProbedGateway(t, { maxInWork: 1 }, { Publish: {} });
  const client = await connectRaw(port(), "one");
  for (let n = 0; n < 5; n++) await client.publish("a", String(n));
  assert.equal(probes.Publish.seen.length, 5);
});
