import assert from "node:assert/strict";
import { cp, mkdir, mkdtemp, realpath, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import type { FilterKind } from "../../kernel/plugin.ts";
import { findPlugins, type Registry } from "../../kernel/registry.ts";
import { SluiceError } from "../../kernel/errors.ts";

const fixtures = join(import.meta.dirname, "../fixtures");
const good = join(fixtures, "plugins");
const broken = join(fixtures, "broken-plugins");

let temporary: string;
before(async () => {
  temporary = await realpath(await mkdtemp(join(tmpdir(), "sluice-registry-")));
});
after(() => rm(temporary, { recursive: true }));

/** A folder of its own below the temporary one. */
async function folder(name: string, files: Record<string, string> = {}): Promise<string> {
  const path = join(temporary, name);
  await mkdir(path, { recursive: true });
  for (const [file, text] of Object.entries(files)) {
    await mkdir(join(path, file, ".."), { recursive: true });
    await writeFile(join(path, file), text);
  }
  return path;
}

const manifest = (name: string, more: object) => JSON.stringify({ name, version: "1.0.0", type: "module", ...more });

describe("finding plugins", () => {
  test("in plugins.dirs: packages, scoped ones too, and nothing of what is no plugin", async () => {
    const registry = await findPlugins({ folder: temporary, dirs: [good], bins: [] });
    assert.deepEqual(
      registry
        .kinds()
        .map(({ kind, family, package: from, version, description }) => [kind, family, from, version, description]),
      [
        ["ScopedOne", "filter", "@scoped/one", "1.2.3", ""],
        ["Gate", "filter", "fixture-filters", "1.2.3", "Lets packets through, or does not."],
        ["Sink", "filter", "fixture-filters", "1.2.3", "Takes what is published."],
        ["Door", "service", "fixture-filters", "1.2.3", "A service."],
      ],
    );
    assert.deepEqual(
      [registry.has("Gate"), registry.has("Gat"), registry.family("Door"), registry.family("Gat")],
      [true, false, "service", undefined],
    );
    assert.deepEqual(
      [...registry.commands()],
      [["greet", { package: "fixture-filters", entry: join(good, "filters/greet.js") }]],
    );
    assert.deepEqual(registry.problems(), []);
  });

  test("a folder that is itself a package", async () => {
    const registry = await findPlugins({ folder: temporary, dirs: [join(good, "filters")], bins: [] });
    assert.deepEqual(
      registry.kinds().map(({ kind }) => kind),
      ["Gate", "Sink", "Door"],
    );
  });

  test("among the dependencies of the package.json nearest to the config, also where exports hides theirs", async () => {
    const home = await folder("dependencies", {
      "package.json": manifest("home", {
        dependencies: { "fixture-filters": "1" },
        optionalDependencies: { "not-there": "1" },
      }),
      "deep/config/sluice.yaml": "",
    });
    await cp(join(good, "filters"), join(home, "node_modules/fixture-filters"), { recursive: true });
    const registry = await findPlugins({ folder: join(home, "deep/config"), dirs: [], bins: [] });
    assert.deepEqual(
      registry.kinds().map(({ kind }) => kind),
      ["Gate", "Sink", "Door"],
    );
    assert.equal((await registry.load("Gate")).kind, "Gate");
  });

  test("not among the packages that are installed but not listed", async () => {
    const home = await folder("unlisted", { "package.json": manifest("home", {}) });
    await cp(join(good, "filters"), join(home, "node_modules/fixture-filters"), { recursive: true });
    const registry = await findPlugins({ folder: home, dirs: [], bins: [] });
    assert.deepEqual(registry.kinds(), []);
  });

  test("a package.json of the config that lies above the bin too is named once among what was looked at", async () => {
    const both = await folder("both", { "package.json": manifest("both", {}) });
    const registry = await findPlugins({ folder: both, dirs: [], bins: [join(both, "node_modules/.bin/sluice")] });
    assert.throws(
      () => registry.find("Gate"),
      ({ message }: Error) => message.split(join(both, "package.json")).length === 2,
    );
  });

  test("above the bin by its real path and by the path it was called by, with the implied documents", async () => {
    const distribution = await folder("distribution", {
      "package.json": manifest("distribution", {
        dependencies: { "fixture-filters": "1" },
        sluice: { implied: [{ kind: "Door", name: "door" }] },
      }),
      "kernel/cli.ts": "",
    });
    await cp(join(good, "filters"), join(distribution, "node_modules/fixture-filters"), { recursive: true });
    const project = await folder("project", {
      "package.json": manifest("project", { dependencies: { "@scoped/one": "1" } }),
    });
    await cp(join(good, "@scoped/one"), join(project, "node_modules/@scoped/one"), { recursive: true });
    await mkdir(join(project, "node_modules/.bin"));
    const link = join(project, "node_modules/.bin/sluice");
    await symlink(join(distribution, "kernel/cli.ts"), link);

    const registry = await findPlugins({ folder: temporary, dirs: [], bins: [link] });
    assert.deepEqual(
      registry.kinds().map(({ kind }) => kind),
      ["ScopedOne", "Gate", "Sink", "Door"],
    );
    assert.deepEqual(registry.implied(), [{ kind: "Door", name: "door" }]);
    assert.deepEqual(registry.problems(), []);
  });

  test("one package found twice is no duplicate, and a nearer one hides its namesake", async () => {
    const copy = await folder("copy");
    await cp(join(good, "filters"), join(copy, "filters"), { recursive: true });
    const registry = await findPlugins({ folder: temporary, dirs: [good, join(good, "filters"), copy], bins: [] });
    assert.equal((await registry.load("Gate")).kind, "Gate");
    assert.deepEqual(registry.problems(), []);
    assert.equal(registry.commands().get("greet")?.entry, join(good, "filters/greet.js"));
  });
});

describe("loading a kind", () => {
  test("imports it once and then knows its results and packets", async () => {
    const registry = await findPlugins({ folder: temporary, dirs: [good], bins: [] });
    const info = () => registry.kinds().find(({ kind }) => kind === "Gate");
    assert.equal(info()?.results, undefined);
    const gate = (await registry.load("Gate")) as FilterKind;
    assert.equal(await registry.load("Gate"), gate);
    assert.deepEqual(info()?.results, ["closed", "ajar"]);
    assert.deepEqual(info()?.packets, ["Connect", "Publish"]);
  });

  test("fills in defaults and explains faults", async () => {
    const registry = await findPlugins({ folder: temporary, dirs: [good], bins: [] });
    const options = { limit: 3 };
    assert.deepEqual(registry.validator("Gate")?.(options), []);
    assert.deepEqual(options, { limit: 3, pattern: ".*", strict: false, mode: "open" });
    assert.deepEqual(registry.validator("Gate")?.({ limt: 3 }), [
      { path: ["limt"], message: 'unknown option; did you mean "limit"?' },
    ]);
  });
});

/** Kind -> the error of a config that names it. */
const gallery: Record<string, [code: string, message: RegExp]> = {
  NoFamily: [
    "PLUGIN_BROKEN",
    /NoFamily comes from the package broken-no-family .*sluice\.kinds\.NoFamily\.family in its package\.json is missing: it must be "filter" or "service"/,
  ],
  NoEngines: ["PLUGIN_BROKEN", /no valid engines\.sluice \(missing\): give the range .*"\^1\.\d\.0"/],
  BadRange: ["PLUGIN_BROKEN", /no valid engines\.sluice \(newest\)/],
  WrongApi: [
    "PLUGIN_INCOMPATIBLE",
    /broken-wrong-api .*needs plugin API \^2\.0\.0, and this gateway has 1\.\d\.0: install/,
  ],
  WrongNode: ["PLUGIN_INCOMPATIBLE", /broken-wrong-node .*needs Node\.js >=99, and this is \d+\.\d+\.\d+: install/],
  BadNodeRange: ["PLUGIN_BROKEN", /engines\.node in its package\.json \(newest\) is no range/],
  KindText: [
    "PLUGIN_BROKEN",
    /sluice\.kinds\.KindText in its package\.json is not a map with family, entry and schema/,
  ],
  EntryOutside: ["PLUGIN_BROKEN", /entry \(\.\.\/throws\/index\.js\) lies outside the package/],
  EntryMissing: ["PLUGIN_BROKEN", /entry \(\.\/lost\.js\) does not exist in the package/],
  SchemaMissing: ["PLUGIN_BROKEN", /schema \(\.\/lost\.json\) does not exist/],
  SchemaNotJson: ["PLUGIN_BROKEN", /the schema of SchemaNotJson .* can't be read/],
  SchemaNotMap: ["PLUGIN_BROKEN", /must describe a map/],
  SchemaFaulty: ["PLUGIN_BROKEN", /the schema of SchemaFaulty does not compile/],
  Throws: ["PLUGIN_BROKEN", /Throws of the package broken-throws failed while .*index\.js was imported: no luck today/],
  SyntaxFault: ["PLUGIN_BROKEN", /broken-syntax-error failed while/],
  DependencyMissing: [
    "PLUGIN_DEPENDENCY_MISSING",
    /broken-dependency-missing needs the package "a-package-that-nobody-has", which is not installed: install/,
  ],
  DependencyUnlisted: ["PLUGIN_DEPENDENCY_MISSING", /needs the package "a-package-that-nobody-lists"/],
  FileMissing: ["PLUGIN_BROKEN", /broken-file-missing failed while .*lost\.js/],
  NeverResolves: [
    "PLUGIN_START_TIMEOUT",
    /NeverResolves of the package broken-never-resolves did not finish importing within 0\.3 s/,
  ],
  NoDefault: ["PLUGIN_BROKEN", /the default export of .* is missing or not an object/],
  OtherKind: ["PLUGIN_BROKEN", /says kind "AnotherKind" where the manifest says "OtherKind"/],
  NoCreate: ["PLUGIN_BROKEN", /has no function create/],
  BadPackets: ["PLUGIN_BROKEN", /has no list packets of Connect, Publish/],
  BadResults: ["PLUGIN_BROKEN", /has no list results of distinct names/],
  BadDiscards: ["PLUGIN_BROKEN", /has discards that are not among its results/],
  Twice: [
    "PLUGIN_DUPLICATE_KIND",
    /two packages provide the kind Twice: broken-duplicate-a .* and broken-duplicate-b .*; uninstall one of them, or write "broken-duplicate-a#Twice" or "broken-duplicate-b#Twice"/,
  ],
  Pipeline: ["PLUGIN_BROKEN", /broken-kernel-kind .*provides the kind Pipeline, which is the kernel's own/],
  Gat: [
    "PLUGIN_NOT_FOUND",
    /no installed package provides the kind "Gat"; did you mean "Gate"\? \(looked at the packages in .*plugins/,
  ],
  Unheard: [
    "PLUGIN_NOT_FOUND",
    /"Unheard": install the package that does .*; broken-keyword-only could not be read: .*; not-json could not/,
  ],
};

describe("the gallery of broken plugins", () => {
  let registry: Registry;
  before(async () => {
    registry = await findPlugins({ folder: temporary, dirs: [good, broken], bins: [], importDeadlineMs: 300 });
  });

  for (const [kind, [code, message]] of Object.entries(gallery)) {
    test(kind, async () => {
      await assert.rejects(registry.load(kind), (error) => {
        assert.ok(error instanceof SluiceError);
        assert.match(error.message, message);
        assert.equal(error.code, code);
        return true;
      });
    });
  }

  test("does no harm to the others", async () => {
    assert.equal((await registry.load("Gate")).kind, "Gate");
    assert.equal((await registry.load("ScopedOne")).kind, "ScopedOne");
  });

  test("is listed, in use or not", () => {
    const byPackage = Object.fromEntries(registry.problems().map((problem) => [problem.package, problem.code]));
    assert.deepEqual(byPackage, {
      "not-json": "PLUGIN_BROKEN",
      "broken-keyword-only": "PLUGIN_BROKEN",
      "broken-no-family": "PLUGIN_BROKEN",
      "broken-no-engines": "PLUGIN_BROKEN",
      "broken-bad-range": "PLUGIN_BROKEN",
      "broken-wrong-api": "PLUGIN_INCOMPATIBLE",
      "broken-entry-outside": "PLUGIN_BROKEN",
      "broken-entry-missing": "PLUGIN_BROKEN",
      "broken-schema-missing": "PLUGIN_BROKEN",
      "broken-schema-not-json": "PLUGIN_BROKEN",
      "broken-schema-not-map": "PLUGIN_BROKEN",
      "broken-schema-faulty": "PLUGIN_BROKEN",
      "broken-kernel-kind": "PLUGIN_BROKEN",
      "broken-duplicate-b": "PLUGIN_DUPLICATE_KIND",
      "broken-bad-node-range": "PLUGIN_BROKEN",
      "broken-command-missing": "PLUGIN_BROKEN",
      "broken-kind-name": "PLUGIN_BROKEN",
      "broken-kind-text": "PLUGIN_BROKEN",
      "broken-kinds-list": "PLUGIN_BROKEN",
      "broken-no-kinds": "PLUGIN_BROKEN",
      "broken-wrong-node": "PLUGIN_INCOMPATIBLE",
    });
  });
});

describe("packages that only a file system can break", () => {
  const plugin = (name: string, entry: string) =>
    manifest(name, {
      engines: { sluice: "^1.0.0" },
      sluice: { kinds: { Linked: { family: "filter", entry, schema: "./schema.json" } } },
    });

  test("an entry that a link leads out of the package", async () => {
    const dir = await folder("linked", {
      "one/package.json": plugin("linked", "./index.js"),
      "one/schema.json": '{ "type": "object" }',
    });
    await symlink(join(good, "filters/gate.js"), join(dir, "one/index.js"));
    const registry = await findPlugins({ folder: temporary, dirs: [dir], bins: [] });
    await assert.rejects(registry.load("Linked"), { code: "PLUGIN_BROKEN", message: /lies outside the package/ });
  });

  test("TypeScript under node_modules, which Node would not run", async () => {
    const home = await folder("typescript", {
      "package.json": manifest("home", { dependencies: { typed: "1" } }),
      "node_modules/typed/package.json": plugin("typed", "./index.ts"),
      "node_modules/typed/schema.json": '{ "type": "object" }',
      "node_modules/typed/index.ts": "export default {};",
    });
    const registry = await findPlugins({ folder: home, dirs: [], bins: [] });
    await assert.rejects(registry.load("Linked"), {
      code: "PLUGIN_BROKEN",
      message: /is TypeScript .* the package must ship JavaScript/,
    });
  });

  test("a dependency that is listed and not installed is named", async () => {
    const home = await folder("absent", { "package.json": manifest("home", { dependencies: { "sluice-gone": "1" } }) });
    const registry = await findPlugins({ folder: home, dirs: [], bins: [] });
    await assert.rejects(registry.load("Gone"), {
      code: "PLUGIN_NOT_FOUND",
      message: /listed but not installed: sluice-gone \(npm install\)/,
    });
  });
});
