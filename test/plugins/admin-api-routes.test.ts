import assert from "node:assert/strict";
import { test } from "node:test";
import { parse } from "yaml";
import type { ConfigDocument, Host, KindInfo, ObjectHealth } from "../../kernel/plugin.ts";
import { startAdminApi } from "../helpers/admin-api.ts";
import { createMemoryConfig, createMemoryProxies } from "@sluice/testkit";

const documents: ConfigDocument[] = [
  { kind: "Pipeline", name: "publish", filters: [{ name: "sink", kind: "FileMQTT", dir: "records" }] },
  { kind: "MQTTProxy", name: "mqttproxy", port: 1883, certificate: [{ name: "c", cert: "PEM", key: "***" }] },
  { kind: "Pipeline", name: "__proto__", filters: [] },
];

const kinds: KindInfo[] = [
  {
    kind: "TopicMapper",
    family: "filter",
    package: "@sluice/topic-mapper",
    version: "0.1.0",
    description: "Maps topics.",
    schema: { type: "object", properties: { matchIndex: { type: "integer" } } },
    results: ["MQTTTopicMapFailed"],
    packets: ["Publish"],
  },
  { kind: "Idle", family: "filter", package: "idle", version: "2.0.0", description: "Not in use.", schema: {} },
  { kind: "Pipeline", family: "kernel", package: "@sluice/kernel", version: "0.1.0", description: "P.", schema: {} },
  { kind: "MQTTProxy", family: "kernel", package: "@sluice/kernel", version: "0.1.0", description: "M.", schema: {} },
  { kind: "Cron", family: "service", package: "cron", version: "3.0.0", description: "C.", schema: {} },
];

const health: ObjectHealth[] = [
  { name: "mqttproxy", ok: true, detail: "0.0.0.0:1883" },
  { name: "publish/sink", ok: false, detail: "disk full" },
  { name: "publisher", ok: true },
];

function overrides(more: Partial<Host> = {}): Partial<Host> {
  return {
    ...createMemoryProxies("mqttproxy"),
    config: { ...createMemoryConfig(documents).config, version: () => 7 },
    kinds: () => kinds,
    health: () => health,
    ...more,
  };
}

test("objects, sorted by name, and one of them", async (t) => {
  const api = await startAdminApi(t, { overrides: overrides() });
  const all = await api.call("GET", "/objects");
  assert.equal(all.headers.get("x-config-version"), "7");
  assert.deepEqual(all.json, [documents[2], documents[1], documents[0]]);
  assert.deepEqual((await api.call("GET", "/objects/mqttproxy/")).json, documents[1]);
  const missing = await api.call("GET", "/objects/nothing");
  assert.deepEqual([missing.status, missing.json], [404, { code: 404, message: "not found" }]);
  assert.equal(missing.headers.get("x-config-version"), "7");
});

test("the status of objects holds the health of what is in them", async (t) => {
  const api = await startAdminApi(t, { overrides: overrides({ clock: { now: () => 5_000, setTimeout: never } }) });
  const proxy = {
    spec: documents[1],
    status: { healthy: true, health: [health[0]], connections: 0 },
    timestamp: 5,
  };
  const pipeline = { spec: documents[0], status: { healthy: false, health: [health[1]] }, timestamp: 5 };
  assert.deepEqual((await api.call("GET", "/status/objects/mqttproxy")).json, proxy);
  assert.deepEqual((await api.call("GET", "/status/objects/publish")).json, pipeline);
  const all = new Map(Object.entries((await api.call("GET", "/status/objects")).json as object));
  assert.deepEqual([...all.keys()], ["__proto__", "mqttproxy", "publish"]);
  assert.deepEqual(all.get("mqttproxy"), proxy);
  assert.equal((await api.call("GET", "/status/objects/nothing")).status, 404);
});

test("kinds of objects and the catalogue of filters", async (t) => {
  const api = await startAdminApi(t, { overrides: overrides() });
  assert.deepEqual((await api.call("GET", "/object-kinds")).json, ["Cron", "MQTTProxy", "Pipeline"]);
  const resources = (await api.call("GET", "/object-api-resources")).json as object[];
  assert.deepEqual(resources[1], {
    Category: "TrafficGate",
    Kind: "MQTTProxy",
    Name: "mqttproxy",
    Aliases: ["mqtt", "mp"],
    Package: "@sluice/kernel",
    Version: "0.1.0",
    Description: "M.",
  });
  const base = "/metadata/objects/pipeline/filters";
  assert.deepEqual((await api.call("GET", base)).json, ["Idle", "TopicMapper"]);
  assert.deepEqual((await api.call("GET", `${base}/TopicMapper`)).json, kinds[0]);
  const description = await api.call("GET", `${base}/TopicMapper/description`);
  assert.deepEqual(
    [description.text, description.headers.get("content-type")],
    ["Maps topics.", "text/plain; charset=utf-8"],
  );
  assert.deepEqual((await api.call("GET", `${base}/TopicMapper/schema`)).json, kinds[0]?.schema);
  assert.deepEqual((await api.call("GET", `${base}/TopicMapper/results`)).json, ["MQTTTopicMapFailed"]);
  const unknown = await api.call("GET", `${base}/Idle/results`);
  assert.deepEqual(unknown.json, { code: 404, message: "the results of Idle are known once the config uses it" });
  for (const path of ["/Cron", "/Nothing/schema", "/TopicMapper/other"]) {
    assert.equal((await api.call("GET", base + path)).status, 404, path);
  }
});

test("YAML where Accept prefers it, errors included", async (t) => {
  const api = await startAdminApi(t, { overrides: overrides() });
  for (const accept of [
    "text/x-yaml",
    "application/yaml",
    "text/yaml, */*;q=0.1",
    "application/json;q=0.5, text/yaml",
  ]) {
    const answer = await api.call("GET", "/objects/mqttproxy", undefined, { accept });
    assert.equal(answer.headers.get("content-type"), "text/x-yaml; charset=utf-8", accept);
    assert.deepEqual(parse(answer.text), documents[1]);
  }
  const missing = await api.call("GET", "/objects/nothing", undefined, { accept: "text/x-yaml" });
  assert.deepEqual([missing.status, parse(missing.text)], [404, { code: 404, message: "not found" }]);
  for (const accept of ["application/json", "*/*", "text/html", "application/json, text/x-yaml", "text/yaml;q=0"]) {
    const answer = await api.call("GET", "/objects/mqttproxy", undefined, { accept });
    assert.equal(answer.headers.get("content-type"), "application/json; charset=utf-8", accept);
    assert.deepEqual(answer.json, documents[1]);
  }
});

test("health, readiness and metrics, under the prefix and at the root", async (t) => {
  let ready = false;
  const api = await startAdminApi(t, { overrides: overrides({ isReady: () => ready }) });
  const unhealthy = [{ name: "publish/sink", detail: "disk full" }];
  for (const base of [api.url, `${api.url}/apis/v1`, `${api.url}/apis/v2`]) {
    ready = false;
    assert.deepEqual(await (await fetch(`${base}/healthz`)).json(), { ok: true });
    const early = await fetch(`${base}/readyz`);
    assert.deepEqual([early.status, await early.json()], [503, { ready: false, unhealthy }]);
    ready = true;
    const later = await fetch(`${base}/readyz`);
    assert.deepEqual([later.status, await later.json()], [200, { ready: true, unhealthy }]);
    assert.equal((await fetch(`${base}/readyz?strict`)).status, 503);
    assert.equal((await fetch(`${base}/readyz?strict=false`)).status, 200);
    const metrics = await fetch(`${base}/metrics`);
    assert.equal(metrics.headers.get("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert.match(await metrics.text(), /^sluice_http_requests_total\{.*route="\/readyz".*status="503".*\} \d/m);
  }
  const head = await fetch(`${api.url}/healthz`, { method: "HEAD" });
  assert.deepEqual([head.status, await head.text()], [200, ""]);
});

test("about, the list of routes, and paths that are none", async (t) => {
  const about = { name: "sluice", version: "1.2.3", node: "v24.0.0", startedAt: 1_000 };
  const clock = { now: () => 61_500, setTimeout: never };
  const api = await startAdminApi(t, { overrides: overrides({ about: () => about, clock }) });
  assert.deepEqual((await api.call("GET", "/about")).json, {
    ...about,
    startedAt: "1970-01-01T00:00:01.000Z",
    uptimeSeconds: 60,
  });
  const [group] = (await api.call("GET", "/")).json as { group: string; entries: { method: string; path: string }[] }[];
  assert.equal(group?.group, "admin");
  const listed = group?.entries.map(({ method, path }) => `${method} ${path}`) ?? [];
  assert.ok(listed.includes("POST /apis/v2/mqttproxy/:name/topics/publish"));
  assert.ok(listed.includes("GET /apis/v2"));
  for (const path of ["/", "/apis", "/apis/v3/healthz", "/apis/v2/HEALTHZ", "/objects"]) {
    const answer = await fetch(api.url + path);
    assert.equal(answer.status, 404, path);
    assert.deepEqual(await answer.json(), { code: 404, message: "no such route: GET /apis/v2 lists them" });
  }
});

test("the log level is shown and changed", async (t) => {
  const api = await startAdminApi(t, { overrides: overrides() });
  assert.deepEqual((await api.call("GET", "/logs/level")).json, { level: "info" });
  assert.deepEqual((await api.call("PUT", "/logs/level/DEBUG")).json, { level: "debug" });
  assert.equal(api.host.logLevel.get(), "debug");
  const refused = await api.call("PUT", "/logs/level/loud");
  assert.equal(refused.status, 400);
  assert.match((refused.json as { message: string }).message, /trace, debug, info, warn, error, fatal/);
  assert.equal(api.host.logLevel.get(), "debug");
});

/** The clock of a test in which nothing waits but the stop, whose deadline isn't reached. */
function never(): { clear(): void } {
  return { clear() {} };
}
