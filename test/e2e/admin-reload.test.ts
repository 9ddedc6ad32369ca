/** The HTTP API through changes of its own options: the address, the connections and the calls under way stay. */
import assert from "node:assert/strict";
import { createHash, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { Agent, request } from "node:http";
import { test } from "node:test";
import type { TestContext } from "node:test";
import { generate } from "selfsigned";
import { eventually } from "../helpers/eventually.ts";
import { findFreePort } from "../helpers/free-port.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";

const yaml = (port: number, options: object = {}, extra: object = {}): string =>
  [
    { kind: "MQTTProxy", name: "mqttproxy", host: "127.0.0.1", port: 0, brokerMode: true, ...extra },
    { kind: "AdminAPI", name: "admin-api", port, ...options },
  ]
    .map((document) => JSON.stringify(document))
    .join("\n---\n");

async function start(t: TestContext, text: string): Promise<TestGateway> {
  const gateway = await startTestGateway(text);
  t.after(() => gateway.stop());
  return gateway;
}

interface Answer {
  readonly status: number | undefined;
  readonly reused: boolean;
  readonly text: string;
}

/** One request over the agent's connection. */
function call(agent: Agent, url: string, o: { method?: string; body?: string; key?: string } = {}): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const { method = "GET", body, key } = o;
    const headers = {
      ...(body !== undefined && { "content-type": "application/json" }),
      ...(key !== undefined && { authorization: `Bearer ${key}` }),
    };
    const sent = request(url, { agent, method, headers }, (answer) => {
      let text = "";
      answer.on("data", (chunk: Buffer) => (text += chunk.toString()));
      answer.on("end", () => resolve({ status: answer.statusCode, reused: sent.reusedSocket, text }));
    });
    sent.on("error", reject).end(body);
  });
}

function publish(gateway: TestGateway, agent: Agent, length: number): Promise<Answer> {
  const url = `${gateway.api}/apis/v2/mqttproxy/mqttproxy/topics/publish`;
  return call(agent, url, { method: "POST", body: JSON.stringify({ topic: "a", payload: "x".repeat(length) }) });
}

function keepAlive(t: TestContext): Agent {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  return agent;
}

/** The certificates here are for no host in particular. */
const checkServerIdentity = (): undefined => undefined;

const key = "sluice_a-key";
const keys = [{ name: "ops", hash: createHash("sha256").update(key).digest("hex"), access: "write" }];

test("a changed option binds nothing anew and keeps callers' connections", async (t) => {
  const port = await findFreePort();
  const gateway = await start(t, yaml(port));
  const agent = keepAlive(t);
  const post = (length: number) => publish(gateway, agent, length);
  assert.equal((await post(2000)).status, 200);

  const { plan, problems } = await gateway.reload(yaml(port, { maxBodyBytes: 1024 }));
  assert.deepEqual(problems, []);
  assert.deepEqual(plan?.items.find(({ kind }) => kind === "AdminAPI")?.fields, ["maxBodyBytes"]);
  // The old one answers until it is retired, right after the change.
  await eventually(async () => (await publish(gateway, new Agent(), 2000)).status, 413);
  assert.deepEqual(await post(1), { status: 200, reused: true, text: '{"matched":0,"connected":0}' });

  for (let round = 0; round < 20; round++) {
    const next = await gateway.reload(yaml(port, { maxBodyBytes: 2048 + round }));
    assert.deepEqual(next.problems, []);
    assert.equal((await call(agent, `${gateway.api}/healthz`)).reused, true);
  }
  const health = gateway.gateway.host.health().find(({ name }) => name === "admin-api");
  assert.deepEqual(health, { name: "admin-api", ok: true, detail: `http://127.0.0.1:${port}` });
});

test("a key can be added, and is asked for on connections that are open", async (t) => {
  const port = await findFreePort();
  const gateway = await start(t, yaml(port));
  const agent = keepAlive(t);
  const objects = `${gateway.api}/apis/v2/objects`;
  assert.equal((await call(agent, objects)).status, 200);
  assert.deepEqual((await gateway.reload(yaml(port, { keys, basicAuth: { admin: "hush-hush" } }))).problems, []);
  await eventually(async () => (await call(agent, objects)).status, 401);
  const shown = await call(agent, objects, { key });
  assert.deepEqual([shown.status, shown.reused], [200, true]);
  const document = (JSON.parse(shown.text) as Record<string, unknown>[]).find(({ kind }) => kind === "AdminAPI");
  assert.deepEqual(document?.["keys"], [{ name: "ops", hash: "***", access: "write" }]);
  assert.deepEqual(document?.["basicAuth"], { admin: "***" });
  const said = JSON.stringify(gateway.logs);
  for (const secret of [key, keys[0]!.hash, "hush-hush"]) assert.ok(!said.includes(secret), "a secret was logged");
});

test("a call under way when its AdminAPI is replaced gets its answer", async (t) => {
  const port = await findFreePort();
  const gateway = await start(t, yaml(port));
  const agent = keepAlive(t);
  const url = `${gateway.api}/apis/v2/mqttproxy/mqttproxy/topics/publish`;
  assert.equal((await call(agent, `${gateway.api}/healthz`)).status, 200);
  const answered = Promise.withResolvers<number | undefined>();
  const sent = request(url, { agent, method: "POST", headers: { "content-length": "2000" } }, (answer) => {
    answer.resume();
    answered.resolve(answer.statusCode);
  });
  sent.on("error", answered.reject);
  sent.write('{"topic": "a", "payload": "');
  // On another connection: by now the gateway has read the header of the first.
  assert.equal((await fetch(`${gateway.api}/healthz`)).status, 200);
  await gateway.reload(yaml(port, { maxBodyBytes: 1024 }));
  await eventually(async () => (await publish(gateway, new Agent(), 2000)).status, 413);
  sent.end(`${"x".repeat(2000 - 27 - 2)}"}`);
  assert.equal(await answered.promise, 200, "by the one that began it, whose limit is higher");
});

test("a changed address is bound before the old one closes", async (t) => {
  const [first, second] = [await findFreePort(), await findFreePort()];
  const gateway = await start(t, yaml(first));
  assert.deepEqual((await gateway.reload(yaml(second))).problems, []);
  assert.equal((await fetch(`http://127.0.0.1:${second}/healthz`)).status, 200);
  const isOpen = () =>
    fetch(`http://127.0.0.1:${first}/healthz`).then(
      () => true,
      () => false,
    );
  await eventually(isOpen, false);
});

test("a change that fails leaves the HTTP API as it was", async (t) => {
  const port = await findFreePort();
  const taken = createServer().listen(0, "127.0.0.1");
  await once(taken, "listening");
  t.after(() => taken.close());
  const address = taken.address();
  const used = typeof address === "object" ? (address?.port ?? 0) : 0;
  const gateway = await start(t, yaml(port));
  const agent = keepAlive(t);
  const still = async (): Promise<void> => {
    const answer = await call(agent, `${gateway.api}/apis/v2/objects`);
    assert.equal(answer.status, 200);
    assert.equal(gateway.gateway.host.config.version(), 1);
  };
  await still();
  assert.match((await gateway.reload(yaml(used))).problems[0]?.message ?? "", /AdminAPI can't listen.*EADDRINUSE/);
  await still();
  // The AdminAPI has adopted by the time that another service can't start.
  const both = `${yaml(port, { keys })}\n---\n${JSON.stringify({ kind: "AdminAPI", name: "other", port: used })}`;
  assert.match((await gateway.reload(both)).problems[0]?.message ?? "", /AdminAPI can't listen.*EADDRINUSE/);
  await still();
  const { cert, private: privateKey } = await generate();
  const tls = { cert, key: privateKey };
  const refused = (await gateway.reload(yaml(port, { tls }))).problems[0];
  assert.match(refused?.message ?? "", /can't change from http to https while it runs: change its port too/);
  await still();
  const [exposed] = (await gateway.reload(yaml(port, { host: "0.0.0.0" }))).problems;
  assert.match(exposed?.where ?? "", /sluice\.yaml:\d+:\d+ > admin-api > host$/);
  assert.match(exposed?.message ?? "", /can be reached from other machines/);
  await still();
  assert.deepEqual((await gateway.reload(yaml(port, { maxBodyBytes: 4096 }))).problems, []);
});

test("a certificate's file that changes is a changed option: new connections are shown the new one", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sluice-api-"));
  const port = await findFreePort();
  const [old, next] = await Promise.all([generate(), generate()]);
  const save = async ({ cert, private: privateKey }: typeof old): Promise<void> => {
    await writeFile(join(folder, "cert.pem"), cert);
    await writeFile(join(folder, "key.pem"), privateKey);
  };
  await save(old);
  const text = yaml(port, { tls: { cert: "${file:cert.pem}", key: "${file:key.pem}" } });
  const gateway = await startTestGateway(text, { folder });
  t.after(async () => {
    await gateway.stop();
    await rm(folder, { recursive: true });
  });
  const shown = async (): Promise<string> => {
    const socket = connectTls({ port, host: "127.0.0.1", rejectUnauthorized: false });
    await once(socket, "secureConnect");
    const { fingerprint256 } = socket.getPeerCertificate();
    socket.destroy();
    return fingerprint256;
  };
  assert.equal(await shown(), new X509Certificate(old.cert).fingerprint256);
  await save({ ...next, private: old.private });
  const [problem] = (await gateway.reload(text)).problems;
  assert.match(problem?.where ?? "", /admin-api > tls.key$/);
  assert.match(problem?.message ?? "", /does not belong to the certificate/);
  await save(next);
  const { problems, plan, inputs } = await gateway.reload(text);
  assert.deepEqual(problems, []);
  assert.equal(plan?.items.find(({ kind }) => kind === "AdminAPI")?.action, "change");
  assert.ok(inputs.has(join(folder, "cert.pem")), "the watcher looks at it");
  await eventually(shown, new X509Certificate(next.cert).fingerprint256);
  assert.ok(!JSON.stringify(gateway.gateway.host.config.documents()).includes("PRIVATE KEY"));
});

test("connections that an earlier clientCA let in end with it", async (t) => {
  const port = await findFreePort();
  const [server, first, second] = await Promise.all([generate(), generate(), generate()]);
  const tls = (clientCA: string) => ({ tls: { cert: server.cert, key: server.private, clientCA } });
  const gateway = await start(t, yaml(port, tls(first.cert)));
  const dial = async ({ cert, private: privateKey }: typeof first) => {
    const socket = connectTls({ port, host: "127.0.0.1", ca: server.cert, cert, key: privateKey, checkServerIdentity });
    t.after(() => socket.destroy());
    await once(socket, "secureConnect");
    socket.write("GET /apis/v2/objects HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // Who is turned away sees its connection close, with or without an error.
    const [chunk] = (await Promise.race([once(socket, "data"), once(socket, "close")])) as [Buffer | boolean];
    return { socket, head: chunk.toString().split("\r\n", 1)[0] };
  };
  const { socket, head } = await dial(first);
  assert.equal(head, "HTTP/1.1 200 OK");
  socket.resume();
  const closed = once(socket, "close");
  assert.deepEqual((await gateway.reload(yaml(port, tls(second.cert)))).problems, []);
  await closed;
  assert.equal((await dial(second)).head, "HTTP/1.1 200 OK");
  const refused = await dial(first).catch(() => undefined);
  assert.notEqual(refused?.head, "HTTP/1.1 200 OK");
});

test("the call that changes the HTTP API itself is answered, and told by whom in the history", async (t) => {
  const port = await findFreePort();
  const gateway = await start(t, yaml(port, { keys }));
  const agent = keepAlive(t);
  const objects = `${gateway.api}/apis/v2/objects`;
  const body = JSON.stringify({ kind: "AdminAPI", name: "admin-api", port, keys, maxBodyBytes: 1024 });
  const changed = await call(agent, `${objects}/admin-api`, { method: "PUT", body, key });
  assert.deepEqual([changed.status, changed.reused], [200, false], changed.text);
  const shown = await call(agent, `${objects}/admin-api`, { key });
  assert.deepEqual([shown.status, shown.reused], [200, true]);
  assert.equal((JSON.parse(shown.text) as Record<string, unknown>)["maxBodyBytes"], 1024);
  assert.equal(gateway.gateway.host.config.history()[0]?.by, "key:ops");
  assert.equal((await call(agent, objects, { method: "POST", body })).status, 401);

  const elsewhere = await findFreePort();
  const moved = JSON.stringify({ kind: "AdminAPI", name: "admin-api", port: elsewhere, keys });
  const answer = await call(agent, `${objects}/admin-api`, { method: "PUT", body: moved, key });
  assert.equal(answer.status, 200, answer.text);
  const there = `http://127.0.0.1:${elsewhere}/apis/v2/objects`;
  assert.equal((await call(keepAlive(t), there, { key })).status, 200);
});
