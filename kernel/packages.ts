/** Where packages may lie, and which do: found with fs alone, since `require.resolve` fails on packages whose `exports` hide their package.json. */
import { readdir, readFile, realpath } from "node:fs/promises";
import { basename, dirname, join } from "node:path";

/** A document that the distribution adds to every config that has none of its kind. */
export interface ImpliedDocument {
  readonly kind: string;
  readonly name: string;
  readonly [field: string]: unknown;
}

/** One package.json whose dependencies are looked at, plugins.lock, or one folder of packages. */
export interface SearchPlace {
  /** `distribution`: what belongs to the gateway itself. */
  readonly sort: "dependencies" | "lock" | "dirs" | "distribution";
  /** For messages: what was looked at. */
  readonly label: string;
  /** The real folders of the packages there, in order. */
  readonly folders: readonly string[];
  /** What is listed there and is not installed, with what to do: `sluice-stamp (npm install)`. */
  readonly missing: readonly string[];
  readonly implied: readonly ImpliedDocument[];
  /** Files, there or not, that a package manager writes last when it changes what is installed here. */
  readonly receipts: readonly string[];
}

/** Of npm, pnpm, and yarn. */
const receiptNames = [".package-lock.json", ".pnpm/lock.yaml", ".yarn-integrity", ".yarn-state.yml"];

type Json = Record<string, unknown>;

/** The package.json nearest to the config, which lists what it depends on; undefined where there is none. */
export async function nearestPackageFile(folder: string): Promise<string | undefined> {
  return (await packageFilesAbove(folder))[0];
}

/** In the order in which they are searched: `ahead`, the config's own package, plugins.lock, `plugins.dirs`, what lies above the bin. */
export async function searchPlaces(o: {
  readonly ahead?: readonly string[];
  readonly folder: string;
  readonly dirs: readonly string[];
  readonly bins: readonly string[];
  /** What plugins.lock lists, by package name: the folders of the packages. */
  readonly locked: ReadonlyMap<string, string>;
}): Promise<SearchPlace[]> {
  const above = await packageFilesOfBins(o.bins);
  const nearest = await nearestPackageFile(o.folder);
  const places: SearchPlace[] = [];
  for (const folder of o.ahead ?? []) {
    places.push({
      sort: "dirs",
      label: `the package ${folder}`,
      folders: [await realpath(folder)],
      missing: [],
      implied: [],
      receipts: [],
    });
  }
  if (nearest !== undefined) {
    const found = await dependenciesOf(nearest, o.locked);
    // A distribution says that it is one; a project that merely depends on it is the user's.
    const isDistribution = found.implied.length > 0 && above.has(await realpath(nearest));
    places.push({ ...found, sort: isDistribution ? "distribution" : "dependencies", implied: [] });
  }
  if (o.locked.size > 0) places.push(await packagesOfLock(o.folder, o.locked));
  for (const dir of o.dirs) places.push(await packagesBelow(dir));
  for (const file of above.values()) places.push(await dependenciesOf(file, o.locked));
  return places;
}

/** Each once: by its real path, the path by which it was found. */
async function packageFilesOfBins(bins: readonly string[]): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  for (const bin of bins) {
    for (const path of [bin, await realpath(bin).catch(() => bin)]) {
      for (const file of await packageFilesAbove(dirname(path))) {
        const real = await realpath(file);
        if (!files.has(real)) files.set(real, file);
      }
    }
  }
  return files;
}

export interface FoundPackage {
  readonly folder: string;
  /** The first that has it. */
  readonly place: SearchPlace;
  /** Its package.json. */
  readonly json: Json | Error;
}

/** Each package once, though several places may have it. */
export async function packagesIn(places: readonly SearchPlace[]): Promise<FoundPackage[]> {
  const found = new Map<string, SearchPlace>();
  for (const place of places) for (const folder of place.folders) if (!found.has(folder)) found.set(folder, place);
  return Promise.all([...found].map(async ([folder, place]) => ({ folder, place, json: await readPackage(folder) })));
}

/** Its package.json, or why it can't be read. */
export function readPackage(folder: string): Promise<Json | Error> {
  return readJson(join(folder, "package.json"));
}

async function readJson(file: string): Promise<Json | Error> {
  try {
    const json: unknown = JSON.parse(await readFile(file, "utf8"));
    return typeof json === "object" && json !== null ? (json as Json) : new Error("is not a JSON object");
  } catch (error) {
    return error as Error;
  }
}

const exists = async (file: string): Promise<boolean> =>
  readFile(file).then(
    () => true,
    () => false,
  );

function* upwards(folder: string): Generator<string> {
  for (let at = folder; ; at = dirname(at)) {
    yield at;
    if (dirname(at) === at) return;
  }
}

/** Nearest first. */
async function packageFilesAbove(folder: string): Promise<string[]> {
  const files: string[] = [];
  for (const at of upwards(folder)) {
    const file = join(at, "package.json");
    if (await exists(file)) files.push(file);
  }
  return files;
}

async function dependenciesOf(file: string, locked: ReadonlyMap<string, string>): Promise<SearchPlace> {
  const sort = "distribution";
  const json = await readJson(file);
  const receipts = receiptNames.map((name) => join(dirname(file), "node_modules", name));
  if (json instanceof Error)
    return { sort, label: `${file} (${json.message})`, folders: [], missing: [], implied: [], receipts };
  const required = Object.keys(json["dependencies"] ?? {});
  const optional = Object.keys(json["optionalDependencies"] ?? {});
  const folders: string[] = [];
  const missing: string[] = [];
  for (const name of new Set([...required, ...optional])) {
    // What plugins.lock lists is taken from where that says.
    if (locked.has(name)) continue;
    const folder = await resolvePackage(name, dirname(file));
    if (folder !== undefined) folders.push(folder);
    else if (!optional.includes(name)) missing.push(`${name} (npm install)`);
  }
  const listed = (json["sluice"] as Json | undefined)?.["implied"];
  const implied = Array.isArray(listed) ? (listed as ImpliedDocument[]) : [];
  return { sort, label: `the dependencies in ${file}`, folders, missing, implied, receipts };
}

async function packagesOfLock(folder: string, locked: ReadonlyMap<string, string>): Promise<SearchPlace> {
  const folders: string[] = [];
  const missing: string[] = [];
  for (const [name, path] of locked) {
    if (await exists(join(path, "package.json"))) folders.push(await realpath(path));
    else missing.push(`${name} (sluice plugin add)`);
  }
  return { sort: "lock", label: `plugins.lock in ${folder}`, folders, missing, implied: [], receipts: [] };
}

/** As node resolves a package name: the real folder of the nearest node_modules that has it; undefined where none does. */
export async function resolvePackage(name: string, from: string): Promise<string | undefined> {
  for (const at of upwards(from)) {
    if (basename(at) === "node_modules") continue;
    const folder = join(at, "node_modules", name);
    if (await exists(join(folder, "package.json"))) return realpath(folder);
  }
  return undefined;
}

/** Nothing where it isn't a folder. */
async function listing(folder: string): Promise<string[]> {
  const names: string[] = await readdir(folder).catch(() => []);
  return names.sort();
}

async function packagesBelow(dir: string): Promise<SearchPlace> {
  const names = await listing(dir);
  const candidates = [dir];
  for (const name of names) {
    const path = join(dir, name);
    if (!name.startsWith("@")) candidates.push(path);
    else for (const inner of await listing(path)) candidates.push(join(path, inner));
  }
  const folders: string[] = [];
  for (const folder of candidates) {
    if (await exists(join(folder, "package.json"))) folders.push(await realpath(folder));
  }
  return { sort: "dirs", label: `the packages in ${dir}`, folders, missing: [], implied: [], receipts: [] };
}
