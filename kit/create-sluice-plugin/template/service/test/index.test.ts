import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { createMemoryProxies, createTestClock, createTestHost, testPlugin } from "@sluice/testkit";
import kind from "../src/index.ts";

/** A service that tells the time every ten seconds, in a gateway whose only proxy is `mqttproxy`. */
async function start(t: TestContext, proxy: string) {
  const clock = createTestClock(Date.UTC(2026, 0, 1));
  const proxies = createMemoryProxies("mqttproxy");
  const { host, logs, close } = createTestHost({ overrides: { ...proxies, clock } });
  const service = await kind.create({ proxy, topic: "time", interval: 10 }, host);
  await service.start?.();
  t.after(async () => {
    await service.stop?.();
    close();
  });
  return { clock, logs, published: proxies.published, service };
}

test("tells the time at each interval, and no more once it is stopped", async (t) => {
  const { clock, published, service } = await start(t, "mqttproxy");
  clock.advance(25_000);
  assert.deepEqual(
    published.map(({ topic, payload }) => [topic, payload.toString()]),
    [
      ["time", "2026-01-01T00:00:10.000Z"],
      ["time", "2026-01-01T00:00:20.000Z"],
    ],
  );
  await service.stop?.();
  assert.equal(clock.pending, 0);
});

test("says in its health why it can't", async (t) => {
  const { clock, logs, service } = await start(t, "elsewhere");
  clock.advance(10_000);
  await new Promise(setImmediate);
  assert.deepEqual(service.health?.(), { ok: false, detail: 'no proxy is named "elsewhere"' });
  assert.equal(logs.length, 1);
});

// What every plugin owes the gateway: schema, README, nothing left open, nothing kept in memory.
await testPlugin(new URL("..", import.meta.url));
