import assert from "node:assert/strict";
import { mkdir, mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { broken, gates, plugins, proxy } from "../fixtures/broken-configs.ts";
import { loadSpec, type LoadedSpec } from "../../kernel/config.ts";

const fixtures = join(import.meta.dirname, "../fixtures");

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
      listeners: [
        {
          name: "default",
          address: { host: undefined, port: 1883 },
          proxyProtocol: false,
          tls: undefined,
          webSocket: undefined,
        },
      ],
      topicCacheSize: 100_000,
      maxAllowedConnection: 0,
      connectionLimit: undefined,
      clientPublishLimit: undefined,
      presence: undefined,
      onPoison: "close",
      deadLetter: undefined,
      sysInterval: 0,
      rules: { Connect: "gates" },
      brokerMode: false,
      retryInterval: 30,
      maxPacketBytes: 1_048_576,
      maxInWork: 1000,
      maxInWorkBytes: 8_388_608,
      maxInflight: 256,
      maxQos: 2,
      maxSessionExpiry: 4_294_967_295,
      maxKeepAlive: 0,
      topicAliasMaximum: 32,
      checkPayloadFormat: false,
      v5FaultAck: "none",
      responseInformation: undefined,
      queue: { maxMessages: 100_000, maxBytes: 67_108_864, maxTotalBytes: 1_073_741_824, onFull: "dropOldest" },
      retained: { maxMessages: 100_000, maxBytes: 67_108_864 },
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
      plugins: { dirs: [join(fixtures, "plugins")], allow: undefined, deny: [], strict: false },
      drain: { timeoutMs: 10_000, rate: 1000, serverReference: undefined },
      workers: 1,
      history: 20,
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

describe("a config that is wrong", () => {
  for (const [name, yaml, expected] of broken) {
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
      [only?.listeners[0]?.address, only?.brokerMode, only?.retryInterval, only?.topicCacheSize, only?.rules],
      [{ host: undefined, port: 0 }, true, 30, 100_000, { Connect: "g" }],
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
