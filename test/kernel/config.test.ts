import assert from "node:assert/strict";
import { mkdir, mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { loadSpec, type LoadedSpec } from "../../kernel/config.ts";

const fixtures = join(import.meta.dirname, "../fixtures");

/** A Gateway document that brings the fixture plugins; three lines, so that the rest of a file begins in line 4. */
const plugins = (name = "plugins") =>
  `{ kind: Gateway, plugins: { dirs: [${join(fixtures, name)}] } }\n---\n# the document under test\n`;

let temporary: string;
let count = 0;
before(async () => {
  temporary = await realpath(await mkdtemp(join(tmpdir(), "sluice-config-")));
});
after(() => rm(temporary, { recursive: true }));

async function folder(files: Record<string, string>): Promise<string> {
  const path = join(temporary, String((count += 1)));
  for (const [file, text] of Object.entries(files)) {
    await mkdir(join(path, file, ".."), { recursive: true });
    await writeFile(join(path, file), text);
  }
  return path;
}

const lines = (problems: LoadedSpec["problems"]) => problems.map(({ where, message }) => `${where}: ${message}`);

/** Loads `yaml` as sluice.yaml in a folder of its own, the fixture plugins being in reach. */
async function load(yaml: string, o: { env?: NodeJS.ProcessEnv; files?: Record<string, string>; path?: string } = {}) {
  const cwd = await folder({ "sluice.yaml": plugins() + yaml, ...o.files });
  const loaded = await loadSpec({ cwd, env: o.env ?? {}, bins: [], ...(o.path === undefined ? {} : { path: o.path }) });
  return { ...loaded, cwd, problems: lines(loaded.problems), warnings: lines(loaded.warnings) };
}

const proxy = "kind: MQTTProxy\nname: proxy\nport: 1883\nrules: [{ when: { packetType: Connect }, pipeline: gates }]\n";
const gates = "kind: Pipeline\nname: gates\nfilters: [{ name: gate, kind: Gate }]\n";

describe("a config that is right", () => {
  test("becomes a spec, defaults applied", async () => {
    const { spec, problems, warnings, cwd } = await load(
      `${proxy}---\nkind: Pipeline\nname: gates\nflow:\n- filter: gate\n  jumpIf: { ajar: again, closed: END }\n- { filter: gate, alias: again }\n- filter: END\nfilters:\n- { name: gate, kind: Gate, limit: 3 }\ndata: { region: eu }\n---\nkind: Door\nname: door\n`,
    );
    assert.deepEqual([problems, warnings], [[], []]);
    assert.ok(spec);
    const [only] = spec.proxies;
    assert.deepEqual(only, {
      name: "proxy",
      host: undefined,
      port: 1883,
      useTLS: false,
      certificate: [],
      topicCacheSize: 100_000,
      maxAllowedConnection: 0,
      connectionLimit: undefined,
      clientPublishLimit: undefined,
      rules: { Connect: "gates" },
      brokerMode: false,
      retryInterval: 30,
      maxPacketBytes: 1_048_576,
      maxInWork: 1000,
      maxInWorkBytes: 8_388_608,
      maxInflight: 256,
      queue: { maxMessages: 100_000, maxBytes: 67_108_864, onFull: "dropOldest" },
      connectTimeoutMs: 10_000,
      handshakeTimeoutMs: 10_000,
      faultGraceMs: 5000,
    });
    const [pipeline] = spec.pipelines;
    assert.deepEqual(pipeline?.flow, [
      { filter: "gate", alias: "gate", jumpIf: { ajar: "again", closed: "END" } },
      { filter: "gate", alias: "again", jumpIf: {} },
      { filter: "END", alias: "END", jumpIf: {} },
    ]);
    assert.deepEqual(pipeline?.filters[0]?.options, { limit: 3, pattern: ".*", strict: false, mode: "open" });
    assert.equal(pipeline?.filters[0]?.kind.kind, "Gate");
    assert.deepEqual([pipeline?.data, pipeline?.timeoutMs], [{ region: "eu" }, 30_000]);
    assert.deepEqual(
      spec.services.map(({ name, options }) => [name, options]),
      [["door", { port: 2381 }]],
    );
    assert.deepEqual([spec.path, spec.folder], [join(cwd, "sluice.yaml"), cwd]);
    assert.deepEqual(spec.gateway, {
      log: { level: "info" },
      plugins: { dirs: [join(fixtures, "plugins")] },
      drainTimeoutMs: 10_000,
      hints: [],
    });
    assert.deepEqual(
      spec.documents.map(({ kind, name }) => `${kind}/${name}`),
      ["Gateway/gateway", "MQTTProxy/proxy", "Pipeline/gates", "Door/door"],
    );
  });

  test("without a flow runs the filters in their order", async () => {
    const { spec } = await load(
      "kind: Pipeline\nname: two\nflow:\nfilters: [{ name: b, kind: Gate }, { name: a, kind: Gate }]\n",
    );
    assert.deepEqual(
      spec?.pipelines[0]?.flow.map(({ filter }) => filter),
      ["b", "a"],
    );
  });

  test("has its rate limits and times in the spec's units", async () => {
    const { spec } = await load(
      `${gates}---\n${proxy}connectionLimit: { requestRate: 5 }\nclientPublishLimit: { bytesRate: 10, timePeriod: 2 }\nconnectTimeout: 3\nfaultGrace: 0\n`,
    );
    const only = spec?.proxies[0];
    assert.deepEqual(only?.connectionLimit, { requestRate: 5, bytesRate: 0, timePeriod: 1 });
    assert.deepEqual(only?.clientPublishLimit, { requestRate: 0, bytesRate: 10, timePeriod: 2 });
    assert.deepEqual([only?.connectTimeoutMs, only?.faultGraceMs], [3000, 0]);
  });
});

/** What stands in the file from line 4 on -> every problem. */
const bad: [name: string, yaml: string, problems: string[]][] = [
  [
    "a misspelt key",
    "kind: MQTTProxy\nname: p\nport: 1883\nbrokrMode: true\n",
    ['sluice.yaml:7:1 > p > brokrMode: unknown option; did you mean "brokerMode"?'],
  ],
  [
    "a key unlike any",
    "kind: Door\nname: d\nzzz: 1\n",
    ["sluice.yaml:6:1 > d > zzz: unknown option; known options: port"],
  ],
  [
    "a filter's misspelt key and wrong types, nested",
    "kind: Pipeline\nname: gates\nfilters:\n    - name: gate\n      kind: Gate\n      limt: 1\n      limit: many\n      users:\n      - nme: x\n      hosts: [a, a]\n",
    [
      'sluice.yaml:9:7 > gates > gate > limt: unknown option; did you mean "limit"?',
      'sluice.yaml:10:7 > gates > gate > limit: must be a whole number, not "many"',
      "sluice.yaml:12:9 > gates > gate > users[0].name: is missing: Who it is.",
      'sluice.yaml:12:9 > gates > gate > users[0].nme: unknown option; did you mean "name"?',
      "sluice.yaml:13:18 > gates > gate > hosts[1]: says the same as entry 0: remove one",
    ],
  ],
  [
    "a secret of the wrong type, whose value is not shown",
    "kind: Pipeline\nname: gates\nfilters: [{ name: gate, kind: Gate, password: 12345, users: [{ name: x, token: [s3cret] }] }]\n",
    [
      "sluice.yaml:6:37 > gates > gate > password: must be a string, not what is given (put it in quotes)",
      "sluice.yaml:6:73 > gates > gate > users[0].token: must be a string, not what is given",
    ],
  ],
  [
    "a value that is none of several",
    "kind: Pipeline\nname: g\nfilters: [{ name: gate, kind: Gate, mode: opne }]\n",
    ['sluice.yaml:6:37 > g > gate > mode: must be one of "open", "shut", not "opne"; did you mean "open"?'],
  ],
  [
    "neither of two types",
    "kind: Pipeline\nname: g\nfilters: [{ name: gate, kind: Gate, when: 5 }]\n",
    ["sluice.yaml:6:37 > g > gate > when: must be a string or a list of the form that its description tells"],
  ],
  [
    "the wrong part of one of two types",
    "kind: Pipeline\nname: g\nfilters: [{ name: gate, kind: Gate, when: [a, 5] }]\n",
    ["sluice.yaml:6:47 > g > gate > when[1]: must be a string, not 5 (put it in quotes)"],
  ],
  [
    "a yes of YAML 1.1",
    "kind: MQTTProxy\nname: p\nport: 1883\nbrokerMode: yes\n",
    ['sluice.yaml:7:1 > p > brokerMode: must be true or false, not "yes" (write true or false)'],
  ],
  [
    "what the plugin's own check finds",
    "kind: Pipeline\nname: g\nfilters:\n- name: gate\n  kind: Gate\n  pattern: '('\n",
    ["sluice.yaml:9:3 > g > gate > pattern: does not compile"],
  ],
  [
    "a missing port",
    "kind: MQTTProxy\nname: p\n",
    ["sluice.yaml:4:1 > p > port: is missing: TCP port for MQTT clients, 1883 by custom and 8883 with TLS."],
  ],
  [
    "an impossible port",
    "kind: MQTTProxy\nname: p\nport: 70000\n",
    ["sluice.yaml:6:1 > p > port: must be at most 65535, not 70000"],
  ],
  [
    "a document without a name, and one without a kind",
    "kind: Door\n---\nname: x\n",
    [
      "sluice.yaml:4:1 > document 2 > name: is missing: give it a name",
      "sluice.yaml:6:1 > x > kind: is missing: say what it is",
    ],
  ],
  [
    "names that are none",
    "kind: Door\nname: a b\n---\nkind: Door\nname: 5\n",
    [
      'sluice.yaml:5:1 > a b > name: "a b" is not a valid name: use 1 to 253 letters, digits and -_.~',
      "sluice.yaml:8:1 > document 3 > name: must be a string: put it in quotes",
    ],
  ],
  ["a document that is no map", "- a\n- b\n", ["sluice.yaml:4:1 > document 2: must be a map with kind and name"]],
  [
    "two documents by one name",
    "kind: Door\nname: d\n---\nkind: Door\nname: d\n",
    ['sluice.yaml:8:1 > d > name: another Door has the name "d" already (sluice.yaml:4:1): rename one'],
  ],
  [
    "two Gateway documents",
    "kind: Gateway\n",
    ["sluice.yaml:4:1 > gateway > kind: a config has one Gateway document at most: merge them"],
  ],
  [
    "a filter as a document",
    "kind: Gate\nname: g\n",
    ["sluice.yaml:4:1 > g > kind: Gate is a filter: list it under filters of a Pipeline"],
  ],
  [
    "a service and a kernel kind as filters",
    "kind: Pipeline\nname: g\nfilters:\n- { name: door, kind: Door }\n- { name: proxy, kind: MQTTProxy }\n",
    [
      "sluice.yaml:7:17 > g > door > kind: Door is a service, not a filter: write it as a document of its own",
      "sluice.yaml:8:18 > g > proxy > kind: MQTTProxy is not a filter: write it as a document of its own",
    ],
  ],
  [
    "a pipeline without filters",
    "kind: Pipeline\nname: g\n",
    ["sluice.yaml:4:1 > g > filters: is missing: The filters, each with a name, a kind and the kind's options."],
  ],
  [
    "a filter without a kind",
    "kind: Pipeline\nname: g\nfilters:\n- name: a\n",
    [
      "sluice.yaml:7:3 > g > filters[0].kind: is missing: What it is, such as TopicMapper; brought by an installed package.",
    ],
  ],
  [
    "another protocol",
    `${gates}protocol: HTTP\n`,
    ['sluice.yaml:7:1 > gates > protocol: "HTTP" is not supported: write MQTT, or leave it out'],
  ],
  [
    "filters by one name, and one named END",
    "kind: Pipeline\nname: g\nfilters:\n- { name: a, kind: Gate }\n- { name: a, kind: Gate }\n- { name: END, kind: Gate }\n",
    [
      'sluice.yaml:8:5 > g > a > name: another filter of this pipeline has the name "a" already (sluice.yaml:7:3): rename one',
      "sluice.yaml:9:5 > g > END > name: END is built in and can't be the name of a filter: rename it",
    ],
  ],
  [
    "a flow with unknown filters, doubled aliases and namespaces",
    "kind: Pipeline\nname: g\nflow:\n- filter: gat\n- filter: gate\n- filter: gate\n- { filter: gate, alias: END }\n- { filter: gate, alias: x, namespace: other }\n- { filter: gate, alias: y, namespace: DEFAULT }\nfilters: [{ name: gate, kind: Gate }]\n",
    [
      'sluice.yaml:7:3 > g > flow[0].filter: no filter of this pipeline is named "gat"; did you mean "gate"?',
      'sluice.yaml:9:3 > g > flow[2].filter: another step of this flow is named "gate" already: give this one an alias of its own',
      "sluice.yaml:10:19 > g > flow[3].alias: END is built in and can't be an alias: choose another",
      "sluice.yaml:11:29 > g > flow[4].namespace: namespaces are not supported: remove it (all filters of a pipeline work on the one packet)",
    ],
  ],
  [
    "jumps",
    `kind: Pipeline
name: g
flow:
- filter: a
  jumpIf:
    opened: END
    closed: nowhere
    ajar: c
    "": b
- filter: b
  jumpIf: { closed: a, ajar: b }
- filter: END
  jumpIf: { "": c }
- { filter: a, alias: c }
filters: [{ name: a, kind: Gate }, { name: b, kind: Gate }]
`,
    [
      'sluice.yaml:9:5 > g > flow[0].jumpIf.opened: Gate never returns "opened": its results are closed, ajar, and "" for success',
      'sluice.yaml:10:5 > g > flow[0].jumpIf.closed: no step of this flow is named "nowhere": jump to a later one, or to END',
      'sluice.yaml:14:13 > g > flow[1].jumpIf.closed: "a" is not later in the flow: a jump goes forwards only',
      'sluice.yaml:14:24 > g > flow[1].jumpIf.ajar: "b" is not later in the flow: a jump goes forwards only',
      "sluice.yaml:16:13 > g > flow[2].jumpIf.: END has no result to jump on: remove jumpIf",
    ],
  ],
  [
    "rules: unknown pipeline and packet type, one type twice, no when",
    `${gates}---\nkind: MQTTProxy\nname: p\nport: 1883\nrules:\n- { when: { packetType: Connect }, pipeline: gate }\n- { when: { packetType: Connect }, pipeline: gates }\n- { when: { packetType: Publsh }, pipeline: gates }\n- { pipeline: gates }\n`,
    [
      'sluice.yaml:12:36 > p > rules[0].pipeline: no Pipeline is named "gate"; did you mean "gates"?',
      "sluice.yaml:13:13 > p > rules[1].when.packetType: another rule is for Connect already: one packet type, one rule",
      'sluice.yaml:14:13 > p > rules[2].when.packetType: must be one of "Connect", "Publish", "Subscribe", "Unsubscribe", "Disconnect", not "Publsh"; did you mean "Publish"?',
      "sluice.yaml:15:3 > p > rules[3].when: is missing: Which packets the rule is for.",
    ],
  ],
  [
    "a filter that can't handle the packets of the rule",
    `${proxy}---\nkind: Pipeline\nname: gates\nfilters: [{ name: gate, kind: Gate }, { name: sink, kind: Sink, backend: [a] }]\n`,
    [
      'sluice.yaml:7:42 > proxy > rules[0].pipeline: pipeline "gates" can\'t be used for Connect packets: its filter "sink" (Sink) handles Publish only',
    ],
  ],
  [
    "one port twice, where a proxy without host has all addresses",
    `${gates}---\n${proxy}---\n${proxy.replace("name: proxy", "name: two\nhost: 127.0.0.1")}---\n${proxy.replace("name: proxy", "name: three\nhost: 127.0.0.2").replace("1883", "1884")}---\n${proxy.replace("name: proxy", "name: four\nhost: 127.0.0.3").replace("1883", "1884")}`,
    [
      'sluice.yaml:16:1 > two > port: 1883 is used by the MQTTProxy "proxy" already (sluice.yaml:8:1): give each its own',
    ],
  ],
  [
    "TLS without a certificate",
    `${gates}---\n${proxy}useTLS: true\n`,
    ["sluice.yaml:12:1 > proxy > useTLS: is true, but there is no certificate: give at least one under certificate"],
  ],
  [
    "problems of every document, and their parts, at once",
    "kind: Door\nname: d\nport: x\n---\nkind: MQTTProxy\nname: p\nport: 1\nrules: [{ when: { packetType: Connect }, pipeline: none }]\nbrokerMode: 1\n---\nkind: Pipeline\nname: g\nprotocol: TCP\nflow: 1\nfilters: [{ name: gate, kind: Gate, limit: 0 }, { name: b, kind: Nothing }]\n",
    [
      'sluice.yaml:6:1 > d > port: must be a whole number, not "x"',
      'sluice.yaml:11:42 > p > rules[0].pipeline: no Pipeline is named "none": write a Pipeline document of that name',
      "sluice.yaml:12:1 > p > brokerMode: must be true or false, not 1",
      'sluice.yaml:16:1 > g > protocol: "TCP" is not supported: write MQTT, or leave it out',
      "sluice.yaml:17:1 > g > flow: must be a list, not 1",
      "sluice.yaml:18:37 > g > gate > limit: must be at least 1, not 0",
      `sluice.yaml:18:60 > g > b > kind: no installed package provides the kind "Nothing": install the package that does (looked at the packages in ${join(fixtures, "plugins")})`,
    ],
  ],
];

describe("a config that is wrong", () => {
  for (const [name, yaml, expected] of bad) {
    test(name, async () => {
      const { problems, spec } = await load(yaml);
      assert.deepEqual(problems, expected);
      assert.equal(spec, undefined);
    });
  }

  test("an unknown kind that is nearly a known one", async () => {
    const { problems } = await load("kind: MqttProxi\nname: p\n---\nkind: Dor\nname: d\n");
    assert.match(
      problems[0]!,
      /^sluice\.yaml:4:1 > p > kind: no installed package provides the kind "MqttProxi"; did you mean "MQTTProxy"\?/,
    );
    assert.match(problems[1]!, /^sluice\.yaml:7:1 > d > kind: .*did you mean "Door"\?/);
  });

  test("a folder of plugins that is not there", async () => {
    const cwd = await folder({
      "sluice.yaml": "kind: Gateway\nplugins:\n  dirs:\n  - here\n  - nowhere\n",
      "here/x": "",
    });
    const { problems } = await loadSpec({ cwd, env: {}, bins: [] });
    assert.deepEqual(lines(problems), [
      `sluice.yaml:5:5 > gateway > plugins.dirs[1]: there is no folder ${join(cwd, "nowhere")}: name one that holds plugins`,
    ]);
  });

  test("a broken package in use stops it, with the package's own error and code", async () => {
    const cwd = await folder({
      "sluice.yaml": `${plugins("broken-plugins")}kind: Pipeline\nname: g\nfilters: [{ name: a, kind: Throws }, { name: b, kind: WrongApi }, { name: c, kind: DependencyMissing }]\n`,
    });
    const { problems } = await loadSpec({ cwd, env: {}, bins: [] });
    assert.deepEqual(
      problems.map(({ where, code }) => [where, code]),
      [
        ["sluice.yaml:6:22 > g > a > kind", "PLUGIN_BROKEN"],
        ["sluice.yaml:6:49 > g > b > kind", "PLUGIN_INCOMPATIBLE"],
        ["sluice.yaml:6:78 > g > c > kind", "PLUGIN_DEPENDENCY_MISSING"],
      ],
    );
  });

  test("a broken package that is not in use is a warning", async () => {
    const dirs = [join(fixtures, "plugins"), join(fixtures, "broken-plugins")];
    const cwd = await folder({
      "sluice.yaml": `kind: Gateway\nplugins: { dirs: ${JSON.stringify(dirs)} }\n---\n${gates}`,
    });
    const { spec, problems, warnings } = await loadSpec({ cwd, env: {}, bins: [] });
    assert.deepEqual(problems, []);
    assert.equal(spec?.pipelines[0]?.filters[0]?.kind.kind, "Gate");
    const wrongApi = warnings.find(({ code }) => code === "PLUGIN_INCOMPATIBLE");
    assert.equal(wrongApi?.where, join(fixtures, "broken-plugins/wrong-api"));
  });
});

describe("what Easegress forgives", () => {
  test("is accepted with a warning each", async () => {
    const { spec, problems, warnings } = await load(
      `kind: MQTTProxy
name: p
version: easegress.megaease.com/v2
labels: { a: b }
createdAt: 2024-01-01
Port: 0
brokermode: true
RetryInterval: 0
topicCacheSize: -1
rules:
- When: { packettype: Connect }
  pipeline: g
---
kind: Pipeline
Name: g
resilience:
- { name: retry, kind: Retry }
filters:
- Name: gate
  Kind: Gate
  LIMIT: 4
  version: v2
`,
    );
    assert.deepEqual(problems, []);
    assert.deepEqual(warnings, [
      "sluice.yaml:6:1 > p > version: is ignored: it has no meaning here",
      "sluice.yaml:7:1 > p > labels: is ignored: it has no meaning here",
      "sluice.yaml:8:1 > p > createdAt: is ignored: it has no meaning here",
      'sluice.yaml:9:1 > p > port: is written "Port": write "port"',
      "sluice.yaml:9:1 > p > port: is 0: any free port is taken, another one at each start",
      'sluice.yaml:10:1 > p > brokerMode: is written "brokermode": write "brokerMode"',
      'sluice.yaml:11:1 > p > retryInterval: is written "RetryInterval": write "retryInterval"',
      "sluice.yaml:11:1 > p > retryInterval: is 0: 30 is used",
      "sluice.yaml:12:1 > p > topicCacheSize: is -1: 100000 is used",
      'sluice.yaml:14:3 > p > rules[0].when: is written "When": write "when"',
      'sluice.yaml:14:11 > p > rules[0].when.packetType: is written "packettype": write "packetType"',
      'sluice.yaml:18:1 > g > name: is written "Name": write "name"',
      "sluice.yaml:19:1 > g > resilience: is ignored: its policies are for HTTP backends",
      'sluice.yaml:22:3 > g > filters[0].name: is written "Name": write "name"',
      'sluice.yaml:23:3 > g > filters[0].kind: is written "Kind": write "kind"',
      'sluice.yaml:24:3 > g > gate > limit: is written "LIMIT": write "limit"',
      "sluice.yaml:25:3 > g > gate > version: is ignored: it has no meaning here",
    ]);
    const only = spec?.proxies[0];
    assert.deepEqual(
      [only?.port, only?.brokerMode, only?.retryInterval, only?.topicCacheSize, only?.rules],
      [0, true, 30, 100_000, { Connect: "g" }],
    );
    assert.deepEqual(spec?.pipelines[0]?.filters[0]?.options, { limit: 4, pattern: ".*", strict: false, mode: "open" });
  });

  test("a proxy that asks nobody for a password, and a config without a proxy, are worth a warning", async () => {
    const open = await load("kind: MQTTProxy\nname: p\nport: 1883\n");
    assert.deepEqual(open.warnings, [
      "sluice.yaml:4:1 > p: has no rule for Connect packets: everybody may connect, without a password",
    ]);
    const none = await load(gates);
    assert.deepEqual(none.warnings, ["sluice.yaml:1:1: the config has no MQTTProxy document: no device can connect"]);
    assert.notEqual(none.spec, undefined);
  });

  test("merge keys and anchors, with positions in what was merged", async () => {
    const { spec, problems } = await load(
      "kind: Pipeline\nname: g\ndata: { base: &base { limit: 5 } }\nfilters:\n- { name: a, kind: Gate, <<: *base }\n- { name: b, kind: Gate, <<: { limit: 0 } }\n",
    );
    assert.equal(spec, undefined);
    assert.deepEqual(problems, ["sluice.yaml:9:32 > g > b > limit: must be at least 1, not 0"]);
  });
});

describe("implied documents", () => {
  const distribution = () =>
    folder({
      "package.json": JSON.stringify({
        name: "distribution",
        dependencies: { "fixture-filters": "1" },
        sluice: { implied: [{ kind: "Door", name: "implied-door" }] },
      }),
      "bin.js": "",
      "node_modules/fixture-filters/package.json": JSON.stringify({
        name: "fixture-filters",
        type: "module",
        engines: { sluice: "*" },
        sluice: { kinds: { Door: { family: "service", entry: "./door.js", schema: "./schema.json" } } },
      }),
      "node_modules/fixture-filters/schema.json": '{ "type": "object", "properties": { "port": { "default": 1 } } }',
      "node_modules/fixture-filters/door.js": 'export default { kind: "Door", create: () => ({}) };',
    });

  test("are added to a config that has none of their kind, and replaced by any that it has", async () => {
    const bins = [join(await distribution(), "bin.js")];
    const without = await loadSpec({ cwd: await folder({ "sluice.yaml": "kind: Gateway\n" }), env: {}, bins });
    assert.deepEqual(lines(without.problems), []);
    assert.deepEqual(
      without.spec?.services.map(({ name, options }) => [name, options]),
      [["implied-door", { port: 1 }]],
    );
    const own = await loadSpec({
      cwd: await folder({ "sluice.yaml": "kind: Door\nname: mine\nport: 2\n" }),
      env: {},
      bins,
    });
    assert.deepEqual(
      own.spec?.services.map(({ name, options }) => [name, options]),
      [["mine", { port: 2 }]],
    );
  });
});
