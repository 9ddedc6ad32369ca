/** The HTTP endpoints with real subscribers behind them. */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { test, type TestContext } from "node:test";
import { connectAsync } from "mqtt";
import { eventually } from "../helpers/eventually.ts";
import { startProbedGateway } from "../helpers/probed-gateway.ts";
import { connectRaw, type RawClient } from "../helpers/raw-client.ts";

const numbers = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1);

/** The page's topic filters, all of which match Beijing/Phone/Update. */
const pageFilters = [
  "Beijing/Phone/Update",
  "Beijing/+/Update",
  "Beijing/Phone/+",
  "+/Phone/Update",
  "Beijing/+/+",
  "+/+/Update",
  "Beijing/#",
];

interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Record<string, unknown>;
}

async function call(api: string, method: string, path: string, body?: unknown): Promise<Answer> {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  const response = await fetch(`${api}/apis/${path}`, { method, ...(body !== undefined && { body: text }) });
  const answer = await response.text();
  return { status: response.status, headers: response.headers, body: JSON.parse(answer) as Record<string, unknown> };
}

async function publish(api: string, message: object, proxy = "mqttproxy"): Promise<Answer> {
  return call(api, "POST", `v2/mqttproxy/${proxy}/topics/publish`, message);
}

async function connectSubscribed(port: number, clientId: string, ...topics: string[]): Promise<RawClient> {
  const client = await connectRaw(port, clientId);
  for (const topic of topics) await client.subscribe(topic);
  return client;
}

test("each of the page's topic filters receives what is posted, through v1 and v2", async (t) => {
  const { url, api } = await startProbedGateway(t);
  const clients = await Promise.all(
    [...pageFilters, "Beijing/Phone", "Shanghai/#"].map(async (topic) => {
      const client = await connectAsync(url(), { reconnectPeriod: 0 });
      const got: unknown[] = [];
      client.on("message", (name, payload, { qos }) => got.push([name, String(payload), qos]));
      await client.subscribeAsync(topic, { qos: 1 });
      return { topic, client, got };
    }),
  );
  for (const version of ["v1", "v2"]) {
    const answer = await call(api, "POST", `${version}/mqttproxy/mqttproxy/topics/publish`, {
      topic: "Beijing/Phone/Update",
      qos: 1,
      payload: `time to update ${version}`,
      base64: false,
    });
    assert.deepEqual([answer.status, answer.body], [200, { matched: 7, connected: 7 }]);
  }
  const expected = ["v1", "v2"].map((version) => ["Beijing/Phone/Update", `time to update ${version}`, 1]);
  for (const { topic, client, got } of clients) {
    await eventually(() => got, pageFilters.includes(topic) ? expected : []);
    await client.endAsync();
  }
});

/** Whether mosquitto's clients are installed; says so where not, and fails with CI=true. */
function hasMosquitto(t: TestContext): boolean {
  try {
    execFileSync("mosquitto_sub", ["--version"], { stdio: "ignore" });
    return true;
  } catch (error) {
    // `--version` may exit with 1; a missing program is another error.
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") return true;
    if (process.env["CI"] === "true") throw new Error("mosquitto's clients are not installed", { cause: error });
    t.skip("mosquitto's clients are not installed");
    return false;
  }
}

async function outputOf(command: string, args: readonly string[]): Promise<string> {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"] });
  let output = "";
  child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
  const code = await new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  assert.equal(code, 0, `${command} ended with ${String(code)}`);
  return output;
}

test("mosquitto_sub with each of the page's topic filters receives what is posted, and mosquitto_pub publishes", async (t) => {
  if (!hasMosquitto(t)) return;
  const { port, api, probes, metric } = await startProbedGateway(t, {}, { Publish: {} });
  const address = ["-h", "127.0.0.1", "-p", String(port()), "-q", "1"];
  const outputs = pageFilters.map((topic) =>
    outputOf("mosquitto_sub", [...address, "-t", topic, "-C", "1", "-W", "20", "-F", "%t %x"]),
  );
  await eventually(() => metric("sluice_subscriptions"), pageFilters.length);
  const answer = await publish(api, { topic: "Beijing/Phone/Update", qos: 1, payload: "aGk=", base64: true });
  assert.deepEqual(answer.body, { matched: 7, connected: 7 });
  for (const output of await Promise.all(outputs)) assert.equal(output.trim(), "Beijing/Phone/Update 6869");

  await outputOf("mosquitto_pub", [...address, "-i", "dev1", "-t", "a/b", "-m", "hi"]);
  const [ctx] = probes.Publish.seen;
  assert.ok(ctx?.type === "Publish");
  assert.deepEqual([ctx.client.id, ctx.packet.topic, String(ctx.packet.payload)], ["dev1", "a/b", "hi"]);
});

test("binary data survives base64, of any size and at both QoS", async (t) => {
  const { port, api } = await startProbedGateway(t);
  const client = await connectSubscribed(port(), "c", "bin");
  const all = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
  for (const payload of [all, Buffer.alloc(0), Buffer.from([0]), Buffer.alloc(700_000, all)]) {
    for (const qos of [0, 1]) {
      const answer = await publish(api, { topic: "bin", qos, payload: payload.toString("base64"), base64: true });
      assert.equal(answer.status, 200);
      const got = await client.expect("publish");
      assert.ok(payload.equals(got.payload as Buffer));
      assert.equal(got.qos, qos);
    }
  }
});

test("qos 2 is delivered at QoS 2 to who subscribed so", async (t) => {
  const { port, api } = await startProbedGateway(t);
  const client = await connectRaw(port(), "c");
  assert.equal(await client.subscribe("a", 2), 2);
  const answer = await publish(api, { topic: "a", qos: 2, payload: "x", base64: false });
  assert.deepEqual([answer.status, answer.body], [200, { matched: 1, connected: 1 }]);
  const { qos, messageId = 0 } = await client.expect("publish");
  assert.equal(qos, 2);
  client.send({ cmd: "pubrec", messageId });
  assert.equal((await client.expect("pubrel")).messageId, messageId);
  client.send({ cmd: "pubcomp", messageId });
  assert.deepEqual(await client.flush(), []);
});

test("A10: what can't be published is refused, and reaches nobody", async (t) => {
  const { port, api } = await startProbedGateway(t);
  const client = await connectSubscribed(port(), "c", "#");
  const path = "v2/mqttproxy/mqttproxy/topics/publish";
  const message = { topic: "a", qos: 1, payload: "x", base64: false };
  const get = await call(api, "GET", path);
  assert.deepEqual([get.status, get.headers.get("allow"), get.body["code"]], [405, "POST", 405]);
  const wrong: [body: unknown, status: number][] = [
    ["no json", 400],
    [{ ...message, qos: 10 }, 400],
    [{ ...message, qos: 10, base64: true, payload: "eA==" }, 400],
    [{ ...message, qos: -1 }, 400],
    [{ ...message, qos: "1" }, 400],
    [{ ...message, base64: true, payload: "not base64!" }, 400],
    [{ ...message, topic: "a/+" }, 400],
    [{ ...message, topic: "" }, 400],
    [{ ...message, topic: "a\u0000b" }, 400],
  ];
  for (const [body, status] of wrong) {
    const answer = await call(api, "POST", path, body);
    assert.deepEqual([answer.status, answer.body["code"], typeof answer.body["message"]], [status, status, "string"]);
  }
  const nowhere = await publish(api, message, "nobody");
  assert.deepEqual([nowhere.status, nowhere.body["code"]], [404, 404]);
  assert.deepEqual(await client.flush(), []);
  assert.equal((await publish(api, message)).status, 200);
  assert.equal(String((await client.expect("publish")).payload), "x");
});

test("A11: 200 messages posted one after the other reach a subscriber in order", async (t) => {
  const { url, api } = await startProbedGateway(t);
  const client = await connectAsync(url(), { reconnectPeriod: 0 });
  const got: string[] = [];
  client.on("message", (_, payload) => got.push(String(payload)));
  await client.subscribeAsync("a11", { qos: 1 });
  for (const n of numbers(200)) {
    const payload = Buffer.from(`message ${n}`).toString("base64");
    assert.equal((await publish(api, { topic: "a11", qos: 1, payload, base64: true })).status, 200);
  }
  await eventually(() => got.length, 200);
  assert.deepEqual(
    got,
    numbers(200).map((n) => `message ${n}`),
  );
  await client.endAsync();
});

test("the answer says how many sessions matched, and how many of them are connected", async (t) => {
  const { port, api, metric } = await startProbedGateway(t);
  const counts = async (topic: string) => (await publish(api, { topic, qos: 1, payload: "x" })).body;
  assert.deepEqual(await counts("a/b"), { matched: 0, connected: 0 });
  await connectSubscribed(port(), "here", "a/+", "a/b", "#");
  const away = await connectRaw(port(), "away", { clean: false });
  await away.subscribe("a/b");
  assert.deepEqual(await counts("a/b"), { matched: 2, connected: 2 });
  await away.disconnect();
  await eventually(() => metric("sluice_connections"), 1);
  assert.deepEqual(await counts("a/b"), { matched: 2, connected: 1 });
  assert.deepEqual(await counts("b"), { matched: 1, connected: 1 });
  const again = await connectRaw(port(), "away", { clean: false });
  assert.equal((await again.flush()).length, 2);
});

test("a message that a full session can't take is refused with 503, and reaches no other", async (t) => {
  const { port, api } = await startProbedGateway(t, { queue: { maxMessages: 2, onFull: "fault" } });
  const away = await connectRaw(port(), "away", { clean: false });
  await away.subscribe("a");
  await away.disconnect();
  const statuses: number[] = [];
  for (const payload of ["1", "2"]) statuses.push((await publish(api, { topic: "a", qos: 1, payload })).status);
  const here = await connectSubscribed(port(), "here", "a");
  const { status, headers } = await publish(api, { topic: "a", qos: 1, payload: "3" });
  assert.deepEqual([...statuses, status], [200, 200, 503]);
  assert.ok(headers.get("retry-after"));
  assert.deepEqual(await here.flush(), []);
});

interface SessionView {
  readonly sessionID: string;
  readonly connected: boolean;
  readonly topic: string;
}

async function query(api: string, search = "", proxy = "mqttproxy"): Promise<SessionView[]> {
  const { status, body } = await call(api, "GET", `v2/mqttproxy/${proxy}/session/query${search}`);
  assert.equal(status, 200);
  return body["sessions"] as SessionView[];
}

test("A25, A26: sessions are listed by page and search, and deleted ones lose their connection", async (t) => {
  const { port, api, metric } = await startProbedGateway(t);
  const ids = numbers(10).map((n) => `client-${n}`);
  const clients = new Map<string, RawClient>();
  for (const id of ids) clients.set(id, await connectSubscribed(port(), id, `topic/${id}`));
  assert.deepEqual(
    (await query(api)).map(({ sessionID }) => sessionID),
    ids.toSorted(),
  );
  assert.equal((await query(api, "?page=1&page_size=20")).length, 10);
  assert.equal((await query(api, "?page=1&page_size=8")).length, 8);
  assert.equal((await query(api, "?page=2&page_size=8")).length, 2);
  assert.equal((await query(api, "?page=2&page_size=20")).length, 0);
  assert.equal((await query(api, "?page=1&page_size=20&q=233")).length, 0);
  // Filtered before the page is cut.
  const [found] = await query(api, "?page=1&page_size=1&q=client-7");
  assert.deepEqual([found?.sessionID, found?.topic], ["client-7", "topic/client-7"]);
  for (const search of ["?page=1", "?page_size=1", "?q=1", "?page=0&page_size=1", "?page=1&page_size=0"]) {
    assert.equal((await call(api, "GET", `v2/mqttproxy/mqttproxy/session/query${search}`)).status, 400);
  }

  const gone = ["client-2", "client-9"];
  const sessions = [...gone, "unknown"].map((sessionID) => ({ sessionID }));
  const answer = await call(api, "DELETE", "v1/mqttproxy/mqttproxy/sessions", { sessions });
  assert.deepEqual([answer.status, answer.body], [200, { removed: 2 }]);
  for (const [id, client] of clients) {
    if (gone.includes(id)) await client.expectClose();
    else assert.deepEqual(await client.flush(), []);
  }
  assert.equal((await query(api)).length, 8);
  assert.equal(await metric("sluice_subscriptions"), 8);
  assert.deepEqual((await publish(api, { topic: "topic/client-2", qos: 1, payload: "x" })).body, {
    matched: 0,
    connected: 0,
  });
});

test("a deleted session is forgotten: its client starts anew", async (t) => {
  const { port, api } = await startProbedGateway(t);
  const client = await connectRaw(port(), "kept", { clean: false });
  await client.subscribe("a");
  await client.disconnect();
  await eventually(async () => (await query(api)).map(({ connected }) => connected), [false]);
  await publish(api, { topic: "a", qos: 1, payload: "x" });
  await call(api, "DELETE", "v2/mqttproxy/mqttproxy/sessions", { sessions: [{ sessionID: "kept" }] });
  assert.deepEqual(await query(api), []);
  const again = await connectRaw(port(), "kept", { clean: false });
  await publish(api, { topic: "a", qos: 1, payload: "y" });
  assert.deepEqual(await again.flush(), []);
});

test("L34: nothing of one proxy is seen, reached or deleted through another", async (t) => {
  const { port, api } = await startProbedGateway(t, {}, {}, [
    { kind: "MQTTProxy", name: "other", host: "127.0.0.1", port: 0 },
  ]);
  const here = await connectSubscribed(port(), "same", "a");
  const there = await connectSubscribed(port("other"), "same", "a");
  await connectRaw(port(), "only-here");
  assert.deepEqual(
    (await query(api, "", "other")).map(({ sessionID }) => sessionID),
    ["same"],
  );
  assert.deepEqual((await publish(api, { topic: "a", qos: 1, payload: "x" }, "other")).body, {
    matched: 1,
    connected: 1,
  });
  assert.equal(String((await there.expect("publish")).payload), "x");
  assert.deepEqual(await here.flush(), []);
  const sessions = [{ sessionID: "same" }, { sessionID: "only-here" }];
  assert.deepEqual((await call(api, "DELETE", "v2/mqttproxy/other/sessions", { sessions })).body, { removed: 1 });
  await there.expectClose();
  assert.deepEqual(await here.flush(), []);
  assert.equal((await query(api)).length, 2);
});

test("L17: a proxy named admin takes nothing away from the API", async (t) => {
  const { port, api } = await startProbedGateway(t, { name: "admin" });
  const client = await connectSubscribed(port("admin"), "c", "a");
  assert.equal((await publish(api, { topic: "a", qos: 1, payload: "x" }, "admin")).status, 200);
  await client.expect("publish");
  for (const path of ["healthz", "objects", "object-kinds", "about"]) {
    assert.equal((await fetch(`${api}/apis/v2/${path}`)).status, 200, path);
  }
});

test("health and metrics of a running gateway", async (t) => {
  const { port, api } = await startProbedGateway(t, {}, { Publish: {} });
  const client = await connectRaw(port(), "c");
  await client.publish("a/b");
  for (const path of ["/apis/v2/healthz", "/apis/v2/readyz"])
    assert.equal((await fetch(`${api}${path}`)).status, 200, path);
  const text = await (await fetch(`${api}/apis/v2/metrics`)).text();
  for (const line of [
    'sluice_connections{proxy="mqttproxy"} 1',
    'sluice_packets_received_total{proxy="mqttproxy",type="publish"} 1',
    'sluice_messages_in_total{proxy="mqttproxy"} 1',
    'sluice_filter_packets_total{pipeline="on-Publish",filter="probe",kind="Probe",outcome="ok"} 1',
  ]) {
    assert.ok(text.split("\n").includes(line), `${line} is missing in\n${text}`);
  }
});
