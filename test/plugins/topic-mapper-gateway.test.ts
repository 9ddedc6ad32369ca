/** TopicMapper through the front door and through the real command line. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import type { TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { connectAsync } from "mqtt";
import { startTestGateway } from "../helpers/gateway.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** A pipeline whose mapper knows `known/...` alone; subscribers get what comes to its end. */
function brokerYaml(jumpIf: string): string {
  return `
kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
brokerMode: true
rules:
- when: { packetType: Publish }
  pipeline: publish
---
kind: Pipeline
name: publish
protocol: MQTT
flow:
- filter: mapper
${jumpIf}
filters:
- name: mapper
  kind: TopicMapper
  setKV: { topic: t, headers: h }
  route: [{ name: p, matchExpr: ^known$ }]
  policies: [{ name: p, topicIndex: 0, route: [{ topic: out, exprs: [.*] }] }]
`;
}

async function deliveredOf(t: TestContext, yaml: string): Promise<string[]> {
  const gateway = await startTestGateway(yaml);
  t.after(() => gateway.stop());
  const client = await connectAsync(gateway.url(), { clientId: "both", reconnectPeriod: 0 });
  t.after(() => client.endAsync(true));
  const topics: string[] = [];
  client.on("message", (topic) => topics.push(topic));
  await client.subscribeAsync("#", { qos: 1 });
  // Resolves with the PUBACK: what is discarded is acknowledged, since no retry would map it.
  await client.publishAsync("unknown/x", "1", { qos: 1 });
  const last = new Promise<void>((resolve) => {
    client.on("message", (topic) => {
      if (topic === "known/x") resolve();
    });
  });
  await client.publishAsync("known/x", "2", { qos: 1 });
  await last;
  assert.equal(await gateway.metric("sluice_topic_mapper_messages_total", { outcome: "unmatched" }), 1);
  return topics;
}

describe("through a proxy", () => {
  test("an unmapped message is acknowledged and goes no further", async (t) => {
    assert.deepEqual(await deliveredOf(t, brokerYaml("")), ["known/x"]);
  });

  test("unless a jumpIf on MQTTTopicMapFailed sends it on", async (t) => {
    const topics = await deliveredOf(t, brokerYaml("  jumpIf: { MQTTTopicMapFailed: END }"));
    assert.deepEqual(topics, ["unknown/x", "known/x"]);
  });
});

function sluice(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve, reject) => {
    const options = { cwd: root, env: { ...process.env, NO_COLOR: "1" }, timeout: 60_000 };
    execFile(process.execPath, ["kernel/cli.ts", ...args], options, (error, stdout, stderr) => {
      if (error && typeof error.code !== "number") reject(error);
      else resolve({ code: Number(error?.code ?? 0), stdout, stderr });
    });
  });
}

describe("through the sluice bin", () => {
  test("map prints what the shipped example makes of the page's topic", async () => {
    const topic = "gateway/gate123/iphone/log";
    const { code, stdout, stderr } = await sluice("map", "-c", "config/examples/topic-mapper.yaml", "--json", topic);
    assert.equal(code, 0, stderr);
    const { pipelines } = JSON.parse(stdout) as { pipelines: { records: unknown[] }[] };
    assert.deepEqual(pipelines[0]?.records, [
      {
        filter: "publish-kafka-backend",
        topic: "iot_phone",
        key: "<client id>",
        headers: {
          clientID: "<client id>",
          username: "<user name>",
          mqttTopic: topic,
          gateway: "gateway",
          gatewayID: "gate123",
          device: "iphone",
          status: "log",
        },
      },
    ]);
  });

  test("map exits 1 and says why for a topic that no route matches", async () => {
    const { code, stdout } = await sluice("map", "-c", "config/examples/topic-mapper.yaml", "elsewhere");
    assert.equal(code, 1);
    assert.match(stdout, /"elsewhere", matches no route/);
  });

  test("check points at the line of a faulty expression, a negative index and a policy that is not there", async (t) => {
    const folder = await mkdtemp(join(tmpdir(), "sluice-map-"));
    t.after(() => rm(folder, { recursive: true, force: true }));
    const file = join(folder, "sluice.yaml");
    const mapper = (lines: string[]) => [
      "kind: Pipeline",
      "name: p",
      "filters:",
      "- name: m",
      "  kind: TopicMapper",
      ...lines,
    ];
    const policy = "  policies: [{ name: a, topicIndex: 0, route: [{ topic: t, exprs: ['(?!x)'] }] }]";
    await writeFile(
      file,
      mapper(["  setKV: { topic: t }", "  route: [{ name: b, matchExpr: '(' }]", policy]).join("\n"),
    );
    const first = await sluice("check", "-c", file);
    assert.equal(first.code, 1);
    assert.match(first.stdout + first.stderr, /sluice\.yaml:7:.*p > m > route.*no policy is named "b"/);
    assert.match(first.stdout + first.stderr, /sluice\.yaml:7:.*"\(" is not an RE2 expression/);
    assert.match(first.stdout + first.stderr, /sluice\.yaml:8:.*look-around/);

    await writeFile(file, mapper(["  matchIndex: -1"]).join("\n"));
    const second = await sluice("check", "-c", file);
    assert.equal(second.code, 1);
    assert.match(second.stdout + second.stderr, /sluice\.yaml:6:.*matchIndex: must be at least 0/);
  });
});
