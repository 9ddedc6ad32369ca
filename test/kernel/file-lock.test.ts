import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import { withFileLock } from "../../kernel/file-lock.ts";

let home: string;
let path: string;
let count = 0;
before(async () => {
  home = await mkdtemp(join(tmpdir(), "sluice-file-lock-"));
});
beforeEach(() => {
  path = join(home, String(++count), "lock");
});
after(() => rm(home, { recursive: true }));

const { signal } = new AbortController();
const none = { waitMs: 0, onWait: () => undefined, signal };
const patient = { waitMs: 10_000, onWait: () => undefined, signal };

describe("a lock file", () => {
  test("lets in one at a time, all of them in the end, and is gone then", async () => {
    let inside = 0;
    let done = 0;
    const work = async (): Promise<void> => {
      assert.equal(++inside, 1);
      await new Promise((resolve) => setImmediate(resolve));
      inside--;
      done++;
    };
    await Promise.all(Array.from({ length: 5 }, () => withFileLock(path, patient, work)));
    assert.equal(done, 5);
    assert.deepEqual(await readdir(join(path, "..")), []);
  });

  test("is given up when the work fails, and hands on its error and its result", async () => {
    await assert.rejects(
      withFileLock(path, none, () => Promise.reject(new Error("no luck"))),
      /no luck/,
    );
    assert.equal(await withFileLock(path, none, () => Promise.resolve(7)), 7);
  });

  test("of a process that runs is respected; who waits is told, and fails naming it", async () => {
    const told: string[] = [];
    await withFileLock(path, none, async () => {
      const waiting = withFileLock(path, { waitMs: 1, onWait: (holder) => told.push(holder), signal }, () =>
        Promise.resolve(),
      );
      const message = `process ${process.pid} is at work here: wait for it, or delete ${path}`;
      await assert.rejects(waiting, { code: "PLUGIN_BUSY", message });
    });
    assert.deepEqual(told, [`process ${process.pid}`]);
  });

  test("of a process that is gone is taken away, by one of many", async () => {
    const { pid } = spawnSync(process.execPath, ["-e", ""]);
    await withFileLock(path, none, () => Promise.resolve());
    await writeFile(path, JSON.stringify({ pid, host: hostname() }));
    let inside = 0;
    const work = async (): Promise<void> => {
      assert.equal(++inside, 1);
      await new Promise((resolve) => setImmediate(resolve));
      inside--;
    };
    await Promise.all(Array.from({ length: 5 }, () => withFileLock(path, patient, work)));
    assert.deepEqual(await readdir(join(path, "..")), []);
  });

  test("of another host is respected, whatever runs here", async () => {
    await withFileLock(path, none, () => Promise.resolve());
    await writeFile(path, JSON.stringify({ pid: 999_999_999, host: "elsewhere" }));
    await assert.rejects(
      withFileLock(path, none, () => Promise.resolve()),
      { code: "PLUGIN_BUSY", message: /process 999999999 on elsewhere is at work/ },
    );
  });

  test("that nobody has written to is respected while it is fresh, and not for long", async () => {
    await withFileLock(path, none, () => Promise.resolve());
    await writeFile(path, "");
    await assert.rejects(
      withFileLock(path, none, () => Promise.resolve()),
      { code: "PLUGIN_BUSY" },
    );
    const then = Date.now() / 1000 - 10;
    await utimes(path, then, then);
    assert.equal(await withFileLock(path, none, () => Promise.resolve(1)), 1);
  });
});
