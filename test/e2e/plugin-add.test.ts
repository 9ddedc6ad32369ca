/** `sluice plugin add`, `update` and `remove` through the bin, with packages that npm has really made. */
import assert from "node:assert/strict";
import { execFile, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { access, mkdir, mkdtemp, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { eventually } from "../helpers/eventually.ts";
import { nodeEnv, packPlugin, readJson, writePlugin, type Tarball } from "../helpers/plugin-packages.ts";
import { bin, sluice, snapshot } from "../helpers/sluice.ts";

interface Locked {
  readonly version: string;
  readonly source: string;
  readonly integrity: string;
  readonly files: string;
  readonly kinds: string[];
  readonly scripts: { run: string[]; skipped: string[] };
}

let home: string;
let made: string;
let mark1: Tarball;
let mark2: Tarball;
before(async () => {
  home = await realpath(await mkdtemp(join(tmpdir(), "sluice-plugin-")));
  made = join(home, "made");
  await mkdir(made);
  mark1 = await packPlugin(made, { name: "sluice-mark", version: "1.0.0" });
  mark2 = await packPlugin(made, { name: "sluice-mark", version: "1.1.0", mark: "newer" });
});
after(() => rm(home, { recursive: true }));

let count = 0;
/** A fresh folder for a config. */
async function project(files: Record<string, string> = {}): Promise<string> {
  const folder = join(home, `project-${++count}`);
  await mkdir(folder);
  for (const [file, text] of Object.entries(files)) await writeFile(join(folder, file), text);
  return folder;
}

const pipeline = (kind: string, more = ""): string =>
  `kind: MQTTProxy\nname: mqttproxy\nport: 1883\nrules: [{ when: { packetType: Publish }, pipeline: publish }]\n---\nkind: Pipeline\nname: publish\nfilters: [{ name: mark, kind: "${kind}"${more} }]\n`;

async function lockOf(folder: string): Promise<Record<string, Locked>> {
  return (await readJson(join(folder, "plugins.lock")))["plugins"] as Record<string, Locked>;
}

async function add(folder: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await sluice(folder, ["plugin", "add", ...args]);
  assert.deepEqual([code, stderr], [0, ""]);
  return stdout;
}

const isThere = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

describe("plugin add", () => {
  test("installs a tarball beside the config, pins it, and records it in a package.json of its own", async () => {
    const folder = await project({ "sluice.yaml": pipeline("Mark") });
    assert.equal((await sluice(folder, ["check"])).code, 1);
    const stdout = await add(folder, mark1.path);
    assert.equal(stdout, "sluice-mark 1.0.0 is installed\n  Mark (filter): Marks payloads.\n");

    const source = `file:${relative(folder, mark1.path)}`;
    const lock = await lockOf(folder);
    const { files, ...entry } = lock["sluice-mark"]!;
    assert.deepEqual(Object.keys(lock), ["sluice-mark"]);
    assert.match(files, /^sha256-[\w+/]{43}=$/);
    assert.deepEqual(entry, {
      version: "1.0.0",
      source,
      integrity: mark1.integrity,
      kinds: ["Mark"],
      scripts: { run: [], skipped: [] },
    });
    assert.deepEqual(await readJson(join(folder, "package.json")), {
      private: true,
      dependencies: { "sluice-mark": source },
    });
    // Where images and other tools rely on it.
    const place = join(folder, ".sluice/plugins/sluice-mark@1.0.0/node_modules/sluice-mark");
    assert.equal(
      await readFile(join(place, "index.js"), "utf8"),
      await readFile(join(made, "sluice-mark-1.0.0/index.js"), "utf8"),
    );
    assert.deepEqual(await sluice(folder, ["check"]), {
      code: 0,
      stdout: `warning: sluice.yaml:1:1 > mqttproxy: has no rule for Connect packets: everybody may connect, without a password\n${join(folder, "sluice.yaml")}: 3 documents, no problems, 1 warning\n`,
      stderr: "",
    });
    for (const left of [".sluice/staging", ".sluice/lock"])
      assert.equal(await isThere(join(folder, left)), false, left);
  });

  test("again changes nothing, not a byte", async () => {
    const folder = await project();
    await add(folder, mark1.path);
    const then = await snapshot(folder);
    assert.match(await add(folder, mark1.path), /^sluice-mark 1\.0\.0 was installed already\n/);
    assert.deepEqual(await snapshot(folder), then);
  });

  test("of a folder packs it: what is not published is not installed, and no script of its runs", async () => {
    const folder = await project();
    const plugin = await writePlugin(made, {
      name: "@acme/mark",
      manifest: {
        files: ["index.js", "schema.json"],
        scripts: { prepack: "touch ran", prepare: "touch ran", install: "touch ran" },
      },
      files: { "notes.txt": "mine" },
    });
    const stdout = await add(folder, plugin);
    assert.match(stdout, /^@acme\/mark 1\.0\.0 is installed\n/);
    assert.match(
      stdout,
      /^warning: install scripts were not run, of @acme\/mark; if it needs them: --allow-scripts @acme\/mark$/m,
    );
    const place = join(folder, ".sluice/plugins/@acme+mark@1.0.0/node_modules/@acme/mark");
    assert.equal(await isThere(join(place, "index.js")), true);
    assert.equal(await isThere(join(place, "notes.txt")), false);
    for (const ran of [join(place, "ran"), join(plugin, "ran")]) assert.equal(await isThere(ran), false);
    assert.deepEqual((await lockOf(folder))["@acme/mark"]?.scripts, { run: [], skipped: ["@acme/mark"] });
  });

  test("--allow-scripts runs those of the package that it names, also once it is installed, and update keeps to it", async () => {
    const folder = await project();
    const plugin = await writePlugin(made, {
      name: "scripted",
      manifest: { scripts: { install: "node -e \"require('fs').writeFileSync('built.txt', 'built')\"" } },
    });
    const built = (version: string): string =>
      join(folder, `.sluice/plugins/scripted@${version}/node_modules/scripted/built.txt`);
    await add(folder, plugin, "--allow-scripts", "another");
    assert.equal(await isThere(built("1.0.0")), false);
    assert.match(
      await add(folder, plugin, "--allow-scripts", "another", "--allow-scripts", "scripted"),
      /is installed/,
    );
    assert.equal(await readFile(built("1.0.0"), "utf8"), "built");
    assert.deepEqual((await lockOf(folder))["scripted"]?.scripts, { run: ["scripted"], skipped: [] });
    const manifest = await readJson(join(plugin, "package.json"));
    await writeFile(join(plugin, "package.json"), JSON.stringify({ ...manifest, version: "1.0.1" }));
    const { code } = await sluice(folder, ["plugin", "update"]);
    assert.equal(code, 0);
    assert.equal(await readFile(built("1.0.1"), "utf8"), "built");
  });

  test("brings what the plugin depends on, and neither peers nor what is for its development", async () => {
    const folder = await project();
    const plugin = await packPlugin(made, {
      name: "dependent",
      kind: "Newest",
      manifest: {
        dependencies: { semver: "^7.0.0" },
        devDependencies: { "is-odd": "3.0.1" },
        peerDependencies: { "is-even": "1.0.0" },
      },
      files: {
        "index.js": `import semver from "semver";
export default { kind: "Newest", packets: ["Publish"], results: [], create: () => ({ handle: () => void semver.valid("1.0.0") }) };
`,
      },
    });
    await add(folder, plugin.path);
    const modules = join(folder, ".sluice/plugins/dependent@1.0.0/node_modules");
    assert.equal(await isThere(join(modules, "semver/package.json")), true);
    for (const name of ["is-odd", "is-even"]) assert.equal(await isThere(join(modules, name)), false, name);
    const { files } = (await lockOf(folder))["dependent"]!;
    // Its dependencies are part of what is pinned.
    await writeFile(join(modules, "semver/index.js"), "module.exports = {};");
    const { code, stdout } = await sluice(folder, ["plugin", "doctor"]);
    assert.equal(code, 1);
    assert.match(stdout, /the files in .*dependent@1\.0\.0 are not those that were installed: sluice plugin add file:/);
    // And adding it again mends it.
    assert.match(await add(folder, plugin.path), /^dependent 1\.0\.0 is installed$/m);
    assert.equal((await lockOf(folder))["dependent"]?.files, files);
    assert.equal((await sluice(folder, ["plugin", "doctor"])).code, 0);
  });

  test("another version lies beside the first, and the one before is kept", async () => {
    const folder = await project({ "sluice.yaml": pipeline("Mark") });
    const mark3 = await packPlugin(made, { name: "sluice-mark", version: "1.2.0" });
    const stored = (version: string): Promise<boolean> =>
      isThere(join(folder, `.sluice/plugins/sluice-mark@${version}`));
    await add(folder, mark1.path);
    assert.match(await add(folder, mark2.path), /^sluice-mark 1\.1\.0 is installed \(before: 1\.0\.0\)\n/);
    assert.deepEqual([await stored("1.0.0"), await stored("1.1.0")], [true, true]);
    assert.equal((await lockOf(folder))["sluice-mark"]?.version, "1.1.0");
    await add(folder, mark3.path);
    assert.deepEqual([await stored("1.0.0"), await stored("1.1.0"), await stored("1.2.0")], [false, true, true]);
    assert.equal((await sluice(folder, ["plugin", "doctor"])).code, 0);
    // And back.
    await add(folder, mark1.path);
    assert.equal((await lockOf(folder))["sluice-mark"]?.version, "1.0.0");
  });

  test("refuses other files under the version that is installed", async () => {
    const folder = await project();
    await add(folder, mark1.path);
    const then = await snapshot(folder);
    const other = await writePlugin(join(home, "other"), { name: "sluice-mark", mark: "other" });
    const { code, stderr } = await sluice(folder, ["plugin", "add", other]);
    assert.equal(code, 1);
    assert.match(
      stderr,
      /sluice-mark@1\.0\.0 is installed already, made of other files: give .* a version of its own, or remove .* \(PLUGIN_CHANGED\)\n$/,
    );
    assert.deepEqual(await snapshot(folder), then);
  });

  test("refuses a version that the config could not run with, and says where", async () => {
    const folder = await project({ "sluice.yaml": pipeline("Mark", ", mark: x") });
    await add(folder, mark1.path);
    const then = await snapshot(folder);
    const strict = await packPlugin(made, {
      name: "sluice-mark",
      version: "2.0.0",
      files: {
        "schema.json":
          '{ "type": "object", "additionalProperties": false, "properties": { "label": { "type": "string" } } }',
      },
    });
    const { code, stderr } = await sluice(folder, ["plugin", "add", strict.path]);
    assert.equal(code, 1);
    assert.match(
      stderr,
      /^sluice plugin add: the config would not be valid with this version of sluice-mark:\nsluice\.yaml:8:\d+ > publish > mark > mark: unknown option.* \(PLUGIN_BROKEN\)\n$/,
    );
    assert.deepEqual(await snapshot(folder), then);
  });

  test("refuses a second provider of a kind that the config names without a package, and lets it in otherwise", async () => {
    const folder = await project({ "sluice.yaml": pipeline("Mark") });
    const twin = await packPlugin(made, { name: "twin-mark" });
    await add(folder, mark1.path);
    const then = await snapshot(folder);
    const refused = await sluice(folder, ["plugin", "add", twin.path]);
    assert.equal(refused.code, 1);
    assert.match(
      refused.stderr,
      /publish > mark > kind: two packages provide the kind Mark: sluice-mark \(.*\) and twin-mark \(.*\); uninstall one of them, or write "sluice-mark#Mark" or "twin-mark#Mark" \(PLUGIN_DUPLICATE_KIND\)\n$/,
    );
    assert.deepEqual(await snapshot(folder), then);
    await writeFile(join(folder, "sluice.yaml"), pipeline("sluice-mark#Mark"));
    assert.match(
      await add(folder, twin.path),
      /^warning: twin-mark provides Mark, and so does sluice-mark: .* twin-mark#Mark$/m,
    );
    assert.equal((await sluice(folder, ["check"])).code, 0);
  });

  test("a config that has problems, of this plugin or of others, does not stop it", async () => {
    const folder = await project({ "sluice.yaml": `${pipeline("Mark", ", label: x")}---\nkind: Nonsense\nname: n\n` });
    await add(folder, mark1.path);
    const { stdout } = await sluice(folder, ["check"]);
    assert.match(stdout, /publish > mark > label: unknown option/);
    assert.match(stdout, /n > kind: no installed package provides the kind "Nonsense"/);
  });

  test("-c names the config whose folder it goes to; one that is not there is a problem", async () => {
    const folder = await project();
    await mkdir(join(folder, "conf"));
    await writeFile(join(folder, "conf/main.yaml"), pipeline("Mark"));
    await add(folder, relative(folder, mark1.path), "-c", "conf/main.yaml");
    assert.deepEqual(Object.keys(await lockOf(join(folder, "conf"))), ["sluice-mark"]);
    await add(folder, relative(folder, mark2.path), "-c", "conf");
    assert.equal((await lockOf(join(folder, "conf")))["sluice-mark"]?.version, "1.1.0");
    const { code, stderr } = await sluice(folder, ["plugin", "add", mark1.path, "-c", "cnof"]);
    assert.deepEqual(
      [code, stderr],
      [1, "sluice plugin add: cnof: there is no such file or folder (CONFIG_NOT_FOUND)\n"],
    );
  });

  for (const [what, files] of [
    ["one that npm keeps in step with its lock", { "package-lock.json": "{}" }],
    ["one that pnpm keeps in step with its lock", { "pnpm-lock.yaml": "" }],
  ] as const) {
    test(`leaves a package.json alone that is ${what}`, async () => {
      const text = '{ "name": "mine" }';
      const folder = await project({ ...files, "package.json": text });
      await add(folder, mark1.path);
      assert.equal(await readFile(join(folder, "package.json"), "utf8"), text);
    });
  }

  test("leaves a package.json alone that lies further up; in one beside the config it changes its own lines", async () => {
    const outer = await project({ "package.json": '{ "name": "outer" }' });
    await mkdir(join(outer, "config"));
    await writeFile(join(outer, "config/sluice.yaml"), pipeline("Mark"));
    await add(outer, mark1.path);
    assert.equal(await readFile(join(outer, "package.json"), "utf8"), '{ "name": "outer" }');
    assert.equal(await isThere(join(outer, "config/package.json")), false);
    assert.equal(await isThere(join(outer, "config/plugins.lock")), true);

    const text = (more: string): string =>
      `{\n    "name": "own",\n    "dependencies": {\n${more}        "zod": "4.0.0"\n    },\n    "license": "MIT"\n}\n`;
    const own = await project({ "package.json": text("") });
    await add(own, mark1.path);
    const line = `        "sluice-mark": "file:${relative(own, mark1.path)}",\n`;
    assert.equal(await readFile(join(own, "package.json"), "utf8"), text(line));
    assert.equal((await sluice(own, ["plugin", "remove", "sluice-mark"])).code, 0);
    assert.equal(await readFile(join(own, "package.json"), "utf8"), text(""));
  });

  test("takes nothing that npm or a shell could take for more than a name", async () => {
    const folder = await project();
    const then = await snapshot(folder);
    const wrong = ["https://example.com/x.tgz", "--global", "x@$(touch y)"];
    for (const source of wrong) {
      const { code, stderr } = await sluice(folder, ["plugin", "add", "--", source]);
      assert.equal(code, 1, source);
      assert.match(stderr, /^sluice plugin add: .* \(PLUGIN_SOURCE_INVALID\)\n$/, source);
    }
    assert.deepEqual(await snapshot(folder), then);
  });

  test("two at one time come one after the other", async () => {
    const folder = await project();
    const other = await packPlugin(made, { name: "other-mark", kind: "Other" });
    await Promise.all([add(folder, mark1.path), add(folder, other.path), add(folder, mark1.path)]);
    assert.deepEqual(Object.keys(await lockOf(folder)), ["other-mark", "sluice-mark"]);
    assert.equal((await sluice(folder, ["plugin", "doctor"])).code, 0);
  });

  test("shows on a terminal what it is doing", async (t) => {
    if (spawnSync("script", ["--version"]).status !== 0) {
      assert.notEqual(process.env["CI"], "true", "script (util-linux) is not there");
      t.skip("script (util-linux) is not there");
      return;
    }
    const folder = await project({ "sluice.yaml": pipeline("Mark") });
    const command = `${process.execPath} ${bin} plugin add ${mark1.path}`;
    const { stdout } = await promisify(execFile)("script", ["-qec", command, "/dev/null"], {
      cwd: folder,
      env: nodeEnv,
    });
    const steps = stdout.split("\r\u001b[K").map((step) => step.trim().replace(/^installing \S+/, "installing"));
    assert.deepEqual(steps.slice(1, 4), [
      "installing ...",
      "checking sluice-mark ...",
      "trying the config with it ...",
    ]);
    assert.match(steps.at(-1) ?? "", /^sluice-mark 1\.0\.0 is installed/);
  });

  test("SIGINT takes back what it has begun", async () => {
    const folder = await project();
    const then = await snapshot(folder);
    const bins = await project({});
    // An npm that says that it has begun, and goes on for ever.
    const npm = `#!/bin/sh\ntouch ${join(bins, "begun")}\nexec sleep 1000\n`;
    await writeFile(join(bins, "npm"), npm, { mode: 0o755 });
    const child = spawn(process.execPath, [bin, "plugin", "add", mark1.path], {
      cwd: folder,
      env: { ...nodeEnv, PATH: `${bins}:${nodeEnv["PATH"]}` },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const stderr = child.stderr.setEncoding("utf8").toArray();
    const ended = once(child, "close");
    await eventually(() => isThere(join(bins, "begun")), true);
    child.kill("SIGINT");
    assert.deepEqual(await ended, [1, null]);
    assert.match((await stderr).join(""), /interrupted \(PLUGIN_INSTALL_FAILED\)\n$/);
    assert.deepEqual(await snapshot(folder), then);
  });
});

describe("plugin update", () => {
  test("takes what the source gives now, of those named or of all, and leaves what has one version only", async () => {
    const folder = await project({ "sluice.yaml": pipeline("Mark") });
    const source = await writePlugin(join(home, "moving"), { name: "moving", kind: "Moving" });
    await add(folder, source);
    await add(folder, mark1.path);
    const same = await sluice(folder, ["plugin", "update"]);
    assert.equal(same.code, 0);
    assert.match(same.stdout, /^moving 1\.0\.0 was installed already$/m);
    assert.match(same.stdout, /^sluice-mark 1\.0\.0 was installed already$/m);
    const manifest = await readJson(join(source, "package.json"));
    await writeFile(join(source, "package.json"), JSON.stringify({ ...manifest, version: "1.0.1" }));
    const moved = await sluice(folder, ["plugin", "update", "moving"]);
    assert.deepEqual(
      [moved.code, moved.stdout],
      [0, "moving 1.0.1 is installed (before: 1.0.0)\n  Moving (filter): Marks payloads.\n"],
    );
    const unknown = await sluice(folder, ["plugin", "update", "nobody"]);
    assert.equal(unknown.code, 1);
    assert.match(unknown.stderr, /does not list nobody; it lists moving, sluice-mark \(PLUGIN_NOT_FOUND\)/);
  });

  test("does not try what was added as one version", async () => {
    const folder = await project();
    await add(folder, mark1.path);
    const lock = await readJson(join(folder, "plugins.lock"));
    const text = JSON.stringify(lock).replace(/"source":"[^"]*"/, '"source":"sluice-mark@1.0.0"');
    await writeFile(join(folder, "plugins.lock"), text);
    const { code, stdout } = await sluice(folder, ["plugin", "update"]);
    assert.deepEqual(
      [code, stdout],
      [0, "sluice-mark 1.0.0 was added as that very version: sluice plugin add sluice-mark@VERSION\n"],
    );
  });
});

describe("plugin remove", () => {
  test("removes what the config does not need, and all its traces", async () => {
    const folder = await project();
    await add(folder, mark1.path);
    const { code, stdout } = await sluice(folder, ["plugin", "remove", "sluice-mark"]);
    assert.deepEqual([code, stdout], [0, "sluice-mark 1.0.0 is removed\n"]);
    assert.deepEqual(await lockOf(folder), {});
    assert.equal(await isThere(join(folder, ".sluice")), false);
  });

  test("refuses what the config needs, unless forced", async () => {
    const folder = await project({ "sluice.yaml": pipeline("Mark") });
    await add(folder, mark1.path);
    const then = await snapshot(folder);
    const refused = await sluice(folder, ["plugin", "remove", "sluice-mark"]);
    assert.equal(refused.code, 1);
    assert.match(
      refused.stderr,
      /^sluice plugin remove: the config would not be valid without sluice-mark:\nsluice\.yaml:8:\d+ > publish > mark > kind: no installed package .*\(PLUGIN_IN_USE\)\n$/,
    );
    assert.deepEqual(await snapshot(folder), then);
    assert.equal((await sluice(folder, ["plugin", "remove", "--force", "sluice-mark"])).code, 0);
    assert.equal((await sluice(folder, ["check"])).code, 1);
  });

  test("knows only what plugins.lock lists", async () => {
    const folder = await project();
    const { code, stderr } = await sluice(folder, ["plugin", "remove", "@sluice/kafka"]);
    assert.equal(code, 1);
    assert.match(stderr, /plugins\.lock does not list @sluice\/kafka: it lists none \(PLUGIN_NOT_FOUND\)/);
  });
});
