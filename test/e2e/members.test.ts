/** Several gateways that know of one another: changes of the config reach all, and each says how it is. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, test } from "node:test";
import mqtt from "mqtt";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";
import { createMemoryCluster, type MemoryCluster, type MemoryNode } from "../helpers/memory-engine.ts";
import { sluice } from "../helpers/sluice.ts";

/** What the plugin below finds its engine by. */
const place = Symbol.for("sluice-test-cluster");

let plugins: string;
before(async () => {
  plugins = await mkdtemp(join(tmpdir(), "sluice-cluster-plugin-"));
  const folder = join(plugins, "memory-cluster");
  await mkdir(folder);
  const kinds = { MemoryCluster: { family: "service", entry: "./index.js", schema: "./schema.json" } };
  const manifest = { name: "memory-cluster", version: "1.0.0", type: "module", keywords: ["sluice-plugin"] };
  await writeFile(
    join(folder, "package.json"),
    JSON.stringify({ ...manifest, engines: { sluice: "^1.0.0" }, sluice: { kinds } }),
  );
  await writeFile(
    join(folder, "schema.json"),
    JSON.stringify({ type: "object", additionalProperties: false, properties: { node: { type: "string" } } }),
  );
  await writeFile(
    join(folder, "index.js"),
    `export default { kind: "MemoryCluster", role: "store",
      create: ({ node }) => ({ cluster: globalThis[Symbol.for("sluice-test-cluster")](node) }) };\n`,
  );
});
after(() => rm(plugins, { recursive: true }));

let cluster: MemoryCluster;
let nodes: Map<string, MemoryNode>;
const running: TestGateway[] = [];
afterEach(async () => {
  for (const gateway of running.splice(0)) await gateway.stop();
});

async function start(names: readonly string[]): Promise<TestGateway[]> {
  cluster = createMemoryCluster();
  nodes = new Map();
  Object.assign(globalThis, {
    [place](name: string) {
      const node = cluster.join(name);
      nodes.set(name, node);
      return node.engine;
    },
  });
  for (const name of names) {
    const gateway = await startTestGateway(config, { env: { NODE_NAME: name, PLUGINS: plugins } });
    running.push(gateway);
  }
  return [...running];
}

const config = `kind: Gateway
plugins:
  dirs: ["\${PLUGINS}"]
---
kind: MemoryCluster
name: cluster
node: \${NODE_NAME}
---
kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
brokerMode: true
maxInflight: 10
---
kind: AdminAPI
name: admin-api
port: 0
`;

const proxyWith = (options: string): string =>
  `kind: MQTTProxy\nname: mqttproxy\nhost: 127.0.0.1\nport: 0\nbrokerMode: true\n${options}\n`;

async function put(gateway: TestGateway, yaml: string, query = ""): Promise<{ status: number; body: any }> {
  const response = await fetch(`${gateway.api}/apis/v2/objects${query}`, {
    method: "PUT",
    headers: { "content-type": "application/yaml" },
    body: yaml,
  });
  return { status: response.status, body: await response.json() };
}

const optionOf = (gateway: TestGateway, option: string): unknown =>
  gateway.gateway.host.config.documents().find(({ name }) => name === "mqttproxy")?.[option];

test("a change made on one node is made on all, in their files too, and no connection ends", async () => {
  const [a, b, c] = (await start(["a", "b", "c"])) as [TestGateway, TestGateway, TestGateway];
  const client = await mqtt.connectAsync(b.url(), { reconnectPeriod: 0 });
  let closed = 0;
  client.on("close", () => closed++);

  const { status, body } = await put(a, proxyWith("maxInflight: 20"));
  assert.equal(status, 200);
  assert.deepEqual(
    body.nodes.map(({ node, outcome, version }: any) => [node, outcome, version]),
    [
      ["b", "applied", 2],
      ["c", "applied", 2],
    ],
  );
  for (const each of [a, b, c]) {
    assert.equal(optionOf(each, "maxInflight"), 20);
    assert.match(await readFile(join(each.folder, "sluice.yaml"), "utf8"), /^maxInflight: 20$/m);
  }
  assert.match(b.gateway.host.config.history()[0]?.by ?? "", / on a$/);
  assert.equal(closed, 0);
  await client.endAsync();
});

test("a dry run asks all and changes none", async () => {
  const [a, b] = (await start(["a", "b"])) as [TestGateway, TestGateway];
  const { body } = await put(a, proxyWith("maxInflight: 20"), "?dryRun=true");
  assert.deepEqual(
    body.nodes.map(({ node, outcome }: any) => [node, outcome]),
    [["b", "accepted"]],
  );
  for (const each of [a, b]) assert.equal(optionOf(each, "maxInflight"), 10);
});

test("what the asked node refuses reaches no other", async () => {
  const [a, b] = (await start(["a", "b"])) as [TestGateway, TestGateway];
  const { status } = await put(a, proxyWith("maxInflight: none"));
  assert.equal(status, 400);
  for (const each of [a, b]) {
    assert.equal(optionOf(each, "maxInflight"), 10);
    assert.equal(each.gateway.host.config.version(), 1);
  }
});

test("a node that can't take a change keeps what it has, and the answer says why", async () => {
  const [a, b] = (await start(["a", "b"])) as [TestGateway, TestGateway];
  // Somebody is in the middle of an edit there.
  await writeFile(join(b.folder, "sluice.yaml"), "kind: [\n");
  const { status, body } = await put(a, proxyWith("maxInflight: 20"));
  assert.equal(status, 200);
  const [answer] = body.nodes;
  assert.equal(answer.node, "b");
  assert.equal(answer.outcome, "refused");
  assert.match(answer.problem, /sluice\.yaml/);
  assert.deepEqual([optionOf(a, "maxInflight"), optionOf(b, "maxInflight")], [20, 10]);
});

test("a node that is cut off is named, and one that is gone too", async () => {
  const [a] = (await start(["a", "b", "c"])) as [TestGateway];
  nodes.get("b")!.cutOff();
  nodes.get("c")!.kill();
  const { status, body } = await put(a, proxyWith("maxInflight: 20"));
  assert.equal(status, 200);
  assert.deepEqual(
    body.nodes.map(({ node, outcome }: any) => [node, outcome]),
    [
      ["b", "unreached"],
      ["c", "unreached"],
    ],
  );
});

test("a rollback reaches all nodes, whatever their own versions are", async () => {
  const [a, b] = (await start(["a", "b"])) as [TestGateway, TestGateway];
  const text = await readFile(join(a.folder, "sluice.yaml"), "utf8");
  await put(b, proxyWith("maxInflight: 15"));
  await put(
    a,
    `${proxyWith("maxInflight: 20")}---\nkind: Pipeline\nname: added\nfilters: [{ name: f, kind: ConnectControl }]\n`,
  );
  const response = await fetch(`${a.api}/apis/v2/history/1/rollback`, { method: "POST" });
  const { nodes: answers } = (await response.json()) as any;
  assert.deepEqual(
    answers.map(({ node, outcome }: any) => [node, outcome]),
    [["b", "applied"]],
  );
  assert.equal(await readFile(join(a.folder, "sluice.yaml"), "utf8"), text);
  for (const each of [a, b]) {
    assert.equal(optionOf(each, "maxInflight"), 10);
    assert.equal(
      each.gateway.host.config.documents().some(({ name }) => name === "added"),
      false,
    );
  }
});

test("members: each as it says of itself, with what differs", async () => {
  const [a, b] = (await start(["a", "b", "c", "d"])) as [TestGateway, TestGateway];
  const client = await mqtt.connectAsync(b.url(), { reconnectPeriod: 0 });
  nodes.get("c")!.cutOff();
  nodes.get("d")!.leave();
  const { joined, members } = (await (await fetch(`${a.api}/apis/v2/status/members`)).json()) as any;
  assert.equal(joined, true);
  assert.deepEqual(
    members.map(({ node, isSelf, state, report }: any) => [node, isSelf, state, report?.connections]),
    [
      ["a", true, "up", 0],
      ["b", false, "up", 1],
      ["c", false, "down", undefined],
      ["d", false, "left", undefined],
    ],
  );
  assert.equal(members[1].report.version, "0.0.0-test");
  await client.endAsync();
});

test("sluice cluster status: 0 where all is well, 1 with what is not", async () => {
  const [a, b] = (await start(["a", "b"])) as [TestGateway, TestGateway];
  const status = (gateway: TestGateway) => sluice(gateway.folder, ["cluster", "status", "--api", gateway.api]);
  const well = await status(a);
  assert.deepEqual([well.code, well.stderr], [0, ""]);
  assert.match(
    well.stdout,
    /^NODE +STATE +VERSION +CONFIG +CLIENTS +SESSIONS +SINCE\na \* +up +0\.0\.0-test +1 +0 +0 /,
  );

  await b.reload(config.replace("maxInflight: 10", "maxInflight: 11"));
  const apart = await status(a);
  assert.equal(apart.code, 1);
  assert.match(apart.stdout, /^b +up +0\.0\.0-test +2 differs/m);
  assert.match(apart.stdout, /^b: has another config$/m);

  nodes.get("b")!.kill();
  const down = await status(a);
  assert.equal(down.code, 1);
  assert.match(down.stdout, /^b: is down$/m);
});

test("a gateway alone says so", async () => {
  const gateway = await startTestGateway(proxyWith("maxInflight: 10"));
  running.push(gateway);
  const { code, stdout } = await sluice(gateway.folder, ["cluster", "status", "--api", gateway.api]);
  assert.equal(code, 0);
  assert.match(stdout, /^\S+ \* +up .*\nthis gateway is in no cluster\n$/m);
});
