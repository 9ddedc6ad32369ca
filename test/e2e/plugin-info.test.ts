/** `sluice plugin info` and `list`: what a kind is, from its schema alone. */
import assert from "node:assert/strict";
import { mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { loadSpec } from "../../kernel/config.ts";
import { writePlugin } from "../helpers/plugin-packages.ts";
import { bin, sluice } from "../helpers/sluice.ts";

const schema = {
  description: "Puts labels on messages.",
  type: "object",
  required: ["labels", "mode"],
  properties: {
    labels: {
      description: "What is put on.",
      type: "array",
      minItems: 1,
      items: {
        type: "object",
        required: ["name"],
        properties: {
          name: { description: "Its name.", type: "string", examples: ["site"] },
          inner: { $ref: "#/$defs/tree" },
        },
      },
    },
    mode: { description: "How.", enum: ["add", "replace"] },
    limit: { type: "integer", default: 5 },
  },
  // It refers to itself, as trees do.
  $defs: { tree: { type: "object", properties: { left: { $ref: "#/$defs/tree" } } } },
};

let home: string;
before(async () => {
  home = await realpath(await mkdtemp(join(tmpdir(), "sluice-info-")));
  await writePlugin(home, { name: "labels", kind: "Label", files: { "schema.json": JSON.stringify(schema) } });
  const own = { ...schema, examples: [{ labels: [{ name: "hall" }], mode: "replace" }] };
  await writePlugin(home, { name: "exemplary", kind: "Exemplary", files: { "schema.json": JSON.stringify(own) } });
  await writePlugin(home, {
    name: "noisy",
    kind: "Noisy",
    files: { "index.js": 'throw new Error("nobody asked to run this");\n' },
  });
  await writeFile(join(home, "sluice.yaml"), 'kind: Gateway\nplugins: { dirs: ["."] }\n');
});
after(() => rm(home, { recursive: true }));

describe("plugin info", () => {
  test("shows options, those inside of others, and an example of what can't be left out, which is valid", async () => {
    const { code, stdout } = await sluice(home, ["plugin", "info", "Label"]);
    assert.equal(code, 0);
    assert.equal(
      stdout,
      `Label: a filter, of labels 1.0.0
Puts labels on messages.

Options

OPTION               TYPE          DEFAULT   MEANING
labels               list of maps  required  What is put on.
labels[].name        string        required  Its name.
labels[].inner       map           -
labels[].inner.left  map           -
mode                 add, replace  required  How.
limit                whole number  5

Example

- name: label
  kind: Label
  labels: [{"name":"site"}]
  mode: add
`,
    );
    const example = stdout.slice(stdout.indexOf("- name"));
    const config = `kind: Gateway\nplugins: { dirs: ["."] }\n---\nkind: Pipeline\nname: p\nfilters:\n${example}`;
    await writeFile(join(home, "example.yaml"), config);
    const { problems } = await loadSpec({ path: "example.yaml", cwd: home, env: {}, bins: [bin] });
    assert.deepEqual(problems, []);
  });

  test("prefers the schema's own example", async () => {
    const { stdout } = await sluice(home, ["plugin", "info", "Exemplary"]);
    assert.match(
      stdout,
      /\n- name: exemplary\n {2}kind: Exemplary\n {2}labels: \[\{"name":"hall"\}\]\n {2}mode: replace\n$/,
    );
  });

  test("knows services and the kernel's kinds, and says what was meant by one that is not known", async () => {
    const service = await sluice(home, ["plugin", "info", "AdminAPI"]);
    assert.match(service.stdout, /^AdminAPI: a service, of @sluice\/admin-api .*\nkind: AdminAPI\n$/s);
    const own = await sluice(home, ["plugin", "info", "MQTTProxy"]);
    assert.match(
      own.stdout,
      /^MQTTProxy: a kind of the kernel, of @sluice\/kernel .*^queue\.maxMessages +whole number +100000 /ms,
    );
    const unknown = await sluice(home, ["plugin", "info", "Lable"]);
    assert.equal(unknown.code, 1);
    assert.match(
      unknown.stderr,
      /no installed package provides the kind "Lable"; did you mean "Label"\? .*\(PLUGIN_NOT_FOUND\)\n$/,
    );
  });

  test("and list run none of the plugins' code", async () => {
    assert.equal((await sluice(home, ["plugin", "info", "Noisy"])).code, 0);
    const { code, stdout } = await sluice(home, ["plugin", "list"]);
    assert.equal(code, 0);
    assert.match(stdout, /^KIND +FAMILY +PACKAGE +VERSION +API +FROM +USED BY$/m);
    assert.match(stdout, /^AdminAPI +service +@sluice\/admin-api +\S+ +\^1\.0\.0 +distribution +admin-api$/m);
    assert.match(stdout, /^Noisy +filter +noisy +1\.0\.0 +\^1\.0\.0 +dirs +-$/m);
  });
});
