/** Every way in which a plugin can be broken, at a gateway at work: each is told in its own words, and nothing is touched. */
import assert from "node:assert/strict";
import { mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import mqtt, { type MqttClient } from "mqtt";
import { isLong } from "../helpers/long-test.ts";
import { sluice, snapshot } from "../helpers/sluice.ts";
import { spawnGateway, type SpawnedGateway } from "../helpers/spawned-gateway.ts";

const fixtures = join(import.meta.dirname, "../fixtures");
const gallery = join(fixtures, "broken-plugins");

const proxy =
  "kind: MQTTProxy\nname: mqttproxy\nhost: 127.0.0.1\nport: 0\nbrokerMode: true\n---\nkind: AdminAPI\nname: admin-api\nport: 0\n";

interface Running {
  readonly folder: string;
  readonly gateway: SpawnedGateway;
  /** Fails where anything of the gateway has changed since it was started, or its client was disconnected. */
  assertUntouched(): Promise<void>;
  stop(): Promise<void>;
}

async function start(config: string): Promise<Running> {
  const folder = await realpath(await mkdtemp(join(tmpdir(), "sluice-gallery-")));
  await writeFile(join(folder, "sluice.yaml"), config);
  const gateway = await spawnGateway(join(folder, "sluice.yaml"));
  const client: MqttClient = await mqtt.connectAsync(`mqtt://127.0.0.1:${gateway.port}`, { reconnectPeriod: 0 });
  let closed = 0;
  client.on("close", () => closed++);
  await client.subscribeAsync("echo", { qos: 1 });
  let rounds = 0;
  return {
    folder,
    gateway,
    async assertUntouched() {
      const sent = `round ${++rounds}`;
      const echoed = new Promise((resolve) => client.once("message", (_, payload) => resolve(payload.toString())));
      await client.publishAsync("echo", sent, { qos: 1 });
      assert.equal(await echoed, sent);
      assert.equal(closed, 0, "the client was disconnected");
      const history = (await (await fetch(`${gateway.api}/apis/v2/history`)).json()) as { version: number }[];
      assert.deepEqual(
        history.map(({ version }) => version),
        [1],
      );
    },
    async stop() {
      await client.endAsync(true);
      await gateway.stop();
      await rm(folder, { recursive: true });
    },
  };
}

/** Folder -> code and message of `plugin add`. */
const added: Record<string, [code: string, message: RegExp]> = {
  "bad-discards": [
    "PLUGIN_BROKEN",
    /the default export of broken-bad-discards\/index\.js has discards that are not among its results/,
  ],
  "bad-node-range": ["PLUGIN_BROKEN", /engines\.node in its package\.json \(newest\) is no range of versions/],
  "bad-packets": ["PLUGIN_BROKEN", /has no list packets of Connect, Publish/],
  "bad-range": ["PLUGIN_BROKEN", /no valid engines\.sluice \(newest\)/],
  "bad-results": ["PLUGIN_BROKEN", /has no list results of distinct names/],
  "command-missing": ["PLUGIN_BROKEN", /sluice\.commands\.lost \(\.\/lost\.js\) does not exist in the package/],
  "command-without-run": [
    "PLUGIN_BROKEN",
    /the command "idle" of the package broken-command-without-run has no default export with run and help/,
  ],
  "dependency-missing": ["PLUGIN_INSTALL_FAILED", /npm install failed: .*a-package-that-nobody-has/],
  "dependency-unlisted": [
    "PLUGIN_DEPENDENCY_MISSING",
    /needs the package "a-package-that-nobody-lists", which is not installed/,
  ],
  "endless-loop": ["PLUGIN_START_TIMEOUT", /did not finish importing within 10 s: it is in an endless loop/],
  "entry-missing": [
    "PLUGIN_BROKEN",
    /sluice\.kinds\.EntryMissing\.entry \(\.\/lost\.js\) does not exist in the package/,
  ],
  "entry-outside": ["PLUGIN_BROKEN", /entry \(\.\.\/throws\/index\.js\) lies outside the package/],
  exits: ["PLUGIN_BROKEN", /broken-exits ended the process that imported it, with exit code 3/],
  "file-missing": ["PLUGIN_BROKEN", /FileMissing of the package broken-file-missing failed while .*lost\.js/],
  "kernel-kind": ["PLUGIN_BROKEN", /provides the kind Pipeline, which is the kernel's own: rename it/],
  "keyword-only": ["PLUGIN_BROKEN", /has the keyword sluice-plugin and no "sluice": \{"kinds": \{\.\.\.\}\}/],
  "kind-name": ["PLUGIN_BROKEN", /"Kind#Name" in sluice\.kinds of its package\.json is no name for a kind/],
  "kind-text": [
    "PLUGIN_BROKEN",
    /sluice\.kinds\.KindText in its package\.json is not a map with family, entry and schema/,
  ],
  "kinds-list": ["PLUGIN_BROKEN", /sluice\.kinds in its package\.json is not a map of kinds/],
  "never-resolves": [
    "PLUGIN_START_TIMEOUT",
    /did not finish importing within 10 s: .*index\.js waits for something at its top level/,
  ],
  "no-create": ["PLUGIN_BROKEN", /has no function create/],
  "no-default": ["PLUGIN_BROKEN", /is missing or not an object/],
  "no-engines": ["PLUGIN_BROKEN", /no valid engines\.sluice \(missing\)/],
  "no-family": [
    "PLUGIN_BROKEN",
    /sluice\.kinds\.NoFamily\.family in its package\.json is missing: it must be "filter" or "service"/,
  ],
  "no-kinds": ["PLUGIN_BROKEN", /lists no kinds and no commands under sluice/],
  "not-json": ["PLUGIN_INSTALL_FAILED", /npm pack failed: .*JSON/],
  "other-kind": ["PLUGIN_BROKEN", /says kind "AnotherKind" where the manifest says "OtherKind"/],
  "schema-faulty": ["PLUGIN_BROKEN", /the schema of SchemaFaulty does not compile/],
  "schema-missing": ["PLUGIN_BROKEN", /schema \(\.\/lost\.json\) does not exist/],
  "schema-not-json": [
    "PLUGIN_BROKEN",
    /the schema of SchemaNotJson \(broken-schema-not-json\/schema\.json\) can't be read/,
  ],
  "schema-not-map": ["PLUGIN_BROKEN", /must describe a map/],
  "syntax-error": [
    "PLUGIN_BROKEN",
    /SyntaxFault of the package broken-syntax-error failed while .*index\.js was imported/,
  ],
  throws: ["PLUGIN_BROKEN", /failed while broken-throws\/index\.js was imported: no luck today/],
  typescript: ["PLUGIN_BROKEN", /entry is TypeScript \(broken-typescript\/index\.ts\), .*must ship JavaScript/],
  "wrong-api": ["PLUGIN_INCOMPATIBLE", /needs plugin API \^2\.0\.0, and this gateway has 1\.\d\.0: install/],
  "wrong-node": ["PLUGIN_INCOMPATIBLE", /needs Node\.js >=99, and this is \d+\.\d+\.\d+: install/],
};

describe("sluice plugin add beside a running gateway", () => {
  let running: Running;
  let then: Record<string, string>;
  const messages = new Map<string, string>();
  before(async () => {
    running = await start(proxy);
    then = await snapshot(running.folder);
  });
  after(() => running.stop());

  /** No registry is asked: what it would say of a package that nobody has depends on the network. */
  const refused = async (source: string): Promise<string> => {
    const env = { npm_config_offline: "true" };
    const { code, stdout, stderr } = await sluice(running.folder, ["plugin", "add", source], { env });
    assert.deepEqual([code, stdout], [1, ""]);
    assert.deepEqual(await snapshot(running.folder), then);
    return stderr;
  };

  // Each is a run of npm: the short form tries every third, and none that is waited for.
  const tried = Object.entries(added).filter(
    ([, [code]], index) => isLong || (index % 3 === 0 && code !== "PLUGIN_START_TIMEOUT"),
  );
  for (const [name, [code, message]] of tried) {
    test(name, async () => {
      const stderr = await refused(join(gallery, name));
      assert.match(stderr, message);
      assert.match(stderr, new RegExp(`^sluice plugin add: .* \\(${code}\\)\n$`, "s"));
      messages.set(name, stderr.replaceAll(/broken-[a-z-]+|[A-Z][A-Za-z]+(?= of| \(|\.)/g, ""));
    });
  }

  test("a package that is no plugin", async () => {
    assert.match(
      await refused(join(fixtures, "plugins/not-a-plugin")),
      /is no plugin: its package\.json has no "sluice"/,
    );
  });

  test("a tarball that is none", async () => {
    await writeFile(join(running.folder, "torn.tgz"), "no tarball");
    then = await snapshot(running.folder);
    assert.match(
      await refused("./torn.tgz"),
      /npm install failed: .*TAR_BAD_ARCHIVE|npm install failed: .*\(PLUGIN_INSTALL_FAILED\)/,
    );
  });

  test("no two of them read the same, and the gateway has noticed nothing", async () => {
    assert.ok(tried.length >= (isLong ? 30 : 10));
    assert.equal(messages.size, tried.length);
    assert.equal(new Set(messages.values()).size, messages.size);
    await running.assertUntouched();
    assert.equal(await running.gateway.metric("sluice_config_reloads_total"), 1);
  });
});

/** Kind -> what the reload says, where a config names it and its package lies in plugins.dirs. */
const named: Record<string, [code: string, message: RegExp]> = {
  BadDiscards: ["PLUGIN_BROKEN", /has discards that are not among its results/],
  BadNodeRange: ["PLUGIN_BROKEN", /engines\.node in its package\.json \(newest\)/],
  BadPackets: ["PLUGIN_BROKEN", /has no list packets of/],
  BadRange: ["PLUGIN_BROKEN", /no valid engines\.sluice \(newest\)/],
  BadResults: ["PLUGIN_BROKEN", /has no list results of distinct names/],
  DependencyMissing: ["PLUGIN_DEPENDENCY_MISSING", /needs the package "a-package-that-nobody-has"/],
  DependencyUnlisted: ["PLUGIN_DEPENDENCY_MISSING", /needs the package "a-package-that-nobody-lists"/],
  EntryMissing: ["PLUGIN_BROKEN", /entry \(\.\/lost\.js\) does not exist/],
  EntryOutside: ["PLUGIN_BROKEN", /lies outside the package/],
  FileMissing: ["PLUGIN_BROKEN", /failed while .*lost\.js/],
  KindText: ["PLUGIN_BROKEN", /is not a map with family, entry and schema/],
  NeverResolves: ["PLUGIN_START_TIMEOUT", /did not finish importing within 10 s/],
  NoCreate: ["PLUGIN_BROKEN", /has no function create/],
  NoDefault: ["PLUGIN_BROKEN", /is missing or not an object/],
  NoEngines: ["PLUGIN_BROKEN", /no valid engines\.sluice \(missing\)/],
  NoFamily: ["PLUGIN_BROKEN", /NoFamily\.family in its package\.json is missing/],
  OtherKind: ["PLUGIN_BROKEN", /says kind "AnotherKind"/],
  SchemaFaulty: ["PLUGIN_BROKEN", /does not compile/],
  SchemaMissing: ["PLUGIN_BROKEN", /schema \(\.\/lost\.json\) does not exist/],
  SchemaNotJson: ["PLUGIN_BROKEN", /can't be read/],
  SchemaNotMap: ["PLUGIN_BROKEN", /must describe a map/],
  SyntaxFault: ["PLUGIN_BROKEN", /broken-syntax-error failed while/],
  Throws: ["PLUGIN_BROKEN", /no luck today/],
  Twice: [
    "PLUGIN_DUPLICATE_KIND",
    /two packages provide the kind Twice: .*write "broken-duplicate-a#Twice" or "broken-duplicate-b#Twice"/,
  ],
  WrongApi: ["PLUGIN_INCOMPATIBLE", /needs plugin API \^2\.0\.0/],
  WrongNode: ["PLUGIN_INCOMPATIBLE", /needs Node\.js >=99/],
};

describe("a config that names them, saved beside a running gateway", () => {
  const withDirs = (more = ""): string => `kind: Gateway\nplugins: { dirs: [${gallery}] }\n---\n${proxy}${more}`;
  let running: Running;
  before(async () => {
    running = await start(withDirs());
  });
  after(() => running.stop());

  for (const [kind, [code, message]] of Object.entries(named)) {
    if (code === "PLUGIN_START_TIMEOUT" && !isLong) continue;
    test(kind, async () => {
      const { gateway, folder } = running;
      const from = gateway.logs.length;
      await writeFile(
        join(folder, "sluice.yaml"),
        withDirs(`---\nkind: Pipeline\nname: p\nfilters:\n  - { name: f, kind: ${kind} }\n`),
      );
      assert.equal((await gateway.reloaded(from)).msg, "The config was not changed");
      const [first, ...more] = gateway.logs.slice(from).filter((line) => "where" in line && line.level >= 50);
      assert.deepEqual(more, []);
      assert.equal(first?.["code"], code);
      assert.match(String(first?.["where"]), /sluice\.yaml:17:16 > p > f > kind$/);
      assert.match(first?.msg ?? "", message);
      await running.assertUntouched();
    });
  }
});
