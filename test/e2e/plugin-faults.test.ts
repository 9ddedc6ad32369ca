/** Whatever fails while a plugin is installed or removed, what was active before still is, unharmed: npm, the disk, the process. */
import assert from "node:assert/strict";
import { chmod, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { activeVersion, faultyProject, withoutStore, type FaultyProject } from "../helpers/faulty-project.ts";
import { longTest } from "../helpers/long-test.ts";
import { nodeEnv, writePlugin } from "../helpers/plugin-packages.ts";
import { sluice, snapshot } from "../helpers/sluice.ts";

let project: FaultyProject;
before(async () => {
  project = await faultyProject();
});
after(() => project.remove());

describe("npm", () => {
  for (const [what, script, message] of [
    [
      "fails",
      '#!/bin/sh\necho "npm error code E404" >&2\necho "npm error 404 Not Found - GET https://registry.example/x" >&2\nexit 1\n',
      /^sluice plugin add: npm install failed: Not Found - GET https:\/\/registry\.example\/x \(PLUGIN_INSTALL_FAILED\)\n$/,
    ],
    ["is killed", "#!/bin/sh\nkill -9 $$\n", /npm install failed: .*\(PLUGIN_INSTALL_FAILED\)\n$/],
    [
      "does nothing and says that all is well",
      "#!/bin/sh\nexit 0\n",
      /npm installed nothing \(PLUGIN_INSTALL_FAILED\)\n$/,
    ],
  ] as const) {
    test(`${what}: nothing has changed`, async () => {
      const folder = await project.copy();
      const bins = join(project.home, `bins-${what}`);
      await mkdir(bins);
      await writeFile(join(bins, "npm"), script, { mode: 0o755 });
      const then = await snapshot(folder);
      const env = { PATH: `${bins}:${nodeEnv["PATH"]}` };
      const { code, stderr } = await sluice(folder, ["plugin", "add", project.mark2.path], { env });
      assert.equal(code, 1);
      assert.match(stderr, message);
      assert.deepEqual(await snapshot(folder), then);
    });
  }

  test("is not there: nothing has changed", async () => {
    const folder = await project.copy();
    const then = await snapshot(folder);
    const { code, stderr } = await sluice(folder, ["plugin", "add", project.mark2.path], {
      env: { PATH: project.home },
    });
    assert.equal(code, 1);
    assert.match(stderr, /npm was not found on the PATH/);
    assert.deepEqual(await snapshot(folder), then);
  });
});

test("the disk is full where plugins.lock is written or anything is moved: nothing has changed", async () => {
  const env = { BREAK_BY: "ENOSPC", BREAK_CALLS: "open,rename" };
  const args = ["plugin", "add", project.mark2.path];
  const changes = await project.atEachChange(args, env, async ({ at, ended, folder, before: then }) => {
    assert.equal(ended.code, 1);
    assert.match(ended.stderr, /no space left on device/, `change ${at}`);
    assert.deepEqual(withoutStore(await snapshot(folder)), withoutStore(then), `change ${at}`);
    assert.deepEqual(await readdir(join(folder, ".sluice/plugins")), ["sluice-mark@1.0.0"]);
  });
  // The store, two files written, two files moved.
  assert.equal(changes, 5);
});

test("the process is killed in front of any move: the old version is active or the new one", async () => {
  const env = { BREAK_BY: "SIGKILL", BREAK_CALLS: "rename" };
  const seen: string[] = [];
  await project.atEachChange(["plugin", "add", project.mark2.path], env, async ({ ended, folder }) => {
    assert.equal(ended.code, null);
    seen.push(await activeVersion(folder));
  });
  // The store; plugins.lock; package.json.
  assert.deepEqual(seen, ["1.0.0", "1.0.0", "1.1.0"]);
});

longTest(
  "the process is killed while one installation takes the place of another of its version: the next command mends it",
  async () => {
    const plugin = await writePlugin(project.home, {
      name: "sluice-mark",
      version: "3.0.0",
      manifest: { scripts: { install: "node -e \"require('fs').writeFileSync('built.txt', 'built')\"" } },
    });
    const from = await project.copy();
    assert.equal((await sluice(from, ["plugin", "add", plugin])).code, 0);
    const then = await readFile(join(from, "plugins.lock"), "utf8");
    const args = ["plugin", "add", plugin, "--allow-scripts", "sluice-mark"];
    const judge = async ({ ended, folder }: { ended: { code: number | null }; folder: string }): Promise<void> => {
      assert.equal(ended.code, null);
      assert.equal(await readFile(join(folder, "plugins.lock"), "utf8"), then);
      // It changes nothing itself.
      assert.equal((await sluice(folder, ["plugin", "remove", "nobody"])).code, 1);
      assert.equal(await activeVersion(folder), "3.0.0");
      assert.deepEqual(await snapshot(folder), await snapshot(from));
    };
    const changes = await project.atEachChange(args, { BREAK_BY: "SIGKILL", BREAK_CALLS: "rename" }, judge, from);
    // The old one aside, the new one in its place, plugins.lock.
    assert.equal(changes, 3);
  },
);

test("a folder that may not be written: it says so, and nothing has changed", async (t) => {
  const folder = await project.copy();
  await chmod(join(folder, "plugins.lock"), 0o444);
  const then = await snapshot(folder);
  t.after(() => chmod(join(folder, "plugins.lock"), 0o644));
  const { code, stderr } = await sluice(folder, ["plugin", "add", project.mark2.path]);
  assert.equal(code, 1);
  assert.match(stderr, /plugins\.lock is marked read-only \(CONFIG_READ_ONLY\)\n$/);
  assert.deepEqual(await snapshot(folder), then);
});
