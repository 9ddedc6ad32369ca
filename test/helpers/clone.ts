/** A copy of the repository as a user has it after `npm start`: sources copied, installed packages shared. */
import { cp, mkdtemp, readdir, readFile, realpath, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dirname, "../..");
const rootFiles = ["LICENSE", "tsconfig.json", "pnpm-workspace.yaml", "pnpm-lock.yaml", ".pnpmfile.cjs"];

export interface Clone {
  /** Of its own; what is beside it is removed with it. */
  readonly folder: string;
  remove(): Promise<void>;
}

/** The AdminAPI that its package.json implies takes any free port, so that clones don't disturb each other. */
export async function createClone(): Promise<Clone> {
  const parent = await realpath(await mkdtemp(join(tmpdir(), "sluice-clone-")));
  const folder = join(parent, "sluice");
  // Links stay as they are, so that the workspace's packages are the copies.
  const options = { recursive: true, verbatimSymlinks: true };
  for (const name of ["kernel", "plugins", "kit", "config", ...rootFiles]) {
    const isData = (source: string) => source.endsWith(join("config", "data")) || source.endsWith("/dist");
    await cp(join(root, name), join(folder, name), { ...options, filter: (source) => !isData(source) });
  }
  const modules = join(root, "node_modules");
  for (const name of await readdir(modules)) {
    if (name === ".pnpm" || name === ".cache") continue;
    await cp(join(modules, name), join(folder, "node_modules", name), options);
  }
  await symlink(join(modules, ".pnpm"), join(folder, "node_modules/.pnpm"));
  const manifest = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as {
    sluice: { implied: { kind: string }[] };
  };
  const implied = manifest.sluice.implied.map((each) => (each.kind === "AdminAPI" ? { ...each, port: 0 } : each));
  await writeFile(join(folder, "package.json"), JSON.stringify({ ...manifest, sluice: { implied } }, undefined, 2));
  return { folder, remove: () => rm(parent, { recursive: true, force: true }) };
}
