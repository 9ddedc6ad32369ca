import assert from "node:assert/strict";
import { mkdir, mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { generate } from "selfsigned";
import { loadSpec } from "../../kernel/config.ts";

const dirs = join(import.meta.dirname, "../fixtures/plugins");
const gateway = `{ kind: Gateway, plugins: { dirs: [${dirs}] } }\n---\n# the document under test\n`;

let temporary: string;
let count = 0;
before(async () => {
  temporary = await realpath(await mkdtemp(join(tmpdir(), "sluice-files-")));
});
after(() => rm(temporary, { recursive: true }));

async function folder(files: Record<string, string>): Promise<string> {
  const path = join(temporary, String((count += 1)));
  await mkdir(path);
  for (const [file, text] of Object.entries(files)) {
    await mkdir(join(path, file, ".."), { recursive: true });
    await writeFile(join(path, file), text);
  }
  return path;
}

async function load(cwd: string, path?: string, env: NodeJS.ProcessEnv = {}) {
  const { spec, problems, warnings } = await loadSpec({ cwd, env, bins: [], ...(path === undefined ? {} : { path }) });
  return {
    spec,
    problems: problems.map(({ where, message }) => `${where}: ${message}`),
    codes: problems.map(({ code }) => code),
    warnings,
  };
}

const door = (name: string) => `kind: Pipeline\nname: ${name}\nfilters: []\n`;
const names = (loaded: Awaited<ReturnType<typeof load>>) => loaded.spec?.documents.map(({ name }) => name);

describe("finding the config", () => {
  for (const place of [
    "sluice.yaml",
    "sluice.yml",
    ".config/sluice.yaml",
    ".config/sluice.yml",
    "config/sluice.yaml",
  ]) {
    test(`in ${place}, also from a folder below`, async () => {
      const cwd = await folder({ [place]: door("found"), "package.json": "{}", "below/x": "" });
      const loaded = await load(join(cwd, "below"));
      assert.deepEqual(
        [names(loaded), loaded.spec?.path, loaded.spec?.folder],
        [["found"], join(cwd, place), join(cwd, place, "..")],
      );
    });
  }

  test("in sluice.json", async () => {
    const cwd = await folder({ "sluice.json": '{ "kind": "Pipeline", "name": "found", "filters": [] }' });
    assert.deepEqual(names(await load(cwd)), ["found"]);
  });

  test("in package.json: one document, several, or a path; never a plugin's manifest", async () => {
    const one = { kind: "Pipeline", name: "one", filters: [] };
    const ofPackage = async (json: object, files: Record<string, string> = {}) =>
      load(
        await folder({ "package.json": JSON.stringify({ sluice: { kinds: {} }, ...json }, undefined, 2), ...files }),
      );
    assert.deepEqual(names(await ofPackage({ sluiceConfig: one })), ["one"]);
    assert.deepEqual(names(await ofPackage({ sluiceConfig: [one, { ...one, name: "two" }] })), ["one", "two"]);
    assert.deepEqual(names(await ofPackage({ sluiceConfig: "etc/my.yaml" }, { "etc/my.yaml": door("three") })), [
      "three",
    ]);
    assert.deepEqual((await ofPackage({ sluiceConfig: [one, { ...one, nme: "two" }] })).problems, [
      'package.json:13:7 > one > name: another Pipeline has the name "one" already (package.json:6:5): rename one',
      "package.json:15:7 > one > nme: unknown option; known options: protocol, flow, filters, data, timeout, resilience",
    ]);
    assert.deepEqual((await ofPackage({})).codes, ["CONFIG_NOT_FOUND"]);
    assert.deepEqual((await ofPackage({ sluiceConfig: "package.json" })).problems, [
      'package.json: "sluiceConfig" leads to another package.json: name a YAML file or a folder',
    ]);
  });

  test("stops at the nearest package.json", async () => {
    const cwd = await folder({ "sluice.yaml": door("above"), "inner/package.json": "{}" });
    const { problems, codes } = await load(join(cwd, "inner"));
    assert.deepEqual(codes, ["CONFIG_NOT_FOUND"]);
    assert.match(
      problems[0]!,
      /: no config was found .*sluice\.yaml, .*: write sluice\.yaml, or name a file or folder with -c$/,
    );
  });

  test("by name: a file of any name, and a folder's files sorted, not those of its subfolders", async () => {
    const cwd = await folder({
      "a/my.conf": door("mine"),
      "b/2.yml": door("two"),
      "b/1.yaml": `${door("one")}---\n${door("more")}`,
      "b/3.json": '{"kind":"Pipeline","name":"three","filters":[]}',
      "b/c/0.yaml": door("no"),
      "b/x.txt": ":",
    });
    assert.deepEqual(names(await load(cwd, "a/my.conf")), ["mine"]);
    const loaded = await load(cwd, "b");
    assert.deepEqual(
      [names(loaded), loaded.spec?.path, loaded.spec?.folder],
      [["one", "more", "two", "three"], join(cwd, "b"), join(cwd, "b")],
    );
  });

  test("problems in several files of a folder name each file", async () => {
    const cwd = await folder({ "b/1.yaml": "kind: Pipeline\nname: a\n", "b/2.yaml": "a: [\n", "b/3.yaml": "" });
    assert.deepEqual((await load(cwd, "b")).problems, [
      "b/1.yaml:1:1 > a > filters: is missing: The filters, each with a name, a kind and the kind's options.",
      "b/2.yaml:2:1: the YAML is not valid: Flow sequence in block collection must be sufficiently indented and end with a ] (check the indentation)",
      "b/3.yaml:1:1: is empty: write at least one document with kind and name",
    ]);
  });

  test("by a name that does not exist, or a folder without a config", async () => {
    const cwd = await folder({ "empty/x.txt": "" });
    assert.deepEqual((await load(cwd, "nothing.yaml")).problems, ["nothing.yaml: there is no such file or folder"]);
    assert.deepEqual((await load(cwd, "empty")).problems, ["empty: this folder has no .yaml, .yml or .json file"]);
  });
});

/** Text of sluice.yaml -> its problem. */
const unreadable: [name: string, yaml: string, problem: string][] = [
  ["empty", "", "sluice.yaml:1:1: is empty: write at least one document with kind and name"],
  ["only a comment", "# nothing\n---\n", "sluice.yaml:1:1: has no document: write at least one with kind and name"],
  [
    "indented with a tab",
    "kind: Pipeline\nflow:\n\t- a\n",
    "sluice.yaml:3:1: the YAML is not valid: a tab is used as indentation: use spaces",
  ],
  [
    "over-indented, as on Easegress' page",
    'kind: Pipeline\nroute:\n- name: gateway\n    matchExpr: "gate*"\n',
    "sluice.yaml:3:9: the YAML is not valid: the next line is indented further than this one, which has a value already: align the two",
  ],
  [
    "one key twice",
    "kind: Pipeline\nname: a\nname: b\n",
    "sluice.yaml:3:1: the YAML is not valid: this key stands twice in the same map: remove one",
  ],
  ["an unknown tag", "kind: !env Pipeline\n", "sluice.yaml:1:7: the YAML is not valid: Unresolved tag: !env"],
  [
    "an anchor that is not there",
    "kind: *nothing\n",
    "sluice.yaml:1:7: the YAML is not valid: no anchor &nothing comes before this",
  ],
  ["no map", "just text\n", "sluice.yaml:1:1 > document 1: must be a map with kind and name"],
];

describe("a file that can't be read as a config", () => {
  for (const [name, yaml, problem] of unreadable) {
    test(name, async () => {
      assert.deepEqual((await load(await folder({ "sluice.yaml": yaml }))).problems, [problem]);
    });
  }

  test("an error in one document does not hide those of the others", async () => {
    const cwd = await folder({
      "sluice.yaml": "kind: [\n---\nkind: Pipeline\nname: a\nzzz: 1\nfilters: []\n---\n\tx: 1\n",
    });
    const { problems } = await load(cwd);
    assert.deepEqual(
      problems.map((problem) => problem.split(": ")[0]),
      ["sluice.yaml:2:1", "sluice.yaml:5:1 > a > zzz", "sluice.yaml:8:1"],
    );
  });

  test("an alias bomb, and a map that contains itself", async () => {
    const bomb = [
      "a: &a [x, x, x, x, x, x, x, x, x, x]",
      ..."bcdefghi"
        .split("")
        .map((name, index) => `${name}: &${name} [${Array(10).fill(`*${"abcdefgh"[index]}`).join(", ")}]`),
    ].join("\n");
    assert.deepEqual((await load(await folder({ "sluice.yaml": bomb }))).problems, [
      "sluice.yaml:1:1: the YAML is not valid: Excessive alias count indicates a resource exhaustion attack",
    ]);
    const circle = "kind: Pipeline\nname: a\ndata: &x { x: *x }\nfilters: []\n";
    assert.deepEqual((await load(await folder({ "sluice.yaml": circle }))).problems, [
      "sluice.yaml:1:1 > document 1: is nested more than 100 levels deep, or contains itself",
    ]);
  });
});

/** A pipeline of one Gate with these fields. */
const gate = (fields: string) => `${gateway}kind: Pipeline\nname: g\nfilters:\n- name: gate\n  kind: Gate\n${fields}`;

describe("substitution", () => {
  const options = async (fields: string, env: NodeJS.ProcessEnv, files: Record<string, string> = {}) => {
    const { spec, problems } = await load(await folder({ "sluice.yaml": gate(fields), ...files }), undefined, env);
    assert.deepEqual(problems, []);
    const {
      limit: _,
      strict: _strict,
      mode: _mode,
      ...rest
    } = { limit: 0, strict: false, mode: "", ...(spec?.pipelines[0]?.filters[0]?.options as object) };
    return { all: spec?.pipelines[0]?.filters[0]?.options as Record<string, unknown>, rest };
  };

  test("of variables, defaults and files, and none of $${", async () => {
    const { rest } = await options(
      "  pattern: a${A}-${B:-b}-${C:-}-$${A}-${E:-e}-$x\n  password: ${file:secret/pass}\n",
      { A: "1", E: "" },
      { "secret/pass": "pa${A}ss\n" },
    );
    assert.deepEqual(rest, { pattern: "a1-b--${A}-e-$x", password: "pa${A}ss" });
  });

  test("gives the schema's type where a value is one variable and nothing else", async () => {
    const { all } = await options(
      "  limit: ${LIMIT}\n  strict: '${STRICT}'\n  ratio: ${RATIO:-2.5}\n  hosts: ${HOSTS}\n  pattern: ${LIMIT}\n",
      { LIMIT: "12", STRICT: "true", HOSTS: "a:1, b:2" },
    );
    assert.deepEqual(all, { limit: 12, strict: true, ratio: 2.5, hosts: ["a:1", "b:2"], pattern: "12", mode: "open" });
  });

  test("gives the kernel's own fields their type as well", async () => {
    const { spec, problems } = await load(
      await folder({ "sluice.yaml": "kind: MQTTProxy\nname: p\nport: ${PORT:-1883}\nbrokerMode: ${BROKER}\n" }),
      undefined,
      { BROKER: "true" },
    );
    assert.deepEqual([problems, spec?.proxies[0]?.port, spec?.proxies[0]?.brokerMode], [[], 1883, true]);
  });

  test("never makes YAML of what a variable holds", async () => {
    const { rest } = await options("  pattern: ${A}\n", { A: "x\nlimit: 99\n# {" });
    assert.deepEqual(rest, { pattern: "x\nlimit: 99\n# {" });
  });

  test("of what is not set, not readable or not understood is a problem with its place", async () => {
    const { problems } = await load(
      await folder({
        "sluice.yaml": gate("  pattern: x${NOT_SET}\n  limit: ${LIMIT}\n  password: ${file:none}\n  mode: ${a-b}\n"),
      }),
      undefined,
      { LIMIT: "many" },
    );
    assert.deepEqual(
      problems.map((problem) => problem.replace(/ENOENT.*/, "ENOENT")),
      [
        "sluice.yaml:9:12: the environment variable NOT_SET is not set: set it, or write ${NOT_SET:-default}",
        'sluice.yaml:10:3 > g > gate > limit: must be a whole number, not "many"',
        "sluice.yaml:11:13: ${file:none} can't be read: ENOENT",
        "sluice.yaml:12:9: ${a-b} is neither ${VARIABLE}, ${VARIABLE:-default} nor ${file:path}; write $${a-b} for the text itself",
      ],
    );
  });
});

describe("secrets", () => {
  test("of files, and what the schema calls secret, are in no problem's text", async () => {
    const fields =
      "  limit: ${file:pass}\n  mode: ${file:pass}\n  hosts: ${file:pass}\n  password: 4711\n  strict: maybe\n";
    const { problems } = await load(await folder({ "sluice.yaml": gate(fields), pass: "opened" }));
    assert.deepEqual(
      problems.map((problem) => problem.replace(/^.* > /, "")),
      [
        "limit: must be a whole number, not what is given",
        'mode: must be one of "open", "shut", not what is given',
        "hosts: must be a list, not what is given",
        "password: must be a string, not what is given (put it in quotes)",
        'strict: must be true or false, not "maybe"',
      ],
    );
  });

  test("are hidden in the documents for showing, and there for the filter", async () => {
    const cwd = await folder({
      "sluice.yaml": `${gateway}kind: Pipeline\nname: g\ndata: { a: "\${file:pass}", b: plain }\nfilters:\n- name: gate\n  kind: Gate\n  password: hunter2\n  pattern: x\${file:pass}\n  users: [{ name: u, token: t }]\n`,
      pass: "fromfile",
    });
    const { spec } = await load(cwd);
    const shown = spec?.documents.find(({ kind }) => kind === "Pipeline");
    assert.deepEqual(shown, {
      kind: "Pipeline",
      name: "g",
      data: { a: "***", b: "plain" },
      filters: [
        {
          name: "gate",
          kind: "Gate",
          password: "***",
          pattern: "***",
          users: [{ name: "u", token: "***" }],
          limit: 10,
          strict: false,
          mode: "open",
        },
      ],
      flow: [],
      timeout: 30,
    });
    const given = spec?.pipelines[0]?.filters[0]?.options as { password: string; pattern: string };
    assert.deepEqual(
      [given.password, given.pattern, spec?.pipelines[0]?.data],
      ["hunter2", "xfromfile", { a: "fromfile", b: "plain" }],
    );
  });
});

describe("certificates", () => {
  let one: { cert: string; private: string };
  let two: { cert: string; private: string };
  let old: { cert: string; private: string };
  before(async () => {
    const attributes = [{ name: "commonName", value: "localhost" }];
    one = await generate(attributes, { keyType: "ec" });
    two = await generate(attributes, { keyType: "ec" });
    old = await generate(attributes, {
      keyType: "ec",
      notBeforeDate: new Date(2020, 0),
      notAfterDate: new Date(2021, 0),
    });
  });
  const proxy = (certificate: object[]) =>
    `kind: MQTTProxy\nname: p\nport: 8883\nuseTLS: true\ncertificate:\n${certificate.map((item) => `- ${JSON.stringify(item)}\n`).join("")}`;

  test("in the config, in files beside it, and by ${file:}", async () => {
    const text = proxy([
      { name: "inline", cert: one.cert, key: one.private },
      { name: "files", certFile: "tls/cert.pem", keyFile: "tls/key.pem" },
      { name: "substituted", cert: "${file:tls/cert.pem}", key: "${file:tls/key.pem}" },
    ]);
    const cwd = await folder({
      "deep/sluice.yaml": text,
      "deep/tls/cert.pem": two.cert,
      "deep/tls/key.pem": two.private,
    });
    const { spec, problems } = await load(cwd, "deep/sluice.yaml");
    assert.deepEqual(problems, []);
    assert.deepEqual(spec?.proxies[0]?.certificate, [
      { name: "inline", cert: one.cert, key: one.private },
      { name: "files", cert: two.cert, key: two.private },
      { name: "substituted", cert: two.cert.trimEnd(), key: two.private.trimEnd() },
    ]);
    assert.doesNotMatch(JSON.stringify(spec?.documents), /PRIVATE KEY/);
  });

  test("that are wrong, each in its way", async () => {
    const text = proxy([
      { name: "mixed", cert: one.cert, key: two.private },
      { name: "placeholder", cert: "balabala", key: "keyForbalabala" },
      { name: "nothing" },
      { name: "both", cert: one.cert, certFile: "x.pem", key: one.private },
      { name: "lost", certFile: "x.pem", key: one.private },
      {
        name: "garbled",
        cert: "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----",
        key: "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----",
      },
      {
        name: "locked",
        cert: one.cert,
        key: "-----BEGIN ENCRYPTED PRIVATE KEY-----\nabc\n-----END ENCRYPTED PRIVATE KEY-----",
      },
    ]);
    const { problems } = await load(await folder({ "sluice.yaml": text }));
    assert.deepEqual(
      problems.map((problem) => problem.replace(/(read): .*/, "$1").replace(/^sluice\.yaml:(\d+):\d+ > p > /, "$1 ")),
      [
        "6 certificate[0].key: does not belong to the certificate beside it: give the key that the certificate was made with",
        "7 certificate[1].cert: is not PEM: it must begin with -----BEGIN CERTIFICATE----- (is it a placeholder?)",
        "7 certificate[1].key: is not PEM: it must begin with -----BEGIN PRIVATE KEY----- (is it a placeholder?)",
        "8 certificate[2].cert: is missing: give cert or certFile",
        "8 certificate[2].key: is missing: give key or keyFile",
        "9 certificate[3].certFile: is given beside cert: keep one of them",
        "10 certificate[4].certFile: can't be read",
        "11 certificate[5].cert: is not a certificate that can be read",
        "11 certificate[5].key: is not a private key that can be read",
        "12 certificate[6].key: is encrypted: store it without a passphrase",
      ],
    );
  });

  test("that have expired are worth a warning; without useTLS they are not looked at", async () => {
    const text = proxy([{ name: "old", cert: old.cert, key: old.private }]);
    const { problems, warnings } = await load(await folder({ "sluice.yaml": text }));
    assert.deepEqual(problems, []);
    assert.match(warnings.map(({ message }) => message).join(), /has expired on .* 2020|has expired on .* 2021/);
    const plain = await load(
      await folder({
        "sluice.yaml": proxy([{ name: "x", cert: "x", key: "y" }]).replace("useTLS: true", "useTLS: false"),
      }),
    );
    assert.deepEqual([plain.problems, plain.spec?.proxies[0]?.certificate], [[], []]);
  });
});
