/** As plugin-faults.test.ts, at every change that the commands make. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { activeVersion, faultyProject, withoutStore, type FaultyProject } from "../helpers/faulty-project.ts";
import { readJson } from "../helpers/plugin-packages.ts";
import { sluice, snapshot } from "../helpers/sluice.ts";

let project: FaultyProject;
before(async () => {
  project = await faultyProject();
});
after(() => project.remove());

for (const lasting of ["0", "1"]) {
  const when = lasting === "1" ? "and stays so" : "once";
  test(`the disk is full at any change of an add, ${when}: nothing has changed`, async () => {
    const env = { BREAK_BY: "ENOSPC", BREAK_LASTING: lasting };
    let failed = 0;
    const args = ["plugin", "add", project.mark2.path];
    const changes = await project.atEachChange(args, env, async ({ at, ended, folder, before: then }) => {
      if (ended.code === 0) {
        // What failed was no more than tidying up.
        assert.equal(await activeVersion(folder), "1.1.0");
        return;
      }
      failed++;
      assert.match(ended.stderr, /no space left on device/, `change ${at}`);
      assert.deepEqual(withoutStore(await snapshot(folder)), withoutStore(then), `change ${at}`);
      assert.equal(await activeVersion(folder), "1.0.0");
    });
    assert.ok(failed >= 6, `${failed} of ${changes} changes`);
  });
}

test("the process is killed in front of any change of an add: the old version is active or the new one", async () => {
  const seen = new Set<string>();
  const args = ["plugin", "add", project.mark2.path];
  const changes = await project.atEachChange(args, { BREAK_BY: "SIGKILL" }, async ({ ended, folder, before: then }) => {
    assert.equal(ended.code, null);
    const version = await activeVersion(folder);
    seen.add(version);
    if (version === "1.0.0") assert.deepEqual(withoutStore(await snapshot(folder)), withoutStore(then));
    const again = await sluice(folder, args);
    assert.equal(again.code, 0, again.stderr);
    assert.equal(await activeVersion(folder), "1.1.0");
    assert.deepEqual(await readJson(join(folder, "package.json")), {
      private: true,
      dependencies: { "sluice-mark": `file:../sluice-mark-1.1.0.tgz` },
    });
  });
  assert.ok(changes >= 8, String(changes));
  assert.deepEqual(seen, new Set(["1.0.0", "1.1.0"]));
});

test("the process is killed in front of any change of a removal: it is there, or it is gone", async () => {
  const args = ["plugin", "remove", "--force", "sluice-mark"];
  const changes = await project.atEachChange(args, { BREAK_BY: "SIGKILL" }, async ({ ended, folder }) => {
    assert.equal(ended.code, null);
    const { plugins } = (await readJson(join(folder, "plugins.lock"))) as { plugins: object };
    if ("sluice-mark" in plugins) assert.equal(await activeVersion(folder), "1.0.0");
    else assert.match((await sluice(folder, ["check"])).stdout, /no installed package provides the kind "Mark"/);
    const again = await sluice(folder, ["plugin", "add", project.mark1.path]);
    assert.equal(again.code, 0, again.stderr);
    assert.equal(await activeVersion(folder), "1.0.0");
  });
  assert.ok(changes >= 4, String(changes));
});
