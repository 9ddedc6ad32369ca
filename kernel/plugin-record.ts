/** The package.json beside a config also names its plugins, for people and their tools; plugins.lock is what counts. */
import { access, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { nearestPackageFile } from "./packages.ts";
import type { LockedPlugin, PluginLock } from "./plugin-lock.ts";

/** Where one of these lies, a package manager keeps package.json and its own lock in step, and we would break that. */
const managed = ["package-lock.json", "npm-shrinkwrap.json", "pnpm-lock.yaml", "yarn.lock", "bun.lock", "bun.lockb"];

export interface RecordChange {
  readonly file: string;
  /** Undefined where there is none yet. */
  readonly before: string | undefined;
  readonly text: string;
}

/**
 * What is to be written; undefined where nothing is: it is all there, or the nearest package.json is not the config's
 * own, or is a package manager's, or no JSON.
 */
export async function recordOf(
  folder: string,
  before: PluginLock,
  after: PluginLock,
): Promise<RecordChange | undefined> {
  const file = join(folder, "package.json");
  const nearest = await nearestPackageFile(folder);
  if (nearest !== undefined && dirname(nearest) !== folder) return undefined;
  for (const name of managed) if (await exists(join(folder, name))) return undefined;
  const text = nearest === undefined ? undefined : await readFile(file, "utf8");
  const json = text === undefined ? { private: true } : parse(text);
  if (json === undefined) return undefined;
  const listed = (json["dependencies"] ?? {}) as Record<string, string>;
  const wanted = new Map(Object.entries(listed));
  for (const [name, plugin] of before) if (wanted.get(name) === specOf(plugin)) wanted.delete(name);
  for (const [name, plugin] of after) wanted.set(name, specOf(plugin));
  const sorted = Object.fromEntries([...wanted].toSorted(([a], [b]) => (a < b ? -1 : 1)));
  if (JSON.stringify(sorted) === JSON.stringify(listed)) return undefined;
  const indent = /^([ \t]+)"/m.exec(text ?? "")?.[1] ?? "  ";
  return { file, before: text, text: `${JSON.stringify({ ...json, dependencies: sorted }, undefined, indent)}\n` };
}

function parse(text: string): Record<string, unknown> | undefined {
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch {
    return undefined;
  }
}

const specOf = ({ source, version }: LockedPlugin): string => (source.startsWith("file:") ? source : version);

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );
