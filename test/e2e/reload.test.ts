/** A config change never hurts: what is kept, what is replaced, what a bad one does (nothing). */
import assert from "node:assert/strict";
import { once } from "node:events";
import { readdir, readFile } from "node:fs/promises";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import mqtt, { type MqttClient } from "mqtt";
import { generate } from "selfsigned";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";

const hash = "1bc1a361f17092bc7af4b2f82bf9194ea9ee2ca49eb2e53e39f555bc1eeaed74";

interface Shape {
  readonly port?: number;
  readonly proxy?: string;
  readonly user?: string;
  readonly banned?: string;
  readonly extra?: string;
}

function yaml({
  port = 0,
  proxy = "brokerMode: true",
  user = "test",
  banned = "nobody",
  extra = "",
}: Shape = {}): string {
  return `
kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: ${port}
rules:
- when: {packetType: Connect}
  pipeline: connect
- when: {packetType: Publish}
  pipeline: publish
${proxy}
---
kind: Pipeline
name: connect
filters:
- name: auth
  kind: MQTTClientAuth
  salt: salt
  auth:
  - username: ${user}
    saltedSha256Pass: ${hash}
---
kind: Pipeline
name: publish
filters:
- name: control
  kind: ConnectControl
  bannedClients: [${banned}]
- name: sink
  kind: FileMQTT
  dir: data
  topic: {default: all}
${extra}`;
}

async function start(t: { after(done: () => unknown): void }, shape: Shape = {}): Promise<TestGateway> {
  const gateway = await startTestGateway(yaml(shape));
  t.after(() => gateway.stop());
  return gateway;
}

function connect(url: string, clientId: string, username = "test"): Promise<MqttClient> {
  return mqtt.connectAsync(url, {
    clientId,
    username,
    password: "test",
    reconnectPeriod: 0,
    rejectUnauthorized: false,
  });
}

const actions = (plan: { items: readonly { name: string; action: string }[] } | undefined): Record<string, string> =>
  Object.fromEntries(
    (plan?.items ?? []).filter(({ action }) => action !== "keep").map(({ name, action }) => [name, action]),
  );

test("the same config again changes nothing and closes nobody (L35)", async (t) => {
  const gateway = await start(t);
  const client = await connect(gateway.url(), "c");
  t.after(() => client.endAsync(true));
  const { plan } = await gateway.reload(`# a comment\n${yaml()}`);
  assert.equal(plan?.isEmpty, true);
  assert.equal(gateway.gateway.host.config.version(), 1);
  assert.equal(client.connected, true);
});

test("a changed filter is replaced, all others are kept, and no connection ends", async (t) => {
  const gateway = await start(t);
  const client = await connect(gateway.url(), "c");
  t.after(() => client.endAsync(true));
  const { plan } = await gateway.reload(yaml({ user: "other" }));
  assert.deepEqual(actions(plan), { "connect/auth": "change" });
  await client.publishAsync("t", "still here", { qos: 1 });
  await assert.rejects(connect(gateway.url(), "d", "test"), /Bad username or password|Not authorized/i);
  const second = await connect(gateway.url(), "d", "other");
  await second.endAsync();
  assert.equal(client.connected, true);
});

test("a changed proxy option reaches the connections that are open", async (t) => {
  const gateway = await start(t, { proxy: "brokerMode: false" });
  const client = await connect(gateway.url(), "c");
  t.after(() => client.endAsync(true));
  await client.subscribeAsync("t", { qos: 1 });
  const got: string[] = [];
  client.on("message", (_topic, payload) => got.push(payload.toString()));
  await client.publishAsync("t", "before", { qos: 1 });
  const { plan } = await gateway.reload(
    yaml({ proxy: "brokerMode: true\nclientPublishLimit: {requestRate: 1, timePeriod: 1}" }),
  );
  assert.deepEqual(plan?.items.find(({ action }) => action === "change")?.fields, ["brokerMode", "clientPublishLimit"]);
  const startedAt = performance.now();
  for (const payload of ["1", "2", "3"]) await client.publishAsync("t", payload, { qos: 1 });
  assert.ok(performance.now() - startedAt > 900, "the new limit slows it down");
  assert.deepEqual(got, ["1", "2", "3"]);
});

test("a broken config changes nothing, says where, and is seen in health and metrics until it is mended (L16)", async (t) => {
  const gateway = await start(t);
  const client = await connect(gateway.url(), "c");
  t.after(() => client.endAsync(true));
  const { plan, problems } = await gateway.reload(yaml({ user: "other", extra: "  fsnc: always" }));
  assert.equal(plan, undefined);
  assert.match(problems[0]?.where ?? "", /^.*sluice\.yaml:\d+:\d+ > publish > sink > fsnc$/);
  assert.equal(await gateway.metric("sluice_config_last_reload_successful"), 0);
  const ready = (await (await fetch(`${gateway.api}/readyz`)).json()) as {
    unhealthy: { name: string; detail: string }[];
  };
  assert.match(ready.unhealthy[0]?.detail ?? "", /fsnc/);
  // The old user still gets in: nothing of the new config is in effect.
  await (await connect(gateway.url(), "d")).endAsync();
  await gateway.reload(yaml());
  assert.equal(await gateway.metric("sluice_config_last_reload_successful"), 1);
  assert.equal(client.connected, true);
});

test("a port that is taken changes nothing: filters that were built for it are closed again", async (t) => {
  const gateway = await start(t);
  const taken = createServer().listen(0, "127.0.0.1");
  await once(taken, "listening");
  t.after(() => taken.close());
  const client = await connect(gateway.url(), "c");
  t.after(() => client.endAsync(true));
  const { plan, problems } = await gateway.reload(yaml({ port: (taken.address() as AddressInfo).port, user: "other" }));
  assert.equal(plan, undefined);
  assert.match(problems[0]?.message ?? "", /another process has it/);
  await client.publishAsync("t", "x", { qos: 1 });
  await (await connect(gateway.url(), "d")).endAsync();
});

test("a new port is bound, the old one closed, and the connections of the old one stay", async (t) => {
  const gateway = await start(t);
  const old = gateway.url();
  const client = await connect(old, "c");
  t.after(() => client.endAsync(true));
  const probe = createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address() as AddressInfo;
  await new Promise((resolve) => probe.close(resolve));
  const { plan } = await gateway.reload(yaml({ port }));
  assert.deepEqual(actions(plan), { mqttproxy: "change" });
  await (await connect(`mqtt://127.0.0.1:${port}`, "d")).endAsync();
  await assert.rejects(connect(old, "e"), /ECONNREFUSED/);
  await client.publishAsync("t", "x", { qos: 1 });
});

test("a removed proxy drains: packets under way are acknowledged, then its clients are closed", async (t) => {
  const gateway = await start(t, { extra: "---\nkind: MQTTProxy\nname: second\nport: 0\nbrokerMode: true\n" });
  const client = await connect(gateway.url("second"), "c");
  const closed = new Promise<void>((resolve) => client.once("close", () => resolve()));
  const { plan } = await gateway.reload(yaml());
  assert.deepEqual(actions(plan), { second: "drop" });
  await closed;
  assert.equal(gateway.gateway.host.proxies.get("second"), undefined);
  assert.equal(await gateway.metric("sluice_connections", { proxy: "second" }), 0);
});

test("certificates: new handshakes get the new one, what is connected stays; TLS comes and goes on the same port", async (t) => {
  const pem = async (name: string): Promise<string> => {
    const { cert, private: key } = await generate([{ name: "commonName", value: name }], { keySize: 2048 });
    const indent = (text: string): string => text.trim().replaceAll("\n", "\n    ");
    return `useTLS: true\ncertificate:\n- name: c\n  cert: |\n    ${indent(cert)}\n  key: |\n    ${indent(key)}`;
  };
  const [first, second] = [await pem("first.test"), await pem("second.test")];
  const gateway = await start(t, { proxy: first });
  const nameSeen = async (): Promise<string | undefined> => {
    const socket = connectTls({ port: gateway.port(), host: "127.0.0.1", rejectUnauthorized: false });
    await once(socket, "secureConnect");
    const { CN } = socket.getPeerCertificate().subject;
    socket.destroy();
    return Array.isArray(CN) ? CN[0] : CN;
  };
  assert.equal(await nameSeen(), "first.test");
  const port = gateway.port();
  const client = await connect(`mqtts://127.0.0.1:${port}`, "c");
  t.after(() => client.endAsync(true));
  await gateway.reload(yaml({ proxy: second }));
  assert.equal(await nameSeen(), "second.test");
  await client.publishAsync("t", "x", { qos: 1 });
  // A key that belongs to another certificate is refused, and the old pair stays.
  const mixed = second.replace(/ {2}key:[\s\S]*/, first.slice(first.indexOf("  key:")));
  assert.equal((await gateway.reload(yaml({ proxy: mixed }))).plan, undefined);
  assert.equal(await nameSeen(), "second.test");
  await gateway.reload(yaml());
  assert.equal(gateway.port(), port);
  await (await connect(`mqtt://127.0.0.1:${port}`, "d")).endAsync();
  assert.equal(client.connected, true);
});

test("clients that publish and receive at QoS 1 through 40 reloads lose nothing, in order, and stay connected", async (t) => {
  const gateway = await start(t);
  const clients = await Promise.all(Array.from({ length: 30 }, (_, n) => connect(gateway.url(), `c${n}`)));
  const got = clients.map((): number[] => []);
  let closed = 0;
  for (const [n, client] of clients.entries()) {
    client.on("close", () => closed++);
    client.on("message", (_topic, payload) => got[n]?.push(Number(payload.toString())));
    await client.subscribeAsync(`to/${n}`, { qos: 1 });
  }
  let isOver = false;
  const sent = await Promise.all([
    ...clients.map(async (client, n) => {
      let count = 0;
      while (!isOver) {
        await Promise.all(
          Array.from({ length: 10 }, () => client.publishAsync(`to/${n}`, String(count++), { qos: 1 })),
        );
      }
      return count;
    }),
    (async () => {
      for (let n = 0; n < 40; n++) {
        if (n % 3 === 2) await gateway.reload(yaml({ extra: "nonsense: [" }));
        else await gateway.reload(yaml({ banned: `x${n}`, proxy: `brokerMode: true\nretryInterval: ${20 + n}` }));
      }
      isOver = true;
      return 0;
    })(),
  ]);
  const expected = sent.slice(0, -1);
  while (got.some((each, n) => each.length < (expected[n] ?? 0)))
    await new Promise((resolve) => setTimeout(resolve, 10));
  for (const [n, each] of got.entries())
    assert.deepEqual(
      each,
      Array.from({ length: expected[n] ?? 0 }, (_, i) => i),
    );
  assert.equal(closed, 0);
  await Promise.all(clients.map((client) => client.endAsync(true)));
  const total = expected.reduce((sum, each) => sum + each, 0);
  t.diagnostic(`${total} messages through 40 reloads`);
});

const reloads = process.env["SLUICE_TEST_LONG"] ? 200 : 80;

test("many reloads leave nothing behind: no socket, timer, listener or gauge, and no heap", async (t) => {
  const gateway = await start(t);
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const count = async () => {
    const resources = process.getActiveResourcesInfo();
    return {
      resources: resources.filter((each) => each !== "Immediate" && each !== "FSReqPromise" && each !== "FSReqCallback")
        .length,
      listeners: process.eventNames().reduce((sum, event) => sum + process.listenerCount(event), 0),
      series: (await gateway.gateway.host.metrics.text())
        .split("\n")
        .filter((line) => line !== "" && !/^(#|nodejs_|process_|sluice_gc_)/.test(line)).length,
    };
  };
  /** Of this process: the gateway's, its logs', and the test's own. */
  const heap = async (): Promise<number> => {
    (gateway.logs as unknown[]).length = 0;
    // What is freed by the end of a promise is only free afterwards.
    for (let n = 0; n < 3; n++) {
      await new Promise((resolve) => setImmediate(resolve));
      collect();
    }
    return process.memoryUsage().heapUsed;
  };
  const cycle = async (n: number): Promise<void> => {
    const { plan } = await gateway.reload(yaml({ banned: `x${n}`, user: n % 2 ? "test" : "other" }));
    assert.ok(plan);
  };
  // The first ones fill caches.
  for (let n = 0; n < 40; n++) await cycle(n);
  // In this order: the last old generation is closed in the background.
  const heapBefore = await heap();
  const before = await count();
  for (let n = 40; n < 40 + reloads; n++) {
    await cycle(n);
  }
  // The last old generation is closed in the background.
  for (let tries = 0; tries < 100 && (await count()).resources > before.resources; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.deepEqual(await count(), before);
  const grown = (await heap()) - heapBefore;
  t.diagnostic(`the heap has grown by ${Math.round(grown / 1024)} KiB in ${reloads} reloads`);
  // A generation that is kept alive would be tens of KiB each time.
  assert.ok(grown < reloads * 20_000 + 2 ** 19, `the heap has grown by ${grown} bytes`);
});

test("FileMQTT: records before and after a change of the sink are in one file, offsets without a gap", async (t) => {
  const gateway = await start(t);
  const client = await connect(gateway.url(), "c");
  t.after(() => client.endAsync(true));
  for (let n = 0; n < 20; n++) {
    if (n % 5 === 4) await gateway.reload(yaml({ extra: `  fsyncIntervalMs: ${50 + n}\n` }));
    await client.publishAsync("t", String(n), { qos: 1 });
  }
  const lines = (await readFile(join(gateway.folder, "data/all.ndjson"), "utf8")).trim().split("\n");
  assert.deepEqual(
    lines
      .map((line) => JSON.parse(line) as { value: string; offset: number })
      .map(({ value, offset }) => [value, offset]),
    Array.from({ length: 20 }, (_, n) => [String(n), n]),
  );
  assert.deepEqual(
    (await readdir(join(gateway.folder, "data"))).filter((name) => !name.startsWith(".")),
    ["all.ndjson"],
  );
});
