/** Finds the config and reads its files. */
import { readdir, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { cosmiconfig, type PublicExplorer } from "cosmiconfig";
import { parseDocuments, shownPath, type Problem, type RawDocument } from "./documents.ts";

/** Where a config is looked for in the current folder, and above it up to the nearest package.json. */
export const searchPlaces: readonly string[] = [
  "sluice.yaml",
  "sluice.yml",
  "sluice.json",
  ".config/sluice.yaml",
  ".config/sluice.yml",
  ".config/sluice.json",
  "config/sluice.yaml",
  "package.json",
];

/** The key in package.json: not `sluice`, which is a plugin's manifest. */
const packageProp = "sluiceConfig";

export interface ConfigFiles {
  /** Absolute: the files and folders that were read, whose change is a change of the config. */
  readonly inputs: Set<string>;
  /** The text of each file that holds documents, by its absolute path. */
  readonly texts: ReadonlyMap<string, string>;
  /** Absolute: the file or folder that was read. Undefined where none was found. */
  readonly path: string | undefined;
  /** Absolute: what relative paths are relative to. */
  readonly folder: string;
  readonly documents: readonly RawDocument[];
  readonly problems: readonly Problem[];
  /** Some document could not be read, so that what others refer to may well be there. */
  readonly isPartial?: boolean;
}

type Found = Pick<ConfigFiles, "documents" | "problems" | "isPartial">;

/** Of `path` (a file or folder), else found from `cwd`. Never rejects for what a user can mend: that is in `problems`. */
export async function readConfigFiles(o: {
  readonly path?: string;
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
  /** Taken for what these files hold, whatever they do; undefined = as if it were not there. */
  readonly overlay?: Overlay;
}): Promise<ConfigFiles> {
  const inputs = new Set<string>();
  const texts = new Map<string, string>();
  return { ...(await readAll({ ...o, inputs, texts })), inputs, texts };
}

/** Text by absolute path. */
export type Overlay = ReadonlyMap<string, string | undefined>;

interface Options {
  readonly path?: string;
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
  readonly overlay?: Overlay;
  readonly inputs: Set<string>;
  readonly texts: Map<string, string>;
}

type Read = Omit<ConfigFiles, "inputs" | "texts">;

async function readAll(o: Options): Promise<Read> {
  const named = o.path === undefined ? undefined : resolve(o.cwd, o.path);
  const folder = named === undefined ? o.cwd : dirname(named);
  try {
    const explorer = createExplorer(o);
    if (named === undefined) return await search(explorer, o);
    o.inputs.add(named);
    const stats = await stat(named);
    return await (stats.isDirectory() ? readFolder(explorer, named, o) : readOne(explorer, named, o));
  } catch (error) {
    const { code, message, filepath = named } = error as NodeJS.ErrnoException & { filepath?: string };
    const where = shownPath(filepath ?? o.cwd, o.cwd);
    const problem: Problem =
      code === "ENOENT"
        ? { where, message: "there is no such file or folder", code: "CONFIG_NOT_FOUND" }
        : { where, message: `can't be read: ${message}`, code: "CONFIG_INVALID" };
    return { path: named, folder, documents: [], problems: [problem] };
  }
}

/** A file's text -> its documents; of a package.json, what stands under our key. */
function read(file: string, onDisk: string, { cwd, env, inputs, texts, overlay }: Options): unknown {
  const text = overlay?.get(file) ?? onDisk;
  inputs.add(file);
  const options = { file, cwd, folder: dirname(file), env, onRead: (other: string) => void inputs.add(other) };
  if (basename(file) !== "package.json") {
    texts.set(file, text);
    return parseDocuments(text, options);
  }
  const content = (JSON.parse(text) as Record<string, unknown> | null)?.[packageProp];
  if (content === undefined) return {};
  // A string is the path of the file or folder that holds the config.
  if (typeof content === "string") return { [packageProp]: content };
  texts.set(file, text);
  return { [packageProp]: parseDocuments(text, options, packageProp) };
}

/** Caches off, so that a file read again is really read again; positions need our own loader. */
function createExplorer(o: Options): PublicExplorer {
  const load = (file: string, text: string): unknown => read(file, text, o);
  return cosmiconfig("sluice", {
    cache: false,
    packageProp,
    searchPlaces: [...searchPlaces],
    searchStrategy: "project",
    ignoreEmptySearchPlaces: false,
    loaders: { ".yaml": load, ".yml": load, ".json": load, noExt: load, default: load },
  });
}

async function search(explorer: PublicExplorer, o: Options): Promise<Read> {
  const result = await explorer.search(o.cwd);
  if (result === null) {
    const message = `no config was found from here upwards to the nearest package.json (${searchPlaces.join(", ")}): write sluice.yaml, or name a file or folder with -c`;
    return {
      path: undefined,
      folder: o.cwd,
      documents: [],
      problems: [{ where: o.cwd, message, code: "CONFIG_NOT_FOUND" }],
    };
  }
  return follow(result.filepath, result.config, o);
}

async function readOne(explorer: PublicExplorer, file: string, o: Options): Promise<Read> {
  const result = await explorer.load(file);
  if (result === null) {
    const message = `has no "${packageProp}"`;
    return {
      path: file,
      folder: dirname(file),
      documents: [],
      problems: [{ where: shownPath(file, o.cwd), message, code: "CONFIG_NOT_FOUND" }],
    };
  }
  return follow(file, result.config, o);
}

async function follow(file: string, content: unknown, o: Options): Promise<Read> {
  if (typeof content === "string") {
    const path = resolve(dirname(file), content);
    if (basename(path) !== "package.json") return readAll({ ...o, path });
    const message = `"${packageProp}" leads to another package.json: name a YAML file or a folder`;
    return {
      path: file,
      folder: dirname(file),
      documents: [],
      problems: [{ where: shownPath(file, o.cwd), message, code: "CONFIG_INVALID" }],
    };
  }
  return { path: file, folder: dirname(file), ...found(file, content, o.cwd) };
}

function found(file: string, content: unknown, cwd: string): Found {
  // cosmiconfig does not call a loader for an empty file.
  if (content !== undefined && content !== null) return content as Found;
  const message = "is empty: write at least one document with kind and name";
  return { documents: [], problems: [{ where: `${shownPath(file, cwd)}:1:1`, message, code: "CONFIG_INVALID" }] };
}

async function readFolder(explorer: PublicExplorer, folder: string, o: Options): Promise<Read> {
  const onDisk = (await readdir(folder, { withFileTypes: true }))
    .filter((entry) => !entry.isDirectory())
    .map((entry) => entry.name);
  const overlaid = [...(o.overlay?.keys() ?? [])]
    .filter((file) => dirname(file) === folder)
    .map((file) => basename(file));
  const names = [...new Set([...onDisk, ...overlaid])]
    .filter((name) => /\.(ya?ml|json)$/.test(name) && name !== "package.json")
    .filter((name) => !isRemoved(join(folder, name), o.overlay))
    .sort();
  if (names.length === 0) {
    const message = "this folder has no .yaml, .yml or .json file";
    return {
      path: folder,
      folder,
      documents: [],
      problems: [{ where: shownPath(folder, o.cwd), message, code: "CONFIG_NOT_FOUND" }],
    };
  }
  const all: Found[] = [];
  for (const name of names) {
    const file = join(folder, name);
    const text = o.overlay?.get(file);
    const content: unknown = text === undefined ? (await explorer.load(file))?.config : read(file, text, o);
    all.push(found(file, content, o.cwd));
  }
  return {
    path: folder,
    folder,
    documents: all.flatMap((one) => one.documents),
    problems: all.flatMap((one) => one.problems),
    isPartial: all.some((one) => one.isPartial === true),
  };
}

const isRemoved = (file: string, overlay: Overlay | undefined): boolean =>
  overlay?.has(file) === true && overlay.get(file) === undefined;
