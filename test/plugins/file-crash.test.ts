import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import type { TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import kind from "../../plugins/file/index.ts";
import type { FileRecord } from "../../plugins/file/record.ts";
import { listTopicFiles } from "../../plugins/file/topic-file.ts";
import { createPublishContext, createFilterMaker, createTestHost } from "@sluice/testkit";

const maker = createFilterMaker(kind, new URL("../../plugins/file/schema.json", import.meta.url));
const appender = fileURLToPath(new URL("../fixtures/file-appender.ts", import.meta.url));

function temporaryFolder(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "sluice-file-crash-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Runs until `enough` says so of what was printed, is then killed with SIGKILL, and returns all that was printed. */
async function appendUntil(
  folder: string,
  enough: (printed: readonly string[]) => boolean,
  { bytes = 0, limit }: { bytes?: number; limit?: string } = {},
): Promise<string[]> {
  const command = `${limit ?? ":"}; exec "$0" "$@"`;
  const args = ["-c", command, process.execPath, appender, folder, String(bytes)];
  const child = spawn("sh", args, { stdio: ["ignore", "pipe", "inherit"] });
  const ended = once(child, "close");
  const printed: string[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    printed.push(line);
    if (child.signalCode === null && enough(printed)) child.kill("SIGKILL");
  }
  await ended;
  assert.equal(child.signalCode, "SIGKILL", "it ran until it was killed");
  return printed;
}

async function readAll(dir: string): Promise<{ records: FileRecord[]; torn: number }> {
  const records: FileRecord[] = [];
  let torn = 0;
  for (const { path } of (await listTopicFiles(dir)).get("gate-log") ?? []) {
    const lines = readFileSync(path, "utf8").split("\n");
    torn += lines.pop() === "" ? 0 : 1;
    records.push(...lines.map((line) => JSON.parse(line) as FileRecord));
  }
  return { records, torn };
}

/** Killed in the middle of a write, or before it was taken back, the file ends with a part of a record: this drops it. */
async function startOnceMore(folder: string): Promise<void> {
  const { host, close } = createTestHost({ folder });
  const filter = await maker.build({ topic: { default: "gate-log" } }, host);
  await filter.handle(createPublishContext({ payload: "last" }));
  await filter.close?.();
  close();
}

const valuesOf = (printed: readonly string[], outcome: "ok" | "failed") =>
  printed.map((line) => line.split(" ")).flatMap(([first, value = ""]) => (first === outcome ? [value] : []));

test("after kill -9 in the middle of writing, all that had resolved is there, and the next start goes on", async (t) => {
  const folder = temporaryFolder(t);
  const dir = join(folder, "data");
  const resolved: string[] = [];
  for (const count of [1, 700, 3000]) {
    const printed = await appendUntil(folder, (lines) => lines.length >= count);
    resolved.push(...valuesOf(printed, "ok"));
    assert.ok(existsSync(join(dir, ".gate-log.lock")), "the lock of the dead is in the way of the next");
  }
  await startOnceMore(folder);

  const { records, torn } = await readAll(dir);
  assert.equal(torn, 0);
  const kept = new Set(records.map(({ value }) => value));
  assert.deepEqual(
    resolved.filter((value) => !kept.has(value)),
    [],
  );
  assert.ok(resolved.length >= 3701);
  assert.deepEqual(
    records.map(({ offset }) => offset),
    records.map((_, index) => index),
    "offsets go on without a gap or a double, through rotations and restarts",
  );
  assert.equal(records.at(-1)?.value, "last");
  assert.ok(readdirSync(dir).length > 2, "there were rotations among it");
});

test("a disk that takes only part of a write is a fault, and what it took is taken back", async (t) => {
  // A limit on a file's size cuts a write as a full disk does, and needs no rights: 8 blocks of 512 bytes.
  const folder = temporaryFolder(t);
  const failures = (lines: readonly string[]) => lines.filter((line) => line.endsWith(" EFBIG")).length;
  const printed = await appendUntil(folder, (lines) => failures(lines) >= 5, { bytes: 100, limit: "ulimit -f 8" });
  await startOnceMore(folder);
  const { records, torn } = await readAll(join(folder, "data"));
  assert.equal(torn, 0);
  const kept = new Set(records.map(({ value }) => value.replace(/\.+$/, "")));
  const isKept = (value: string) => kept.has(value);
  assert.deepEqual(valuesOf(printed, "failed").filter(isKept), [], "what failed is not in the file");
  assert.equal(valuesOf(printed, "ok").every(isKept), true, "what had resolved is");
  assert.ok(records.length >= 5);
});

/** Undefined, and the test is skipped, where there is no right to. */
function mountSmallDisk(t: TestContext, size: string): string | undefined {
  const folder = mkdtempSync(join(tmpdir(), "sluice-file-crash-"));
  const mounted = spawnSync("mount", ["-t", "tmpfs", "-o", `size=${size}`, "tmpfs", folder]);
  t.after(() => {
    if (mounted.status === 0) spawnSync("umount", [folder]);
    rmSync(folder, { recursive: true, force: true });
  });
  if (mounted.status === 0) return folder;
  t.skip("no right to mount a small tmpfs");
  return undefined;
}

test("a full disk is a fault, nothing is lost, and writing goes on by itself when there is room", async (t) => {
  const folder = mountSmallDisk(t, "128k");
  if (folder === undefined) return;
  const dir = join(folder, "data");
  mkdirSync(dir);
  writeFileSync(join(folder, "ballast"), Buffer.alloc(64 * 1024));

  for (const fsync of ["interval", "always"]) {
    const { host, logs, metricValue, close } = createTestHost({ folder });
    const filter = await maker.build({ topic: { default: "gate-log" }, fsync }, host);
    const publish = async (payload: string) => filter.handle(createPublishContext({ payload }));
    const { records: before } = await readAll(dir);
    let written = before.length;
    const fillUp = async () => {
      for (;;) {
        await publish(`${written}`.padEnd(1000, "."));
        written++;
      }
    };
    await assert.rejects(fillUp, /ENOSPC/);
    for (let attempt = 0; attempt < 5; attempt++) await assert.rejects(publish("x".repeat(5000)), /ENOSPC/);
    assert.equal(filter.health?.().ok, false);
    assert.match(filter.health?.().detail ?? "", /gate-log\.ndjson: ENOSPC/);
    assert.equal(logs.filter(({ level }) => level === "error").length, 1, "told once, not for each packet");
    assert.equal(await metricValue("sluice_file_records_total", { outcome: "failed" }), 6);

    writeFileSync(join(folder, "ballast"), Buffer.alloc(fsync === "interval" ? 32 * 1024 : 0));
    await publish("room again");
    assert.equal(filter.health?.().ok, true);
    await filter.close?.();
    close();
    const { records, torn } = await readAll(dir);
    assert.equal(torn, 0);
    assert.equal(records.length, written + 1);
    assert.deepEqual(
      records.map(({ offset }) => offset),
      records.map((_, index) => index),
    );
  }
});

test("on a disk that is full again and again, what each client sends stays whole and in order", async (t) => {
  // In this order, as what is open keeps the disk from being taken away.
  const opened: (() => unknown)[] = [];
  t.after(async () => {
    for (const close of opened.toReversed()) await close();
  });
  const folder = mountSmallDisk(t, "1m");
  if (folder === undefined) return;
  const dir = join(folder, "data");
  let ballast = 960 * 1024;
  writeFileSync(join(folder, "ballast"), Buffer.alloc(ballast));
  const { host, close } = createTestHost({ folder });
  opened.push(close);
  // Few records a batch, so that there are always some behind the one that fails.
  const filter = await maker.build({ topic: { default: "gate-log" }, rotateBytes: 4096 }, host);
  opened.push(() => filter.close?.());
  let outages = 0;

  /** As a device does: after a failure, what was not acknowledged is sent again, in order, on a new connection. */
  async function runDevice(name: string): Promise<void> {
    let pending = Array.from({ length: 60 }, (_, number) => `${name} ${number} `);
    let { client } = createPublishContext({ clientId: name });
    while (pending.length > 0) {
      const sent = pending.slice(0, 12);
      const send = async (value: string) =>
        filter.handle({ ...createPublishContext({ payload: value.padEnd(1000, ".") }), client });
      const outcomes = await Promise.allSettled(sent.map(send));
      const isAcknowledged = (value: string) => outcomes[sent.indexOf(value)]?.status === "fulfilled";
      pending = pending.filter((value) => !isAcknowledged(value));
      if (outcomes.every(({ status }) => status === "fulfilled")) continue;
      ({ client } = createPublishContext({ clientId: name }));
      outages++;
      ballast -= 8 * 1024;
      writeFileSync(join(folder ?? "", "ballast"), Buffer.alloc(Math.max(ballast, 0)));
    }
  }
  const names = ["a", "b", "c", "d", "e"];
  await Promise.all(names.map(runDevice));
  assert.ok(outages > 10, `${outages} outages`);
  const { records } = await readAll(dir);
  for (const name of names) {
    const numbers = records.map(({ value }) => value.split(" ")).filter(([its]) => its === name);
    assert.deepEqual(
      numbers.map(([, number]) => Number(number)),
      Array.from({ length: 60 }, (_, number) => number),
      name,
    );
  }
});
