import assert from "node:assert/strict";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import fsPromises from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { TestContext } from "node:test";
import type { Client, Clock, Filter } from "../../kernel/plugin.ts";
import kind from "../../plugins/file/index.ts";
import { chooseExpired } from "../../plugins/file/retention.ts";
import { fileName, isLegalTopic, listTopicFiles, parseFileName } from "../../plugins/file/topic-file.ts";
import {
  createConnectContext,
  createPublishContext,
  createFilterMaker,
  createTestHost,
  type TestHost,
} from "@sluice/testkit";

const maker = createFilterMaker(kind, new URL("../../plugins/file/schema.json", import.meta.url));

/** A hundred times as fast, so that a wait of seconds need not be sat out. */
function fastClock(): Clock {
  const start = Date.now();
  return {
    now: () => start + (Date.now() - start) * 100,
    setTimeout(callback, ms) {
      const timer = setTimeout(callback, ms / 100);
      return { clear: () => clearTimeout(timer) };
    },
  };
}

interface Rig extends TestHost {
  readonly filter: Filter;
  readonly dir: string;
  readonly publish: (payload: string | Buffer, topic?: string) => Promise<unknown>;
  /** The lines of a file, whole ones only. */
  readonly lines: (name: string) => Record<string, unknown>[];
}

async function setUp(
  t: TestContext,
  options: object = {},
  place: { folder?: string; name?: string; clock?: Clock } = {},
): Promise<Rig> {
  const { folder, name = "pipeline/file", clock } = place;
  const made: TestHost = createTestHost({ name, ...(folder && { folder }), ...(clock && { overrides: { clock } }) });
  const filter = await maker.build(
    { topic: { default: "gate-log" }, mqtt: { topicKey: "topic" }, ...options },
    made.host,
  );
  const dir = join(made.host.folder, "data");
  t.after(async () => {
    await filter.close?.();
    made.close();
  });
  return {
    ...made,
    filter,
    dir,
    // Asynchronous, so that a throw is a rejection, as it is for the pipeline.
    publish: async (payload, topic = "gate-log") => filter.handle(createPublishContext({ payload, data: { topic } })),
    lines: (file) => parseLines(readFileSync(join(dir, file), "utf8")),
  };
}

/** The next call fails, and those behind it do not. */
function failOnce(t: TestContext, name: "mkdir", code: string): void {
  const original = fsPromises[name];
  const restore = () => {
    fsPromises[name] = original;
    syncBuiltinESMExports();
  };
  fsPromises[name] = (): Promise<never> => {
    restore();
    return Promise.reject(Object.assign(new Error(`${code}: injected`), { code }));
  };
  syncBuiltinESMExports();
  t.after(restore);
}

function parseLines(text: string): Record<string, unknown>[] {
  assert.ok(text === "" || text.endsWith("\n"), "the file ends with a whole line");
  return text
    .split("\n")
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

function temporaryFolder(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "sluice-file-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

test("a PUBLISH becomes a line with topic, key, headers, value, timestamp and offset", async (t) => {
  const { filter, lines } = await setUp(t, { mqtt: { topicKey: "topic", headerKey: "headers" } });
  const before = Date.now();
  const result = await filter.handle(
    createPublishContext({
      clientId: "dev1",
      username: "test",
      topic: "gateway/gate123/iphone/log",
      payload: 'hi "there"\n\u00e9',
      data: { topic: "gate-log", headers: { gateway: "gate123", username: "mapped", __proto__: "kept" } },
    }),
  );
  assert.equal(result, undefined);
  const [record] = lines("gate-log.ndjson");
  const { timestamp, ...rest } = record ?? {};
  assert.deepEqual(rest, {
    topic: "gate-log",
    key: "dev1",
    headers: { clientID: "dev1", username: "mapped", mqttTopic: "gateway/gate123/iphone/log", gateway: "gate123" },
    value: 'hi "there"\n\u00e9',
    encoding: "utf8",
    offset: 0,
  });
  assert.ok(Number(timestamp) >= before && Number(timestamp) <= Date.now());
});

test("bytes that are not UTF-8 are kept as base64, and no payload is an empty text", async (t) => {
  const { publish, lines } = await setUp(t);
  const bytes = Buffer.from([0, 255, 254, 10, 195]);
  await Promise.all([publish(bytes), publish(Buffer.alloc(0)), publish("a\u0000b")]);
  const [binary, empty, nul] = lines("gate-log.ndjson");
  assert.equal(binary?.["encoding"], "base64");
  assert.deepEqual(Buffer.from(String(binary?.["value"]), "base64"), bytes);
  assert.deepEqual([empty?.["value"], empty?.["encoding"]], ["", "utf8"]);
  assert.equal(nul?.["value"], "a\u0000b");
});

test("a CONNECT is recorded with payloadKey, without the header mqttTopic, and an anonymous one without username", async (t) => {
  const { filter, lines } = await setUp(t, { mqtt: { payloadKey: "body" }, key: "username" });
  await filter.handle(createConnectContext({ clientId: "dev1", data: { body: Buffer.from("came") } }));
  await filter.handle(
    createConnectContext({ clientId: "dev2", username: "u", data: { body: new Uint8Array([104, 105]) } }),
  );
  const [anonymous, named] = lines("gate-log.ndjson");
  assert.deepEqual(
    [anonymous?.["key"], anonymous?.["headers"], anonymous?.["value"]],
    [null, { clientID: "dev1" }, "came"],
  );
  assert.deepEqual(
    [named?.["key"], named?.["headers"], named?.["value"]],
    ["u", { clientID: "dev2", username: "u" }, "hi"],
  );
});

for (const [key, expected] of [
  ["clientId", "client-1"],
  ["topic", "a/b/c"],
  ["username", "user"],
  ["none", null],
] as const) {
  test(`key: ${key}`, async (t) => {
    const { filter, lines } = await setUp(t, { mqtt: {}, key });
    await filter.handle(createPublishContext({ username: "user" }));
    assert.equal(lines("gate-log.ndjson")[0]?.["key"], expected);
  });
}

test("missing or unusable data is getDataFailed, a name that is no file's is illegalTopic", async (t) => {
  const { filter, dir } = await setUp(t, { mqtt: { topicKey: "topic", headerKey: "headers", payloadKey: "body" } });
  const good = { topic: "x", headers: {}, body: Buffer.from("b") };
  const answer = (data: Record<string, unknown>) => filter.handle(createPublishContext({ data: { ...good, ...data } }));
  assert.equal(filter.handle(createPublishContext({ data: { headers: {}, body: good.body } })), "getDataFailed");
  assert.equal(answer({ topic: "" }), "getDataFailed");
  assert.equal(answer({ topic: 7 }), "getDataFailed");
  assert.equal(answer({ headers: undefined }), "getDataFailed");
  assert.equal(answer({ headers: { a: 1 } }), "getDataFailed");
  assert.equal(answer({ body: "text" }), "getDataFailed");
  for (const topic of ["a/b", "..", ".", "a b", "\u00e9", "../x", "a\u0000", "x".repeat(231)]) {
    assert.equal(answer({ topic }), "illegalTopic", JSON.stringify(topic));
  }
  assert.equal(existsSync(dir), false, "nothing was written");
  assert.equal(await answer({}), undefined);
  // Set to nothing by a mapper that wants the default.
  assert.equal(await answer({ topic: undefined }), undefined);
  assert.deepEqual(readdirSync(dir).filter(parseFileName).sort(), ["gate-log.ndjson", "x.ndjson"]);
  assert.deepEqual(kind.discards, undefined, "neither result may acknowledge and lose a message");
});

test("options are checked", () => {
  assert.deepEqual(Object.keys(maker.problems({})), ["topic"]);
  assert.deepEqual(Object.keys(maker.problems({ topic: { default: ".." } })), ["topic.default"]);
  assert.deepEqual(Object.keys(maker.problems({ topic: { default: "a" }, retention: { maxBytes: 2048 } })), [
    "retention.maxBytes",
  ]);
  assert.deepEqual(maker.problems({ topic: { default: "a" }, retention: { maxAge: 1 } }), {});
});

test("what all connections append in one turn is one write, in order", async (t) => {
  const { publish, lines, metricValue } = await setUp(t);
  await Promise.all(Array.from({ length: 1000 }, (_, index) => publish(String(index))));
  const records = lines("gate-log.ndjson");
  assert.deepEqual(
    records.map(({ value, offset }) => [value, offset]),
    Array.from({ length: 1000 }, (_, index) => [String(index), index]),
  );
  assert.equal(await metricValue("sluice_file_write_seconds_count", { filter: "pipeline/file" }), 1);
  assert.equal(await metricValue("sluice_file_records_total", { outcome: "written" }), 1000);
  assert.equal(await metricValue("sluice_file_queued_bytes"), 0);
});

for (const fsync of ["always", "interval", "never"]) {
  test(`fsync: ${fsync} resolves with the record in the file, and again after close`, async (t) => {
    const { publish, lines, filter } = await setUp(t, { fsync, fsyncIntervalMs: 1 });
    for (let index = 0; index < 20; index++) {
      await publish(String(index));
      assert.equal(lines("gate-log.ndjson").length, index + 1);
    }
    await filter.close?.();
    assert.equal(lines("gate-log.ndjson").length, 20);
    await assert.rejects(publish("late"), /closed/);
  });
}

test("topics that look alike have files of their own", async (t) => {
  const topics = ["a", "a.1", "a.1.2", ".a", "a.01", "a.ndjson", "a.1.ndjson", ".5", "..a"];
  const { publish, dir } = await setUp(t, { rotateBytes: 1024 });
  for (const topic of topics) {
    for (let index = 0; index < 12; index++) await publish("x".repeat(100), topic);
  }
  const seen = new Map<string, Set<unknown>>();
  for (const name of readdirSync(dir)) {
    if (name.endsWith(".lock")) continue;
    const parsed = parseFileName(name);
    assert.ok(parsed, name);
    for (const { topic, offset } of parseLines(readFileSync(join(dir, name), "utf8"))) {
      assert.equal(topic, parsed.topic, name);
      seen.set(parsed.topic, (seen.get(parsed.topic) ?? new Set()).add(offset));
    }
  }
  assert.deepEqual([...seen.keys()].sort(), topics.toSorted());
  for (const offsets of seen.values()) assert.equal(offsets.size, 12);
});

test("a file's name says its topic, and other names are not ours", () => {
  for (const topic of ["a", "a.1", ".a", "a-b_c.D", "7", ".7", "x".repeat(230)]) {
    assert.ok(isLegalTopic(topic), topic);
    assert.deepEqual(parseFileName(fileName(topic)), { topic, n: undefined });
    assert.deepEqual(parseFileName(fileName(topic, 12)), { topic, n: 12 });
    assert.ok(fileName(topic, 10 ** 15 - 1).length <= 255);
  }
  for (const name of [
    ".a.lock",
    "a.json",
    "a.0.ndjson.gz",
    ".ndjson",
    "a.01.ndjson",
    "a%2e1.ndjson",
    "a%2Eb.ndjson",
    ".a.ndjson",
  ]) {
    assert.equal(parseFileName(name), undefined, name);
  }
});

test("a full file is renamed, the oldest with the lowest number, and offsets go on, also after a restart", async (t) => {
  const folder = temporaryFolder(t);
  const first = await setUp(t, { rotateBytes: 1024 }, { folder });
  for (let index = 0; index < 30; index++) await first.publish("x".repeat(100));
  await first.filter.close?.();
  const second = await setUp(t, { rotateBytes: 1024 }, { folder });
  for (let index = 0; index < 30; index++) await second.publish("y".repeat(100));

  const numbers = readdirSync(second.dir)
    .map((name) => parseFileName(name)?.n)
    .filter((n) => n !== undefined)
    .sort((a, b) => a - b);
  assert.ok(numbers.length >= 10);
  assert.deepEqual(
    numbers,
    numbers.map((_, index) => index + 1),
  );
  const files = [...numbers.map((n) => fileName("gate-log", n)), fileName("gate-log")];
  const records = files.flatMap((name) => second.lines(name));
  assert.deepEqual(
    records.map(({ offset }) => offset),
    Array.from({ length: 60 }, (_, index) => index),
  );
  for (const name of files) assert.ok(readFileSync(join(second.dir, name)).length <= 1024, name);
});

test("offsets go on where the gateway stopped between renaming a file and beginning the next", async (t) => {
  const { publish, dir, lines } = await setUp(t);
  const rig = { topic: "gate-log", key: null, headers: {}, value: "", encoding: "utf8", timestamp: 1 };
  const old = JSON.stringify({ ...rig, offset: 41 });
  mkdirSync(dir);
  writeFileSync(join(dir, "gate-log.3.ndjson"), `${old}\n`);
  await publish("next");
  assert.equal(lines("gate-log.ndjson")[0]?.["offset"], 42);
});

test("a record that alone is larger than a file may be is written whole", async (t) => {
  const { publish, lines } = await setUp(t, { rotateBytes: 1024 });
  await Promise.all([publish("a"), publish("b".repeat(5000)), publish("c")]);
  assert.deepEqual(
    ["gate-log.1.ndjson", "gate-log.2.ndjson", "gate-log.ndjson"].map((name) =>
      lines(name).map(({ offset }) => offset),
    ),
    [[0], [1], [2]],
  );
});

test("retention by size deletes the oldest rotated files and never the one written to", async (t) => {
  const { publish, dir, lines, metricValue } = await setUp(t, { rotateBytes: 1024, retention: { maxBytes: 3000 } });
  for (let index = 0; index < 60; index++) await publish("x".repeat(100));
  const sizes = readdirSync(dir)
    .filter((name) => parseFileName(name))
    .map((name) => readFileSync(join(dir, name)).length);
  assert.ok(sizes.reduce((sum, size) => sum + size) <= 3000 + 1024, String(sizes));
  assert.ok(sizes.length >= 3, "no more is deleted than has to be");
  assert.equal(lines("gate-log.ndjson").at(-1)?.["offset"], 59);
  assert.ok(Number(await metricValue("sluice_file_expired_files_total")) > 0);
});

test("retention by age deletes at the first record after a start, and with time", async (t) => {
  const folder = temporaryFolder(t);
  const rotated = (dir: string) => readdirSync(dir).filter((name) => parseFileName(name)?.n !== undefined);
  const first = await setUp(t, { rotateBytes: 1024 }, { folder });
  for (let index = 0; index < 60; index++) await first.publish("x".repeat(100));
  await first.filter.close?.();
  const names = rotated(first.dir);
  for (const name of names.slice(0, 3)) utimesSync(join(first.dir, name), 1000, 1000);

  const second = await setUp(t, { rotateBytes: 1024, retention: { maxAge: 3600 } }, { folder, clock: fastClock() });
  await second.publish("y");
  const old = names.slice(0, 3).sort((a, b) => Number(parseFileName(a)?.n) - Number(parseFileName(b)?.n));
  // Numbers 1, 10, 11: only those in front may go, as a gap would look like a loss.
  assert.deepEqual(rotated(second.dir).includes(old[0] ?? ""), false);
  assert.equal(rotated(second.dir).length, names.length - 1);
  await second.filter.close?.();

  const third = await setUp(t, { retention: { maxAge: 0.001 } }, { folder, clock: fastClock() });
  await third.publish("z");
  assert.deepEqual(rotated(third.dir), []);
});

test("while the file written to is empty, the newest rotated one stays for its offsets", () => {
  const file = (n: number) => ({ n, path: `${n}`, bytes: 10, endedAt: 0 });
  const files = [file(1), file(2), file(3)];
  assert.deepEqual(chooseExpired(files, 0, { maxAge: 1 }, 10_000), files.slice(0, 2));
  assert.deepEqual(chooseExpired(files, 1, { maxAge: 1 }, 10_000), files);
  assert.deepEqual(chooseExpired(files, 1, { maxBytes: 21 }, 10_000), files.slice(0, 1));
  assert.deepEqual(chooseExpired(files, 1, {}, 10_000), []);
});

for (const [what, torn] of [
  ["half a line", '{"topic":"gate-log","key":"dev1","head'],
  [
    "a line that is whole but for its line feed",
    '{"topic":"gate-log","key":null,"headers":{},"value":"","encoding":"utf8","timestamp":1,"offset":2}',
  ],
  ["NULs, as after a power cut", "\u0000".repeat(200_000)],
  ["NULs and the end of a later line", `${"\u0000".repeat(5000)},"timestamp":1,"offset":9}\n`],
] as const) {
  test(`a torn end is dropped: ${what}`, async (t) => {
    const folder = temporaryFolder(t);
    const first = await setUp(t, {}, { folder });
    await first.publish("a");
    await first.publish("b");
    await first.filter.close?.();
    appendFileSync(join(first.dir, "gate-log.ndjson"), torn);
    const second = await setUp(t, {}, { folder });
    await second.publish("c");
    assert.deepEqual(
      second.lines("gate-log.ndjson").map(({ value, offset }) => [value, offset]),
      [
        ["a", 0],
        ["b", 1],
        ["c", 2],
      ],
    );
    assert.equal(await second.metricValue("sluice_file_torn_records_total"), 1);
    assert.equal(second.logs.filter(({ level }) => level === "warn").length, 1);
  });
}

test("a file that is somebody else's is left as it is, and writing goes on when it is gone", async (t) => {
  const { publish, dir, lines, filter } = await setUp(t);
  mkdirSync(dir);
  const path = join(dir, "gate-log.ndjson");
  for (const foreign of ['{"mine":true}\n', "no line at all", "x\n".repeat(100_000)]) {
    writeFileSync(path, foreign);
    await assert.rejects(publish("a"), /does not end with a record/);
    assert.equal(readFileSync(path, "utf8"), foreign);
    assert.equal(filter.health?.().ok, false);
  }
  rmSync(path);
  await publish("b");
  assert.equal(lines("gate-log.ndjson").length, 1);
  assert.equal(filter.health?.().ok, true);
});

test("a dir that can't be made is a fault, told once, and heals", async (t) => {
  const { publish, dir, lines, filter, logs, metricValue } = await setUp(t);
  writeFileSync(dir, "in the way");
  for (let index = 0; index < 5; index++) await assert.rejects(publish("a"), /EEXIST|ENOTDIR/);
  assert.equal(logs.filter(({ level }) => level === "error").length, 1);
  assert.match(filter.health?.().detail ?? "", /EEXIST|ENOTDIR/);
  assert.equal(await metricValue("sluice_file_open_files"), 0);
  rmSync(dir);
  await publish("b");
  assert.deepEqual(
    lines("gate-log.ndjson").map(({ value }) => value),
    ["b"],
  );
  assert.equal(filter.health?.().ok, true);
});

test("a file that was deleted is noticed and begun anew", async (t) => {
  const { publish, dir, lines } = await setUp(t, {}, { clock: fastClock() });
  await publish("a");
  const path = join(dir, "gate-log.ndjson");
  rmSync(path);
  // Bounded by the upkeep, every 10 s of the clock, which are 100 ms here.
  const deadline = Date.now() + 5000;
  while (!existsSync(path)) {
    assert.ok(Date.now() < deadline, "not noticed");
    await publish("b");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.equal(lines("gate-log.ndjson")[0]?.["value"], "b");
});

test("over maxQueuedBytes a record is refused and counted, and the others are written", async (t) => {
  const { publish, lines, metricValue } = await setUp(t, { maxQueuedBytes: 2048 });
  const outcomes = await Promise.allSettled(Array.from({ length: 20 }, () => publish("x".repeat(100))));
  const written = outcomes.filter(({ status }) => status === "fulfilled").length;
  assert.ok(written > 3 && written < 20, String(written));
  assert.equal(lines("gate-log.ndjson").length, written);
  assert.equal(await metricValue("sluice_file_records_total", { outcome: "refused" }), 20 - written);
  await publish("room again");
  assert.equal(lines("gate-log.ndjson").length, written + 1);
});

test("where a record is not written, none that its client has sent behind it is, and those of others are", async (t) => {
  const { filter, dir, metricValue } = await setUp(t, { rotateBytes: 1024 });
  failOnce(t, "mkdir", "ENOSPC");
  const connect = (clientId: string) => createPublishContext({ clientId }).client;
  const send = async (client: Client, value: string, qos: 0 | 1 = 1) =>
    filter.handle({ ...createPublishContext({ payload: value.padEnd(400, "."), qos, data: { topic: "t" } }), client });
  const values = async () => {
    const files = (await listTopicFiles(dir)).get("t") ?? [];
    const lines = files.flatMap(({ path }) => parseLines(readFileSync(path, "utf8")));
    return lines.map(({ value }) => String(value).replace(/\.+$/, ""));
  };

  // More than one batch, of which the first alone fails.
  const one = connect("one");
  const failing = ["1", "2"].map((value) => assert.rejects(send(one, value), /ENOSPC/));
  const others = [send(connect("two"), "other 1"), send(one, "once", 0), send(connect("three"), "other 2")];
  // As a filter that runs isolated sees it.
  failing.push(assert.rejects(send({ ...one, data: new Map() }, "3"), /ENOSPC/));
  await Promise.all([...failing, ...others]);
  assert.deepEqual(await values(), ["other 1", "once", "other 2"]);

  // Until its connection is closed, nothing of what it still sends may come in front either.
  await assert.rejects(send(one, "4"), /an earlier packet of the connection failed/);
  assert.equal(await metricValue("sluice_file_records_total", { outcome: "failed" }), 1);
  assert.equal(await metricValue("sluice_file_records_total", { outcome: "behindFailed" }), 3);
  const again = connect("one");
  await Promise.all(["1", "2", "3", "4"].map((value) => send(again, value)));
  assert.deepEqual(await values(), ["other 1", "once", "other 2", "1", "2", "3", "4"]);
});

test("more topics than maxOpenFiles take turns, and none loses a record", async (t) => {
  const { publish, dir, lines, metricValue } = await setUp(t, { maxOpenFiles: 2 });
  const topics = Array.from({ length: 12 }, (_, index) => `topic-${index}`);
  for (let round = 0; round < 5; round++) await Promise.all(topics.map((topic) => publish(String(round), topic)));
  for (const topic of topics) {
    assert.deepEqual(
      lines(fileName(topic)).map(({ value, offset }) => [value, offset]),
      [0, 1, 2, 3, 4].map((round) => [String(round), round]),
    );
  }
  assert.equal(await metricValue("sluice_file_open_files"), 2);
  assert.ok(readdirSync(dir).filter((name) => name.endsWith(".lock")).length <= 2);
});

test("two filters share a dir, but not a topic: the second is told whose it is", async (t) => {
  const folder = temporaryFolder(t);
  const first = await setUp(t, {}, { folder, name: "publishes/file" });
  const second = await setUp(t, {}, { folder, name: "connects/file", clock: fastClock() });
  await first.publish("a");
  await second.publish("b", "other");
  await assert.rejects(second.publish("c"), /held by publishes\/file of this gateway: use one FileMQTT for the topic/);
  assert.equal(second.lines("gate-log.ndjson").length, 1);
});

test("the filter that replaces another after a reload waits until that has closed", async (t) => {
  const folder = temporaryFolder(t);
  const first = await setUp(t, {}, { folder });
  await first.publish("a");
  const second = await setUp(t, {}, { folder });
  const waiting = second.publish("b");
  await first.publish("c");
  await first.filter.close?.();
  await waiting;
  assert.deepEqual(
    second.lines("gate-log.ndjson").map(({ value, offset }) => [value, offset]),
    [
      ["a", 0],
      ["c", 1],
      ["b", 2],
    ],
  );
  await second.filter.close?.();
  assert.deepEqual(readdirSync(second.dir), ["gate-log.ndjson"], "no lock is left behind");
});

test("a lock of a dead process, of a former process with our id, or of a silent host is stale; one of a live host is not", async (t) => {
  const { publish, dir, lines } = await setUp(t, {}, { clock: fastClock() });
  mkdirSync(dir);
  const leave = (topic: string, holder: object, age = 0) => {
    const path = join(dir, `.${topic}.lock`);
    writeFileSync(path, `${JSON.stringify({ id: "x", owner: "p/f", ...holder })}\n`);
    const time = Date.now() / 1000 - age;
    utimesSync(path, time, time);
  };
  // Above any pid_max.
  leave("dead", { host: hostname(), pid: 2 ** 22 + 1, started: "1" });
  if (process.platform === "linux") leave("reused", { host: hostname(), pid: process.pid, started: "1" });
  leave("silent", { host: "elsewhere.example", pid: 1, started: "1" }, 120);
  for (const topic of ["dead", "reused", "silent"]) {
    await publish("a", topic);
    assert.equal(lines(fileName(topic)).length, 1);
  }
  writeFileSync(join(dir, ".unwritten.lock"), "");
  await publish("a", "unwritten");
  // Ahead of the fast clock.
  leave("live", { host: "elsewhere.example", pid: 1, started: "1" }, -600);
  await assert.rejects(publish("a", "live"), /held by p\/f of process 1 on elsewhere.example/);
});
