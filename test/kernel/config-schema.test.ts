import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { parseAllDocuments } from "yaml";
import { configSchema } from "../../kernel/config-schema.ts";
import { findPlugins } from "../../kernel/registry.ts";

const root = join(import.meta.dirname, "../..");

/** An editor's validator knows of no defaults and is not strict with the schema. */
interface Ajv {
  compile(schema: object): ((value: unknown) => boolean) & { errors?: unknown };
}
const { Ajv2020 } = createRequire(join(root, "kernel/package.json"))("ajv/dist/2020.js") as {
  Ajv2020: new (options: object) => Ajv;
};

describe("the schema for editors", () => {
  let validate: (value: unknown) => unknown;
  let schema: {
    $defs: Record<
      string,
      { properties: Record<string, { type?: unknown; description?: string; writeOnly?: boolean }>; required: string[] }
    >;
  };
  before(async () => {
    const registry = await findPlugins({ folder: root, dirs: [join(root, "test/fixtures/plugins")], bins: [] });
    schema = configSchema(registry.kinds()) as typeof schema;
    const check = new Ajv2020({ strict: false, allErrors: true }).compile(schema);
    validate = (value) => (check(value) ? [] : check.errors);
  });

  for (const file of [
    "config/sluice.yaml",
    "config/sluice-kafka.yaml",
    "config/examples/kafka-source.yaml",
    "config/examples/mqttproxy.yaml",
    "config/examples/topic-mapper.yaml",
    "test/fixtures/doc-yaml/mqttproxy.yaml",
    "test/fixtures/doc-yaml/topic-mapper.yaml",
  ]) {
    test(`accepts ${file}`, async () => {
      const documents = parseAllDocuments(await readFile(join(root, file), "utf8"));
      assert.ok((Array.isArray(documents) && documents.length > 1) || file.endsWith("topic-mapper.yaml"));
      for (const document of documents) assert.deepEqual(validate(document.toJS()), []);
    });
  }

  const wrong: [string, object][] = [
    ["an unknown kind", { kind: "Nothing", name: "x" }],
    ["no name", { kind: "Door" }],
    ["an unknown option", { kind: "Door", name: "d", prot: 1 }],
    ["an unknown option of a filter", { kind: "Pipeline", name: "p", filters: [{ kind: "Gate", name: "g", limt: 1 }] }],
    [
      "another place for a filter",
      { kind: "Pipeline", name: "p", filters: [{ kind: "Sink", name: "g", backend: ["x"], isolate: "x" }] },
    ],
    [
      "an unknown limit",
      { kind: "Pipeline", name: "p", filters: [{ kind: "Sink", name: "g", backend: ["x"], isolate: { heap: 64 } }] },
    ],
    ["an isolated service", { kind: "Door", name: "d", isolate: "worker" }],
    ["a service as a filter", { kind: "Pipeline", name: "p", filters: [{ kind: "Door", name: "g" }] }],
    [
      "a wrong part behind a reference",
      { kind: "Pipeline", name: "p", filters: [{ kind: "Gate", name: "g", users: [{ nme: "x" }] }] },
    ],
    ["text that is no variable for a number", { kind: "Door", name: "d", port: "x${PORT}" }],
  ];
  for (const [name, document] of wrong) {
    test(`refuses ${name}`, () => assert.notDeepEqual(validate(document), []));
  }

  test("accepts a variable where a number, a boolean or a list is wanted", () => {
    assert.deepEqual(
      validate({ kind: "MQTTProxy", name: "p", port: "${PORT:-1883}", brokerMode: "${BROKER}", rules: "${RULES}" }),
      [],
    );
  });

  for (const isolate of ["worker", {}, { heapMb: 64, deadline: "${DEADLINE}" }]) {
    test(`accepts ${JSON.stringify(isolate)} for isolate of any filter`, () => {
      const filters = ["TopicMapper", "FileMQTT"].map((kind) => schema.$defs[kind]?.properties["isolate"]);
      assert.ok(filters.every((each) => each?.description));
      const greet = { kind: "Sink", name: "g", backend: ["x"], isolate };
      assert.deepEqual(validate({ kind: "Pipeline", name: "p", filters: [greet] }), []);
    });
  }

  test("describes every option, and marks secrets", () => {
    assert.equal(schema.$defs["Gate"]?.properties["password"]?.writeOnly, true);
    assert.deepEqual(schema.$defs["MQTTProxy"]?.required, ["kind", "name"]);
    for (const kind of [
      "Gateway",
      "MQTTProxy",
      "Pipeline",
      "AdminAPI",
      "MQTTClientAuth",
      "ConnectControl",
      "TopicMapper",
      "KafkaMQTT",
      "FileMQTT",
    ]) {
      for (const [option, { description }] of Object.entries(schema.$defs[kind]?.properties ?? { [kind]: {} })) {
        assert.ok(description, `${kind}.${option} has no description`);
      }
    }
  });
});
