/** What is published, installed from its tarballs as a stranger would, does its job: JavaScript only, no workspace. */
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { copyFile, mkdir, mkdtemp, readdir, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import mqtt from "mqtt";
import rootManifest from "../../package.json" with { type: "json" };

const run = promisify(execFile);
const root = join(import.meta.dirname, "../..");
const bins = join(root, "node_modules/.bin");
/** The node that runs the tests is the one that `#!/usr/bin/env node` finds. */
const env = { ...process.env, PATH: [dirname(process.execPath), bins, process.env["PATH"]].join(delimiter) };

interface Manifest {
  readonly name: string;
  readonly version: string;
  readonly bin?: Record<string, string>;
  readonly exports: Record<string, string>;
  readonly dependencies?: Record<string, string>;
  readonly devDependencies?: Record<string, string>;
  readonly sluice?: {
    readonly kinds?: Record<string, { entry: string; schema: string }>;
    readonly commands?: Record<string, string>;
  };
}

const names = Object.keys(rootManifest.dependencies).filter((name) => name.startsWith("@sluice/"));
let home: string;
const tarballs = new Map<string, string>();

before(
  async () => {
    home = await realpath(await mkdtemp(join(tmpdir(), "sluice-pack-")));
    await run("npm", ["run", "--silent", "build"], { cwd: root, env });
    // Of the packages that the distribution names, so that one that is added is packed here too.
    const filters = names.flatMap((name) => ["--filter", name]);
    const pnpm = ["--yes", rootManifest.packageManager, "--recursive", ...filters];
    await run("npx", [...pnpm, "pack", "--pack-destination", join(home, "tarballs")], { cwd: root, env });
    for (const file of await readdir(join(home, "tarballs"))) {
      const unpacked = join(home, "unpacked", file);
      await mkdir(unpacked, { recursive: true });
      await run("tar", ["-xzf", join(home, "tarballs", file), "-C", unpacked]);
      tarballs.set((await readManifest(join(unpacked, "package"))).name, file);
    }
  },
  { timeout: 120_000 },
);
after(() => rm(home, { recursive: true, force: true }));

async function readManifest(folder: string): Promise<Manifest> {
  return JSON.parse(await readFile(join(folder, "package.json"), "utf8")) as Manifest;
}

const unpackedFolder = (name: string): string => join(home, "unpacked", tarballs.get(name) ?? "", "package");

test("every package of the distribution is packed", () => {
  assert.ok(names.length >= 6);
  assert.deepEqual([...tarballs.keys()].sort(), names.toSorted());
});

for (const name of names) {
  test(`${name}: the manifest names JavaScript that is in the tarball, and released versions`, async () => {
    const folder = unpackedFolder(name);
    const manifest = await readManifest(folder);
    const entries = [
      ...Object.values(manifest.exports),
      ...Object.values(manifest.bin ?? {}),
      ...Object.values(manifest.sluice?.commands ?? {}),
      ...Object.values(manifest.sluice?.kinds ?? {}).flatMap(({ entry, schema }) => [entry, schema]),
    ];
    assert.ok(entries.length > 1);
    for (const entry of entries) assert.ok(existsSync(join(folder, entry)), `${entry} is in the tarball`);

    const text = JSON.stringify(manifest);
    assert.doesNotMatch(text, /(?<!\.d)\.ts"/);
    assert.doesNotMatch(text, /workspace:/);
    for (const [dependency, version] of Object.entries({ ...manifest.dependencies, ...manifest.devDependencies })) {
      assert.match(version, /^\d+\.\d+\.\d+$/, dependency);
    }

    const files = await readdir(folder, { recursive: true });
    const strange = files.filter((file) => !/(\.js|\.d\.ts|\.json|^LICENSE|^README\.md|^dist(\/cli)?)$/.test(file));
    assert.deepEqual(strange, []);
    assert.ok(files.includes("LICENSE"));
  });
}

describe("installed with npm", () => {
  before(
    async () => {
      const dependencies = Object.fromEntries([...tarballs].map(([name, file]) => [name, `file:tarballs/${file}`]));
      // What the distribution adds to its packages: the documents that are implied.
      const implied = rootManifest.sluice.implied.map((document) => ({ ...document, port: 0 }));
      await writeFile(
        join(home, "package.json"),
        JSON.stringify({ name: "stranger", private: true, dependencies, overrides: dependencies, sluice: { implied } }),
      );
      await mkdir(join(home, "config"));
      await copyFile(join(root, "config/sluice.yaml"), join(home, "config/sluice.yaml"));
      const options = ["--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
      await run("npm", ["install", ...options], { cwd: home, env });
    },
    { timeout: 180_000 },
  );

  const sluice = async (...args: string[]): Promise<string> =>
    (await run(join(home, "node_modules/.bin/sluice"), args, { cwd: home, env })).stdout;

  test("sluice --version is the kernel's", async () => {
    const { version } = await readManifest(unpackedFolder("@sluice/kernel"));
    assert.equal((await sluice("--version")).trim(), version);
  });

  test("sluice --help lists the commands of the installed plugins", async () => {
    const help = await sluice("--help");
    for (const name of names) {
      const { sluice: plugin } = await readManifest(unpackedFolder(name));
      for (const command of Object.keys(plugin?.commands ?? {})) assert.match(help, new RegExp(`^ +${command} `, "m"));
    }
  });

  test("every kind's entry is loaded by sluice check", async () => {
    const documents = [
      "kind: MQTTProxy\nname: proxy\nport: 0\nrules: [{ when: { packetType: Connect }, pipeline: all }]",
      "kind: AdminAPI\nname: api\nport: 0",
      "kind: LevelStore\nname: sessions",
      `kind: Pipeline
name: all
filters:
  - { name: auth, kind: MQTTClientAuth, auth: [{ username: a, saltedSha256Pass: "${"0".repeat(64)}" }] }
  - { name: control, kind: ConnectControl, bannedClients: [b] }
  - { name: mapper, kind: TopicMapper, matchIndex: 0, route: [], policies: [], setKV: { topic: t, headers: h } }
  - { name: kafka, kind: KafkaMQTT, backend: ["127.0.0.1:9"], topic: { default: a }, mqtt: {} }
  - { name: file, kind: FileMQTT, topic: { default: a } }
`,
    ];
    const text = documents.join("\n---\n");
    for (const name of names) {
      const { sluice: plugin } = await readManifest(unpackedFolder(name));
      for (const kind of Object.keys(plugin?.kinds ?? {})) assert.match(text, new RegExp(`kind: ${kind}\\b`));
    }
    await writeFile(join(home, "all.yaml"), text);
    await sluice("check", "-c", "all.yaml");
    // The same in threads of their own.
    await writeFile(join(home, "all.yaml"), text.replaceAll(/(?<=^ {2}- \{)/gm, " isolate: worker,"));
    await sluice("check", "-c", "all.yaml");
  });

  test("sluice run takes a message to the record that sluice tail shows", { timeout: 30_000 }, async (t) => {
    const child = spawn(join(home, "node_modules/.bin/sluice"), ["run", "-c", "config/sluice.yaml"], {
      cwd: home,
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
    const record = JSON.parse(await sluice("tail", "-c", "config/sluice.yaml", "--json", "iot_phone")) as object;
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
    await writeFile(join(home, "shout.ts"), source);
    const options = ["--noEmit", "--strict", "--target", "es2024", "--module", "nodenext", "--types", "node"];
    const types = ["--typeRoots", join(root, "node_modules/@types")];
    await run(join(bins, "tsc"), [...options, ...types, "shout.ts"], { cwd: home, env });
    await writeFile(join(home, "shout.ts"), source.replace("config.loud", "config.quiet"));
    await assert.rejects(run(join(bins, "tsc"), [...options, ...types, "shout.ts"], { cwd: home, env }));
  });
});
