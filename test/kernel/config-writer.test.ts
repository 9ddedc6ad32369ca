/** What a change of documents makes of the text of the files: only what changes, and nothing that a person wrote. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { parse, parseAllDocuments } from "yaml";
import { changeTexts } from "../../kernel/config-writer.ts";
import type { ConfigChange, ConfigDocument } from "../../kernel/plugin.ts";

const header = "# yaml-language-server: $schema=sluice.schema.json\n# The gateway of hall 3.\n\n";
const proxy = `# Where devices come in.
kind:   MQTTProxy   # as Easegress spells it
name: mqttproxy
port: \${PORT:-1883}
rules:
# who are you?
- when: {packetType: Connect}   # short form
  pipeline: connect

- when:
    packetType: 'Publish'
  pipeline: publish
brokerMode: true # for tests
`;
const connect = `
kind: Pipeline
name: connect
filters:
- name: auth
  kind: MQTTClientAuth
  salt: "\${SALT}"   # from outside
  auth:
  # the first
  - username: test
    saltedSha256Pass: aaaa
  - username: other
    saltedSha256Pass: \${file:other.hash}
# last words
`;
const both = `${header}${proxy}---${connect}`;

const path = "/etc/sluice/sluice.yaml";
const valueOf = (text: string): ConfigDocument => parse(text) as ConfigDocument;

interface Given {
  readonly files: Record<string, string>;
  readonly path?: string;
  readonly shown?: readonly ConfigDocument[];
}

function change(
  { files, path: at = path, shown = [] }: Given,
  wanted: ConfigChange,
): Record<string, string | undefined> {
  const written = Object.entries(files).flatMap(([file, text]) =>
    [...parseAllDocuments(text)]
      .map((each) => each.toJS() as { kind: string; name: string } | null)
      .filter((each) => each !== null)
      .map(({ kind, name }, index) => ({ kind, name, file, index: index + 1 })),
  );
  const changed = changeTexts({ path: at, texts: new Map(Object.entries(files)), written }, wanted, shown);
  for (const text of changed.values())
    for (const document of parseAllDocuments(text ?? "")) assert.deepEqual(document.errors, []);
  return Object.fromEntries(changed);
}

/** Of the one file. */
const edit = (text: string, wanted: ConfigChange, shown?: readonly ConfigDocument[]): string | undefined =>
  change({ files: { [path]: text }, ...(shown ? { shown } : {}) }, wanted)[path];

const put = (text: string, ...documents: ConfigDocument[]): string | undefined => edit(text, { put: documents });

describe("a document in place", () => {
  test("the same again changes no file", () => {
    assert.deepEqual(change({ files: { [path]: both } }, { put: [valueOf(proxy), valueOf(connect)] }), {});
  });

  const cases: [string, Record<string, unknown>, string, string][] = [
    ["a value", { brokerMode: false }, "brokerMode: true #", "brokerMode: false #"],
    ["a string that looks like a number", { name2: "1" }, "# for tests\n", '# for tests\nname2: "1"\n'],
    ["a new key", { retryInterval: 5 }, "# for tests\n", "# for tests\nretryInterval: 5\n"],
    [
      "a new list of maps",
      { certificate: [{ name: "a", cert: "one\ntwo\n" }] },
      "# for tests\n",
      "# for tests\ncertificate:\n- name: a\n  cert: |\n    one\n    two\n",
    ],
    ["a key that goes", { brokerMode: undefined }, "brokerMode: true # for tests\n", ""],
    [
      "a value in a flow map of a list",
      {
        rules: [{ when: { packetType: "Disconnect" }, pipeline: "connect" }, valueOf(proxy)["rules"]]
          .flat()
          .toSpliced(1, 1),
      },
      "{packetType: Connect}",
      '{packetType: "Disconnect"}',
    ],
    [
      "one more item",
      { rules: [valueOf(proxy)["rules"], { when: { packetType: "Subscribe" }, pipeline: "s" }].flat() },
      "  pipeline: publish\n",
      "  pipeline: publish\n- when:\n    packetType: Subscribe\n  pipeline: s\n",
    ],
    [
      "an item that goes",
      { rules: [valueOf(proxy)["rules"]].flat().slice(1) },
      "- when: {packetType: Connect}   # short form\n  pipeline: connect\n",
      "",
    ],
    ["${...} for a value", { retryInterval: "${RETRY}" }, "# for tests\n", "# for tests\nretryInterval: ${RETRY}\n"],
    ["a value for ${...}", { port: 1884 }, "${PORT:-1883}", "1884"],
  ];
  for (const [what, fields, from, to] of cases) {
    test(`${what}: nothing else moves`, () => {
      assert.ok(both.includes(from));
      const document = { ...valueOf(proxy), ...fields } as ConfigDocument;
      const text = put(both, document);
      assert.equal(text, both.replace(from, to.replaceAll("$", "$$$$")));
      assert.deepEqual(parseAllDocuments(text ?? "")[0]?.toJS(), JSON.parse(JSON.stringify(document)));
    });
  }

  test("several in one go", () => {
    const text = put(both, { ...valueOf(proxy), port: 1 }, { ...valueOf(connect), timeout: 9 });
    assert.equal(text, both.replace("${PORT:-1883}", "1").replace("# last words\n", "timeout: 9\n# last words\n"));
  });

  test("behind an alias, or with a merge key, it is written anew under its comment", () => {
    const text =
      "# head\nkind: A\nname: a\none: &x {a: 1}\ntwo: *x\n---\n# head\nkind: B\nname: b\none: &x {a: 1}\ntwo: {<<: *x, b: 2}\n";
    const next = put(
      text,
      { kind: "A", name: "a", one: { a: 2 }, two: { a: 1 } },
      { kind: "B", name: "b", one: { a: 1 }, two: { b: 3 } },
    );
    assert.equal(
      next,
      "# head\nkind: A\nname: a\none:\n  a: 2\ntwo:\n  a: 1\n---\n# head\nkind: B\nname: b\none: &x {a: 1}\ntwo: {b: 3}\n",
    );
  });

  test("an anchor that goes while it is used: what used it has the value", () => {
    const text = "kind: A\nname: a\none: &x {a: 1}\ntwo: *x\n";
    assert.equal(put(text, { kind: "A", name: "a", two: { a: 1 } }), "kind: A\nname: a\ntwo:\n  a: 1\n");
  });

  test("line breaks of Windows, no line break at the end, and a document on the line of its ---", () => {
    assert.equal(
      put("kind: A\r\nname: a\r\nx: 1\r\n", { kind: "A", name: "a", x: 2 }),
      "kind: A\r\nname: a\r\nx: 2\r\n",
    );
    assert.equal(put("kind: A\nname: a\nx: 1", { kind: "A", name: "a", x: 1, y: 2 }), "kind: A\nname: a\nx: 1\ny: 2\n");
    assert.equal(
      put("--- {kind: A, name: a, x: 1}\n", { kind: "A", name: "a", x: 2 }),
      "--- {kind: A, name: a, x: 2}\n",
    );
  });

  test("a --- inside a block of text is a separator to YAML too, one that is indented is not", () => {
    const text = "kind: A\nname: a\nx: |\n  one\n  ---\n  two\n---\nkind: B\nname: b\n";
    assert.equal(put(text, { kind: "B", name: "b", y: 1 }), `${text}y: 1\n`);
  });
});

describe("a new document", () => {
  test("is appended after ---, as YAML that reads as it was given", () => {
    const document = {
      kind: "Pipeline",
      name: "p",
      packetType: "Connect",
      number: "007",
      yes: "true",
      dollar: "${X}",
      empty: "",
      list: [],
    };
    const text = put(both, document);
    assert.ok(text?.startsWith(`${both}---\n`) === true);
    assert.equal(
      text?.slice(both.length),
      '---\nkind: Pipeline\nname: p\npacketType: Connect\nnumber: "007"\nyes: "true"\ndollar: ${X}\nempty: ""\nlist: []\n',
    );
  });

  test("is what an implied one becomes", () => {
    const implied = { kind: "AdminAPI", name: "admin-api", port: 2381 };
    const text = edit(both, { put: [{ ...implied, port: 8080 }] }, [implied]);
    assert.equal(text, `${both}---\nkind: AdminAPI\nname: admin-api\nport: 8080\n`);
  });

  test("in a folder gets a file of its own, with its kind in the name where that is taken", () => {
    const folder = "/etc/sluice";
    const files = { [`${folder}/all.yaml`]: both };
    const changed = change(
      { files, path: folder },
      {
        put: [
          { kind: "Pipeline", name: "all" },
          { kind: "MQTTProxy", name: "p" },
        ],
      },
    );
    assert.deepEqual(changed, {
      [`${folder}/Pipeline-all.yaml`]: "kind: Pipeline\nname: all\n",
      [`${folder}/p.yaml`]: "kind: MQTTProxy\nname: p\n",
    });
  });

  for (const name of ["../up", "a/b", "", ".\u0000"]) {
    test(`is not written by the name ${JSON.stringify(name)}`, () => {
      assert.throws(() => put(both, { kind: "Pipeline", name }), {
        code: "CONFIG_INVALID",
        message: /not a valid name/,
      });
    });
  }
});

describe("removing", () => {
  test("the first document leaves the file's head, the last one leaves what is before it", () => {
    assert.equal(edit(both, { remove: [{ name: "mqttproxy" }] }), `${header.slice(0, -1)}---${connect}`);
    assert.equal(edit(both, { remove: [{ kind: "Pipeline", name: "connect" }] }), `${header}${proxy}`);
    assert.equal(edit("kind: A\nname: a\n---\nkind: B\nname: b\n", { remove: [{ name: "a" }] }), "kind: B\nname: b\n");
  });

  test("the only document of a folder's file deletes it; that of the one file is refused", () => {
    const files = { "/etc/sluice/a.yaml": "kind: A\nname: a\n", "/etc/sluice/b.yaml": "kind: B\nname: b\n" };
    assert.deepEqual(change({ files, path: "/etc/sluice" }, { remove: [{ name: "a" }] }), {
      "/etc/sluice/a.yaml": undefined,
    });
    assert.throws(() => edit("kind: A\nname: a\n", { remove: [{ name: "a" }] }), { code: "CONFIG_INVALID" });
  });

  test("what isn't there, what is implied, and a name of several", () => {
    assert.throws(() => edit(both, { remove: [{ name: "no" }] }), { code: "CONFIG_NOT_FOUND" });
    const shown = [{ kind: "AdminAPI", name: "admin-api" }];
    assert.throws(() => edit(both, { remove: [{ name: "admin-api" }] }, shown), { message: /implied/ });
    const twins = "kind: A\nname: x\n---\nkind: B\nname: x\n";
    assert.throws(() => edit(twins, { remove: [{ name: "x" }] }), { code: "CONFIG_INVALID", message: /A, B/ });
  });
});

describe("JSON", () => {
  const file = "/etc/sluice.json";
  const text = '{\n  "kind": "A",\n  "name": "a",\n  "list": [\n    { "x": 1 }\n  ]\n}\n';
  test("stays JSON: a value in place, more than that in order", () => {
    const edited = (document: ConfigDocument) =>
      change({ files: { [file]: text }, path: file }, { put: [document] })[file];
    assert.equal(edited({ kind: "A", name: "a", list: [{ x: "2" }] }), text.replace("1", '"2"'));
    const more = { kind: "A", name: "a", list: [{ x: 1 }, { x: 2 }], y: "z" };
    assert.equal(edited(more), `${JSON.stringify(more, null, 2)}\n`);
  });

  test("a second document is refused, and so is any change in a package.json", () => {
    const more = { put: [{ kind: "B", name: "b" }] };
    assert.throws(() => change({ files: { [file]: text }, path: file }, more), {
      code: "CONFIG_INVALID",
      message: /one document/,
    });
    const manifest = "/etc/package.json";
    assert.throws(() => change({ files: { [manifest]: "{}" }, path: manifest }, more), { code: "CONFIG_READ_ONLY" });
  });
});

describe("***", () => {
  const shown = [
    {
      kind: "Pipeline",
      name: "connect",
      filters: [
        {
          name: "auth",
          kind: "MQTTClientAuth",
          salt: "***",
          auth: [
            { username: "test", saltedSha256Pass: "***" },
            { username: "other", saltedSha256Pass: "***" },
          ],
        },
      ],
    },
  ];
  const auth = (salt: string, ...users: [string, string][]) => ({
    put: [
      {
        kind: "Pipeline",
        name: "connect",
        filters: [
          {
            name: "auth",
            kind: "MQTTClientAuth",
            salt,
            auth: users.map(([username, saltedSha256Pass]) => ({ username, saltedSha256Pass })),
          },
        ],
      },
    ],
  });

  test("what was shown and comes back is what is written", () => {
    assert.deepEqual(change({ files: { [path]: both }, shown }, { put: shown }), {});
  });

  test("each user keeps the own hash, in another order and with new ones between", () => {
    const text = edit(both, auth("***", ["new", "cccc"], ["other", "***"], ["test", "***"]), shown);
    const filters = parseAllDocuments(text ?? "")[1]?.toJS() as { filters: { salt: string; auth: unknown }[] };
    assert.deepEqual(filters.filters[0]?.auth, [
      { username: "new", saltedSha256Pass: "cccc" },
      { username: "other", saltedSha256Pass: "${file:other.hash}" },
      { username: "test", saltedSha256Pass: "aaaa" },
    ]);
    assert.equal(filters.filters[0]?.salt, "${SALT}");
  });

  test("where there is nothing that it could stand for, the value has to be given", () => {
    const stranger = auth("***", ["stranger", "***"], ["test", "***"]);
    assert.throws(() => edit(both, stranger, shown), {
      code: "CONFIG_INVALID",
      problems: [
        {
          where: "connect > filters[0].auth[0].saltedSha256Pass",
          message: "reads ***, and there is nothing written that it could stand for: give the value",
        },
      ],
    });
    assert.throws(() => put(both, { kind: "New", name: "n", key: "***" }), { code: "CONFIG_INVALID" });
  });
});
