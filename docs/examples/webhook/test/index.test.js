import assert from "node:assert/strict";
import { test } from "node:test";
import { createMemoryProxies, createTestHost, testPlugin } from "@sluice/testkit";
import kind from "../index.js";

const token = "a-token-for-tests-only";
const hooks = /** @type {const} */ ([{ path: "/alarm", topic: "alarms/all", proxy: "mqttproxy", qos: 1 }]);
const options = { host: "127.0.0.1", port: 0, token, maxBodyBytes: 10, hooks };

/** @param {import("node:test").TestContext} t */
function makeHost(t) {
  const proxies = createMemoryProxies("mqttproxy");
  proxies.subscribe("mqttproxy", "dev1", ["alarms/#"]);
  const { host, logs, close } = createTestHost({ overrides: proxies });
  t.after(close);
  return { host, logs, published: proxies.published };
}

/** @param {import("@sluice/kernel").Service} service @param {string} path @param {RequestInit} [init] */
async function call(service, path, init = {}) {
  const headers = { authorization: `Bearer ${token}` };
  const response = await fetch(`${service.health?.().detail}${path}`, { method: "POST", headers, ...init });
  return [response.status, await response.json()];
}

test("a body becomes a message", async (t) => {
  const { host, published } = makeHost(t);
  const service = await kind.create(options, host);
  await service.start?.();
  t.after(() => service.stop?.());
  assert.deepEqual(await call(service, "/alarm", { body: "fire" }), [200, { matched: 1 }]);
  assert.deepEqual(
    published.map(({ topic, payload }) => [topic, payload.toString()]),
    [["alarms/all", "fire"]],
  );
});

test("what it does not take is refused, and sent to nobody", async (t) => {
  const { host, published } = makeHost(t);
  const service = await kind.create(options, host);
  await service.start?.();
  t.after(() => service.stop?.());
  const wrong = { authorization: "Bearer another" };
  assert.equal((await call(service, "/other", { body: "x" }))[0], 404);
  assert.equal((await call(service, "/alarm", { method: "GET" }))[0], 405);
  assert.equal((await call(service, "/alarm", { body: "x", headers: wrong }))[0], 401);
  assert.equal((await call(service, "/alarm", { body: "longer than ten" }))[0], 413);
  assert.deepEqual(published, []);
});

test("a proxy that is not there is the caller's to try again", async (t) => {
  const { host, logs } = makeHost(t);
  const service = await kind.create({ ...options, hooks: [{ ...hooks[0], proxy: "elsewhere" }] }, host);
  await service.start?.();
  t.after(() => service.stop?.());
  assert.equal((await call(service, "/alarm", { body: "x" }))[0], 503);
  assert.equal(logs.length, 1);
});

test("a change of its options keeps its address; one that is given up changes nothing", async (t) => {
  const { host, published } = makeHost(t);
  const first = await kind.create(options, host);
  await first.start?.();
  const url = first.health?.().detail;

  const givenUp = await kind.create(options, host);
  givenUp.adopt?.(first);
  await givenUp.start?.();
  await givenUp.stop?.();
  assert.deepEqual(await call(first, "/alarm", { body: "1" }), [200, { matched: 1 }]);

  const second = await kind.create({ ...options, hooks: [{ ...hooks[0], topic: "alarms/new" }] }, host);
  second.adopt?.(first);
  await second.start?.();
  await first.stop?.();
  t.after(() => second.stop?.());
  assert.equal(second.health?.().detail, url);
  assert.deepEqual(await call(second, "/alarm", { body: "2" }), [200, { matched: 1 }]);
  assert.deepEqual(
    published.map(({ topic }) => topic),
    ["alarms/all", "alarms/new"],
  );
});

test("a port that is taken fails the start", async (t) => {
  const { host } = makeHost(t);
  const first = await kind.create(options, host);
  await first.start?.();
  t.after(() => first.stop?.());
  const port = Number(new URL(first.health?.().detail ?? "").port);
  const second = await kind.create({ ...options, port }, host);
  await assert.rejects(async () => second.start?.(), { code: "EADDRINUSE" });
  await second.stop?.();
});

await testPlugin(new URL("..", import.meta.url), { options: { Webhook: { port: 0 } } });
