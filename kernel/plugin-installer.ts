/**
 * Plugins added and removed: fetched aside, checked, tried with the config, then moved into place in one step and made
 * active in another, the change of plugins.lock. What fails before that changes nothing.
 */
import { readFile, rename, rm, stat } from "node:fs/promises";
import { basename, join, relative, sep } from "node:path";
import { loadSpec, type LoadOptions, type Problem } from "./config.ts";
import { findInstalled } from "./installed-plugins.ts";
import { stageFiles } from "./config-store.ts";
import { SluiceError } from "./errors.ts";
import { withFileLock } from "./file-lock.ts";
import { lockPath, lockText, readPluginLock, type LockedPlugin, type PluginLock } from "./plugin-lock.ts";
import { probePlugin } from "./plugin-probe.ts";
import { recordOf } from "./plugin-record.ts";
import { parseSource, type PluginSource } from "./plugin-source.ts";
import { stagePlugin, type StagedPlugin } from "./plugin-staging.ts";
import {
  closeStore,
  filesDigest,
  openStaging,
  placeOf,
  recoverStore,
  storedPlaces,
  storeLockPath,
  tidyStore,
} from "./plugin-store.ts";
import type { InstalledPlugin } from "./registry.ts";

export interface InstallerOptions {
  /** The config that the plugins are for. */
  readonly config: LoadOptions;
  /** Absolute: where it lies. */
  readonly folder: string;
  readonly signal: AbortSignal;
  /** Told what is being done. */
  step(what: string): void;
}

export interface Added {
  readonly name: string;
  readonly version: string;
  /** The version that was active before. */
  readonly previous: string | undefined;
  readonly isChanged: boolean;
  readonly plugin: InstalledPlugin;
  readonly scriptsSkipped: readonly string[];
  /** What does not keep it from being used. */
  readonly warnings: readonly string[];
}

/** How long another command may take that is at work on the same plugins. */
const patienceMs = 120_000;
/** For its code to be imported: the gateway's own deadline. */
const importDeadlineMs = 10_000;

/**
 * @param written see {@link parseSource}; paths are relative to `cwd`
 * @throws SluiceError PLUGIN_SOURCE_INVALID, PLUGIN_INSTALL_FAILED, PLUGIN_LOCK_INVALID, PLUGIN_CHANGED, PLUGIN_BUSY, or
 *   what is wrong with the plugin; nothing has changed then
 */
export async function addPlugin(
  written: string,
  { cwd, allowScripts }: { cwd: string; allowScripts: readonly string[] },
  o: InstallerOptions,
): Promise<Added> {
  const source = await parseSource(written, cwd);
  return exclusively(o, async (lock) => {
    const staging = await openStaging(o.folder);
    const npm = { cwd: o.folder, env: o.config.env, signal: o.signal };
    const staged = await stagePlugin(source, { ...npm, place: staging, allowScripts, step: (what) => o.step(what) });
    const { plugin, warnings } = await judge(staged, o);
    await tryConfig({ name: staged.name, place: staged.place }, "PLUGIN_BROKEN", o);
    const listed = lock.get(staged.name);
    const entry = entryOf(staged, plugin, sourceText(source, o.folder));
    const added = { name: staged.name, version: staged.version, previous: listed?.version, plugin, warnings };
    const result = { ...added, scriptsSkipped: staged.scripts.skipped };
    const isThere = listed !== undefined && (await isInstalled(staged.name, listed, o.folder));
    if (isThere && listed.version === staged.version && listed.integrity !== staged.integrity) {
      throw new SluiceError(
        "PLUGIN_CHANGED",
        `${staged.name}@${staged.version} is installed already, made of other files: give what has changed a version of its own, or remove the installed one first`,
      );
    }
    const isSame = isThere && listed.version === staged.version && listed.files === staged.files;
    const undo = isSame ? undefined : await moveIntoPlace(staged, o.folder);
    try {
      await commit(lock, new Map([...lock, [staged.name, entry]]), o.folder);
    } catch (error) {
      await undo?.();
      throw error;
    }
    await removeStored(staged.name, [staged.version, listed?.version], o.folder);
    return { ...result, isChanged: !isSame };
  });
}

/**
 * @param o.force also where the config needs it
 * @throws SluiceError PLUGIN_NOT_FOUND, PLUGIN_IN_USE, PLUGIN_LOCK_INVALID, PLUGIN_BUSY; nothing has changed then
 */
export async function removePlugin(name: string, o: InstallerOptions & { force: boolean }): Promise<LockedPlugin> {
  return exclusively(o, async (lock) => {
    const listed = lock.get(name);
    if (!listed) {
      const known = lock.size === 0 ? "it lists none" : `it lists ${[...lock.keys()].join(", ")}`;
      throw new SluiceError("PLUGIN_NOT_FOUND", `${lockPath(o.folder)} does not list ${name}: ${known}`);
    }
    if (!o.force) await tryConfig({ name, place: undefined }, "PLUGIN_IN_USE", o);
    await commit(lock, new Map([...lock].filter(([each]) => each !== name)), o.folder);
    await removeStored(name, [], o.folder);
    return listed;
  });
}

async function exclusively<T>(o: InstallerOptions, work: (lock: PluginLock) => Promise<T>): Promise<T> {
  const { folder, signal } = o;
  await readPluginLock(folder);
  const onWait = (holder: string): void => o.step(`waiting for ${holder}`);
  try {
    return await withFileLock(storeLockPath(folder), { waitMs: patienceMs, onWait, signal }, async () => {
      const lock = await readPluginLock(folder);
      await recoverStore(folder, lock);
      try {
        return await work(lock);
      } finally {
        await tidyStore(folder);
      }
    });
  } finally {
    await closeStore(folder);
  }
}

/** Everything that can be told of the plugin itself, by the registry that a gateway would use and by importing it. */
async function judge(
  { name, version, place }: StagedPlugin,
  { config, folder, signal }: InstallerOptions,
): Promise<{ plugin: InstalledPlugin; warnings: string[] }> {
  const { registry, isTrustKnown } = await findInstalled({ ...config, candidate: { name, place } });
  if (!isTrustKnown) {
    const message = `the Gateway document of ${folder} says which packages may be used, and has problems: sluice check lists them`;
    throw new SluiceError("CONFIG_INVALID", message);
  }
  // As they will be found: the folder aside means nothing to anybody.
  const shown = (message: string): string => message.replaceAll(join(place, "node_modules") + sep, "");
  const own = registry.problems().filter((problem) => problem.package === name);
  const plugin = registry.plugins().find(({ manifest }) => manifest.package === name);
  if (plugin === undefined) {
    const [problem] = own;
    const message = problem?.message ?? `is no plugin: its package.json has no "sluice": {"kinds": {...}}`;
    throw new SluiceError(problem?.code ?? "PLUGIN_BROKEN", shown(`${name}@${version}: ${message}`));
  }
  const [bin = ""] = config.bins.toReversed();
  try {
    await probePlugin(name, { bin, place, deadlineMs: importDeadlineMs, env: config.env, signal });
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    throw new SluiceError(error.code, shown(error.message), { cause: error });
  }
  return { plugin, warnings: own.map(({ message }) => `${name} ${message}`) };
}

/** Refuses what would make a config worse: a good one has to stay good, and a bad one may only have its old problems. */
async function tryConfig(
  candidate: NonNullable<LoadOptions["candidate"]>,
  code: "PLUGIN_BROKEN" | "PLUGIN_IN_USE",
  o: InstallerOptions,
): Promise<void> {
  o.step("trying the config with it");
  const before = await loadSpec(o.config);
  const after = await loadSpec({ ...o.config, candidate });
  const excused = before.problems.map(subjectOf);
  const news = after.problems.filter((each) => !excused.some((subject) => subjectOf(each).startsWith(subject)));
  const [first] = news;
  if (first === undefined) return;
  const what = code === "PLUGIN_IN_USE" ? `without ${candidate.name}` : `with this version of ${candidate.name}`;
  const lines = news.map(({ where, message }) => `\n${where}: ${message}`).join("");
  const isAmbiguous = first.code === "PLUGIN_DUPLICATE_KIND";
  throw new SluiceError(isAmbiguous ? first.code : code, `the config would not be valid ${what}:${lines}`);
}

/** What a problem is about: of `file:1:2 > pipeline > filter > option`, the pipeline and the filter. */
const subjectOf = ({ where }: Problem): string => where.split(" > ").slice(1, -1).join(" > ");

function entryOf(staged: StagedPlugin, { manifest }: InstalledPlugin, source: string): LockedPlugin {
  const { version, integrity, files, scripts } = staged;
  return { version, source, integrity, files, kinds: [...manifest.kinds.keys()], scripts };
}

/** As given, but a path so that it means the same tomorrow: relative to the config. */
function sourceText(source: PluginSource, folder: string): string {
  if (source.sort === "registry") return source.written;
  return `file:${relative(folder, source.path).split(sep).join("/")}`;
}

async function isInstalled(name: string, { version, files }: LockedPlugin, folder: string): Promise<boolean> {
  const found = await filesDigest(placeOf(folder, name, version)).catch(() => undefined);
  return found === files;
}

/** Returns how to take it back. */
async function moveIntoPlace(staged: StagedPlugin, folder: string): Promise<() => Promise<void>> {
  const place = placeOf(folder, staged.name, staged.version);
  const aside = join(staged.place, "..", basename(place));
  const isThere = (await stat(place).catch(() => undefined)) !== undefined;
  if (isThere) await rename(place, aside);
  try {
    await rename(staged.place, place);
  } catch (error) {
    if (isThere) await rename(aside, place);
    throw error;
  }
  return async () => {
    await rename(place, staged.place);
    if (isThere) await rename(aside, place);
  };
}

/** plugins.lock first: it is what counts. */
async function commit(before: PluginLock, after: PluginLock, folder: string): Promise<void> {
  const file = lockPath(folder);
  const old = await readFile(file, "utf8").catch(() => undefined);
  const record = await recordOf(folder, before, after);
  const next = lockText(after);
  const texts = new Map<string, string>();
  const had = new Map<string, string>();
  if (old !== next) texts.set(file, next);
  if (old !== undefined) had.set(file, old);
  if (record) texts.set(record.file, record.text);
  if (record?.before !== undefined) had.set(record.file, record.before);
  const staged = await stageFiles(texts, had, 0o644);
  try {
    await staged.commit();
  } catch (error) {
    await staged.discard();
    throw error;
  }
}

/** The version before is kept, since a running gateway may still read of it. */
async function removeStored(name: string, keep: readonly (string | undefined)[], folder: string): Promise<void> {
  for (const stored of await storedPlaces(folder)) {
    if (stored.name === name && !keep.includes(stored.version))
      await rm(stored.place, { recursive: true, force: true });
  }
}
