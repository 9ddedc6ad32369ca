/**
 * The plugin that is being written. Node keeps a module as long as it runs, by its URL, so each version of the plugin is
 * copied to a folder of its own and imported from there: what it imports of itself is new too, its dependencies are not.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFile, mkdir, readdir, readFile, rm, rmdir } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { Problem } from "../documents.ts";
import { SluiceError } from "../errors.ts";

export interface DevPlugin {
  /** Builds and copies what has changed since the last call. Rejects where the folder can't be read. */
  refresh(): Promise<DevVersion>;
  /** A folder for what has to be written; removed at the end. */
  readonly scratch: string;
  close(): Promise<void>;
}

export interface DevVersion {
  /** The copy to load, of the newest version that could be built; none before the first. */
  readonly ahead: readonly string[];
  /** Why the version on disk is not that one. */
  readonly problems: readonly Problem[];
  /** Absolute: whose change is a change of the plugin. */
  readonly files: ReadonlySet<string>;
}

/** A plugin has dozens of files; with more than this it is some other folder that was named. */
const maxFiles = 5000;
/** The running version may still open its own files, and the one before it until its packets are through. */
const keptVersions = 3;
const buildDeadlineMs = 60_000;

type Digests = ReadonlyMap<string, string>;

/** @param folder absolute @param ignored files whose change is none of the plugin */
export async function openDevPlugin(folder: string, ignored: readonly string[]): Promise<DevPlugin> {
  const scratch = join(folder, ".sluice", `dev-${process.pid}`);
  await removeLeftovers(dirname(scratch));
  const versions: string[] = [];
  // What the build writes is not what it is made from.
  const outputs = new Set<string>(ignored);
  let last: { readonly sources: Digests; readonly problems: readonly Problem[] } | undefined;
  let count = 0;

  async function build(): Promise<Problem[]> {
    const scripts = await readScripts(folder);
    if (scripts["build"] === undefined) return [];
    const before = await digestAll(folder);
    const problems = await runBuild(folder);
    for (const [file, now] of await digestAll(folder)) if (before.get(file) !== now) outputs.add(file);
    return problems;
  }

  async function copy(): Promise<void> {
    const to = join(scratch, String(++count));
    for (const file of (await digestAll(folder)).keys()) {
      const target = join(to, relative(folder, file));
      await mkdir(dirname(target), { recursive: true });
      await copyFile(file, target);
    }
    versions.push(to);
    for (const old of versions.splice(0, versions.length - keptVersions))
      await rm(old, { recursive: true, force: true });
  }

  const sourcesOf = (all: Digests): Digests => new Map([...all].filter(([file]) => !outputs.has(file)));

  return {
    scratch,
    async refresh() {
      const sources = sourcesOf(await digestAll(folder));
      if (!last || !isDeepStrictEqual(sources, last.sources)) {
        const problems = await build();
        if (problems.length === 0) await copy();
        // Saved while it was being built: seen at the next look, since this is what was there before.
        last = { sources: sourcesOf(sources), problems };
      }
      return { ahead: versions.slice(-1), problems: last.problems, files: new Set(last.sources.keys()) };
    },
    async close() {
      await rm(scratch, { recursive: true, force: true });
      // Unless something else is in it.
      await rmdir(dirname(scratch)).catch(() => undefined);
    },
  };
}

/** Of processes that were killed. */
async function removeLeftovers(parent: string): Promise<void> {
  for (const name of await readdir(parent).catch(() => [])) {
    const pid = Number(/^dev-(\d+)$/.exec(name)?.[1]);
    if (!Number.isNaN(pid) && !isRunning(pid)) await rm(join(parent, name), { recursive: true, force: true });
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** Of a package.json that can't be read, none: loading the plugin says what is wrong with it. */
async function readScripts(folder: string): Promise<Record<string, string>> {
  try {
    const { scripts } = JSON.parse(await readFile(join(folder, "package.json"), "utf8")) as {
      scripts?: Record<string, string>;
    };
    return scripts ?? {};
  } catch {
    return {};
  }
}

function runBuild(folder: string): Promise<Problem[]> {
  return new Promise((resolve) => {
    const options = { cwd: folder, timeout: buildDeadlineMs, maxBuffer: 2 ** 20 };
    execFile("npm", ["run", "--silent", "build"], options, (error, stdout, stderr) => {
      if (!error) return resolve([]);
      const why = `${stdout}${stderr}`.trim() || error.message;
      resolve([{ where: folder, message: `npm run build failed\n${why}`, code: "PLUGIN_BROKEN" }]);
    });
  });
}

/** Without packages, and without what is hidden: an editor's files, ours, version control's. */
async function digestAll(folder: string): Promise<Digests> {
  const digests = new Map<string, string>();
  async function add(at: string): Promise<void> {
    for (const entry of await readdir(at, { withFileTypes: true })) {
      const path = join(at, entry.name);
      if (entry.name.startsWith(".") || entry.name === "node_modules") continue;
      if (entry.isDirectory()) await add(path);
      else if (entry.isFile()) digests.set(path, await digest(path));
      if (digests.size > maxFiles) {
        const message = `${folder} has more than ${maxFiles} files: name the folder of a plugin`;
        throw new SluiceError("PLUGIN_BROKEN", message);
      }
    }
  }
  await add(folder);
  return digests;
}

/** Of a file that has just been removed, nothing. */
async function digest(file: string): Promise<string> {
  const content = await readFile(file).catch(() => "");
  return createHash("sha256").update(content).digest("hex");
}
