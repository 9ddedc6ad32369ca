/** What is published, installed as a stranger would, does its job: JavaScript only, no workspace, no private door. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import mqtt from "mqtt";
import rootManifest from "../../package.json" with { type: "json" };
import { createProject, runSuites, takeAnyApiPort, type Installation } from "../helpers/installation.ts";
import { env, packAll, readManifest, run, startRegistry, type Published, type Registry } from "../helpers/published.ts";

const root = join(import.meta.dirname, "../..");
const bundled = Object.keys(rootManifest.dependencies);
const plugins = bundled.filter((name) => name !== "@sluice/kernel");

let published: Published;
let registry: Registry;
before(
  async () => {
    published = await packAll();
    registry = await startRegistry(published);
  },
  { timeout: 120_000 },
);
after(async () => {
  await registry.close();
  await published.remove();
});

test("the distribution and every package of it are packed", () => {
  assert.ok(bundled.length >= 6);
  assert.deepEqual(published.names, ["sluice", ...bundled].toSorted());
});

for (const name of ["sluice", ...bundled]) {
  test(`${name}: the manifest names JavaScript that is in the tarball, and released versions`, async () => {
    const folder = published.unpacked(name);
    const manifest = await readManifest(folder);
    const entries = [
      ...Object.values(manifest.exports ?? {}),
      ...Object.values(manifest.bin ?? {}),
      ...Object.values(manifest.sluice?.commands ?? {}),
      ...Object.values(manifest.sluice?.kinds ?? {}).flatMap(({ entry, schema }) => [entry, schema]),
    ];
    assert.ok(entries.length > 0);
    for (const entry of entries) assert.ok(existsSync(join(folder, entry)), `${entry} is in the tarball`);
    assert.deepEqual(
      Object.keys(manifest.bin ?? {}),
      name === "sluice" ? ["sluice"] : [],
      "one package has the command",
    );

    const text = JSON.stringify(manifest);
    assert.doesNotMatch(text, /(?<!\.d)\.ts"/);
    assert.doesNotMatch(text, /workspace:|"private"/);
    for (const [dependency, version] of Object.entries({ ...manifest.dependencies, ...manifest.devDependencies })) {
      assert.match(version, /^\d+\.\d+\.\d+$/, dependency);
    }

    const files = await readdir(folder, { recursive: true });
    const isExpected = /(\.js|\.d\.ts|\.json|^LICENSE|^README\.md|^dist(\/cli)?)$/;
    const isDocumentation = /^(CHANGELOG\.md|docs(\/[\w-]+\.md)?|config(\/examples)?(\/[\w-]+\.yaml)?)$/;
    const strange = files.filter(
      (file) => !isExpected.test(file) && !(name === "sluice" && isDocumentation.test(file)),
    );
    assert.deepEqual(strange, []);
    assert.ok(files.includes("LICENSE"));
  });
}

const everyKind = [
  "kind: MQTTProxy\nname: proxy\nport: 0\nrules: [{ when: { packetType: Connect }, pipeline: all }]",
  "kind: AdminAPI\nname: api\nport: 0",
  `kind: Pipeline
name: all
filters:
  - { name: auth, kind: MQTTClientAuth, auth: [{ username: a, saltedSha256Pass: "${"0".repeat(64)}" }] }
  - { name: control, kind: ConnectControl, bannedClients: [b] }
  - { name: mapper, kind: TopicMapper, matchIndex: 0, route: [], policies: [], setKV: { topic: t, headers: h } }
  - { name: kafka, kind: KafkaMQTT, backend: ["127.0.0.1:9"], topic: { default: a }, mqtt: {} }
  - { name: file, kind: FileMQTT, topic: { default: a } }
`,
].join("\n---\n");

describe("installed with npm", () => {
  let site: Installation;
  before(
    async () => {
      site = await createProject("npm", registry);
      await site.add("sluice");
      await takeAnyApiPort(site.home);
      await writeFile(join(site.home, "all.yaml"), everyKind);
    },
    { timeout: 180_000 },
  );
  after(() => site.remove());

  test("nothing of it is TypeScript, or lies outside of the project", async () => {
    const files = await readdir(join(site.home, "node_modules/@sluice"), { recursive: true, withFileTypes: true });
    assert.ok(files.length > 100);
    const sources = files.filter(({ name }) => /(?<!\.d)\.[cm]?ts$/.test(name)).map(({ name }) => name);
    assert.deepEqual(sources, []);
    assert.deepEqual(
      files.filter((file) => file.isSymbolicLink()),
      [],
    );
  });

  test("sluice --version is the kernel's", async () => {
    const { version } = await readManifest(published.unpacked("@sluice/kernel"));
    assert.equal((await site.sluice("--version")).trim(), version);
  });

  test("sluice --help lists the commands of the installed plugins", async () => {
    const help = await site.sluice("--help");
    for (const name of bundled) {
      const { sluice: plugin } = await readManifest(published.unpacked(name));
      for (const command of Object.keys(plugin?.commands ?? {})) assert.match(help, new RegExp(`^ +${command} `, "m"));
    }
  });

  test("every kind's entry is loaded by sluice check", async () => {
    for (const name of bundled) {
      const { sluice: plugin } = await readManifest(published.unpacked(name));
      for (const kind of Object.keys(plugin?.kinds ?? {})) assert.match(everyKind, new RegExp(`kind: ${kind}\\b`));
    }
    await site.sluice("check", "-c", "all.yaml");
  });

  test("sluice run takes a message to the record that sluice tail shows", { timeout: 30_000 }, async (t) => {
    await run("mkdir", ["config"], site.home);
    await run("cp", ["node_modules/sluice/config/sluice.yaml", "config/"], site.home);
    const child = spawn(join(site.home, "node_modules/.bin/sluice"), ["run", "-c", "config/sluice.yaml"], {
      cwd: site.home,
      env: { ...env, SLUICE_MQTT_PORT: "0" },
      stdio: ["ignore", "ignore", "pipe"],
    });
    const exited = once(child, "exit");
    t.after(() => child.kill("SIGKILL"));
    // Read to its end, so that the pipe never fills up.
    const lines = createInterface({ input: child.stderr });
    const port = await new Promise<string | undefined>((resolve) => {
      lines.on("line", (line) => {
        const found = /^mqttproxy listens on .*:(\d+)/.exec(line)?.[1];
        if (found !== undefined) resolve(found);
      });
      lines.once("close", () => resolve(undefined));
    });
    assert.ok(port, "it listens");
    const client = await mqtt.connectAsync(`mqtt://127.0.0.1:${port}`, {
      clientId: "dev1",
      username: "test",
      password: "test",
      reconnectPeriod: 0,
    });
    await client.publishAsync("gateway/gate123/iphone/log", "hi", { qos: 1 });
    await client.endAsync();
    const record = JSON.parse(await site.sluice("tail", "-c", "config/sluice.yaml", "--json", "iot_phone")) as object;
    assert.deepEqual(
      { ...record, timestamp: 0 },
      {
        topic: "iot_phone",
        key: "dev1",
        headers: {
          clientID: "dev1",
          username: "test",
          mqttTopic: "gateway/gate123/iphone/log",
          gateway: "gateway",
          gatewayID: "gate123",
          device: "iphone",
          status: "log",
        },
        value: "hi",
        encoding: "utf8",
        timestamp: 0,
        offset: 0,
      },
    );
    child.kill("SIGTERM");
    assert.deepEqual(await exited, [0, null]);
  });

  test("a plugin's author gets the types of the plugin API", async () => {
    const source = `import type { FilterKind } from "@sluice/kernel";
const kind: FilterKind<{ loud: boolean }> = {
  kind: "Shout",
  packets: ["Publish"],
  results: [],
  create: (config) => ({ handle: (ctx) => (ctx.type === "Publish" && config.loud ? ctx.drop() : undefined) }),
};
export default kind;
`;
    await writeFile(join(site.home, "shout.ts"), source);
    const options = ["--noEmit", "--strict", "--target", "es2024", "--module", "nodenext", "--types", "node"];
    const types = ["--typeRoots", join(root, "node_modules/@types")];
    await run("tsc", [...options, ...types, "shout.ts"], site.home);
    await writeFile(join(site.home, "shout.ts"), source.replace("config.loud", "config.quiet"));
    await assert.rejects(run("tsc", [...options, ...types, "shout.ts"], site.home));
  });

  test("the bundled plugins removed, and installed as anybody's: the gateway passes end-to-end suites", async (t) => {
    for (const name of plugins) await rm(join(site.home, "node_modules", name), { recursive: true });
    const failure = await site.problems("all.yaml");
    for (const kind of ["AdminAPI", "MQTTClientAuth", "ConnectControl", "TopicMapper", "KafkaMQTT", "FileMQTT"])
      assert.match(failure, new RegExp(`no installed package provides the kind "${kind}"`));
    await site.add(...plugins.map((name) => published.tarball(name)));
    await takeAnyApiPort(site.home);
    await site.sluice("check", "-c", "all.yaml");
    const suites = ["connect", "drain", "http", "pipeline", "publish"];
    const { pass, skipped } = await runSuites(
      site.home,
      suites.map((name) => `test/e2e/${name}.test.ts`),
    );
    t.diagnostic(`${pass} tests passed`);
    assert.ok(pass > 60);
    assert.equal(skipped, 0);
  });
});
