import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { parse } from "yaml";
import type { ConfigDocument } from "../../kernel/plugin.ts";
import { schemaCompiler } from "../../kernel/schema.ts";
import command from "../../plugins/topic-mapper/map.ts";
import { runCommand } from "@sluice/testkit";

interface FilterDocument {
  name: string;
  kind: string;
  [option: string]: unknown;
}
type Pipeline = ConfigDocument & { name: string; flow?: object[]; filters: FilterDocument[] };

const withDefaults = schemaCompiler()(
  JSON.parse(readFileSync(new URL("../../plugins/topic-mapper/schema.json", import.meta.url), "utf8")) as object,
);

/** The page's pipeline as `loadConfig` hands it on: the mapper's defaults applied. */
function pagePipeline(change: { onUnmatched?: string; sink?: object } = {}): Pipeline {
  const text = readFileSync(new URL("../fixtures/doc-yaml/topic-mapper.yaml", import.meta.url), "utf8");
  const pipeline = parse(text) as Pipeline;
  pipeline.filters = pipeline.filters.map((filter) => {
    if (filter.kind !== "TopicMapper") return { ...filter, ...change.sink };
    const { name, kind, ...options } = filter;
    if (change.onUnmatched) options["onUnmatched"] = change.onUnmatched;
    assert.deepEqual(withDefaults(options), []);
    return { name, kind, ...options };
  });
  return pipeline;
}

interface Answer {
  mqttTopic: string;
  pipelines: {
    pipeline: string;
    mapped: boolean;
    notes: string[];
    records: { filter?: string; topic: string; key: string | null; headers: Record<string, string> }[];
  }[];
}

async function map(documents: readonly ConfigDocument[], ...args: string[]) {
  const { code, stdout, stderr } = await runCommand(command, ["--json", ...args], { documents });
  assert.equal(stderr, "");
  return { code, answer: JSON.parse(stdout) as Answer };
}

const packet = { clientID: "<client id>", username: "<user name>" };

describe("sluice map", () => {
  test("prints the record that the sink would write", async () => {
    const { code, answer } = await map([pagePipeline()], "direct/xiaomi/status");
    assert.equal(code, 0);
    assert.deepEqual(answer, {
      mqttTopic: "direct/xiaomi/status",
      pipelines: [
        {
          pipeline: "pipeline-mqtt-publish",
          records: [
            {
              filter: "publish-kafka-backend",
              topic: "iot_phone",
              key: "<client id>",
              headers: {
                ...packet,
                mqttTopic: "direct/xiaomi/status",
                direct: "direct",
                device: "xiaomi",
                status: "status",
              },
            },
          ],
          notes: [],
          mapped: true,
        },
      ],
    });
  });

  test("as a table", async () => {
    const { code, stdout } = await runCommand(command, ["gateway/gate123/iphone/log"], { documents: [pagePipeline()] });
    assert.equal(code, 0);
    assert.equal(
      stdout,
      [
        "pipeline  pipeline-mqtt-publish",
        "filter    publish-kafka-backend",
        "topic     iot_other",
        "key       <client id>",
        "header    clientID   <client id>",
        "header    username   <user name>",
        "header    mqttTopic  gateway/gate123/iphone/log",
        "header    gateway    gateway",
        "header    gatewayID  gate123",
        "header    device     iphone",
        "header    status     log",
        "",
      ].join("\n"),
    );
  });

  test("a topic that is not mapped says why and exits 1, with no record where it is discarded", async () => {
    const { code, answer } = await map([pagePipeline()], "elsewhere/x");
    assert.equal(code, 1);
    assert.deepEqual(answer.pipelines[0]?.records, []);
    assert.match(answer.pipelines[0]?.notes[0] ?? "", /topic-mapper: level 0 .*"elsewhere".*MQTTTopicMapFailed/);
  });

  test("onUnmatched: default shows the sink's default topic, and exits 1 all the same", async () => {
    const { code, answer } = await map([pagePipeline({ onUnmatched: "default" })], "elsewhere/x");
    assert.equal(code, 1);
    assert.deepEqual(answer.pipelines[0]?.records, [
      {
        filter: "publish-kafka-backend",
        topic: "kafka-topic",
        key: "<client id>",
        headers: { ...packet, mqttTopic: "elsewhere/x" },
      },
    ]);
  });

  test("onUnmatched: fault shows no record", async () => {
    const { code, answer } = await map([pagePipeline({ onUnmatched: "fault" })], "elsewhere/x");
    assert.deepEqual([code, answer.pipelines[0]?.records], [1, []]);
  });

  test("the sink's key option and its topic without a topicKey are taken into account", async () => {
    for (const [key, shown] of [
      ["none", null],
      ["topic", "direct/tv/log"],
      ["username", "<user name>"],
      ["clientId", "<client id>"],
    ] as const) {
      const pipeline = pagePipeline({ sink: { key, mqtt: { headerKey: "kafka-headers" } } });
      const { code, answer } = await map([pipeline], "direct/tv/log");
      const record = answer.pipelines[0]?.records[0];
      assert.deepEqual([code, record?.key, record?.topic, record?.headers["device"]], [0, shown, "kafka-topic", "tv"]);
    }
  });

  test("a sink that looks under a name that nothing is stored under is found out", async () => {
    const pipeline = pagePipeline({ sink: { mqtt: { topicKey: "kafka-topik" } } });
    const { code, answer } = await map([pipeline], "direct/tv/log");
    assert.equal(code, 1);
    assert.match(answer.pipelines[0]?.notes[0] ?? "", /publish-kafka-backend: .*"kafka-topik" \(mqtt.topicKey\)/);
  });

  test("jumpIf and END are followed; what the flow leaves out is not run", async () => {
    const pipeline = pagePipeline();
    pipeline.filters.push({ name: "fallback", kind: "AnotherSink", topic: { default: "unmapped" } });
    pipeline.flow = [
      { filter: "topic-mapper", jumpIf: { MQTTTopicMapFailed: "rest" } },
      { filter: "publish-kafka-backend" },
      { filter: "END" },
      { filter: "fallback", alias: "rest" },
    ];
    const mapped = await map([pipeline], "direct/tv/log");
    assert.deepEqual(
      mapped.answer.pipelines[0]?.records.map(({ topic }) => topic),
      ["iot_other"],
    );
    const other = await map([pipeline], "elsewhere");
    assert.deepEqual(
      other.answer.pipelines[0]?.records.map(({ topic, filter }) => [filter, topic]),
      [["fallback", "unmapped"]],
    );
    assert.equal(other.code, 1);
  });

  test("without a flow the filters run in their order; a mapper without a sink shows the mapping itself", async () => {
    const pipeline = pagePipeline();
    delete pipeline.flow;
    pipeline.filters = pipeline.filters.slice(0, 1);
    const { code, answer } = await map([pipeline], "direct/tv/log");
    assert.equal(code, 0);
    assert.deepEqual(answer.pipelines[0]?.records, [
      { topic: "iot_other", key: null, headers: { direct: "direct", device: "tv", status: "log" } },
    ]);
  });

  test("every pipeline with a mapper is tried; one that maps is enough; --pipeline picks", async () => {
    const strict = pagePipeline();
    const other: Pipeline = { ...pagePipeline(), name: "other" };
    const [mapper] = other.filters;
    assert.ok(mapper);
    mapper["route"] = [{ name: "direct", matchExpr: "^special$" }];
    const plain: Pipeline = { kind: "Pipeline", name: "plain", filters: [] };
    const documents = [strict, plain, other];
    const all = await map(documents, "direct/tv/log");
    assert.deepEqual(
      [all.code, all.answer.pipelines.map(({ pipeline, mapped }) => [pipeline, mapped])],
      [
        0,
        [
          ["pipeline-mqtt-publish", true],
          ["other", false],
        ],
      ],
    );
    const one = await map(documents, "direct/tv/log", "-p", "other");
    assert.deepEqual([one.code, one.answer.pipelines.length], [1, 1]);
  });

  test("wrong usage exits 2 and says what to do", async () => {
    const documents = [pagePipeline()];
    for (const [args, why] of [
      [[], /name the MQTT topic/],
      [["a", "b"], /one topic at a time/],
      [["a/+"], /wildcards/],
      [["a/#"], /wildcards/],
      [["--nope", "a"], /--nope/],
      [["-p", "none", "a"], /no pipeline none.*there are: pipeline-mqtt-publish/],
    ] as const) {
      const { code, stdout, stderr } = await runCommand(command, args, { documents });
      assert.deepEqual([code, stdout], [2, ""]);
      assert.match(stderr, why);
    }
    const { code, stderr } = await runCommand(command, ["a"], { documents: [] });
    assert.equal(code, 2);
    assert.match(stderr, /has a TopicMapper/);
  });

  test("control characters of a topic never reach the terminal", async () => {
    const { stdout } = await runCommand(command, ["direct/\u001b[31mred/x"], { documents: [pagePipeline()] });
    assert.ok(!stdout.includes("\u001b"));
    assert.match(stdout, /\\u001b\[31mred/);
  });
});
