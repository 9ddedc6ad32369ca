/** `sluice plugin doctor`: each thing that can be amiss with installed plugins, and where was looked. */
import assert from "node:assert/strict";
import { appendFile, cp, mkdir, mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { findInstalled } from "../../kernel/installed-plugins.ts";
import { examinePlugins } from "../../kernel/plugin-doctor.ts";
import { packPlugin, writePlugin } from "../helpers/plugin-packages.ts";
import { bin, sluice } from "../helpers/sluice.ts";

let home: string;
/** A project in which a plugin is installed that has a script, and is used. */
let installed: string;
before(async () => {
  home = await realpath(await mkdtemp(join(tmpdir(), "sluice-doctor-")));
  const mark = await packPlugin(home, { name: "sluice-mark", manifest: { scripts: { postinstall: "exit 1" } } });
  installed = join(home, "installed");
  await mkdir(installed);
  await writeFile(join(installed, "sluice.yaml"), use("Mark"));
  const { code, stderr } = await sluice(installed, ["plugin", "add", mark.path]);
  assert.equal(code, 0, stderr);
});
after(() => rm(home, { recursive: true }));

const use = (kind: string): string => `kind: Pipeline\nname: p\nfilters: [{ name: f, kind: ${kind} }]\n`;
const scripts =
  "warning PLUGIN_CHANGED: sluice-mark: the install scripts of sluice-mark were not run; if it needs them: sluice plugin add file:../sluice-mark-1.0.0.tgz --allow-scripts sluice-mark";

/** What is found after something has been done to a copy of the project, with the copy's folder as `.`. */
async function findings(damage: (folder: string) => Promise<unknown>): Promise<string[]> {
  const folder = await mkdtemp(join(home, "copy-"));
  await cp(installed, folder, { recursive: true });
  await damage(folder);
  const found = await examinePlugins(await findInstalled({ cwd: folder, env: {}, bins: [bin] }));
  return found.map(({ level, code, message }) => `${level} ${code}: ${message.replaceAll(folder, ".")}`);
}

const place = ".sluice/plugins/sluice-mark@1.0.0";

test("skipped scripts are worth a warning, and all else is well", async () => {
  assert.deepEqual(await findings(() => Promise.resolve()), [scripts]);
});

test("files that have changed", async () => {
  const found = await findings((folder) => appendFile(join(folder, place, "node_modules/sluice-mark/index.js"), "\n"));
  assert.deepEqual(found, [
    `problem PLUGIN_CHANGED: the files in ./${place} are not those that were installed: sluice plugin add file:../sluice-mark-1.0.0.tgz`,
    scripts,
  ]);
});

test("a plugin that plugins.lock lists and that is not there, and who needs it", async () => {
  const [first = "", second = "", ...more] = await findings((folder) => rm(join(folder, place), { recursive: true }));
  assert.match(
    first,
    /^problem PLUGIN_NOT_FOUND: p\/f: no installed package provides the kind "Mark".*listed but not installed: sluice-mark \(sluice plugin add\)$/,
  );
  assert.match(
    second,
    /^problem PLUGIN_CHANGED: \.\/plugins\.lock lists sluice-mark 1\.0\.0, and \.\/\.sluice\/plugins\/sluice-mark@1\.0\.0 can't be read \(.*\): sluice plugin add file:/,
  );
  assert.deepEqual(more, []);
});

test("a second copy, which is not used", async () => {
  const found = await findings(async (folder) => {
    await writePlugin(join(folder, "dirs"), { name: "sluice-mark", version: "3.0.0" });
    await writeFile(join(folder, "sluice.yaml"), `kind: Gateway\nplugins: { dirs: [dirs] }\n---\n${use("Mark")}`);
  });
  assert.deepEqual(found, [
    `warning PLUGIN_DUPLICATE_KIND: sluice-mark is there twice: ./${place}/node_modules/sluice-mark is used, and ./dirs/sluice-mark-3.0.0 is not`,
    scripts,
  ]);
});

test("a package that is broken, refused, or of another API, whether or not it is used", async () => {
  const gallery = join(import.meta.dirname, "../fixtures/broken-plugins");
  const found = await findings(async (folder) => {
    for (const name of ["wrong-api", "schema-faulty"])
      await cp(join(gallery, name), join(folder, "dirs", name), { recursive: true });
    await writePlugin(join(folder, "dirs"), { name: "unwanted", kind: "Unwanted" });
    const plugins = "plugins: { dirs: [dirs], deny: [unwanted] }";
    await writeFile(join(folder, "sluice.yaml"), `kind: Gateway\n${plugins}\n---\n${use("WrongApi")}`);
  });
  assert.equal(found.length, 5);
  assert.match(
    found[0] ?? "",
    /^problem PLUGIN_INCOMPATIBLE: p\/f: WrongApi comes from the package broken-wrong-api .* needs plugin API \^2\.0\.0/,
  );
  assert.match(found[1] ?? "", /^problem PLUGIN_BROKEN: broken-schema-faulty .* does not compile/);
  assert.match(found[2] ?? "", /^problem PLUGIN_REFUSED: unwanted .* plugins\.deny has "unwanted"$/);
  assert.match(found[3] ?? "", /^problem PLUGIN_INCOMPATIBLE: broken-wrong-api /);
});

test("what lies in the store and plugins.lock knows nothing of, and what an interrupted command has left", async () => {
  const found = await findings(async (folder) => {
    await mkdir(join(folder, ".sluice/plugins/@acme+gone@1.0.0"));
    await mkdir(join(folder, ".sluice/staging/add-x"), { recursive: true });
  });
  assert.deepEqual(found, [
    scripts,
    "warning PLUGIN_CHANGED: ./.sluice/plugins/@acme+gone@1.0.0 is not in plugins.lock: delete it, or sluice plugin add @acme/gone@1.0.0",
    "warning PLUGIN_CHANGED: ./.sluice/staging/add-x was left by a command that was interrupted: the next sluice plugin add or remove clears it up",
  ]);
});

test("a copy of the kernel that a plugin brings", async () => {
  const found = await findings(async (folder) => {
    const copy = join(folder, place, "node_modules/@sluice/kernel");
    await mkdir(copy, { recursive: true });
    await writeFile(join(copy, "package.json"), "{}");
  });
  assert.ok(
    found.includes(
      "warning PLUGIN_DUPLICATE_KIND: sluice-mark brings a copy of @sluice/kernel of its own: its author should list it as an optional peer dependency",
    ),
  );
});

test("plugins.lock that can't be read, and a Gateway document with problems", async () => {
  const [unreadable = ""] = await findings(async (folder) => {
    await writeFile(join(folder, "plugins.lock"), "{");
    await writeFile(join(folder, "sluice.yaml"), use("TopicMapper"));
  });
  assert.match(unreadable, /^problem PLUGIN_LOCK_INVALID: \.\/plugins\.lock can't be read: /);
  const [unknown = ""] = await findings((folder) => writeFile(join(folder, "sluice.yaml"), "kind: Gateway\nlgo: 1\n"));
  assert.match(
    unknown,
    /^problem CONFIG_INVALID: the Gateway document has problems, so that only the distribution's plugins are used: sluice check$/,
  );
});

test("the command lists every place that was looked at, and exits 1 where there is a problem", async () => {
  const { code, stdout } = await sluice(installed, ["plugin", "doctor"]);
  assert.equal(code, 0);
  assert.match(stdout, /^sluice \d+\.\d+\.\d+, plugin API 1\.\d\.0, Node\.js 24\.\d+\.\d+$/m);
  assert.match(
    stdout,
    new RegExp(
      `^config: ${installed}/sluice\\.yaml\nlooked for plugins in\n {2}the dependencies in ${installed}/package\\.json: no packages\n {2}plugins\\.lock in ${installed}: 1 package\n {2}the dependencies in .*/kernel/package\\.json: \\d+ packages\n {2}the dependencies in .*/package\\.json: \\d+ packages\nwarning: sluice-mark: the install scripts`,
      "m",
    ),
  );
  assert.match(stdout, /\n\d+ plugins, no problems, 1 warning\n$/);
  const folder = join(home, "bad");
  await mkdir(folder);
  await writeFile(join(folder, "sluice.yaml"), use("Nonsense"));
  const bad = await sluice(folder, ["plugin", "doctor", "--json"]);
  assert.equal(bad.code, 1);
  const { places, findings: found } = JSON.parse(bad.stdout) as {
    places: { sort: string }[];
    findings: { code: string }[];
  };
  assert.deepEqual(
    [new Set(places.map(({ sort }) => sort)), found.map(({ code: each }) => each)],
    [new Set(["distribution"]), ["PLUGIN_NOT_FOUND"]],
  );
});
