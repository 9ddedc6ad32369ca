import assert from "node:assert/strict";
import { once } from "node:events";
import { Agent, type IncomingMessage, request as openRequest } from "node:http";
import type { Socket } from "node:net";
import { test } from "node:test";
import { SluiceError } from "../../kernel/errors.ts";
import type { Host } from "../../kernel/plugin.ts";
import { startAdminApi } from "../helpers/admin-api.ts";
import { eventually } from "../helpers/eventually.ts";
import { createMemoryProxies, createTestClock } from "@sluice/testkit";
import { createRefusals } from "../../plugins/admin-api/refusals.ts";

const path = "/mqttproxy/mqttproxy/topics/publish";
const invalidJson = "invalid json data from request body";

test("a message reaches the proxy under v1 and v2, with and without a trailing slash", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  proxies.subscribe("mqttproxy", "dev1", ["Beijing/#"]);
  proxies.subscribe("mqttproxy", "dev2", ["Beijing/+/Update"], { connected: false });
  proxies.subscribe("mqttproxy", "dev3", ["Shanghai/#"]);
  const api = await startAdminApi(t, { overrides: proxies });
  const body = JSON.stringify({ topic: "Beijing/Phone/Update", qos: 1, payload: "time to update", base64: false });
  for (const version of ["v1", "v2"]) {
    for (const slash of ["", "/"]) {
      const response = await fetch(`${api.url}/apis/${version}${path}${slash}`, { method: "POST", body });
      assert.equal(response.status, 200);
      assert.equal(response.headers.get("content-type"), "application/json; charset=utf-8");
      assert.equal(response.headers.get("x-config-version"), "1");
      assert.deepEqual(await response.json(), { matched: 2, connected: 1 });
    }
  }
  assert.equal(proxies.published.length, 4);
  for (const { proxy, topic, qos, retain, payload } of proxies.published) {
    assert.deepEqual([proxy, topic, qos, retain], ["mqttproxy", "Beijing/Phone/Update", 1, false]);
    assert.equal(payload.toString(), "time to update");
  }
});

test("retain: true is handed on", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const api = await startAdminApi(t, { overrides: proxies });
  assert.equal((await api.call("POST", path, { topic: "a", payload: "x", retain: true })).status, 200);
  assert.equal(proxies.published[0]?.retain, true);
});

test("a body that is labelled as a form, as curl -d does, is understood", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const api = await startAdminApi(t, { overrides: proxies });
  const body = '{"topic":"Beijing/Phone/Update","qos":1,"payload":"aGk=","base64":true}';
  const answer = await api.call("POST", path, body, { "content-type": "application/x-www-form-urlencoded" });
  assert.deepEqual(answer.json, { matched: 0, connected: 0 });
  assert.equal(proxies.published[0]?.payload.toString(), "hi");
});

test("absent fields have Easegress' defaults; distributed and unknown fields don't matter; keys in any case", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const api = await startAdminApi(t, { overrides: proxies });
  const bodies = [
    { topic: "a" },
    { topic: "a", qos: null, payload: null, base64: null },
    { topic: "a", qos: 2 },
    { topic: "a", distributed: true, retain: false, extra: { deep: 1 } },
    { Topic: "a", QoS: 1, Payload: "x" },
  ];
  for (const body of bodies) assert.equal((await api.call("POST", path, body)).status, 200, JSON.stringify(body));
  const seen = proxies.published.map(({ topic, qos, payload }) => [topic, qos, payload.toString()]);
  assert.deepEqual(seen, [
    ["a", 0, ""],
    ["a", 0, ""],
    ["a", 2, ""],
    ["a", 0, ""],
    ["a", 1, "x"],
  ]);
});

test("every byte survives base64, line breaks in it included", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const api = await startAdminApi(t, { overrides: proxies });
  const binary = Buffer.from(Array.from({ length: 1024 }, (_, index) => index % 256));
  const base64 = binary.toString("base64");
  for (const payload of [base64, base64.replace(/.{76}/g, "$&\n"), base64.replace(/.{76}/g, "$&\r\n"), ""]) {
    assert.equal((await api.call("POST", path, { topic: "t", payload, base64: true })).status, 200);
  }
  const payloads = proxies.published.map(({ payload }) => payload);
  assert.deepEqual(payloads, [binary, binary, binary, Buffer.alloc(0)]);
  await api.call("POST", path, { topic: "t", payload: "温度 21°\u0000" });
  assert.equal(proxies.published.at(-1)?.payload.toString(), "温度 21°\u0000");
});

test("bad requests are 400 in Easegress' format and publish nothing", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const api = await startAdminApi(t, { overrides: proxies });
  const decodeFailed = "base64 set to true, but payload decode failed";
  const qosRange = "qos of MQTT is 0, 1, 2, and choose 1 for most cases";
  const topicProblem = /topic/;
  const pageExample =
    '{\n"topic": "Beijing/Phone/Update",\n"qos": 1, // currently only support 0 and 1\n"payload": "x"\n}';
  const cases: [body: unknown, message: string | RegExp][] = [
    ["", invalidJson],
    ["nonsense", invalidJson],
    [pageExample, invalidJson],
    ["null", invalidJson],
    ['"text"', invalidJson],
    ['{"topic":"a"} trailing', invalidJson],
    [Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]), invalidJson],
    [{ topic: "a", qos: "1" }, `${invalidJson}: qos must be a number`],
    [{ topic: "a", qos: 0.5 }, `${invalidJson}: qos must be an integer`],
    [{ topic: "a", qos: true }, `${invalidJson}: qos must be a number`],
    [{ topic: 5 }, `${invalidJson}: topic must be a string`],
    [{ topic: "a", payload: {} }, `${invalidJson}: payload must be a string`],
    [{ topic: "a", base64: "true" }, `${invalidJson}: base64 must be a boolean`],
    [{ topic: "a", retain: 1 }, `${invalidJson}: retain must be a boolean`],
    [{ topic: "a", qos: -1 }, qosRange],
    [{ topic: "a", qos: 3 }, qosRange],
    [{ topic: "a", Qos: 3 }, qosRange],
    [{ topic: "a", clientID: "" }, /clientID is empty/],
    [{ topic: "a", clientID: "x", retain: true }, /can't go with clientID/],
    [{ topic: "a", properties: [] }, `${invalidJson}: properties must be an object`],
    [{ topic: "a", properties: { contenttype: "x", ttl: 5 } }, /properties has no "ttl": it may have payloadFormat/],
    [{ topic: "a", properties: { payloadFormat: 2 } }, /payloadFormat must be 0 \(bytes\) or 1/],
    [{ topic: "a", payload: "/w==", base64: true, properties: { payloadFormat: 1 } }, /the payload is not UTF-8/],
    [{ topic: "a", properties: { messageExpiry: -1 } }, /messageExpiry must be whole seconds/],
    [{ topic: "a", properties: { messageExpiry: 1.5 } }, /messageExpiry must be whole seconds/],
    [{ topic: "a", base64: true, properties: { correlationData: "?" } }, /correlationData decode failed/],
    [{ topic: "a", properties: { contentType: "a\u0000" } }, /contentType must be at most/],
    [{ topic: "a", properties: { userProperties: { a: 1 } } }, /userProperties must be a map of strings/],
    [{ topic: "a", properties: { userProperties: [["a"]] } }, /userProperties must be a map of strings/],
    [{ topic: "a", properties: { userProperties: "a" } }, /userProperties must be a map of strings/],
    ...["?", "aGk", "aGk=a", "aGk==", "a-_=", "====", "A===", "aG k=", "aGk=\t"].map((payload): [unknown, string] => [
      { topic: "a", payload, base64: true },
      decodeFailed,
    ]),
    [{}, topicProblem],
    [{ topic: "" }, topicProblem],
    [{ topic: "a/+" }, topicProblem],
    [{ topic: "a/#" }, topicProblem],
    [{ topic: "a\u0000b" }, topicProblem],
    [{ topic: "a".repeat(65_536) }, topicProblem],
    ['{"topic":"a\\ud800"}', /surrogate/],
    ['{"topic":"a","payload":"\\udc00"}', /surrogate/],
  ];
  for (const [body, message] of cases) {
    const answer = await api.call("POST", path, body);
    const label = JSON.stringify(body).slice(0, 80);
    assert.equal(answer.status, 400, label);
    assert.match(answer.headers.get("content-type")!, /^application\/json/);
    const { code, message: got, ...rest } = answer.json as { code: number; message: string };
    assert.equal(code, 400, label);
    if (typeof message === "string") assert.equal(got, message, label);
    else assert.match(got, message, label);
    assert.deepEqual(rest, {});
  }
  assert.equal(proxies.published.length, 0);
});

test("retain, every QoS, a client alone and MQTT 5's properties reach the proxy as they are given", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const requests: unknown[] = [];
  const overrides: Partial<Host> = {
    ...proxies,
    publish(proxy, message, request) {
      requests.push(request);
      return proxies.publish(proxy, message);
    },
  };
  const api = await startAdminApi(t, { overrides });
  const properties = {
    payloadFormat: 1,
    messageExpiry: 60,
    contentType: "text/plain",
    responseTopic: "answers/1",
    correlationData: "req-1",
    userProperties: [
      ["b", "1"],
      ["a", "2"],
      ["b", "3"],
    ],
  };
  await api.call("POST", path, { topic: "a", qos: 2, retain: true, payload: "x", properties });
  await api.call("POST", path, {
    clientID: "dev1",
    base64: true,
    properties: { correlationData: "AP8=", userProperties: { x: ["1", "2"], y: "3" } },
  });
  const [first, second] = proxies.published;
  assert.deepEqual([first?.qos, first?.retain], [2, true]);
  assert.deepEqual(first?.properties, { ...properties, correlationData: Buffer.from("req-1") });
  assert.equal(second?.topic, "$direct");
  assert.deepEqual(second.properties?.correlationData, Buffer.from([0, 255]));
  assert.deepEqual(second.properties.userProperties, [
    ["x", "1"],
    ["x", "2"],
    ["y", "3"],
  ]);
  assert.deepEqual(requests, [
    { clientId: undefined, waitMs: undefined, countAll: true },
    { clientId: "dev1", waitMs: undefined, countAll: true },
  ]);
});

test("a list has a result for each message, in its order, and one that is wrong keeps none of the others", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  proxies.subscribe("mqttproxy", "dev1", ["a/#"]);
  const api = await startAdminApi(t, { overrides: proxies });
  const good = await api.call("POST", path, [{ topic: "a/1" }, { topic: "b" }]);
  assert.deepEqual(
    [good.status, good.json],
    [
      200,
      [
        { matched: 1, connected: 1 },
        { matched: 0, connected: 0 },
      ],
    ],
  );
  const mixed = await api.call("POST", path, [{ topic: "a/+" }, { topic: "a/2" }, null, { topic: "a", qos: 7 }]);
  assert.equal(mixed.status, 207);
  const results = mixed.json as { code?: number; message?: string; matched?: number }[];
  assert.deepEqual(
    results.map(({ code, matched }) => code ?? matched),
    [400, 1, 400, 400],
  );
  assert.deepEqual(
    proxies.published.map(({ topic }) => topic),
    ["a/1", "b", "a/2"],
  );
  assert.deepEqual((await api.call("POST", path, [])).json, []);
  const many = Array.from({ length: 10_001 }, () => ({ topic: "a" }));
  assert.equal((await api.call("POST", path, many)).status, 400);
});

test("of a cluster it is told who is not counted; a long list has no other node asked", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const counted: unknown[] = [];
  const overrides: Partial<Host> = {
    ...proxies,
    async publish(proxy, message, request) {
      counted.push(request?.countAll);
      const uncounted = request?.countAll ? (["absent"] as const) : (["absent", "otherNodes"] as const);
      return { ...(await proxies.publish(proxy, message)), uncounted };
    },
  };
  const api = await startAdminApi(t, { overrides });
  const one = await api.call("POST", path, { topic: "a" });
  assert.deepEqual(one.json, { matched: 0, connected: 0, uncounted: ["absent"] });
  const list = (length: number): object[] => Array.from({ length }, () => ({ topic: "a" }));
  for (const [length, isCounted] of [
    [100, true],
    [101, false],
  ] as const) {
    counted.length = 0;
    const { json } = await api.call("POST", path, list(length));
    const uncounted = isCounted ? ["absent"] : ["absent", "otherNodes"];
    assert.deepEqual((json as unknown[]).at(-1), { matched: 0, connected: 0, uncounted });
    assert.deepEqual(new Set(counted), new Set([isCounted]));
  }
});

test("wait=acked asks for a time, and for a message that can be acknowledged", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const waits: (number | undefined)[] = [];
  const overrides: Partial<Host> = {
    ...proxies,
    publish(proxy, message, request) {
      waits.push(request?.waitMs);
      return proxies.publish(proxy, message);
    },
  };
  const api = await startAdminApi(t, { overrides });
  const message = { topic: "a", qos: 1 };
  for (const query of ["", "&timeout=2", "&timeout=0.5s", "&timeout=250ms", "&timeout=60s"]) {
    assert.equal((await api.call("POST", `${path}?wait=acked${query}`, message)).status, 200, query);
  }
  assert.deepEqual(waits, [5000, 2000, 500, 250, 60_000]);
  const refused: [query: string, body: object][] = [
    ["?wait=acked", { topic: "a" }],
    ["?wait=yes", message],
    ["?timeout=5s", message],
    ...["0", "61s", "5m", "-1s", ""].map((each): [string, object] => [`?wait=acked&timeout=${each}`, message]),
  ];
  for (const [query, body] of refused) {
    assert.equal((await api.call("POST", path + query, body)).status, 400, query);
  }
  assert.equal(waits.length, 5);
});

test("an unknown proxy is 404, another method 405 with Allow and a body", async (t) => {
  const api = await startAdminApi(t, { overrides: createMemoryProxies("mqttproxy") });
  const unknown = await api.call("POST", "/mqttproxy/other/topics/publish", { topic: "a" });
  assert.equal(unknown.status, 404);
  assert.deepEqual(unknown.json, { code: 404, message: 'no proxy is named "other"' });
  for (const method of ["GET", "PUT", "DELETE", "PATCH"]) {
    const answer = await api.call(method, path);
    assert.equal(answer.status, 405);
    assert.equal(answer.headers.get("allow"), "POST");
    assert.deepEqual(answer.json, { code: 405, message: `this route takes POST, not ${method}` });
  }
  const options = await api.call("OPTIONS", path);
  assert.deepEqual([options.status, options.headers.get("allow"), options.text], [204, "POST", ""]);
});

test("proxy names are percent-decoded, one that is no valid escape is simply unknown", async (t) => {
  const proxies = createMemoryProxies("网关-1");
  const api = await startAdminApi(t, { overrides: proxies });
  const named = await api.call("POST", `/mqttproxy/${encodeURIComponent("网关-1")}/topics/publish`, { topic: "a" });
  assert.equal(named.status, 200);
  assert.equal((await api.call("POST", "/mqttproxy/%E7%/topics/publish", { topic: "a" })).status, 404);
});

test("L17: a proxy named admin has its endpoint and takes nothing away from the API", async (t) => {
  const proxies = createMemoryProxies("admin");
  const api = await startAdminApi(t, { overrides: proxies });
  assert.equal((await api.call("POST", "/mqttproxy/admin/topics/publish", { topic: "a" })).status, 200);
  for (const each of ["/healthz", "/objects", "/metrics"]) assert.equal((await api.call("GET", each)).status, 200);
});

test("what the proxy can't do now is 503, and an error of our own 500 that is logged and not shown", async (t) => {
  let error: Error = new SluiceError("QUEUE_FULL", "the queue of dev1 is full");
  const proxies = createMemoryProxies("mqttproxy");
  const api = await startAdminApi(t, { overrides: { ...proxies, publish: () => Promise.reject(error) } });
  const full = await api.call("POST", path, { topic: "a" });
  assert.equal(full.status, 503);
  assert.equal(full.headers.get("retry-after"), "1");
  assert.deepEqual(full.json, { code: 503, message: "the queue of dev1 is full" });
  error = new SluiceError("STORE_CLOSED", "the store is closed");
  assert.equal((await api.call("POST", path, { topic: "a" })).status, 503);
  assert.deepEqual(
    api.logs.filter(({ level }) => level === "error"),
    [],
  );
  error = new Error("secret detail");
  const broken = await api.call("POST", path, { topic: "a" });
  assert.equal(broken.status, 500);
  assert.equal(broken.text.includes("secret"), false);
  assert.equal((broken.json as { code: number }).code, 500);
  const logged = api.logs.filter(({ level }) => level === "error");
  assert.equal(logged.length, 1);
  assert.equal(logged[0]?.fields["err"], error);
});

test("requests are counted by method, route and status", async (t) => {
  const api = await startAdminApi(t, { overrides: createMemoryProxies("mqttproxy", "other") });
  const route = "/mqttproxy/:name/topics/publish";
  await api.call("POST", path, { topic: "a" });
  await api.call("POST", "/mqttproxy/other/topics/publish", { topic: "a" });
  await api.call("POST", path, "nonsense");
  await api.call("GET", "/no/such/route");
  const name = "sluice_http_requests_total";
  assert.equal(await api.metricValue(name, { method: "POST", route, status: "200" }), 2);
  assert.equal(await api.metricValue(name, { method: "POST", route, status: "400" }), 1);
  assert.equal(await api.metricValue(name, { route: "none", status: "404" }), 1);
  assert.equal(await api.metricValue("sluice_http_request_duration_seconds_count", { route }), 3);
});

test("as many messages under way as maxPublishes: one more is refused at once, and taken when there is room", async (t) => {
  const waiting: (() => void)[] = [];
  const publish: Host["publish"] = () =>
    new Promise((resolve) => waiting.push(() => resolve({ matched: 1, connected: 1, durable: true })));
  const overrides = { ...createMemoryProxies("mqttproxy"), publish };
  const api = await startAdminApi(t, { config: { maxPublishes: 3 }, overrides });
  const [one, list] = [{ topic: "a" }, [{ topic: "a" }, { topic: "b" }]];
  const under = [api.call("POST", path, one), api.call("POST", path, list)];
  await eventually(() => api.metricValue("sluice_http_publishes_under_way"), 3);
  await eventually(() => waiting.length, 3);
  for (const body of [one, list, "x".repeat(3_000_000)]) {
    const refused = await api.call("POST", path, body);
    assert.equal(refused.status, 503);
    assert.equal(refused.headers.get("retry-after"), "1");
    assert.match((refused.json as { message: string }).message, /^3 messages are under way, .*maxPublishes/);
  }
  assert.equal((await api.call("GET", "/healthz")).status, 200);
  assert.equal(await api.metricValue("sluice_http_publishes_refused_total"), 3);
  for (const end of waiting.splice(0)) end();
  assert.deepEqual(
    (await Promise.all(under)).map(({ status }) => status),
    [200, 200],
  );
  assert.equal(await api.metricValue("sluice_http_publishes_under_way"), 0);
  // What ends without an answer of the proxy leaves as well.
  for (const body of ["none", { topic: "a", qos: 7 }]) assert.equal((await api.call("POST", path, body)).status, 400);
  const next = api.call("POST", path, list);
  await eventually(() => waiting.length, 2);
  for (const end of waiting.splice(0)) end();
  assert.equal((await next).status, 200);
  assert.equal(await api.metricValue("sluice_http_publishes_under_way"), 0);
});

test("many refused requests are answered a share at a time, and their connections stay usable", async (t) => {
  const waiting: (() => void)[] = [];
  const publish: Host["publish"] = () =>
    new Promise((resolve) => waiting.push(() => resolve({ matched: 1, connected: 1, durable: true })));
  const overrides = { ...createMemoryProxies("mqttproxy"), publish };
  const api = await startAdminApi(t, { config: { maxPublishes: 1 }, overrides });
  const first = api.call("POST", path, { topic: "a" });
  await eventually(() => waiting.length, 1);
  const agent = new Agent({ keepAlive: true, maxSockets: 120 });
  t.after(() => agent.destroy());
  const sockets = new Set<Socket>();
  // A body that is never read whole by the API, and has to be out of the way for the next request.
  const body = JSON.stringify({ topic: "a", payload: "x".repeat(50_000) });
  const ask = async (): Promise<{ status: number; retryAfter: string | undefined; ms: number }> => {
    const from = performance.now();
    const asked = openRequest({ agent, port: api.port, method: "POST", path: `/apis/v2${path}` });
    asked.once("socket", (socket) => sockets.add(socket));
    asked.end(body);
    const [answer] = (await once(asked, "response")) as [IncomingMessage];
    const ms = performance.now() - from;
    for await (const _ of answer);
    return { status: answer.statusCode ?? 0, retryAfter: answer.headers["retry-after"], ms };
  };
  const answers = await Promise.all(Array.from({ length: 120 }, ask));
  assert.ok(answers.every(({ status, retryAfter }) => status === 503 && retryAfter === "1"));
  const times = answers.map(({ ms }) => ms).toSorted((a, b) => a - b);
  // 50 at once, 50 an interval later, the rest after another; the timer may be early by one millisecond each time.
  assert.ok(times.at(-1)! - times[0]! >= 150, `all within ${times.at(-1)! - times[0]!} ms`);
  assert.ok(times.at(-1)! < 20_000, `the last after ${times.at(-1)} ms`);
  for (const end of waiting.splice(0)) end();
  assert.equal((await first).status, 200);
  // By a connection that was refused before.
  const next = ask();
  await eventually(() => waiting.length, 1);
  for (const end of waiting.splice(0)) end();
  assert.equal((await next).status, 200);
  assert.equal(sockets.size, 120);
  assert.equal(await api.metricValue("sluice_http_publishes_refused_total"), 120);
});

test("refused requests that wait are answered when the API stops", async () => {
  const stopping = new AbortController();
  const refusals = createRefusals({ clock: createTestClock(), signal: stopping.signal });
  const turns = Array.from({ length: 60 }, () => refusals.turn());
  assert.equal(turns.filter((turn) => turn === undefined).length, 50);
  // However many come, no more are held.
  const more = Array.from({ length: 1000 }, () => refusals.turn());
  assert.equal(more.filter((turn) => turn === undefined).length, 10);
  stopping.abort();
  await Promise.all([...turns, ...more]);
  assert.equal(refusals.turn(), undefined);
});
