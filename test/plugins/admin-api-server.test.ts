import { once } from "node:events";
import { request } from "node:http";
import { connect } from "node:net";
import type { Socket } from "node:net";
import assert from "node:assert/strict";
import { test } from "node:test";
import type { TestContext } from "node:test";
import adminApi from "../../plugins/admin-api/index.ts";
import { createOriginCheck } from "../../plugins/admin-api/origin.ts";
import { createHttpServer } from "../../plugins/admin-api/server.ts";
import { defaults, startAdminApi } from "../helpers/admin-api.ts";
import type { RunningApi } from "../helpers/admin-api.ts";
import { createTestHost, createMemoryProxies } from "@sluice/testkit";

const path = "/apis/v2/mqttproxy/mqttproxy/topics/publish";

/** A raw connection, which is closed with the test. */
async function dial(t: TestContext, api: RunningApi): Promise<Socket> {
  const socket = connect(api.port, "127.0.0.1");
  t.after(() => socket.destroy());
  await once(socket, "connect");
  return socket;
}

/** What comes until the server closes. */
async function readAll(socket: Socket): Promise<string> {
  let text = "";
  for await (const chunk of socket) text += String(chunk);
  return text;
}

test("health and log say where it listens", async (t) => {
  const api = await startAdminApi(t);
  assert.match(api.url, /^http:\/\/127\.0\.0\.1:\d+$/);
  assert.deepEqual(api.service.health?.(), { ok: true, detail: api.url });
  assert.deepEqual(
    api.logs.map(({ level, message }) => [level, message]),
    [["info", `HTTP API at ${api.url}`]],
  );
  await api.service.stop?.();
  assert.deepEqual(api.service.health?.(), { ok: false, detail: "not listening" });
});

test("keys that would cross the network in clear text are warned of", async (t) => {
  const api = await startAdminApi(t, { config: { host: "0.0.0.0" } });
  assert.deepEqual(
    api.logs.map(({ level }) => level),
    ["info", "warn"],
  );
});

test("an address that can't be bound is an error that names it and what to do", async (t) => {
  const first = await startAdminApi(t);
  const testHost = createTestHost();
  t.after(() => testHost.close());
  const taken = await adminApi.create({ ...defaults, port: first.port }, testHost.host);
  await assert.rejects(
    async () => taken.start?.(),
    new RegExp(`AdminAPI can't listen on 127.0.0.1:${first.port} \\(EADDRINUSE\\): the port is in use`),
  );
  assert.equal(taken.health?.().ok, false);
  await taken.stop?.();
  const elsewhere = await adminApi.create({ ...defaults, host: "192.0.2.1" }, testHost.host);
  await assert.rejects(async () => elsewhere.start?.(), /192\.0\.2\.1:0 \(EADDRNOTAVAIL\).*set another `host`/);
});

test("stop lets a request finish, closes idle connections and frees the port", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const begun = Promise.withResolvers<void>();
  const release = Promise.withResolvers<void>();
  const api = await startAdminApi(t, {
    overrides: {
      ...proxies,
      async publish(proxy, message) {
        begun.resolve();
        await release.promise;
        return proxies.publish(proxy, message);
      },
    },
  });
  const idle = await dial(t, api);
  idle.write("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
  await once(idle, "data");
  const idleClosed = once(idle, "close");
  const answer = api.call("POST", "/mqttproxy/mqttproxy/topics/publish", { topic: "a" });
  await begun.promise;
  const stopped = api.service.stop?.();
  await idleClosed;
  release.resolve();
  const { status, headers } = await answer;
  assert.deepEqual([status, headers.get("connection")], [200, "close"]);
  await stopped;
  await assert.rejects(fetch(api.url));
  await api.service.stop?.();
});

test("a service that is stopped while it starts doesn't listen afterwards", async (t) => {
  const testHost = createTestHost();
  t.after(() => testHost.close());
  const service = await adminApi.create(defaults, testHost.host);
  const started = service.start?.();
  await service.stop?.();
  await started;
  assert.equal(service.health?.().ok, false);
  assert.deepEqual(testHost.logs, []);
});

test("a request that doesn't end is cut off when the stop has waited long enough", async (t) => {
  const expire = Promise.withResolvers<() => void>();
  const begun = Promise.withResolvers<void>();
  const api = await startAdminApi(t, {
    overrides: {
      ...createMemoryProxies("mqttproxy"),
      clock: {
        now: () => Date.now(),
        setTimeout(callback) {
          expire.resolve(callback);
          return { clear() {} };
        },
      },
      publish() {
        begun.resolve();
        return new Promise(() => {});
      },
    },
  });
  const answer = api.call("POST", "/mqttproxy/mqttproxy/topics/publish", { topic: "a" });
  const failed = assert.rejects(answer);
  await begun.promise;
  const stopped = api.service.stop?.();
  (await expire.promise)();
  await stopped;
  await failed;
});

test("a body over the limit is 413, whether declared, chunked or announced by Expect", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const api = await startAdminApi(t, { overrides: proxies, config: { maxBodyBytes: 2048 } });
  const url = api.url + path;
  const wrap = (length: number): string => {
    const empty = JSON.stringify({ topic: "a", payload: "" }).length;
    return JSON.stringify({ topic: "a", payload: "x".repeat(length - empty) });
  };
  assert.equal((await fetch(url, { method: "POST", body: wrap(2048) })).status, 200);
  for (const length of [2049, 1_000_000]) {
    const declared = await fetch(url, { method: "POST", body: wrap(length) });
    assert.equal(declared.status, 413);
    assert.deepEqual(await declared.json(), {
      code: 413,
      message: "the body is over 2048 bytes, the maxBodyBytes of this AdminAPI",
    });
    const body = new Blob([wrap(length)]).stream();
    const chunked = await fetch(url, { method: "POST", body, duplex: "half" });
    assert.equal(chunked.status, 413);
  }

  // Nothing of a body that was announced is asked for.
  const announced = request(url, { method: "POST", headers: { expect: "100-continue", "content-length": 2049 } });
  announced.on("continue", () => assert.fail("the server asked for a body that it refuses"));
  announced.flushHeaders();
  const [refused] = await once(announced, "response");
  assert.equal(refused.statusCode, 413);
  announced.on("error", () => {}).destroy();

  const welcome = request(url, { method: "POST", headers: { expect: "100-continue", "content-length": 2048 } });
  welcome.on("continue", () => welcome.end(wrap(2048)));
  welcome.flushHeaders();
  const [accepted] = await once(welcome, "response");
  assert.equal(accepted.statusCode, 200);
  accepted.resume();

  // A body that was announced and then refused for another reason may follow or not: its connection ends.
  const astray = await dial(t, api);
  const nobody = path.replace("/mqttproxy/mqttproxy/", "/mqttproxy/nobody/");
  astray.write(`POST ${nobody} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n`);
  assert.match(await readAll(astray), /^HTTP\/1.1 404 /);

  // An endless body is thrown away up to 8 MiB beyond the limit, and not a byte more.
  const endless = await dial(t, api);
  const length = 2048 + 8 * 1024 * 1024 + 1;
  endless.write(`POST ${path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n`);
  endless.write(`${(length + 1).toString(16)}\r\n`);
  endless.write(Buffer.alloc(length, "x"));
  assert.match(await readAll(endless), /^HTTP\/1.1 413 /);

  // Far more than the limit, declared, is not even thrown away.
  const huge = await dial(t, api);
  huge.write(`POST ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{`);
  assert.match(await readAll(huge), /^HTTP\/1.1 413 /);
  assert.equal(proxies.published.length, 2);
});

test("a caller that leaves in the middle of its body does no harm and is no error", async (t) => {
  const api = await startAdminApi(t, { overrides: createMemoryProxies("mqttproxy") });
  const socket = await dial(t, api);
  socket.write(`POST ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n`);
  await once(socket, "data");
  socket.write("{");
  socket.destroy();
  // The request is counted when it has ended.
  while ((await api.metricValue("sluice_http_requests_total", { status: "499" })) !== 1) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.deepEqual(
    api.logs.filter(({ level }) => level === "error"),
    [],
  );
  assert.equal((await api.call("GET", "/healthz")).status, 200);
});

test("callers that dribble, and answers that never come, are cut off", async (t) => {
  const testHost = createTestHost();
  const limits = { headers: 100, request: 200, check: 20, keepAlive: 1_000, idle: 400, stop: 1_000 };
  const options = { host: "127.0.0.1", port: 0, maxConnections: 10 };
  // Answers nothing, like a handler that waits for something that never comes.
  const server = createHttpServer(testHost.host, options, () => {}, limits);
  t.after(async () => {
    await server.stop();
    testHost.close();
  });
  await server.start();
  const port = Number(new URL(server.url()!).port);
  const answerTo = async (start: string): Promise<string> => {
    const socket = connect(port, "127.0.0.1");
    t.after(() => socket.destroy());
    socket.write(start);
    return readAll(socket);
  };
  assert.match(await answerTo("GET / HTTP/1.1\r\nHost: loc"), /^HTTP\/1.1 408 /);
  assert.match(await answerTo("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"), /^HTTP\/1.1 408 /);
  assert.equal(await answerTo("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), "");
});

test("connections beyond maxConnections are closed and counted", async (t) => {
  const api = await startAdminApi(t, { config: { maxConnections: 1 } });
  const first = await dial(t, api);
  first.write("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
  await once(first, "data");
  const second = await dial(t, api);
  assert.equal(await readAll(second), "");
  assert.equal(await api.metricValue("sluice_http_connections_refused_total"), 1);
});

test("bytes that are no HTTP close their connection only", async (t) => {
  const api = await startAdminApi(t);
  const socket = await dial(t, api);
  socket.write("\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00\r\n\r\n");
  assert.match(await readAll(socket), /^HTTP\/1.1 400 /);
  assert.equal((await api.call("GET", "/healthz")).status, 200);
});

test("web pages of other origins, and names that were made to resolve to loopback, are refused", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const api = await startAdminApi(t, { overrides: proxies, config: { allowedHosts: ["gw.example"] } });
  const status = async (headers: Record<string, string>): Promise<number> => {
    const sent = request(api.url + path, { method: "POST", headers });
    sent.end('{"topic":"a"}');
    const [response] = await once(sent, "response");
    response.resume();
    return response.statusCode;
  };
  const { port } = api;
  assert.equal(await status({}), 200);
  assert.equal(await status({ host: `LOCALHOST:${port}` }), 200);
  assert.equal(await status({ host: `localhost:${port}`, origin: `http://localhost:${port}` }), 200);
  assert.equal(await status({ host: "gw.example", origin: "https://gw.example" }), 200);
  assert.equal(proxies.published.length, 4);
  assert.equal(await status({ origin: "https://evil.example" }), 403);
  assert.equal(await status({ origin: "null" }), 403);
  assert.equal(await status({ origin: `http://localhost:3000` }), 403);
  assert.equal(await status({ host: `evil.example:${port}`, origin: `http://evil.example:${port}` }), 403);
  assert.equal(await status({ host: `evil.example:${port}` }), 403);
  assert.equal(proxies.published.length, 4);
});

test("the Host name matters only where the address is loopback", () => {
  const cases: [bound: string, host: string, origin: string | undefined, ok: boolean][] = [
    ["127.0.0.1", "127.0.0.1:2381", undefined, true],
    ["127.0.0.1", "[::1]:2381", undefined, true],
    ["::1", "[::1]", "http://[::1]", true],
    ["localhost", "api.localhost", undefined, true],
    ["127.8.8.8", "gateway.lan", undefined, false],
    ["localhost", "localhost.evil.example", undefined, false],
    ["127.0.0.1", "127.0.0.1.evil.example:2381", undefined, false],
    ["0.0.0.0", "gateway.lan:2381", undefined, true],
    ["0.0.0.0", "gateway.lan:2381", "http://gateway.lan:2381", true],
    ["0.0.0.0", "gateway.lan:2381", "http://other.lan", false],
  ];
  for (const [bound, host, origin, ok] of cases) {
    const refusal = createOriginCheck(bound, [])({ host, ...(origin && { origin }) });
    assert.equal(refusal === undefined, ok, `${bound} ${host} ${origin}`);
  }
  assert.equal(createOriginCheck("127.0.0.1", [])({}), undefined);
});
