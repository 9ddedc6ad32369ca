/** KafkaMQTT's disk buffer by itself: order, crash, damage, a full buffer, a full disk. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { createBufferMeter } from "../../plugins/kafka/buffer-meter.ts";
import type { BufferOptions } from "../../plugins/kafka/config.ts";
import { openDiskBuffer, type DiskBuffer } from "../../plugins/kafka/disk-buffer.ts";
import { checkLeftBehind, workerFolder } from "../../plugins/kafka/worker-folder.ts";
import { eventually } from "../helpers/eventually.ts";
import { createTestHost } from "@sluice/testkit";

const defaults: BufferOptions = { dir: "", maxBytes: 1_000_000, fsync: "never", fsyncIntervalMs: 20, onFull: "reject" };
const appender = fileURLToPath(new URL("../fixtures/kafka-appender.ts", import.meta.url));
const late = Number.MAX_SAFE_INTEGER;

function temporaryFolder(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "sluice-buffer-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

async function open(t: TestContext, folder: string, options: Partial<BufferOptions> = {}) {
  const { host, logs, metricValue, close } = createTestHost();
  t.after(close);
  const meter = createBufferMeter(host.metrics, host.name);
  const deps = { folder, owner: host.name, clock: host.clock, log: host.log, meter };
  const buffer = await openDiskBuffer({ ...defaults, ...options }, deps);
  let closing: Promise<void> | undefined;
  const closeOnce = () => (closing ??= buffer.close());
  t.after(closeOnce);
  return { buffer: { ...buffer, close: closeOnce }, logs, metricValue };
}

async function readAll(buffer: DiskBuffer): Promise<{ sequence: number; text: string }[]> {
  const all: { sequence: number; text: string }[] = [];
  for (;;) {
    const frames = await buffer.read(1000);
    if (frames.length === 0) return all;
    all.push(...frames.map(({ sequence, body }) => ({ sequence, text: String(body).trimEnd() })));
  }
}

const append = (buffer: DiskBuffer, text: string, bytes = 0) => buffer.append(Buffer.from(text.padEnd(bytes)), late);
const texts = (from: number, to: number) =>
  Array.from({ length: to - from + 1 }, (_, index) => `record ${from + index}`);
const appendAll = (buffer: DiskBuffer, from: number, to: number, bytes = 0) =>
  Promise.all(texts(from, to).map((text) => append(buffer, text, bytes)));
const textsOf = (records: readonly { text: string }[]) => records.map(({ text }) => text);

for (const fsync of ["always", "interval", "never"] as const) {
  test(`records come back in order, and after a restart those that are not done (fsync: ${fsync})`, async (t) => {
    const folder = temporaryFolder(t);
    const first = await open(t, folder, { fsync });
    await appendAll(first.buffer, 1, 2000, 50);
    const records = await readAll(first.buffer);
    assert.deepEqual(textsOf(records), texts(1, 2000));
    assert.deepEqual(await readAll(first.buffer), [], "each is read once");
    await appendAll(first.buffer, 2001, 2010);
    assert.deepEqual(textsOf(await readAll(first.buffer)), texts(2001, 2010));
    first.buffer.done(records[1499]?.sequence ?? 0);
    assert.equal(first.buffer.stats().records, 510);
    await first.buffer.close();

    const second = await open(t, folder, { fsync });
    assert.equal(second.buffer.stats().records, 510);
    await appendAll(second.buffer, 2011, 2020);
    assert.deepEqual(textsOf(await readAll(second.buffer)), texts(1501, 2020));
    second.buffer.rewind();
    assert.deepEqual(textsOf(await readAll(second.buffer)), texts(1501, 2020), "rewound");
    await second.buffer.close();
  });
}

test("what is done is deleted, segment by segment, and the buffer stays small", async (t) => {
  const folder = temporaryFolder(t);
  const { buffer } = await open(t, folder, { maxBytes: 200_000 });
  for (let round = 0; round < 15; round++) {
    await appendAll(buffer, 1, 100, 200);
    const records = await readAll(buffer);
    assert.equal(records.length, 100);
    buffer.done(records.at(-1)?.sequence ?? 0);
    await eventually(() => buffer.stats().bytes < 100_000, true);
  }
  assert.equal(buffer.stats().records, 0);
  await buffer.close();
  assert.ok(readdirSync(folder).filter((name) => name.endsWith(".seg")).length <= 5);
  assert.ok(!readdirSync(folder).includes(".lock"));
});

test("a record that a crash has cut off is dropped, and numbers go on", async (t) => {
  const folder = temporaryFolder(t);
  const first = await open(t, folder);
  await appendAll(first.buffer, 1, 10);
  await first.buffer.close();
  const [name = ""] = readdirSync(folder).filter((each) => each.endsWith(".seg"));
  const path = join(folder, name);
  for (const cut of [1, 5, 20]) {
    truncateSync(path, statSync(path).size - cut);
    const { buffer, metricValue } = await open(t, folder);
    assert.equal(await metricValue("sluice_kafka_buffer_torn_segments_total"), 1);
    const before = await readAll(buffer);
    await append(buffer, "new");
    const [added] = await readAll(buffer);
    assert.equal(added?.text, "new");
    assert.equal(added.sequence, (before.at(-1)?.sequence ?? 0) + 1);
    assert.equal(await metricValue("sluice_kafka_buffer_records_lost_total", { reason: "corrupt" }), undefined);
    await buffer.close();
    rmSync(join(folder, readdirSync(folder).findLast((each) => each.endsWith(".seg")) ?? ""));
  }
});

test("a power cut at any byte of the last group: what was acknowledged is there, and the torn tail is cut", async (t) => {
  const folder = temporaryFolder(t);
  const { buffer } = await open(t, folder, { fsync: "always" });
  for (let n = 1; n <= 20; n++) await append(buffer, `record ${n}`);
  const segment = readdirSync(folder).find((each) => each.endsWith(".seg")) ?? "";
  const synced = statSync(join(folder, segment)).size;
  // One group, and none of it acknowledged before its sync, which the power does not live to see.
  await appendAll(buffer, 21, 24, 20);
  const whole = readFileSync(join(folder, segment));
  await buffer.close();
  assert.ok(whole.length > synced);
  const step = process.env["SLUICE_TEST_LONG"] === "true" ? 1 : 3;
  let survivors = 0;
  for (let cut = synced; cut <= whole.length; cut += step) {
    // The file ends there; or its size was written and its data was not.
    const tails = [whole.subarray(0, cut), Buffer.concat([whole.subarray(0, cut), Buffer.alloc(whole.length - cut)])];
    for (const content of tails) {
      const copy = temporaryFolder(t);
      writeFileSync(join(copy, segment), content);
      writeFileSync(join(copy, "done"), "");
      const after = await open(t, copy, { fsync: "always" });
      const read = textsOf(await readAll(after.buffer));
      assert.deepEqual(read, texts(1, read.length), `cut at ${cut}`);
      assert.ok(read.length >= 20 && read.length <= 24, `cut at ${cut}: ${read.length} records`);
      assert.equal(await after.metricValue("sluice_kafka_buffer_records_lost_total", { reason: "corrupt" }), undefined);
      const isTorn = statSync(join(copy, segment)).size < content.length;
      assert.equal((await after.metricValue("sluice_kafka_buffer_torn_segments_total")) ?? 0, isTorn ? 1 : 0);
      await append(after.buffer, "new");
      assert.deepEqual(textsOf(await readAll(after.buffer)), ["new"]);
      await after.buffer.close();
      survivors += read.length - 20;
      rmSync(copy, { recursive: true, force: true });
    }
  }
  assert.ok(survivors > 0, "a group that is written in part is kept in part");
});

test("a damaged segment is named and counted, and what is whole in it and behind it is read", async (t) => {
  const folder = temporaryFolder(t);
  const first = await open(t, folder, { maxBytes: 200_000 });
  await appendAll(first.buffer, 1, 100, 500);
  for (let n = 101; n <= 200; n++) await append(first.buffer, `record ${n}`, 500);
  await first.buffer.close();
  const names = readdirSync(folder).filter((each) => each.endsWith(".seg"));
  assert.ok(names.length > 2, `${names.length} segments`);
  const path = join(folder, names[0] ?? "");
  const content = readFileSync(path);
  content.fill(0xff, 518 * 10 + 100, 518 * 12 + 5);
  writeFileSync(path, content);
  const { buffer, logs, metricValue } = await open(t, folder, { maxBytes: 200_000 });
  const read = textsOf(await readAll(buffer));
  assert.deepEqual(read, [...texts(1, 10), ...texts(14, 200)]);
  assert.equal(await metricValue("sluice_kafka_buffer_records_lost_total", { reason: "corrupt" }), 3);
  assert.equal(await metricValue("sluice_kafka_buffer_corrupt_segments_total"), 1);
  assert.ok(logs.some(({ level, fields }) => level === "error" && fields["file"] === path));
  await buffer.close();

  // A whole segment that is gone is noticed too.
  rmSync(join(folder, names[1] ?? ""));
  const again = await open(t, folder, { maxBytes: 200_000 });
  const left = await readAll(again.buffer);
  const lost = (await again.metricValue("sluice_kafka_buffer_records_lost_total", { reason: "corrupt" })) ?? 0;
  assert.ok(lost > 3);
  assert.equal(left.length + lost, 200);
  await again.buffer.close();
});

test("a full buffer rejects, and takes records again when there is room", async (t) => {
  const { buffer, metricValue } = await open(t, temporaryFolder(t), { maxBytes: 100_000 });
  const outcomes = await Promise.allSettled(texts(1, 300).map((text) => append(buffer, text, 1000)));
  const kept = outcomes.filter(({ status }) => status === "fulfilled").length;
  await assert.rejects(append(buffer, "one more", 1000), /is full .*raise buffer.maxBytes/);
  assert.ok(buffer.stats().bytes <= 100_000);
  const unwritten = await metricValue("sluice_kafka_buffer_records_unwritten_total", { reason: "full" });
  assert.equal(unwritten, 301 - kept);
  const records = await readAll(buffer);
  assert.equal(records.length, kept);
  buffer.done(records.at(-1)?.sequence ?? 0);
  await append(buffer, "room again", 1000);
  assert.deepEqual(textsOf(await readAll(buffer)), ["room again"]);
  await buffer.close();
});

test("a full buffer drops the oldest and counts them", async (t) => {
  const { buffer, metricValue } = await open(t, temporaryFolder(t), { maxBytes: 100_000, onFull: "dropOldest" });
  for (let n = 1; n <= 300; n++) await append(buffer, `record ${n}`, 1000);
  assert.ok(buffer.stats().bytes <= 100_000);
  const read = textsOf(await readAll(buffer));
  assert.deepEqual(read, texts(301 - read.length, 300), "the newest are there, without a gap");
  assert.ok(read.length > 70, `${read.length} kept`);
  const dropped = await metricValue("sluice_kafka_buffer_records_lost_total", { reason: "dropped" });
  assert.equal(dropped, 300 - read.length);
  assert.equal(await metricValue("sluice_kafka_buffer_records_lost_total", { reason: "corrupt" }), undefined);
  await buffer.close();
});

test("a full buffer blocks until there is room, or the record's time is up", async (t) => {
  const { buffer, metricValue } = await open(t, temporaryFolder(t), { maxBytes: 100_000, onFull: "block" });
  let settled = 0;
  const appends = texts(1, 300).map((text) => append(buffer, text, 1000).finally(() => settled++));
  const read: string[] = [];
  await eventually(() => settled > 0, true);
  while (read.length < 300) {
    const frames = await readAll(buffer);
    read.push(...textsOf(frames));
    buffer.done(frames.at(-1)?.sequence ?? 0);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await Promise.all(appends);
  assert.deepEqual(read, texts(1, 300));

  const fill = Promise.allSettled(
    texts(1, 300).map((text) => buffer.append(Buffer.from(text.padEnd(1000)), Date.now() + 300)),
  );
  const refused = (await fill).filter(({ status }) => status === "rejected").length;
  assert.ok(refused > 200);
  assert.equal(await metricValue("sluice_kafka_buffer_records_unwritten_total", { reason: "full" }), refused);
  await buffer.close();
});

test("where a record is not kept, those of its sender that wait behind it are not either, and others are", async (t) => {
  const { buffer, metricValue } = await open(t, temporaryFolder(t), { maxBytes: 100_000 });
  const [one, other] = ["one", "other"];
  const put = (text: string, bytes: number, keeper?: string) =>
    buffer.append(Buffer.from(text.padEnd(bytes)), late, keeper);
  await put("first", 60_000);
  const settled = await Promise.allSettled([
    // There is no room for it, and there would be for what follows.
    put("too much", 60_000, one),
    put("behind it", 100, one),
    put("of another", 100, other),
    put("behind that", 100, one),
    put("of nobody", 100),
  ]);
  assert.deepEqual(
    settled.map(({ status }) => status),
    ["rejected", "rejected", "fulfilled", "rejected", "fulfilled"],
  );
  assert.equal(await metricValue("sluice_kafka_buffer_records_unwritten_total", { reason: "full" }), 3);
  await put("once more", 100, one);
  assert.deepEqual(textsOf(await readAll(buffer)), ["first", "of another", "of nobody", "once more"]);
  await buffer.close();
});

test("a folder has one user", async (t) => {
  const folder = temporaryFolder(t);
  const { buffer } = await open(t, folder);
  await assert.rejects(open(t, folder), /\.lock is held by pipeline\/filter of process \d+/);
  await buffer.close();
  writeFileSync(
    join(folder, ".lock"),
    JSON.stringify({ id: "x", host: "elsewhere", pid: 1, started: "", owner: "other/one" }),
  );
  await assert.rejects(open(t, folder), /other\/one of process 1 on elsewhere/);
  rmSync(join(folder, ".lock"));
  await (await open(t, folder)).buffer.close();
});

test("a full disk is a fault, keeps the file whole, and is over when there is room", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "sluice-buffer-"));
  const mounted = spawnSync("mount", ["-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]);
  t.after(() => {
    if (mounted.status === 0) spawnSync("umount", [folder]);
    rmSync(folder, { recursive: true, force: true });
  });
  if (mounted.status !== 0) {
    t.skip("no right to mount a small tmpfs");
    return;
  }
  writeFileSync(join(folder, "ballast"), Buffer.alloc(128 * 1024));
  const { buffer, logs } = await open(t, folder, { fsync: "always" });
  let kept = 0;
  const fillUp = async () => {
    for (;;) {
      await append(buffer, `record ${kept + 1}`, 1000);
      kept++;
    }
  };
  await assert.rejects(fillUp, /ENOSPC/);
  await assert.rejects(append(buffer, "x", 10_000), /ENOSPC/);
  assert.match(buffer.stats().problem ?? "", /ENOSPC/);
  assert.equal(logs.filter(({ level }) => level === "error").length, 1, "told once");
  rmSync(join(folder, "ballast"));
  await append(buffer, "room again", 1000);
  assert.equal(buffer.stats().problem, undefined);
  assert.deepEqual(textsOf(await readAll(buffer)), [...texts(1, kept), "room again"]);
  await buffer.close();
});

test("after kill -9 in the middle of writing, all that was safe is there, in order, and the next start goes on", async (t) => {
  const folder = temporaryFolder(t);
  const safe: string[] = [];
  for (const [fsync, count] of [
    ["always", 1],
    ["always", 300],
    ["never", 3000],
  ] as const) {
    const child = spawn(process.execPath, [appender, folder, fsync], { stdio: ["ignore", "pipe", "inherit"] });
    const ended = once(child, "close");
    let printed = 0;
    for await (const line of createInterface({ input: child.stdout })) {
      safe.push(line);
      if (++printed === count) child.kill("SIGKILL");
    }
    await ended;
    assert.equal(child.signalCode, "SIGKILL", "it ran until it was killed");
  }
  const { buffer, metricValue } = await open(t, folder, { maxBytes: 10_000_000 });
  const read = textsOf(await readAll(buffer));
  const kept = new Set(read);
  assert.deepEqual(
    safe.filter((value) => !kept.has(value)),
    [],
  );
  assert.equal(kept.size, read.length, "none is there twice");
  const positions = safe.map((value) => read.indexOf(value));
  assert.deepEqual(
    positions,
    positions.toSorted((a, b) => a - b),
  );
  assert.equal(await metricValue("sluice_kafka_buffer_records_lost_total", { reason: "corrupt" }), undefined);
  await append(buffer, "last");
  assert.deepEqual(textsOf(await readAll(buffer)), ["last"]);
});

test("each worker has a folder of its own, and none is forgotten when there are fewer of them", async (t) => {
  const dir = temporaryFolder(t);
  assert.equal(workerFolder(dir, { index: 0, count: 3 }), dir);
  const folder = workerFolder(dir, { index: 2, count: 3 });
  assert.equal(folder, join(dir, "worker-2"));
  await checkLeftBehind(dir, { index: 0, count: 1 });
  const { buffer } = await open(t, folder);
  await appendAll(buffer, 1, 5);
  await buffer.close();
  await checkLeftBehind(dir, { index: 0, count: 3 });
  await assert.rejects(
    checkLeftBehind(dir, { index: 0, count: 2 }),
    /worker-2 holds 5 records .* start it with workers: 3/,
  );
  const again = await open(t, folder);
  const records = await readAll(again.buffer);
  again.buffer.done(records.at(-1)?.sequence ?? 0);
  await again.buffer.close();
  await checkLeftBehind(dir, { index: 0, count: 2 });
});
