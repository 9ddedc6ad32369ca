/** What is published, installed as a stranger would, does its job: JavaScript only, no workspace, no private door. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test, type TestContext } from "node:test";
import mqtt from "mqtt";
import rootManifest from "../../package.json" with { type: "json" };
import { configsOf } from "../helpers/every-kind.ts";
import { createProject, runSuites, takeAnyApiPort, type Installation } from "../helpers/installation.ts";
import { longTest } from "../helpers/long-test.ts";
import { parsePage } from "../helpers/markdown.ts";
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
  const kit = ["@sluice/testkit", "create-sluice-plugin"];
  assert.deepEqual(published.names, ["sluice", ...bundled, ...kit].toSorted());
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

/** All that the bundled packages provide. */
async function kindsOf(...names: readonly string[]): Promise<string[]> {
  const manifests = await Promise.all(names.map((name) => readManifest(published.unpacked(name))));
  return manifests.flatMap(({ sluice }) => Object.keys(sluice?.kinds ?? {}));
}

interface Started {
  /** `mqtt://127.0.0.1:port` */
  readonly url: string;
  /** SIGTERM; resolves with the exit code and signal. */
  readonly stop: () => Promise<unknown>;
}

/** A gateway that a shell command starts; it and what it has started end with the test. */
async function start(t: TestContext, command: string, cwd: string, settings: NodeJS.ProcessEnv): Promise<Started> {
  const child = spawn("bash", ["-c", `exec ${command}`], {
    cwd,
    env: settings,
    stdio: ["ignore", "ignore", "pipe"],
    detached: true,
  });
  const closed = once(child, "close");
  const kill = (signal: NodeJS.Signals): void => {
    if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
    process.kill(-child.pid, signal);
  };
  t.after(() => kill("SIGKILL"));
  // Read to its end, so that the pipe never fills up.
  const lines = createInterface({ input: child.stderr });
  let printed = "";
  const url = await new Promise<string>((resolve, reject) => {
    lines.on("line", (line) => {
      printed += `${line}\n`;
      const port = /^mqttproxy listens on .*:(\d+)/.exec(line)?.[1];
      if (port !== undefined) resolve(`mqtt://127.0.0.1:${port}`);
    });
    lines.once("close", () => reject(new Error(`${command} has ended:\n${printed}`)));
  });
  return {
    url,
    stop() {
      kill("SIGTERM");
      return closed;
    },
  };
}

test("docs/install.md: every command does what it says", { timeout: 120_000 }, async (t) => {
  const { blocks } = parsePage(await readFile(join(root, "docs/install.md"), "utf8"));
  const folder = await realpath(await mkdtemp(join(tmpdir(), "sluice-install-")));
  t.after(() => rm(folder, { recursive: true }));
  const settings = {
    ...env,
    ...registry.env,
    npm_config_prefix: join(folder, "global"),
    npm_config_prefer_offline: "true",
    PATH: `${join(folder, "global/bin")}:${env["PATH"]}`,
  };
  let cwd = folder;
  let printed = "";
  let count = 0;
  for (const { language, note, text, line } of blocks) {
    if (language === "text") {
      const expected = RegExp.escape(text.trim()).replaceAll("\\.\\.\\.", ".*");
      assert.match(printed.trim(), new RegExp(`^${expected}$`), `line ${line}`);
    } else if (language === "sh" && note === "keeps running") {
      await takeAnyApiPort(cwd);
      await (await start(t, text.trim(), cwd, { ...settings, SLUICE_MQTT_PORT: "0" })).stop();
      count++;
    } else if (language === "sh" && note !== "not run: needs Docker") {
      const { stdout } = await run("bash", ["-ec", `${text}pwd -P > ${folder}/cwd`], cwd, settings);
      printed = stdout;
      cwd = (await readFile(join(folder, "cwd"), "utf8")).trim();
      count++;
    }
  }
  assert.ok(count >= 4);
});

describe("installed with npm", () => {
  let site: Installation;
  before(
    async () => {
      site = await createProject("npm", registry);
      await site.add("sluice");
      await takeAnyApiPort(site.home);
      const [all = ""] = configsOf(await kindsOf(...bundled));
      await writeFile(join(site.home, "all.yaml"), all);
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
    // The same with each filter in a thread of its own.
    for (const more of [{}, { isolate: "worker" }]) {
      for (const config of configsOf(await kindsOf(...bundled), more)) {
        await writeFile(join(site.home, "checked.yaml"), config);
        await site.sluice("check", "-c", "checked.yaml");
      }
    }
  });

  test("sluice run takes a message to the record that sluice tail shows", { timeout: 30_000 }, async (t) => {
    await run("mkdir", ["config"], site.home);
    await run("cp", ["node_modules/sluice/config/sluice.yaml", "config/"], site.home);
    const settings = { ...env, SLUICE_MQTT_PORT: "0" };
    const gateway = await start(t, "node_modules/.bin/sluice run", site.home, settings);
    const client = await mqtt.connectAsync(gateway.url, {
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
    assert.deepEqual(await gateway.stop(), [0, null]);
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

  longTest(
    "the bundled plugins removed, and installed as anybody's: the gateway passes end-to-end suites",
    async (t) => {
      for (const name of plugins) await rm(join(site.home, "node_modules", name), { recursive: true });
      let failure = "";
      for (const config of configsOf(await kindsOf(...plugins))) {
        await writeFile(join(site.home, "missed.yaml"), config);
        failure += await site.problems("missed.yaml");
      }
      for (const kind of await kindsOf(...plugins))
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
    },
  );
});
