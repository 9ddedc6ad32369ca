import assert from "node:assert/strict";
import { appendFileSync, mkdirSync, mkdtempSync, renameSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import fsPromises from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import type { TestContext } from "node:test";
import type { ConfigDocument } from "../../kernel/plugin.ts";
import kind from "../../plugins/file/index.ts";
import command from "../../plugins/file/tail.ts";
import { runCommand, createPublishContext, createFilterMaker, createTestHost } from "@sluice/testkit";

function temporaryFolder(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "sluice-tail-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

function recordLine(offset: number, more: object = {}): string {
  const timestamp = Date.UTC(2026, 10, 22);
  const record = {
    topic: "log",
    key: "dev1",
    headers: { a: "b" },
    value: `v${offset}`,
    encoding: "utf8",
    timestamp,
    offset,
  };
  return `${JSON.stringify({ ...record, ...more })}\n`;
}

const recordLines = (from: number, to: number) =>
  Array.from({ length: to - from }, (_, index) => recordLine(from + index)).join("");

const run = (...args: string[]) => runCommand(command, args);

test("the last ten records, or as many as -n says, over rotated files", async (t) => {
  const dir = temporaryFolder(t);
  writeFileSync(join(dir, "log.9.ndjson"), recordLines(0, 5));
  writeFileSync(join(dir, "log.10.ndjson"), recordLines(5, 30));
  writeFileSync(join(dir, "log.ndjson"), `${recordLines(30, 33)}{"topic":"lo`);
  assert.equal((await run("--dir", dir, "--json", "log")).stdout, recordLines(23, 33));
  assert.equal((await run("--dir", dir, "--json", "-n", "2", "log")).stdout, recordLines(31, 33));
  assert.equal((await run("--dir", dir, "--json", "-n", "30", "log")).stdout, recordLines(3, 33));
  assert.equal((await run("--dir", dir, "--json", "-n", "1000", "log")).stdout, recordLines(0, 33));
  assert.deepEqual(await run("--dir", dir, "-n", "0", "log"), { code: 0, stdout: "", stderr: "" });
});

test("lines longer than a chunk are read whole", async (t) => {
  const dir = temporaryFolder(t);
  const lines = [1, 2, 3].map((offset) => recordLine(offset, { value: "x".repeat(200_000) + String(offset) }));
  writeFileSync(join(dir, "log.ndjson"), lines.join(""));
  assert.equal((await run("--dir", dir, "--json", "-n", "2", "log")).stdout, lines.slice(1).join(""));
});

test("a record for people is a line that does no harm to a terminal", async (t) => {
  const dir = temporaryFolder(t);
  const records = [
    recordLine(0, { value: "\u001b[2Jhi\nthere\u009b1m \u202eevil", headers: { a: "b", "x\u0007": "y" } }),
    recordLine(1, { value: "AP8=", encoding: "base64", key: null }),
    "not json\n",
    '{"offset":3}\n',
  ];
  writeFileSync(join(dir, "log.ndjson"), records.join(""));
  assert.deepEqual((await run("--dir", dir, "log")).stdout.split("\n"), [
    "2026-11-22T00:00:00.000Z 0  dev1  a=b x\\u0007=y  \\u001b[2Jhi\\u000athere\\u009b1m \\u202eevil",
    "2026-11-22T00:00:00.000Z 1  -  a=b  base64:AP8=",
    "not a record: not json",
    'not a record: {"offset":3}',
    "",
  ]);
});

test("an unknown topic lists those that there are and exits with 1", async (t) => {
  const dir = temporaryFolder(t);
  writeFileSync(join(dir, "b%2E1.ndjson"), "");
  writeFileSync(join(dir, "a.1.ndjson"), recordLine(0));
  const { code, stderr } = await run("--dir", dir, "log");
  assert.equal(code, 1);
  assert.ok(stderr.includes(`${dir}: a, b.1`), stderr);
  const missing = await run("--dir", join(dir, "nowhere"), "log");
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /no topics/);
});

test("the folders come from the config's FileMQTT filters", async (t) => {
  const dir = temporaryFolder(t);
  writeFileSync(join(dir, "log.ndjson"), recordLine(0));
  const file = (at: string) => ({ name: "file", kind: "FileMQTT", dir: at });
  const pipeline = (name: string, ...filters: object[]) => ({ kind: "Pipeline", name, filters });
  const runWith = (...documents: ConfigDocument[]) =>
    runCommand(command, ["-c", "x.yaml", "--json", "log"], { documents });

  const found = await runWith(pipeline("p", { name: "k", kind: "KafkaMQTT" }, file(dir)), pipeline("q", file(dir)));
  assert.deepEqual(found, { code: 0, stdout: recordLine(0), stderr: "" });

  const other = temporaryFolder(t);
  assert.equal((await runWith(pipeline("p", file(other)), pipeline("q", file(dir)))).code, 0);
  writeFileSync(join(other, "log.ndjson"), recordLine(1));
  const both = await runWith(pipeline("p", file(other)), pipeline("q", file(dir)));
  assert.equal(both.code, 2);
  assert.match(both.stderr, /several folders/);

  const none = await runWith(pipeline("p", { name: "k", kind: "KafkaMQTT" }), { kind: "MQTTProxy", name: "m" });
  assert.equal(none.code, 2);
  assert.match(none.stderr, /no FileMQTT filter/);
});

for (const args of [[], ["a", "b"], ["-n", "x", "a"], ["--nonsense", "a"], ["-c", "x", "--dir", "y", "a"]]) {
  test(`arguments that make no sense exit with 2: ${args.join(" ") || "none"}`, async () => {
    const { code, stderr } = await run(...args);
    assert.equal(code, 2);
    assert.match(stderr, /^sluice tail: ./);
  });
}

/** Runs with -f; `line` waits for the next one printed. */
function follow(t: TestContext, dir: string, ...args: string[]) {
  const stop = new AbortController();
  const stdout = new PassThrough();
  const done = command.run(["-f", "--dir", dir, "--json", ...args, "log"], {
    stdin: process.stdin,
    stdout,
    stderr: process.stderr,
    env: {},
    colors: false,
    signal: stop.signal,
    loadConfig: () => Promise.reject(new Error("no config here")),
  });
  const lines = createInterface({ input: stdout })[Symbol.asyncIterator]();
  t.after(() => {
    stop.abort();
    return done;
  });
  return {
    stdout,
    done,
    offset: async () => (JSON.parse(String((await lines.next()).value)) as { offset: number }).offset,
    stop: () => stop.abort(),
  };
}

test("-f goes on with what is written, through rotations, until the signal", async (t) => {
  const { host, close } = createTestHost();
  t.after(close);
  const options = { topic: { default: "log" }, rotateBytes: 1024 };
  const filter = await createFilterMaker(kind, new URL("../../plugins/file/schema.json", import.meta.url)).build(
    options,
    host,
  );
  t.after(() => filter.close?.());
  const publish = async () => filter.handle(createPublishContext({ payload: "x".repeat(100) }));
  for (let count = 0; count < 30; count++) await publish();

  const tail = follow(t, join(host.folder, "data"), "-n", "3");
  for (const expected of [27, 28, 29]) assert.equal(await tail.offset(), expected);
  // Several rotations between two looks, which is when a follower loses its way.
  await Promise.all(Array.from({ length: 70 }, publish));
  for (let expected = 30; expected < 100; expected++) assert.equal(await tail.offset(), expected);
  tail.stop();
  assert.equal(await tail.done, 0);
});

/** Calls `before` in front of each call that is made to the file system, with the folder it is about. */
function interleave(t: TestContext, before: (folder: string) => void): void {
  type Call = (...args: unknown[]) => unknown;
  const original = { open: fsPromises.open, stat: fsPromises.stat, readdir: fsPromises.readdir };
  const hook = (owner: object, name: string, folderOf: (args: unknown[]) => string) => {
    const calls = owner as Record<string, Call>;
    const call = calls[name] as Call;
    calls[name] = (...args) => {
      before(folderOf(args));
      return call.apply(owner, args);
    };
  };
  hook(fsPromises, "readdir", ([path]) => String(path));
  hook(fsPromises, "stat", ([path]) => dirname(String(path)));
  hook(fsPromises, "open", ([path]) => dirname(String(path)));
  const open = fsPromises.open;
  fsPromises.open = async (path, ...args) => {
    const handle = await open(path, ...args);
    for (const name of ["read", "stat"]) hook(handle, name, () => dirname(String(path)));
    return handle;
  };
  syncBuiltinESMExports();
  t.after(() => {
    Object.assign(fsPromises, original);
    syncBuiltinESMExports();
  });
}

/** As FileMQTT rotates: two records a file, and the oldest files are deleted where no more than `keep` are wanted. */
function createRotator(dir: string, keep = Infinity): () => void {
  const path = join(dir, "log.ndjson");
  let rotations = 0;
  writeFileSync(path, recordLines(0, 2));
  return () => {
    rotations++;
    renameSync(path, join(dir, `log.${rotations}.ndjson`));
    writeFileSync(path, recordLines(rotations * 2, rotations * 2 + 2));
    if (rotations > keep) rmSync(join(dir, `log.${rotations - keep}.ndjson`));
  };
}

async function offsetsUntil(t: TestContext, dir: string, last: number): Promise<number[]> {
  const tail = follow(t, dir, "-n", "2");
  const offsets: number[] = [];
  while ((offsets.at(-1) ?? -1) < last) offsets.push(await tail.offset());
  tail.stop();
  assert.equal(await tail.done, 0);
  return offsets;
}

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, index) => from + index);

test("-f misses nothing and repeats nothing, between whichever two of its looks files are rotated", async (t) => {
  const writers = new Map<string, (call: number) => void>();
  const calls = new Map<string, number>();
  interleave(t, (folder) => {
    calls.set(folder, (calls.get(folder) ?? 0) + 1);
    writers.get(folder)?.(calls.get(folder) ?? 0);
  });
  // Far more than the looks that it takes from one file to the next.
  await Promise.all(
    range(1, 41).map(async (at) => {
      const dir = temporaryFolder(t);
      const rotate = createRotator(dir);
      writers.set(dir, (call) => {
        // Twice, and once more while it finds its way.
        if (call === at) rotate();
        if (call === at || call === at + 3) rotate();
      });
      const offsets = await offsetsUntil(t, dir, 7);
      assert.deepEqual(offsets, range(offsets[0] ?? -1, 8), `rotated at call ${at}`);
    }),
  );
});

test("-f misses nothing where files are rotated at each of its looks", async (t) => {
  const dir = temporaryFolder(t);
  const rotate = createRotator(dir);
  let rotations = 0;
  interleave(t, (folder) => {
    if (folder === dir && rotations++ < 300) rotate();
  });
  const offsets = await offsetsUntil(t, dir, 601);
  assert.deepEqual(offsets, range(offsets[0] ?? -1, 602));
});

test("-f goes on in order where retention overtakes it", async (t) => {
  const dir = temporaryFolder(t);
  const rotate = createRotator(dir, 2);
  let rotations = 0;
  interleave(t, (folder) => {
    if (folder === dir && rotations++ < 300) rotate();
  });
  const offsets = await offsetsUntil(t, dir, 601);
  assert.deepEqual(
    offsets,
    [...new Set(offsets)].sort((a, b) => a - b),
    "nothing twice, nothing out of order",
  );
  // What is in the last files is not lost whatever happens to those before.
  assert.deepEqual(offsets.slice(-6), range(596, 602));
});

test("-f finds its way when its file was deleted, taken back in part, or is not there yet", async (t) => {
  const dir = temporaryFolder(t);
  const path = join(dir, "log.ndjson");
  writeFileSync(path, recordLines(0, 3));
  const tail = follow(t, dir);
  for (const expected of [0, 1, 2]) assert.equal(await tail.offset(), expected);

  // Half a write, taken back, and then another in its place.
  appendFileSync(path, recordLine(3).slice(0, 40));
  truncateSync(path, recordLines(0, 3).length);
  appendFileSync(path, recordLine(3));
  assert.equal(await tail.offset(), 3);

  // Between renaming a file and beginning the next there is only the old one.
  renameSync(path, join(dir, "log.1.ndjson"));
  appendFileSync(join(dir, "log.1.ndjson"), recordLine(4));
  assert.equal(await tail.offset(), 4);
  writeFileSync(path, recordLine(5));
  assert.equal(await tail.offset(), 5);

  // Its file and the one before are gone: what it has shown is not shown again.
  writeFileSync(join(dir, "new"), recordLines(4, 8));
  rmSync(join(dir, "log.1.ndjson"));
  renameSync(join(dir, "new"), path);
  assert.equal(await tail.offset(), 6);
  assert.equal(await tail.offset(), 7);
  tail.stop();
  assert.equal(await tail.done, 0);
});

test("-f ends when its reader goes away", async (t) => {
  const dir = temporaryFolder(t);
  writeFileSync(join(dir, "log.ndjson"), recordLine(0));
  const tail = follow(t, dir);
  assert.equal(await tail.offset(), 0);
  tail.stdout.destroy(Object.assign(new Error("write EPIPE"), { code: "EPIPE" }));
  assert.equal(await tail.done, 0);
});

test("what several workers have written is shown together, by its time", async (t) => {
  const dir = temporaryFolder(t);
  mkdirSync(join(dir, "worker-1"));
  const at = (offset: number, timestamp: number): string => recordLine(offset, { timestamp });
  writeFileSync(join(dir, "log.ndjson"), at(0, 100) + at(1, 300));
  writeFileSync(join(dir, "worker-1", "log.ndjson"), at(0, 200) + at(1, 400));
  writeFileSync(join(dir, "worker-1", "only.ndjson"), at(7, 1));
  const all = at(0, 100) + at(0, 200) + at(1, 300) + at(1, 400);
  assert.equal((await run("--dir", dir, "--json", "log")).stdout, all);
  assert.equal((await run("--dir", dir, "--json", "-n", "1", "log")).stdout, at(1, 400));
  assert.equal((await run("--dir", dir, "--json", "only")).stdout, at(7, 1));
});
