/** The files of a new plugin, from the templates beside this package's code. */
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

export type Family = "filter" | "service";

export interface PluginNames {
  /** Of the package, with its scope if it has one. */
  readonly name: string;
  readonly family: Family;
  /** As a config names it: PascalCase. */
  readonly kind: string;
}

const home = dirname(fileURLToPath(import.meta.resolve("create-sluice-plugin/package.json")));

/** npm leaves out, or takes as its own, what is called so inside a package. */
const renamed: Readonly<Record<string, string>> = {
  "_package.json": "package.json",
  _gitignore: ".gitignore",
  _github: ".github",
};

const packageName = /^(?:@[a-z0-9~-][a-z0-9._~-]*\/)?[a-z0-9~-][a-z0-9._~-]*$/;

/** What is wrong with a name for a package; undefined where nothing is. */
export function packageNameProblem(name: string): string | undefined {
  if (packageName.test(name) && name.length <= 214) return undefined;
  return `"${name}" is no name for a package: use lower-case letters, digits, "-", "." and "_", after a scope if you like`;
}

/** What is wrong with a name for a kind; undefined where nothing is. */
export function kindProblem(kind: string): string | undefined {
  if (/^[A-Z][A-Za-z0-9]*$/.test(kind)) return undefined;
  return `"${kind}" is no name for a kind: use letters and digits, the first a capital, with --kind`;
}

/** `@acme/sluice-json-check` -> `JsonCheck`. */
export function kindOf(name: string): string {
  const words = baseOf(name)
    .replace(/^sluice-/, "")
    .split(/[^a-z0-9]+/);
  return words.map((word) => word.slice(0, 1).toUpperCase() + word.slice(1)).join("");
}

/** Without the scope: what the folder is called. */
export function baseOf(name: string): string {
  return name.slice(name.indexOf("/") + 1);
}

/** `JsonCheck` -> `json-check`, and the like. */
const joinWords = (kind: string, by: string): string => kind.replaceAll(/(?<=[a-z0-9])(?=[A-Z])/g, by).toLowerCase();

/**
 * Writes the plugin into `folder`, which is made if it is not there.
 * @throws where the folder has anything in it: then nothing is written
 */
export async function generate(folder: string, { name, family, kind }: PluginNames): Promise<string[]> {
  const { version } = JSON.parse(await readFile(join(home, "package.json"), "utf8")) as { version: string };
  const words: Readonly<Record<string, string>> = {
    __name__: name,
    __Kind__: kind,
    __family__: family,
    __use__: joinWords(kind, "-"),
    __metric__: joinWords(kind, "_"),
    // The kernel, the kit and this package are released together.
    __version__: version,
  };
  const fill = (text: string): string => text.replaceAll(/__[A-Za-z]+__/g, (word) => words[word] ?? word);
  const files = new Map<string, string>();
  for (const part of ["common", family]) {
    const root = join(home, "template", part);
    for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
      if (!entry.isFile()) continue;
      const file = join(entry.parentPath, entry.name);
      const path = relative(root, file).split("/");
      files.set(join(...path.map((step) => renamed[step] ?? step)), fill(await readFile(file, "utf8")));
    }
  }
  if ((await readdir(folder).catch(() => [])).length > 0)
    throw new Error(`${folder} is not empty: nothing was written`);
  for (const [path, text] of files) {
    await mkdir(dirname(join(folder, path)), { recursive: true });
    await writeFile(join(folder, path), text);
  }
  return [...files.keys()].toSorted();
}
