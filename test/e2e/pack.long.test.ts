/** Every way to install what is published, under every Node that it is for: all end-to-end suites pass against it. */
import assert from "node:assert/strict";
import { chmod, glob, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { after, before, describe, test } from "node:test";
import { configsOf } from "../helpers/every-kind.ts";
import { createProject, runSuites, takeAnyApiPort, type Layout } from "../helpers/installation.ts";
import { packAll, readManifest, run, startRegistry, type Published, type Registry } from "../helpers/published.ts";

const root = join(import.meta.dirname, "../..");
/** What is about the workspace, and not about a gateway. */
const others = ["docs.test.ts", "image.test.ts", "pack.test.ts"];
const patienceMs = 30 * 60_000;

let published: Published;
let registry: Registry;
before(
  async () => {
    published = await packAll();
    registry = await startRegistry(published);
  },
  { timeout: 120_000 },
);
after(async () => {
  await registry.close();
  await published.remove();
});

async function suites(): Promise<string[]> {
  const files: string[] = [];
  for await (const file of glob("test/e2e/*.test.ts", { cwd: root })) {
    if (!others.includes(basename(file)) && !file.endsWith(".long.test.ts")) files.push(file);
  }
  assert.ok(files.length > 15);
  return files.toSorted();
}

/** The newest Node that there is, without its install script: the binary's own package has none. */
async function newestNode(folder: string): Promise<string> {
  const { stdout } = await run("npm", ["view", "node", "version"], folder);
  const name = `node-${process.platform}-${process.arch}`;
  const flags = ["--ignore-scripts", "--no-save", "--no-audit", "--no-fund"];
  await run("npm", ["install", ...flags, `${name}@${stdout.trim()}`], folder);
  const node = join(folder, "node_modules", name, "bin/node");
  await chmod(node, 0o755);
  return node;
}

const layouts: readonly Layout[] = ["npm", "pnpm", "pnpm, hoisted"];

for (const layout of layouts) {
  describe(`installed with ${layout}`, () => {
    for (const which of ["this Node", "the newest Node"]) {
      test(`${which}: all end-to-end suites`, { timeout: patienceMs }, async (t) => {
        const site = await createProject(layout, registry);
        t.after(() => site.remove());
        await site.add("sluice");
        await takeAnyApiPort(site.home);
        const tools = await createProject("npm", registry);
        t.after(() => tools.remove());
        const node = which === "this Node" ? process.execPath : await newestNode(tools.home);
        const { stdout } = await run(node, ["--version"], site.home);
        const { pass, skipped } = await runSuites(site.home, await suites(), node);
        t.diagnostic(`Node ${stdout.trim()}: ${pass} tests passed, ${skipped} skipped`);
        assert.ok(pass > 200);
      });
    }
  });
}

for (const layout of layouts) {
  test(
    `${layout}: each bundled plugin is removed, missed, and installed from its tarball`,
    { timeout: patienceMs },
    async (t) => {
      const site = await createProject(layout, registry);
      t.after(() => site.remove());
      await site.add("sluice");
      const { dependencies = {} } = await readManifest(published.unpacked("sluice"));
      const names = Object.keys(dependencies).filter((name) => name !== "@sluice/kernel");
      for (const name of names) {
        const { sluice = {} } = await readManifest(published.unpacked(name));
        const [config = ""] = configsOf(Object.keys(sluice.kinds ?? {}));
        await writeFile(join(site.home, "sluice.yaml"), config);
        await site.sluice("check");
        for await (const folder of glob([`node_modules/${name}`, `node_modules/.pnpm/*/node_modules/${name}`], {
          cwd: site.home,
        }))
          await rm(join(site.home, folder), { recursive: true });
        assert.match(await site.problems("sluice.yaml"), /no installed package provides the kind/);
        await site.add(published.tarball(name));
        await site.sluice("check");
      }
    },
  );
}
