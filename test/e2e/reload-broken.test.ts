/** Each class of broken config, given to one gateway at work: it changes nothing, and is answered with its place. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import mqtt, { type MqttClient } from "mqtt";
import { generate } from "selfsigned";
import { broken, gates, plugins } from "../fixtures/broken-configs.ts";
import { startTestGateway, type TestGateway } from "../helpers/gateway.ts";

const proxy = (more = ""): string => `kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
brokerMode: true
${more}`;
const good = `${plugins()}${proxy("rules: [{ when: { packetType: Connect }, pipeline: gates }]\n")}---\n${gates}`;
const filter = (kind: string): string => `kind: Pipeline\nname: g\nfilters: [{ name: a, kind: ${kind} }]\n`;
const tls = (certificate: string): string => proxy(`useTLS: true\ncertificate: [{ name: c, ${certificate} }]\n`);

/** The rest of the file, after a Gateway document of three lines -> where each problem is. */
const others: [name: string, yaml: string, where: string[], folder?: string][] = [
  ["a bracket left open", "kind: MQTTProxy\nname: p\nport: [1\n", ["sluice.yaml:8:1"]],
  ["a tab as indentation", "kind: MQTTProxy\nrules:\n\t- a\n", ["sluice.yaml:6:1"]],
  ["a key given twice", "kind: Door\nname: d\nname: e\n", ["sluice.yaml:6:1"]],
  ["an alias of nothing", "kind: Door\nname: *nothing\n", ["sluice.yaml:5:7"]],
  [
    "a variable that is not set",
    "kind: MQTTProxy\nname: p\nport: 0\nhost: ${SLUICE_TEST_NOT_SET}\n",
    ["sluice.yaml:7:7"],
  ],
  ["a file that is not there", "kind: MQTTProxy\nname: p\nport: 0\nhost: ${file:nowhere}\n", ["sluice.yaml:7:7"]],
  ["an unknown kind", "kind: Nonsense\nname: d\n", ["sluice.yaml:4:1 > d > kind"]],
  ["an unknown filter", filter("Nonsense"), ["sluice.yaml:6:22 > g > a > kind"]],
  ["a plugin that throws", filter("Throws"), ["sluice.yaml:6:22 > g > a > kind"], "broken-plugins"],
  ["a plugin of another API", filter("WrongApi"), ["sluice.yaml:6:22 > g > a > kind"], "broken-plugins"],
  ["a plugin without its own", filter("DependencyMissing"), ["sluice.yaml:6:22 > g > a > kind"], "broken-plugins"],
  [
    "a certificate that is a placeholder, as the key",
    tls('cert: "cert", key: "key"'),
    ["cert", "key"].map((field, n) => `sluice.yaml:10:${[26, 40][n]} > mqttproxy > certificate[0].${field}`),
  ],
  [
    "certificate files that are not there",
    tls("certFile: no.crt, keyFile: no.key"),
    ["certFile", "keyFile"].map((field, n) => `sluice.yaml:10:${[26, 44][n]} > mqttproxy > certificate[0].${field}`),
  ],
  [
    "a key that belongs to another certificate",
    tls("certFile: one.crt, keyFile: two.key"),
    ["sluice.yaml:10:45 > mqttproxy > certificate[0].keyFile"],
  ],
];

let gateway: TestGateway;
let client: MqttClient;
let closed = 0;
let documents: string;
const got: string[] = [];

before(async () => {
  gateway = await startTestGateway(good);
  const [one, two] = await Promise.all(["one", "two"].map((value) => generate([{ name: "commonName", value }])));
  assert.ok(one && two);
  await writeFile(join(gateway.folder, "one.crt"), one.cert);
  await writeFile(join(gateway.folder, "two.key"), two.private);
  client = await mqtt.connectAsync(gateway.url(), { reconnectPeriod: 0 });
  client.on("close", () => closed++);
  client.on("message", (_topic, payload) => got.push(payload.toString()));
  await client.subscribeAsync("t", { qos: 1 });
  documents = JSON.stringify(gateway.gateway.host.config.documents());
});
after(async () => {
  const closedBefore = closed;
  await client.endAsync(true);
  await gateway.stop();
  assert.equal(closedBefore, 0, "the client was disconnected");
});

async function refuses(name: string, yaml: string, where: readonly string[]): Promise<void> {
  const from = gateway.logs.length;
  const { plan, problems } = await gateway.reload(yaml);
  assert.equal(plan, undefined);
  assert.deepEqual(
    problems.map((problem) => problem.where),
    where,
  );
  for (const each of where) {
    assert.match(each, /^sluice\.yaml:\d+:\d+/);
    assert.ok(
      gateway.logs.slice(from).some((line) => line["where"] === each),
      "it is not in the log",
    );
  }
  const ready = (await (await fetch(`${gateway.api}/readyz`)).json()) as { unhealthy: { detail: string }[] };
  assert.ok(ready.unhealthy[0]?.detail.includes(where[0] ?? "nowhere"), "it is not in /readyz");
  assert.equal(await gateway.metric("sluice_config_last_reload_successful"), 0);
  // What runs is what ran, and works.
  assert.equal(gateway.gateway.host.config.version(), 1);
  assert.equal(JSON.stringify(gateway.gateway.host.config.documents()), documents);
  await client.publishAsync("t", name, { qos: 1 });
  assert.equal(got.at(-1), name);
  assert.equal(closed, 0, "the client was disconnected");
}

for (const [name, yaml, problems] of broken) {
  test(`refused: ${name}`, async () => {
    const where = problems.map((problem) => problem.slice(0, problem.indexOf(": ")));
    await refuses(name, plugins() + yaml, where);
  });
}

for (const [name, yaml, where, folder] of others) {
  test(`refused: ${name}`, async () => refuses(name, plugins(folder) + yaml, where));
}

test("after all of that the config that ran is found unchanged, and another one is applied", async (t) => {
  const { plan } = await gateway.reload(good);
  assert.equal(plan?.isEmpty, true);
  assert.equal(await gateway.metric("sluice_config_last_reload_successful"), 1);
  assert.equal(
    (await gateway.reload(good.replace("brokerMode: true", "brokerMode: true\nretryInterval: 9"))).plan?.isEmpty,
    false,
  );
  assert.equal(gateway.gateway.host.config.version(), 2);
  await client.publishAsync("t", "at last", { qos: 1 });
  t.diagnostic(`${broken.length + others.length} classes of broken config`);
});
