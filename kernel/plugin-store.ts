/**
 * Where plugins lie that `sluice plugin` has installed: `.sluice/plugins/NAME@VERSION/node_modules/NAME` beside the
 * config. What is there under a name and version is never changed, so that a running gateway, and the module cache of
 * Node, can rely on it; plugins.lock says which version is active.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { chmod, mkdir, mkdtemp, readdir, readlink, rename, rm, rmdir, writeFile } from "node:fs/promises";
import { basename, join, relative, sep } from "node:path";
import type { PluginLock } from "./plugin-lock.ts";

const ownFolder = (folder: string): string => join(folder, ".sluice");
const storeFolder = (folder: string): string => join(ownFolder(folder), "plugins");
const stagingFolder = (folder: string): string => join(ownFolder(folder), "staging");

/** Held while anything here, or plugins.lock, is changed. */
export const storeLockPath = (folder: string): string => join(ownFolder(folder), "lock");

/** What is installed together: the package and what it depends on. @param folder of the config */
export const placeOf = (folder: string, name: string, version: string): string =>
  join(storeFolder(folder), `${name.replace("/", "+")}@${version}`);

export const packageFolder = (place: string, name: string): string => join(place, "node_modules", ...name.split("/"));

/** What lies in the store, whether or not plugins.lock lists it. */
export async function storedPlaces(folder: string): Promise<{ name: string; version: string; place: string }[]> {
  const found: string[] = await readdir(storeFolder(folder)).catch(() => []);
  return found.toSorted().flatMap((entry) => {
    const at = entry.lastIndexOf("@");
    if (at <= 0) return [];
    const name = entry.slice(0, at).replace("+", "/");
    return { name, version: entry.slice(at + 1), place: join(storeFolder(folder), entry) };
  });
}

/** A fresh folder on the store's file system, so that what is made there can be moved into it in one step. */
export async function openStaging(folder: string): Promise<string> {
  await mkdir(storeFolder(folder), { recursive: true });
  // What it holds is made from plugins.lock.
  await writeFile(join(ownFolder(folder), ".gitignore"), "*\n");
  await mkdir(stagingFolder(folder), { recursive: true });
  const made = await mkdtemp(join(stagingFolder(folder), "add-"));
  // Made for its owner alone; the gateway may well run as somebody else.
  await chmod(made, 0o755);
  return made;
}

/**
 * After a command that was killed: a place that had been moved aside for another is moved back, unless plugins.lock says
 * that the other one is active. Only under the store's lock, as all that follows.
 */
export async function recoverStore(folder: string, lock: PluginLock): Promise<void> {
  for (const aside of await leftovers(folder)) {
    const place = join(storeFolder(folder), basename(aside));
    const [, listed] = [...lock].find(([name, { version }]) => placeOf(folder, name, version) === place) ?? [];
    if (listed === undefined || (await digestIfThere(place)) === listed.files) continue;
    if ((await digestIfThere(aside)) !== listed.files) continue;
    await rm(place, { recursive: true, force: true });
    await rename(aside, place);
  }
  await tidyStore(folder);
  for (const name of await readdir(folder)) {
    if (halfWritten.test(name)) await rm(join(folder, name), { force: true });
  }
}

/** Files that did not come to their place. */
const halfWritten = /^\.(plugins\.lock|package\.json)\.[0-9a-f]{12}\.tmp$/;

/** Removes what was staged. */
export async function tidyStore(folder: string): Promise<void> {
  await rm(stagingFolder(folder), { recursive: true, force: true });
}

/** Removes the folders of a store that holds nothing. */
export async function closeStore(folder: string): Promise<void> {
  const isEmpty = await rmdir(storeFolder(folder)).then(
    () => true,
    (error: NodeJS.ErrnoException) => error.code === "ENOENT",
  );
  if (!isEmpty) return;
  await rm(join(ownFolder(folder), ".gitignore"), { force: true });
  await rmdir(ownFolder(folder)).catch(() => undefined);
}

/** Where an interrupted command has left something. */
export async function leftovers(folder: string): Promise<string[]> {
  const found: string[] = await readdir(stagingFolder(folder)).catch(() => []);
  return found.map((name) => join(stagingFolder(folder), name));
}

const digestIfThere = (place: string): Promise<string | undefined> => filesDigest(place).catch(() => undefined);

/** npm's own notes, which hold the name of the folder that it worked in. */
const npmNotes = "node_modules/.package-lock.json";

/** Of names and content of all that is installed in `place`, a link by its target: `sha256-...`. */
export async function filesDigest(place: string): Promise<string> {
  const entries = await readdir(join(place, "node_modules"), { recursive: true, withFileTypes: true });
  const files = entries
    .filter((entry) => !entry.isDirectory())
    .map((entry) => ({ entry, path: join(entry.parentPath, entry.name) }))
    .map(({ entry, path }) => ({ entry, path, shown: relative(place, path).split(sep).join("/") }))
    .filter(({ shown }) => shown !== npmNotes)
    .toSorted((a, b) => (a.shown < b.shown ? -1 : 1));
  const hash = createHash("sha256");
  for (const { entry, path, shown } of files) {
    hash.update(`\0${shown}\0`);
    if (entry.isSymbolicLink()) hash.update(await readlink(path));
    else hash.update(await contentDigest(path));
  }
  return `sha256-${hash.digest("base64")}`;
}

async function contentDigest(path: string): Promise<Buffer> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest();
}
