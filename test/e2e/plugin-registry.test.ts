/** Plugins by name: fetched by npm from the registry that it is configured for. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { startNpmRegistry, type NpmRegistry } from "../helpers/npm-registry.ts";
import { packPlugin, readJson, type Tarball } from "../helpers/plugin-packages.ts";
import { sluice, snapshot, type Ended } from "../helpers/sluice.ts";

let home: string;
let registry: NpmRegistry;
const tarballs = new Map<string, Tarball>();
before(async () => {
  home = await realpath(await mkdtemp(join(tmpdir(), "sluice-plugin-registry-")));
  registry = await startNpmRegistry();
  for (const version of ["1.0.0", "1.1.0", "2.0.0"]) await publish("sluice-mark", version);
  await publish("@acme/label", "0.3.0", "Label");
});
after(async () => {
  await registry.close();
  await rm(home, { recursive: true });
});

async function publish(name: string, version: string, kind = "Mark"): Promise<void> {
  const tarball = await packPlugin(home, { name, version, kind });
  tarballs.set(`${name}@${version}`, tarball);
  registry.publish({ name, version }, tarball);
}

let count = 0;
async function project(): Promise<string> {
  const folder = join(home, `project-${++count}`);
  await mkdir(folder);
  return folder;
}

/** npm's cache is the test's own, since the same names mean other packages elsewhere. */
function plugin(folder: string, ...args: string[]): Promise<Ended> {
  const env = {
    npm_config_registry: registry.url,
    npm_config_cache: join(home, "cache"),
    npm_config_prefer_online: "true",
    npm_config_fetch_retries: "0",
  };
  return sluice(folder, ["plugin", ...args], { env });
}

async function active(folder: string): Promise<Record<string, [version: string, source: string, integrity: string]>> {
  const { plugins } = (await readJson(join(folder, "plugins.lock"))) as {
    plugins: Record<string, { version: string; source: string; integrity: string }>;
  };
  return Object.fromEntries(
    Object.entries(plugins).map(([name, { version, source, integrity }]) => [name, [version, source, integrity]]),
  );
}

for (const [source, version] of [
  ["sluice-mark", "2.0.0"],
  ["sluice-mark@1.0.0", "1.0.0"],
  ["sluice-mark@^1.0.0", "1.1.0"],
  ["sluice-mark@latest", "2.0.0"],
  ["@acme/label@~0.3.0", "0.3.0"],
] as const) {
  test(`plugin add ${source}`, async () => {
    const folder = await project();
    const { code, stdout, stderr } = await plugin(folder, "add", source);
    assert.deepEqual([code, stderr], [0, ""]);
    const name = source.startsWith("@") ? "@acme/label" : "sluice-mark";
    assert.match(stdout, new RegExp(`^${name} ${version} is installed\n`));
    const integrity = tarballs.get(`${name}@${version}`)?.integrity;
    assert.deepEqual(await active(folder), { [name]: [version, source, integrity] });
    // The exact version, whatever was asked for.
    const { dependencies } = await readJson(join(folder, "package.json"));
    assert.deepEqual(dependencies, { [name]: version });
    assert.equal((await sluice(folder, ["plugin", "doctor"])).code, 0);
  });
}

test("plugin update keeps to the range that was asked for, and takes the newest where none was", async () => {
  const [ranged, latest] = [await project(), await project()];
  assert.equal((await plugin(ranged, "add", "sluice-mark@^1.0.0")).code, 0);
  assert.equal((await plugin(latest, "add", "sluice-mark")).code, 0);
  await publish("sluice-mark", "1.2.0");
  await publish("sluice-mark", "2.1.0");
  for (const [folder, version, before_] of [
    [ranged, "1.2.0", "1.1.0"],
    [latest, "2.1.0", "2.0.0"],
  ] as const) {
    const { code, stdout } = await plugin(folder, "update");
    assert.equal(code, 0);
    assert.match(stdout, new RegExp(`^sluice-mark ${version} is installed \\(before: ${before_}\\)\n`));
  }
});

test("a version, or a package, that the registry does not have changes nothing", async () => {
  const folder = await project();
  await writeFile(join(folder, "sluice.yaml"), "kind: Gateway\n");
  const then = await snapshot(folder);
  for (const [source, message] of [
    ["sluice-mark@9.9.9", /npm install failed: No matching version found for sluice-mark@9\.9\.9/],
    ["sluice-nobody", /npm install failed: .*sluice-nobody/],
  ] as const) {
    const { code, stderr } = await plugin(folder, "add", source);
    assert.equal(code, 1);
    assert.match(stderr, message);
    assert.match(stderr, /\(PLUGIN_INSTALL_FAILED\)\n$/);
    assert.deepEqual(await snapshot(folder), then);
  }
});

test("a tarball that is not what the registry said it is changes nothing", async () => {
  const folder = await project();
  const forged = tarballs.get("sluice-mark@1.0.0")!;
  const other = await packPlugin(join(home, "other"), { name: "forged", version: "1.0.0" });
  registry.publish({ name: "forged", version: "1.0.0" }, { path: other.path, integrity: forged.integrity });
  const { code, stderr } = await plugin(folder, "add", "forged");
  assert.equal(code, 1);
  assert.match(stderr, /npm install failed: .*(EINTEGRITY|integrity)/);
  assert.deepEqual(await snapshot(folder), {});
});
