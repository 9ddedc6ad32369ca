/** MQTT 5's enhanced authentication: AUTH packets between a client and a filter of the Connect pipeline. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Packet } from "mqtt-packet";
import type { Authentication, ConnectContext, FilterContext } from "../../kernel/plugin.ts";
import { startProbedGateway } from "../helpers/probed-gateway.ts";
import { openRawClient, type RawClient } from "../helpers/raw-client.ts";

const method = "CHALLENGE";

function connectPacket(authenticationData?: Buffer, authenticationMethod = method): Packet {
  return {
    cmd: "connect",
    clientId: "c",
    clean: true,
    protocolVersion: 5,
    properties: { authenticationMethod, ...(authenticationData && { authenticationData }) },
  };
}

function auth(reasonCode: number, data: string, authenticationMethod = method): Packet {
  return { cmd: "auth", reasonCode, properties: { authenticationMethod, authenticationData: Buffer.from(data) } };
}

/** Asks twice, and takes "two" after "one". */
async function verify(ctx: FilterContext): Promise<void> {
  const { auth: authentication } = ctx as ConnectContext;
  if (authentication?.method !== method) return;
  const answers = [await ask(authentication, "say one"), await ask(authentication, "say two")];
  if (answers.join() === "one,two") authentication.accept(Buffer.from("welcome"));
  else ctx.reject("notAuthorized", "wrong answers");
}

async function ask(authentication: Authentication, question: string): Promise<string> {
  return String(await authentication.challenge(Buffer.from(question)));
}

async function expectChallenge(client: RawClient, question: string): Promise<void> {
  const { reasonCode, properties } = await client.expect("auth");
  assert.equal(reasonCode, 0x18, "[MQTT-4.12.0-2]");
  assert.deepEqual(properties, { authenticationMethod: method, authenticationData: Buffer.from(question) });
}

async function authenticate(port: number): Promise<RawClient> {
  const client = await openRawClient(port, { protocolVersion: 5 });
  client.send(connectPacket());
  await expectChallenge(client, "say one");
  client.send(auth(0x18, "one"));
  await expectChallenge(client, "say two");
  client.send(auth(0x18, "two"));
  const { reasonCode, properties } = await client.expect("connack");
  assert.equal(reasonCode, 0);
  assert.equal(properties?.authenticationMethod, method, "[MQTT-4.12.0-5]");
  assert.deepEqual(properties?.authenticationData, Buffer.from("welcome"));
  return client;
}

test("[MQTT-4.12.0-2] [MQTT-4.12.0-3] [MQTT-4.12.0-5] challenges and answers, then CONNACK with the method and the last data", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {}, Publish: {} });
  probes.Connect.handle = verify;
  const client = await authenticate(port());
  await client.publish("a", "x");
  assert.equal(probes.Publish.seen.length, 1);
});

test("the first data comes with the CONNECT, and no challenge is needed", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {} });
  probes.Connect.handle = (ctx) => {
    const { auth: authentication } = ctx as ConnectContext;
    assert.equal(authentication?.reauth, false);
    if (String(authentication?.data) === "token") authentication?.accept();
  };
  const client = await openRawClient(port(), { protocolVersion: 5 });
  client.send(connectPacket(Buffer.from("token")));
  assert.equal((await client.expect("connack")).reasonCode, 0);
});

test("[MQTT-4.12.0-1] a method that no filter knows: CONNACK 0x8C, with and without a pipeline", async (t) => {
  const bare = await startProbedGateway(t);
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {} });
  probes.Connect.handle = verify;
  for (const [to, name] of [
    [bare.port(), method],
    [port(), "OTHER"],
  ] as const) {
    const client = await openRawClient(to, { protocolVersion: 5 });
    client.send(connectPacket(undefined, name));
    assert.equal((await client.expectLast("connack")).reasonCode, 0x8c);
  }
});

test("[MQTT-4.12.0-4] the filter may refuse at any point: CONNACK with its reason", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {} });
  probes.Connect.handle = verify;
  const client = await openRawClient(port(), { protocolVersion: 5 });
  client.send(connectPacket());
  await client.expect("auth");
  client.send(auth(0x18, "three"));
  await client.expect("auth");
  client.send(auth(0x18, "four"));
  const { reasonCode, properties } = await client.expectLast("connack");
  assert.deepEqual([reasonCode, properties], [0x87, { reasonString: "wrong answers" }]);
});

test("[MQTT-3.1.2-30] anything but AUTH and DISCONNECT before the CONNACK ends it, and the filter's wait too", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {}, Publish: {} });
  const failures: unknown[] = [];
  probes.Connect.handle = (ctx) => verify(ctx).catch((error: unknown) => void failures.push(error));
  for (const packet of [
    { cmd: "publish", topic: "a", payload: "x", qos: 0, dup: false, retain: false },
    { cmd: "pingreq" },
    { cmd: "disconnect", reasonCode: 0 },
    auth(0x18, "one", "OTHER"),
    auth(0x19, "one"),
  ] as Packet[]) {
    const client = await openRawClient(port(), { protocolVersion: 5 });
    client.send(connectPacket());
    await client.expect("auth");
    client.send(packet);
    await client.expectClose();
  }
  await probes.Connect.entered(5);
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(
    failures.map((error) => (error as Error).message),
    Array.from({ length: 5 }, () => "the connection has ended"),
  );
  assert.equal(probes.Publish.seen.length, 0);
});

test("a client that never answers is refused at the pipeline's deadline", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: { timeout: 0.2 } });
  probes.Connect.handle = verify;
  const client = await openRawClient(port(), { protocolVersion: 5 });
  client.send(connectPacket());
  await client.expect("auth");
  assert.equal((await client.expectLast("connack")).reasonCode, 0x88);
});

test("[MQTT-4.12.0-7] AUTH of a client that named no method: DISCONNECT 0x82; to 3.1.1 it is no packet at all", async (t) => {
  const { port } = await startProbedGateway(t);
  const client = await openRawClient(port(), { protocolVersion: 5 });
  const { properties } = await client.connect({ clientId: "c" });
  assert.equal(properties?.authenticationMethod, undefined, "[MQTT-4.12.0-6]");
  client.send(auth(0x19, "one"));
  assert.equal((await client.expectLast("disconnect")).reasonCode, 0x82);
  const old = await openRawClient(port());
  await old.connect({ clientId: "old" });
  old.send(Buffer.from([0xf0, 0]));
  await old.expectClose();
});

test("[MQTT-4.12.1-1] a client authenticates anew while its packets go on; AUTH 0 ends it", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {}, Publish: {} });
  probes.Connect.handle = verify;
  const client = await authenticate(port());
  client.send(auth(0x19, "again"));
  await expectChallenge(client, "say one");
  await client.publish("a", "x");
  client.send(auth(0x18, "one"));
  await expectChallenge(client, "say two");
  client.send(auth(0x18, "two"));
  const { reasonCode, properties } = await client.expect("auth");
  assert.equal(reasonCode, 0);
  assert.deepEqual(properties, { authenticationMethod: method, authenticationData: Buffer.from("welcome") });
  const again = probes.Connect.seen[1] as ConnectContext;
  assert.equal(again.auth?.reauth, true);
  assert.equal(String(again.auth?.data), "again");
  assert.equal(again.packet.clientId, "c");
  assert.equal(again.packet.password, undefined);
  await client.publish("a", "y");
});

test("[MQTT-4.12.1-2] where that fails the client is disconnected with the reason", async (t) => {
  const { port, probes } = await startProbedGateway(t, {}, { Connect: {} });
  probes.Connect.handle = verify;
  const client = await authenticate(port());
  client.send(auth(0x19, "again"));
  await client.expect("auth");
  client.send(auth(0x18, "nothing"));
  await client.expect("auth");
  client.send(auth(0x18, "nothing"));
  const { reasonCode, properties } = await client.expectLast("disconnect");
  assert.deepEqual([reasonCode, properties], [0x87, { reasonString: "wrong answers" }]);
  const other = await authenticate(port());
  other.send(auth(0x19, "again", "OTHER"));
  assert.equal((await other.expectLast("disconnect")).reasonCode, 0x82);
});
