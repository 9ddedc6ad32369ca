/** plugins.lock beside the config: which plugins `sluice plugin` has installed, in which version, made of which bytes. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { SluiceError } from "./errors.ts";
import { isPackageName } from "./plugin-source.ts";
import { isVersion } from "./versions.ts";

export interface LockedPlugin {
  /** The active one. */
  readonly version: string;
  /** As the user gave it. */
  readonly source: string;
  /** Of the package's tarball, as npm computes it: `sha512-...`. */
  readonly integrity: string;
  /** Of everything that was installed, its dependencies included: `sha256-...`. */
  readonly files: string;
  readonly kinds: readonly string[];
  /** Packages whose install scripts were run, and those whose were not. */
  readonly scripts: { readonly run: readonly string[]; readonly skipped: readonly string[] };
}

/** By package name. */
export type PluginLock = ReadonlyMap<string, LockedPlugin>;

export const lockPath = (folder: string): string => join(folder, "plugins.lock");

/** Of its format, should it ever change. */
const lockfileVersion = 1;

/**
 * Empty where there is none.
 * @throws SluiceError PLUGIN_LOCK_INVALID
 */
export async function readPluginLock(folder: string): Promise<PluginLock> {
  const path = lockPath(folder);
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return new Map();
    throw invalid(path, message, error);
  }
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch (error) {
    throw invalid(path, (error as Error).message, error);
  }
  const { lockfileVersion: version, plugins } = (content ?? {}) as { lockfileVersion?: unknown; plugins?: unknown };
  if (version !== lockfileVersion) {
    throw invalid(path, `its lockfileVersion is ${JSON.stringify(version)}, and this gateway reads ${lockfileVersion}`);
  }
  if (typeof plugins !== "object" || plugins === null) throw invalid(path, "it has no map of plugins");
  const lock = new Map<string, LockedPlugin>();
  for (const [name, entry] of Object.entries(plugins)) {
    // Both become part of a path.
    if (!isPackageName(name)) throw invalid(path, `${JSON.stringify(name)} is no package name`);
    if (!isLocked(entry)) throw invalid(path, `the entry of ${name} is not complete`);
    lock.set(name, entry);
  }
  return lock;
}

function isLocked(entry: unknown): entry is LockedPlugin {
  const { version, source, integrity, files, kinds, scripts } = (entry ?? {}) as Record<string, unknown>;
  const { run, skipped } = (scripts ?? {}) as Record<string, unknown>;
  const texts = [version, source, integrity, files];
  const lists = [kinds, run, skipped];
  return texts.every((text) => typeof text === "string") && isVersion(version as string) && lists.every(Array.isArray);
}

function invalid(path: string, why: string, cause?: unknown): SluiceError {
  const message = `${path} can't be read: ${why}; restore it, or delete it and add the plugins again`;
  return new SluiceError("PLUGIN_LOCK_INVALID", message, { cause });
}

/** What plugins.lock is to hold: sorted, so that a change of one plugin is a change of its lines alone. */
export function lockText(lock: PluginLock): string {
  const byName = [...lock].toSorted(([a], [b]) => (a < b ? -1 : 1));
  const plugins = Object.fromEntries(
    byName.map(([name, { version, source, integrity, files, kinds, scripts }]) => [
      name,
      { version, source, integrity, files, kinds: kinds.toSorted(), scripts },
    ]),
  );
  return `${JSON.stringify({ lockfileVersion, plugins }, undefined, 2)}\n`;
}
