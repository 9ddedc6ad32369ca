/** onPoison: deadLetter ends the resending of a packet that no retry mends, and of no other. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { FilterContext, FilterResult } from "../../kernel/plugin.ts";
import { forgetProbe, openProbe } from "../fixtures/plugins-e2e/probe/control.ts";
import { type ProbedGateway, publishes, startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, publishPacket, type RawClient, type RawOptions } from "../helpers/raw-client.ts";

const poisonProxy = { faultGrace: 0, onPoison: "deadLetter", deadLetter: { pipeline: "dead" } };
const payloadOf = (ctx: FilterContext): string => (ctx.type === "Publish" ? String(ctx.packet.payload) : "");

function deadPipeline(filter: object): object {
  return { kind: "Pipeline", name: "dead", filters: [filter] };
}

/** With a dead-letter pipeline of one probe. */
async function startWithDeadProbe(t: TestContext, proxy: object = {}) {
  const name = `dead-${randomUUID()}`;
  const dead = openProbe(name);
  t.after(() => forgetProbe(name));
  const gateway = await startProbedGateway(t, { ...poisonProxy, ...proxy }, { Publish: {} }, [
    deadPipeline({ name: "dead", kind: "Probe", probe: name }),
  ]);
  return { ...gateway, dead };
}

/** One connection of a device that sends one packet, at QoS 1: whether it is acknowledged, or the connection closed. */
async function send(
  { port }: Pick<ProbedGateway<never>, "port">,
  payload: string,
  o: { clientId?: string; packetId?: number; qos?: 1 | 2; version?: RawOptions["protocolVersion"] } = {},
): Promise<"acked" | "closed"> {
  const { clientId = "dev1", packetId = 7, qos = 1, version = 4 } = o;
  const lasting = { clean: false, ...(version === 5 && { properties: { sessionExpiryInterval: 60 } }) };
  const client: RawClient = await connectRaw(port(), clientId, lasting, { protocolVersion: version });
  client.send({ ...publishPacket("a/b", payload, packetId), qos } as ReturnType<typeof publishPacket>);
  const answer = await Promise.race([
    client.expect(qos === 1 ? "puback" : "pubrec").then(
      () => "acked" as const,
      () => "closed" as const,
    ),
    client.closed.then(() => "closed" as const),
  ]);
  client.destroy();
  return answer;
}

function failing(outcomes: Record<string, () => FilterResult>): (ctx: FilterContext) => FilterResult {
  return (ctx) => outcomes[payloadOf(ctx)]?.();
}

function fault(poison?: boolean): () => never {
  return () => {
    throw Object.assign(new Error("can't take this"), { code: "SHAPE_WRONG", ...(poison !== undefined && { poison }) });
  };
}

test("a result that nobody handles: the third time it is in the dead-letter file with its headers, and acknowledged", async (t) => {
  const gateway = await startProbedGateway(t, poisonProxy, { Publish: {} }, [
    deadPipeline({
      name: "file",
      kind: "FileMQTT",
      dir: "dead",
      topic: { default: "letters" },
      mqtt: { headerKey: "DEAD_LETTER" },
    }),
  ]);
  gateway.probes.Publish.handle = failing({ bad: () => "failure" });
  assert.deepEqual(
    [await send(gateway, "bad"), await send(gateway, "bad"), await send(gateway, "bad")],
    ["closed", "closed", "acked"],
  );
  const folder = join(gateway.folder, "dead");
  const files = (await readdir(folder)).filter((name) => name.endsWith(".ndjson"));
  const lines = (await readFile(join(folder, files[0]!), "utf8")).trim().split("\n");
  assert.deepEqual([files.length, lines.length], [1, 1]);
  const { key, value, headers } = JSON.parse(lines[0]!) as Record<string, unknown>;
  assert.deepEqual(
    [key, value, headers],
    [
      "dev1",
      "bad",
      {
        clientID: "dev1",
        mqttTopic: "a/b",
        error: "failure",
        errorReason: "the result failure, for which the flow has no jumpIf",
        errorTopic: "a/b",
        errorPipeline: "on-Publish",
        errorFaults: "3",
      },
    ],
  );
  assert.equal(await gateway.metric("sluice_dead_letters_total", { reason: "failure" }), 1);
  const logged = gateway.logs.filter(({ msg }) => String(msg).includes("the dead-letter pipeline has it"));
  assert.deepEqual(
    logged.map(({ clientId, topic, error, faults }) => ({ clientId, topic, error, faults })),
    [{ clientId: "dev1", topic: "a/b", error: "failure", faults: 3 }],
  );
  // Acknowledged, so it is no suspect any more: the count begins anew.
  assert.equal(await send(gateway, "bad"), "closed");
});

test("without onPoison a packet that faults for ever is never acknowledged", async (t) => {
  const gateway = await startProbedGateway(t, { faultGrace: 0 }, { Publish: {} });
  gateway.probes.Publish.handle = failing({ bad: () => "failure" });
  for (let attempt = 0; attempt < 5; attempt++) assert.equal(await send(gateway, "bad"), "closed");
});

for (const version of [4, 5] as const) {
  for (const qos of [1, 2] as const) {
    test(`MQTT ${version === 4 ? "3.1.1" : "5"}, QoS ${qos}: no ack before the dead-letter pipeline has passed, as it came and once`, async (t) => {
      const gateway = await startWithDeadProbe(t, { deadLetter: { pipeline: "dead", faults: 2 } });
      const { dead, probes } = gateway;
      probes.Publish.handle = (ctx) => {
        if (ctx.type === "Publish") ctx.packet.topic = "changed";
        return fault(true)();
      };
      const held = Promise.withResolvers<void>();
      dead.handle = () => held.promise;
      const options = { qos, version };
      assert.equal(await send(gateway, "bad", options), "closed");
      const sent = send(gateway, "bad", options);
      await dead.entered(1);
      const early = await Promise.race([sent, new Promise((resolve) => setTimeout(resolve, 50, "not yet"))]);
      assert.equal(early, "not yet");
      held.resolve();
      assert.equal(await sent, "acked");
      const [ctx] = publishes(dead);
      assert.ok(ctx);
      assert.deepEqual(
        [ctx.origin, ctx.packet.topic, String(ctx.packet.payload), ctx.packet.qos],
        ["client", "a/b", "bad", qos],
      );
      const letter = {
        error: "SHAPE_WRONG",
        errorReason: "can't take this",
        errorTopic: "a/b",
        errorPipeline: "on-Publish",
        errorFaults: "2",
      };
      assert.deepEqual(ctx.data.get("DEAD_LETTER"), letter);
      assert.deepEqual(ctx.packet.properties?.userProperties, Object.entries(letter));
      assert.equal(dead.seen.length, 1);
      // QoS 2: the id is in the session, so that a repeat is answered and runs nothing.
      if (qos === 2) {
        assert.equal(await send(gateway, "bad", options), "acked");
        assert.equal(probes.Publish.seen.length, 2);
      }
    });
  }
}

test("a dead-letter pipeline that faults, drops or rejects acknowledges nothing, and gets it again", async (t) => {
  const gateway = await startWithDeadProbe(t, { deadLetter: { pipeline: "dead", faults: 1 } });
  const { dead, probes } = gateway;
  probes.Publish.handle = failing({ bad: fault(true) });
  const outcomes: ((ctx: FilterContext) => FilterResult)[] = [
    fault(),
    (ctx) => ctx.drop(),
    (ctx) => ctx.reject("notAuthorized"),
    () => "failure",
  ];
  for (const outcome of outcomes) {
    dead.handle = outcome;
    assert.equal(await send(gateway, "bad"), "closed");
  }
  dead.handle = () => undefined;
  assert.equal(await send(gateway, "bad"), "acked");
  assert.equal(await gateway.metric("sluice_dead_letters_failed_total"), 4);
  assert.equal(await gateway.metric("sluice_dead_letters_total"), 1);
});

test("what is away makes no poison: poison: false never counts, an error without it only where others pass", async (t) => {
  const gateway = await startWithDeadProbe(t);
  gateway.probes.Publish.handle = failing({ away: fault(false), bug: fault(), ok: () => undefined });
  for (let attempt = 0; attempt < 5; attempt++) {
    assert.equal(await send(gateway, "away"), "closed");
    assert.equal(await send(gateway, "bug", { clientId: "dev2" }), "closed");
  }
  assert.equal(gateway.dead.seen.length, 0);
  const attempts = [];
  for (let attempt = 0; attempt < 2; attempt++) {
    assert.equal(await send(gateway, "ok", { clientId: "dev3" }), "acked");
    assert.equal(await send(gateway, "away"), "closed");
    attempts.push(await send(gateway, "bug", { clientId: "dev2" }));
  }
  assert.deepEqual(attempts, ["closed", "acked"]);
  assert.equal(gateway.dead.seen.length, 1);
});

test("a deadline that passes is no poison either", async (t) => {
  const name = `dead-${randomUUID()}`;
  const dead = openProbe(name);
  t.after(() => forgetProbe(name));
  const gateway = await startProbedGateway(t, poisonProxy, { Publish: { timeout: 0.1, concurrent: true } }, [
    deadPipeline({ name: "dead", kind: "Probe", probe: name }),
  ]);
  gateway.probes.Publish.handle = (ctx) => (payloadOf(ctx) === "ok" ? undefined : new Promise(() => undefined));
  for (let attempt = 0; attempt < 4; attempt++) {
    assert.equal(await send(gateway, "slow"), "closed");
    assert.equal(await send(gateway, "ok", { clientId: "dev2" }), "acked");
  }
  assert.equal(dead.seen.length, 0);
});

test("another message under the packet id is another packet, and one that passes is none", async (t) => {
  const gateway = await startWithDeadProbe(t);
  gateway.probes.Publish.handle = failing({ bad: fault(true), worse: fault(true), ok: () => undefined });
  const answers = [];
  for (const payload of ["bad", "bad", "worse", "bad", "bad", "ok", "bad", "bad", "bad"]) {
    answers.push(await send(gateway, payload));
  }
  assert.deepEqual(answers, [...Array(5).fill("closed"), "acked", "closed", "closed", "acked"]);
  // Another packet id, or another client, has faults of its own.
  assert.equal(await send(gateway, "bad"), "closed");
  assert.equal(await send(gateway, "bad", { packetId: 8 }), "closed");
  assert.equal(await send(gateway, "bad", { clientId: "dev2" }), "closed");
});

test("maxTracked bounds what is remembered; what is forgotten is counted, and begins anew", async (t) => {
  const gateway = await startWithDeadProbe(t, { deadLetter: { pipeline: "dead", faults: 2, maxTracked: 1 } });
  gateway.probes.Publish.handle = failing({ bad: fault(true) });
  assert.equal(await send(gateway, "bad", { clientId: "dev1" }), "closed");
  assert.equal(await send(gateway, "bad", { clientId: "dev2" }), "closed");
  assert.equal(await gateway.metric("sluice_poison_suspects_forgotten_total"), 1);
  assert.equal(await send(gateway, "bad", { clientId: "dev1" }), "closed");
  assert.equal(await send(gateway, "bad", { clientId: "dev1" }), "acked");
});

test("a change switches it on and off while clients stay connected", async (t) => {
  const name = `dead-${randomUUID()}`;
  const dead = openProbe(name);
  t.after(() => forgetProbe(name));
  const gateway = await startProbedGateway(t, { faultGrace: 3600 }, { Publish: {} }, [
    deadPipeline({ name: "dead", kind: "Probe", probe: name }),
  ]);
  gateway.probes.Publish.handle = failing({ bad: fault(true) });
  const client = await connectRaw(gateway.port(), "dev1");
  const publish = async (): Promise<string[]> => {
    client.send(publishPacket("a/b", "bad", 7));
    return (await client.flush()).map(({ cmd }) => cmd);
  };
  assert.deepEqual(await publish(), []);
  const { plan } = await gateway.reload(
    gateway.yaml({ faultGrace: 3600, onPoison: "deadLetter", deadLetter: { pipeline: "dead", faults: 1 } }),
  );
  assert.deepEqual(plan?.items.find(({ kind }) => kind === "MQTTProxy")?.fields, ["deadLetter", "onPoison"]);
  assert.deepEqual(await publish(), ["puback"]);
  await gateway.reload(gateway.yaml({ faultGrace: 3600 }));
  assert.deepEqual(await publish(), []);
  assert.equal(dead.seen.length, 1);
});

test("a dead letter to nowhere, or back into the pipeline that it faulted in, is refused with its place", async (t) => {
  const start = (proxy: object): Promise<unknown> => startProbedGateway(t, proxy, { Publish: {} });
  await assert.rejects(
    start({ onPoison: "deadLetter" }),
    /sluice\.yaml:\d+:\d+ > mqttproxy > onPoison: needs deadLetter: set deadLetter\.pipeline/,
  );
  await assert.rejects(
    start({ onPoison: "deadLetter", deadLetter: { pipeline: "on-Publsh" } }),
    /sluice\.yaml:\d+:\d+ > mqttproxy > deadLetter\.pipeline: no Pipeline is named "on-Publsh"; did you mean "on-Publish"\?/,
  );
  await assert.rejects(
    start({ onPoison: "deadLetter", deadLetter: { pipeline: "on-Publish" } }),
    /> mqttproxy > deadLetter\.pipeline: "on-Publish" is the pipeline of the Publish rule/,
  );
});
