import assert from "node:assert/strict";
import { test } from "node:test";
import type { TestContext } from "node:test";
import type { ConfigDocument, PlanItem } from "../../kernel/plugin.ts";
import { startAdminApi } from "../helpers/admin-api.ts";
import type { Answer, RunningApi } from "../helpers/admin-api.ts";
import { createMemoryConfig } from "../helpers/memory-config.ts";
import type { MemoryConfig } from "../helpers/memory-config.ts";

const json = { "content-type": "application/json" };
const yaml = { "content-type": "application/yaml" };

const initial: ConfigDocument[] = [
  { kind: "MQTTProxy", name: "mqttproxy", port: 1883 },
  { kind: "Pipeline", name: "publish", filters: [] },
  { kind: "Pipeline", name: "both", filters: [] },
  { kind: "MQTTProxy", name: "both", port: 1884 },
  { kind: "AdminAPI", name: "admin-api", port: 2381 },
  { kind: "Gateway", name: "gateway" },
];

interface Setup {
  readonly call: (...args: Parameters<RunningApi["call"]>) => Promise<Answer>;
  readonly memory: MemoryConfig;
}

async function start(t: TestContext): Promise<Setup> {
  const memory = createMemoryConfig(initial);
  const api = await startAdminApi(t, { overrides: { config: memory.config } });
  return { memory, call: (...args) => api.call(...args) };
}

/** What a change did: "build Pipeline a". */
function actions({ json: answer }: Answer): string[] {
  const { plan } = answer as { plan: { items: PlanItem[] } };
  return plan.items
    .filter(({ action }) => action !== "keep")
    .map(({ action, kind, name }) => `${action} ${kind} ${name}`);
}

test("objects are created: one, several, JSON and YAML; a taken name is 409 and creates none of them", async (t) => {
  const { call, memory } = await start(t);
  const one = await call("POST", "/objects", { kind: "Pipeline", name: "a", filters: ["${X}"] }, json);
  assert.deepEqual([one.status, one.headers.get("x-config-version"), actions(one)], [201, "2", ["build Pipeline a"]]);
  assert.deepEqual(one.json, {
    version: 2,
    plan: (one.json as { plan: object }).plan,
    warnings: [],
  });
  assert.deepEqual(memory.config.documents().at(-1), { kind: "Pipeline", name: "a", filters: ["${X}"] });

  const several = "kind: Pipeline\nname: b\n---\n# a comment\n---\n- {kind: Pipeline, name: c}\n---\n";
  const two = await call("POST", "/objects", several, yaml);
  assert.deepEqual([two.status, actions(two)], [201, ["build Pipeline b", "build Pipeline c"]]);
  const list = [
    { kind: "Pipeline", name: "d" },
    { kind: "MQTTProxy", name: "publish" },
  ];
  const taken = await call("POST", "/objects", list, json);
  assert.deepEqual([taken.status, taken.json], [409, { code: 409, message: "conflict name: publish" }]);
  assert.equal(memory.config.version(), 3);
});

test("one object is replaced: 404, and 400 for another name or kind, as in Easegress", async (t) => {
  const { call, memory } = await start(t);
  const put = (name: string, body: unknown): Promise<Answer> => call("PUT", `/objects/${name}`, body, json);
  const done = await put("mqttproxy", { kind: "MQTTProxy", name: "mqttproxy", port: 1885 });
  assert.deepEqual([done.status, actions(done)], [200, ["change MQTTProxy mqttproxy"]]);
  for (const [name, body, status, message] of [
    ["nothing", { kind: "Pipeline", name: "nothing" }, 404, "not found"],
    ["publish", { kind: "MQTTProxy", name: "publish", port: 1 }, 400, "different kinds: Pipeline, MQTTProxy"],
    ["publish", { kind: "Pipeline", name: "other" }, 400, "inconsistent name in url and spec"],
    ["publish", [initial[1], initial[2]], 400, "one object is expected: PUT /objects takes several"],
  ] as const) {
    assert.deepEqual((await put(name, body)).json, { code: status, message }, message);
  }
  assert.equal(memory.config.version(), 2);
});

test("several are created or replaced, or none of them: problems are listed", async (t) => {
  const { call, memory } = await start(t);
  const body = [
    { kind: "Pipeline", name: "new" },
    { kind: "MQTTProxy", name: "mqttproxy", port: 1900 },
  ];
  const plan = ["build Pipeline new", "change MQTTProxy mqttproxy"];
  const dry = await call("PUT", "/objects?dryRun=true", body, json);
  assert.deepEqual([dry.status, actions(dry).toSorted(), memory.config.version()], [200, plan, 1]);
  const done = await call("PUT", "/objects", body, json);
  assert.deepEqual([done.status, actions(done).toSorted(), memory.config.version()], [200, plan, 2]);
  const again = await call("PUT", "/objects", body, json);
  assert.deepEqual([again.status, actions(again), memory.config.version()], [200, [], 2]);

  const bad = [{ kind: "Pipeline", name: "x", invalid: 1 }, body[0], { kind: "Pipeline", name: "y", invalid: 1 }];
  const refused = await call("PUT", "/objects", bad, json);
  assert.deepEqual(refused.json, {
    code: 400,
    message: "x.yaml:1:1 > x: is invalid (and 1 more)",
    problems: [
      { where: "x.yaml:1:1 > x", message: "is invalid" },
      { where: "y.yaml:1:1 > y", message: "is invalid" },
    ],
  });
  const unbuilt = await call("PUT", "/objects", { kind: "MQTTProxy", name: "z", port: 1 }, json);
  assert.deepEqual(unbuilt.json, { code: 422, message: "port 1 is taken" });
  memory.readOnly = true;
  const readOnly = await call("PUT", "/objects", { kind: "Pipeline", name: "z" }, json);
  assert.deepEqual(readOnly.json, { code: 409, message: "the config can't be written" });
  assert.equal(memory.config.version(), 2);
});

test("bodies that are no documents are 400 and say where; types that a form can send are 415", async (t) => {
  const { call, memory } = await start(t);
  for (const [body, headers, problems] of [
    ["kind: Pipeline\nname: [a\n", yaml, [/^body:3:1: /]],
    [
      "kind: Pipeline\nname: a\n---\nname: b\n---\nkind: Pipeline\n",
      yaml,
      [/^body: document 2: has no kind/, /no name/],
    ],
    ["{", json, [/^body: is not JSON/]],
    ["[]", json, [/there is no document/]],
    ["", yaml, [/there is no document/]],
    ["# nothing\n", yaml, [/there is no document/]],
    ["a: &a [1]\nb: *c\n", yaml, [/^body/]],
    ["[".repeat(20_000), yaml, [/^body/]],
    ["[1, null]", json, [/document 1: is not an object/, /document 2: is not an object/]],
    [[initial[0], initial[0]], json, [/MQTTProxy mqttproxy stands there twice/]],
  ] as const) {
    const answer = await call("PUT", "/objects", body, headers);
    const found = (answer.json as { problems: { where: string; message: string }[] }).problems;
    assert.equal(answer.status, 400, String(problems[0]));
    for (const [index, pattern] of problems.entries()) {
      assert.match(`${found[index]?.where}: ${found[index]?.message}`, pattern);
    }
  }
  assert.equal((await call("PUT", "/objects", Buffer.from([0x6b, 0xff]), yaml)).status, 400);

  const body = JSON.stringify({ kind: "Pipeline", name: "evil" });
  for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]) {
    for (const [method, path] of [
      ["POST", "/objects"],
      ["PUT", "/objects"],
      ["PUT", "/objects/publish"],
    ] as const) {
      const answer = await call(method, path, Buffer.from(body), type === "" ? {} : { "content-type": type });
      assert.equal(answer.status, 415, `${method} ${path} ${type}`);
    }
  }
  for (const type of ["text/yaml", "text/x-yaml", "application/x-yaml; charset=utf-8"]) {
    const answer = await call("PUT", "/objects?dryRun", "kind: Pipeline\nname: a", { "content-type": type });
    assert.equal(answer.status, 200, type);
  }
  assert.equal(memory.config.version(), 1);
});

test("objects are removed by name, by list and all at once; the gateway's own stay", async (t) => {
  const { call, memory } = await start(t);
  const dry = await call("DELETE", "/objects/publish?dryRun=true");
  assert.deepEqual([dry.status, actions(dry), memory.config.version()], [200, ["drop Pipeline publish"], 1]);
  assert.deepEqual(actions(await call("DELETE", "/objects/publish")), ["drop Pipeline publish"]);
  assert.deepEqual((await call("DELETE", "/objects/publish")).json, { code: 404, message: "not found" });
  const ambiguous = await call("DELETE", "/objects/both");
  assert.deepEqual([ambiguous.status, /say \?kind=/.test(ambiguous.text)], [400, true]);
  assert.deepEqual(actions(await call("DELETE", "/objects/both?kind=Pipeline")), ["drop Pipeline both"]);
  assert.equal(
    (await call("DELETE", "/objects?object=MQTTProxy/both&object=Pipeline/none")).status,
    404,
    "all or nothing",
  );
  assert.equal((await call("DELETE", "/objects?object=both")).status, 400);
  assert.equal((await call("DELETE", "/objects")).status, 400);
  assert.equal((await call("DELETE", "/objects?all=yes")).status, 400);
  assert.equal(memory.config.version(), 3);
  assert.deepEqual(actions(await call("DELETE", "/objects?all=true&kind=Pipeline")), []);
  const all = await call("DELETE", "/objects?all=true");
  assert.deepEqual(actions(all), ["drop MQTTProxy mqttproxy", "drop MQTTProxy both"]);
  assert.deepEqual(
    memory.config.documents().map(({ kind }) => kind),
    ["AdminAPI", "Gateway"],
  );
});

test("a caller that names the version it has seen loses no other's update", async (t) => {
  const { call, memory } = await start(t);
  const body = { kind: "Pipeline", name: "a" };
  for (const headers of [{ "if-match": '"1"' }, { "if-match": 'W/"1"' }, { "x-config-version": "1" }]) {
    assert.equal((await call("PUT", "/objects?dryRun=true", body, { ...json, ...headers })).status, 200);
  }
  assert.equal((await call("PUT", "/objects", body, { ...json, "if-match": '"1"' })).status, 200);
  const late = await call("PUT", "/objects", body, { ...json, "if-match": '"1"' });
  assert.deepEqual([late.status, late.headers.get("x-config-version")], [412, "2"]);
  assert.equal((await call("DELETE", "/objects/a", undefined, { "x-config-version": "1" })).status, 412);
  assert.equal((await call("POST", "/history/1/rollback", undefined, { "if-match": "1" })).status, 412);
  assert.equal((await call("PUT", "/objects", body, { ...json, "if-match": "abc" })).status, 400);
  assert.equal(memory.config.version(), 2);
});

test("another change in between is looked at: the name that was free is taken now", async (t) => {
  const { call, memory } = await start(t);
  memory.onApply = () => {
    delete memory.onApply;
    return memory.config.apply({ put: [{ kind: "Pipeline", name: "a" }] }, { by: "another" });
  };
  const free = await call("POST", "/objects", { kind: "Pipeline", name: "b" }, json);
  assert.deepEqual([free.status, actions(free), memory.config.version()], [201, ["build Pipeline b"], 3]);
  memory.onApply = () => {
    delete memory.onApply;
    return memory.config.apply({ put: [{ kind: "Pipeline", name: "c", filters: [1] }] }, { by: "another" });
  };
  const taken = await call("POST", "/objects", { kind: "Pipeline", name: "c" }, json);
  assert.deepEqual([taken.status, memory.config.version()], [409, 4]);
});

test("the history tells who, when and what; an earlier version runs again as a new one", async (t) => {
  const { call, memory } = await start(t);
  await call("PUT", "/objects", { kind: "MQTTProxy", name: "mqttproxy", port: 1900 }, json);
  const [entry, ...rest] = (await call("GET", "/history")).json as Record<string, unknown>[];
  assert.deepEqual(
    { ...entry, by: typeof entry?.["by"] },
    { version: 2, by: "string", at: "1970-01-01T00:00:02.000Z", changed: ["change MQTTProxy mqttproxy (port)"] },
  );
  assert.equal(rest.length, 1);
  const dry = await call("POST", "/history/1/rollback?dryRun=true");
  assert.deepEqual([actions(dry), memory.config.version()], [["change MQTTProxy mqttproxy"], 2]);
  const [before, after] = [1900, initial.find(({ name }) => name === "mqttproxy")?.["port"]];
  assert.deepEqual(
    (dry.json as { changes: { name: string; before: object; after: object }[] }).changes.map((change) => [
      change.name,
      "port" in change.before && change.before.port,
      "port" in change.after && change.after.port,
    ]),
    [["mqttproxy", before, after]],
  );
  const back = await call("POST", "/history/1/rollback");
  assert.deepEqual([back.status, back.headers.get("x-config-version")], [200, "3"]);
  assert.deepEqual(memory.config.documents(), initial);
  assert.equal((await call("POST", "/history/9/rollback")).status, 404);
  assert.equal((await call("POST", "/history/x/rollback")).status, 400);
});
