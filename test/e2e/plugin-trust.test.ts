/** Which packages a config lets in: allow, deny and strict; and which of two packages a kind is taken from. */
import assert from "node:assert/strict";
import { appendFile, cp, mkdir, mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { loadSpec } from "../../kernel/config.ts";
import { findInstalled } from "../../kernel/installed-plugins.ts";
import { packPlugin, writePlugin, type Tarball } from "../helpers/plugin-packages.ts";
import { bin, sluice, snapshot } from "../helpers/sluice.ts";

let home: string;
let mark: Tarball;
/** Two packages that provide the same kind, and one of a scope. */
let dirs: string;
before(async () => {
  home = await realpath(await mkdtemp(join(tmpdir(), "sluice-trust-")));
  mark = await packPlugin(home, { name: "sluice-mark", version: "1.2.0" });
  dirs = join(home, "dirs");
  await writePlugin(dirs, { name: "sluice-mark", version: "1.2.0" });
  await writePlugin(dirs, { name: "twin-mark", version: "2.0.0", mark: "twin" });
  await writePlugin(dirs, { name: "@acme/label", version: "0.3.0", kind: "Label" });
});
after(() => rm(home, { recursive: true }));

let count = 0;
async function project(plugins: string, filters: string): Promise<string> {
  const folder = join(home, `project-${++count}`);
  await mkdir(folder);
  await writeFile(join(folder, "sluice.yaml"), config(plugins, filters));
  return folder;
}

const config = (plugins: string, filters: string): string =>
  `kind: Gateway\nplugins: { ${plugins} }\n---\nkind: Pipeline\nname: p\nfilters:\n${filters}`;

const use = (kind: string): string => `  - { name: ${kind.toLowerCase().replaceAll(/\W/g, "")}, kind: "${kind}" }\n`;

/** Every problem, without its place, and every warning about a package. */
async function load(folder: string): Promise<{ problems: string[]; warnings: string[] }> {
  const { problems, warnings } = await loadSpec({ cwd: folder, env: {}, bins: [bin] });
  return {
    problems: problems.map(({ code, message }) => `${code}: ${message}`),
    warnings: warnings.map(({ message }) => message).filter((message) => message.startsWith("the package")),
  };
}

describe("plugins.allow and deny", () => {
  for (const [plugins, label, distribution] of [
    ["", true, true],
    ['deny: ["@acme/label"]', false, true],
    ['deny: ["@acme/*"]', false, true],
    ['deny: ["*"]', false, false],
    ['deny: ["@acme/label@<0.3.0"]', true, true],
    ['deny: ["@acme/label@^0.3.0"]', false, true],
    ['deny: ["@acme/*@>=0.3"]', false, true],
    ['deny: ["@acm/*", "label", "@acme/labe"]', true, true],
    ['deny: ["@sluice/auth"]', true, false],
    ["allow: []", false, true],
    ['allow: ["sluice-mark"]', false, true],
    ['allow: ["sluice-mark", "@acme/*"]', true, true],
    ['allow: ["@acme/label@^0.3.0"]', true, true],
    ['allow: ["@acme/label@^0.4.0"]', false, true],
    ['allow: ["*"], deny: ["@acme/label"]', false, true],
  ] as const) {
    test(plugins || "neither", async () => {
      const given = [`dirs: ["${dirs}"]`, plugins].filter((part) => part !== "").join(", ");
      const { problems } = await load(await project(given, use("Label") + use("ConnectControl")));
      const refused = [...(label ? [] : ["Label"]), ...(distribution ? [] : ["ConnectControl"])];
      // Which is implied.
      if (plugins.includes('deny: ["*"]')) refused.push("AdminAPI");
      assert.equal(problems.length, refused.length, problems.join("\n"));
      for (const [index, kind] of refused.entries()) {
        assert.match(
          problems[index] ?? "",
          new RegExp(
            `^PLUGIN_REFUSED: ${kind} comes from the package \\S+ \\(.*\\), which can't be used: is kept out: plugins\\.(allow does not have|deny has) `,
          ),
        );
      }
    });
  }

  test("an entry that means nothing is a problem in its place", async () => {
    const folder = await project('allow: ["a@x.y"], deny: ["@acme/x@", "Upper"]', use("ConnectControl"));
    const { problems } = await loadSpec({ cwd: folder, env: {}, bins: [bin] });
    assert.deepEqual(
      problems.map(({ where }) => where.replace(/^sluice\.yaml:2:\d+ > /, "")),
      ["gateway > plugins.deny[0]", "gateway > plugins.deny[1]"],
    );
    await writeFile(join(folder, "sluice.yaml"), config('allow: ["a@x.y"]', use("ConnectControl")));
    assert.deepEqual((await load(folder)).problems, [
      'CONFIG_INVALID: "x.y" is no range of versions: write one such as ^1.2.0, or leave it out',
    ]);
  });

  test("a refused package's commands are not offered, and one that nothing uses is worth a warning", async () => {
    const fixtures = join(import.meta.dirname, "../fixtures/plugins");
    const folder = await project(`dirs: ["${fixtures}"], deny: [fixture-filters]`, use("ConnectControl"));
    const { problems, warnings } = await load(folder);
    assert.deepEqual(problems, []);
    assert.deepEqual(warnings, ['the package fixture-filters is kept out: plugins.deny has "fixture-filters"']);
    const { registry } = await findInstalled({ cwd: folder, env: {}, bins: [bin] });
    assert.equal(registry.commands().has("greet"), false);
  });

  test("nothing is imported as long as the document that says it has problems", async () => {
    const marker = "__sluiceTrustMarker";
    await writePlugin(join(home, "loud"), {
      name: "loud",
      kind: "Loud",
      files: {
        "index.js": `globalThis.${marker} = true;\nexport default { kind: "Loud", packets: [], results: [], create() {} };\n`,
      },
    });
    const loud = join(home, "loud");
    const seen = (): unknown => (globalThis as Record<string, unknown>)[marker];
    for (const plugins of [
      `dirs: ["${loud}"], dney: [loud]`,
      `dirs: ["${loud}"], deny: ["loud@x.y"]`,
      `dirs: ["${loud}"] }\n---\nkind: Gateway\nplugins: { deny: [loud]`,
    ]) {
      const { problems } = await load(await project(plugins, use("Loud")));
      assert.ok(problems.length > 0);
      assert.equal(seen(), undefined, plugins);
    }
    const folder = await project(`dirs: ["${loud}"]`, use("Loud"));
    await load(folder);
    assert.equal(seen(), true);
  });

  test("plugin add asks them before it imports anything", async () => {
    const folder = await project('deny: ["sluice-mark@^1.0.0"]', use("Mark"));
    const then = await snapshot(folder);
    const { code, stderr } = await sluice(folder, ["plugin", "add", mark.path]);
    assert.equal(code, 1);
    assert.equal(
      stderr,
      'sluice plugin add: sluice-mark@1.2.0: is kept out: plugins.deny has "sluice-mark@^1.0.0" (PLUGIN_REFUSED)\n',
    );
    assert.deepEqual(await snapshot(folder), then);
    await writeFile(join(folder, "sluice.yaml"), config("strcit: true", use("Mark")));
    const unknown = await sluice(folder, ["plugin", "add", mark.path]);
    assert.match(
      unknown.stderr,
      /the Gateway document of .* says which packages may be used, and has problems: sluice check .*\(CONFIG_INVALID\)\n$/,
    );
  });
});

describe("plugins.strict", () => {
  test("lets in what plugins.lock lists, as it was installed, and the distribution", async () => {
    const folder = await project("strict: true", use("Mark") + use("ConnectControl"));
    assert.equal((await sluice(folder, ["plugin", "add", mark.path])).code, 0);
    assert.deepEqual((await load(folder)).problems, []);

    const place = join(folder, ".sluice/plugins/sluice-mark@1.2.0/node_modules");
    await cp(place, join(home, "untouched"), { recursive: true });
    const changes: [string, () => Promise<void>][] = [
      ["a file that was changed", () => appendFile(join(place, "sluice-mark/index.js"), "\n")],
      ["a file that was added", () => writeFile(join(place, "sluice-mark/more.js"), "")],
      [
        "a package that was added",
        async () => {
          await mkdir(join(place, "more"));
          await writeFile(join(place, "more/index.js"), "");
        },
      ],
      ["a file that is gone", () => rm(join(place, "sluice-mark/schema.json"))],
    ];
    for (const [what, change] of changes) {
      await change();
      const { problems } = await load(folder);
      assert.equal(problems.length, 1, what);
      assert.match(
        problems[0] ?? "",
        what === "a file that is gone"
          ? /^PLUGIN_(CHANGED|BROKEN): Mark/
          : /^PLUGIN_CHANGED: Mark comes from .* its files are not those that were installed/,
        what,
      );
      await rm(place, { recursive: true });
      await cp(join(home, "untouched"), place, { recursive: true });
      assert.deepEqual((await load(folder)).problems, [], what);
    }
  });

  test("keeps out what lies elsewhere: in plugins.dirs, or among the config's own dependencies", async () => {
    const folder = await project(`dirs: ["${dirs}"], strict: true`, use("Label"));
    const message =
      /^PLUGIN_REFUSED: \w+ comes from .*plugins\.strict is set, and plugins\.lock does not list it \(sluice plugin add\)/;
    assert.match((await load(folder)).problems[0] ?? "", message);
    const own = await project("strict: true", use("Mark"));
    await writeFile(join(own, "package.json"), '{ "dependencies": { "sluice-mark": "1.2.0" } }');
    await cp(join(dirs, "sluice-mark-1.2.0"), join(own, "node_modules/sluice-mark"), { recursive: true });
    assert.match((await load(own)).problems[0] ?? "", message);
    // The lock goes before what npm has installed.
    assert.equal((await sluice(own, ["plugin", "add", mark.path])).code, 0);
    assert.deepEqual((await load(own)).problems, []);
  });

  test("plugins.lock that can't be read is a problem, strict or not, and nothing is imported", async () => {
    for (const plugins of ["strict: true", "strict: false"]) {
      const folder = await project(plugins, use("Mark"));
      assert.equal((await sluice(folder, ["plugin", "add", mark.path])).code, 0);
      for (const text of [
        "{",
        '{ "lockfileVersion": 2 }',
        '{ "lockfileVersion": 1, "plugins": { "../x": {} } }',
        '{ "lockfileVersion": 1, "plugins": { "x": { "version": "../.." } } }',
      ]) {
        await writeFile(join(folder, "plugins.lock"), text);
        const { problems } = await load(folder);
        assert.ok(
          problems.some((problem) =>
            problem.startsWith(`PLUGIN_LOCK_INVALID: ${join(folder, "plugins.lock")} can't be read: `),
          ),
          text,
        );
        const { code, stderr } = await sluice(folder, ["plugin", "add", mark.path]);
        assert.equal(code, 1);
        assert.match(stderr, /restore it, or delete it and add the plugins again \(PLUGIN_LOCK_INVALID\)/);
      }
    }
  });
});

describe("a kind of two packages", () => {
  const both = (): string => `dirs: ["${dirs}"]`;

  test("is a problem that names both where it is written alone", async () => {
    const { problems } = await load(await project(both(), use("Mark")));
    assert.equal(problems.length, 1);
    assert.match(
      problems[0] ?? "",
      /^PLUGIN_DUPLICATE_KIND: two packages provide the kind Mark: sluice-mark \(.*\) and twin-mark \(.*\); uninstall one of them, or write "sluice-mark#Mark" or "twin-mark#Mark"$/,
    );
  });

  test("is taken from the package that is written with it, each with its own options and code", async () => {
    const folder = await project(both(), use("sluice-mark#Mark") + use("twin-mark#Mark"));
    const { spec, problems, warnings } = await loadSpec({ cwd: folder, env: {}, bins: [bin] });
    assert.deepEqual(problems, []);
    assert.deepEqual(
      spec?.pipelines[0]?.filters.map(({ options }) => options),
      [{ mark: "marked" }, { mark: "twin" }],
    );
    const [one, two] = spec?.pipelines[0]?.filters ?? [];
    assert.notEqual(one?.kind, two?.kind);
    assert.ok(!warnings.some(({ message }) => message.includes("provides Mark")));
    // As it was written, for whoever reads the config back.
    assert.match(JSON.stringify(spec?.documents), /"kind":"twin-mark#Mark"/);
  });

  test("may be written with its package where there is but one, of filters and services", async () => {
    const folder = await project(both(), use("@acme/label#Label"));
    await appendFile(join(folder, "sluice.yaml"), '---\nkind: "@sluice/admin-api#AdminAPI"\nname: api\nport: 0\n');
    const { spec, problems } = await loadSpec({ cwd: folder, env: {}, bins: [bin] });
    assert.deepEqual(problems, []);
    // It takes the place of the one that is implied.
    assert.deepEqual(
      spec?.services.map(({ name }) => name),
      ["api"],
    );
  });

  for (const [kind, message] of [
    [
      "nobody#Mark",
      /^PLUGIN_NOT_FOUND: the package nobody is not installed; Mark is provided by sluice-mark and twin-mark/,
    ],
    [
      "twin-mark#Label",
      /^PLUGIN_NOT_FOUND: the package twin-mark does not provide the kind "Label": its kinds are Mark; Label is provided by @acme\/label/,
    ],
    ["#Mark", /^PLUGIN_NOT_FOUND: the package {2}is not installed/],
  ] as const) {
    test(`${kind} is found nowhere, and says where it would be`, async () => {
      const { problems } = await load(await project(both(), use(kind)));
      assert.equal(problems.length, 1);
      assert.match(problems[0] ?? "", message);
    });
  }

  test("is listed twice, with who uses which, and explained by its package", async () => {
    const folder = await project(both(), use("twin-mark#Mark"));
    const listed = await sluice(folder, ["plugin", "list", "--json"]);
    const { kinds } = JSON.parse(listed.stdout) as {
      kinds: { kind: string; package: string; usedBy: string[]; from: string; api: string }[];
    };
    assert.deepEqual(
      kinds
        .filter(({ kind }) => kind === "Mark")
        .map(({ package: from, usedBy, from: place, api }) => [from, usedBy, place, api]),
      [
        ["sluice-mark", [], "dirs", "^1.0.0"],
        ["twin-mark", ["p/twinmarkmark"], "dirs", "^1.0.0"],
      ],
    );
    const info = await sluice(folder, ["plugin", "info", "twin-mark#Mark"]);
    assert.equal(
      info.stdout,
      `twin-mark#Mark: a filter, of twin-mark 2.0.0
Marks payloads.

Options

OPTION  TYPE    DEFAULT  MEANING
mark    string  "twin"   What is put in front.

Example

- name: mark
  kind: "twin-mark#Mark"
`,
    );
    const unclear = await sluice(folder, ["plugin", "info", "Mark"]);
    assert.equal(unclear.code, 1);
    assert.match(
      unclear.stderr,
      /several packages provide Mark: say sluice-mark#Mark or twin-mark#Mark \(PLUGIN_DUPLICATE_KIND\)/,
    );
    const schema = JSON.parse((await sluice(folder, ["schema"])).stdout) as { $defs: Record<string, object> };
    assert.deepEqual(
      Object.keys(schema.$defs).filter((key) => key.endsWith("Mark")),
      ["sluice-mark#Mark", "twin-mark#Mark"],
    );
    assert.ok("Label" in schema.$defs);
  });
});
