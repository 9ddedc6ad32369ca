/** Whether a package's code has changed: a digest of its own files and of which dependencies it gets. */
import { createHash } from "node:crypto";
import type { Dirent } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { extname, join } from "node:path";
import { readPackage, resolvePackage } from "./packages.ts";

export interface PackageDigest {
  /** Hex. Equal while neither the package's files nor its dependencies' versions and places differ. */
  readonly digest: string;
  /** Real folders: the package's own, then those of its dependencies and theirs. */
  readonly folders: readonly string[];
}

/** What a module can be; data that a plugin keeps beside its code is no change of it. */
const codeExtensions = new Set([".js", ".mjs", ".cjs", ".ts", ".mts", ".cts", ".json", ".wasm", ".node"]);

/** A folder given by mistake may hold anything: beyond this many entries, or dependencies, nothing is looked at. */
const mostEntries = 5000;
const mostDependencies = 1000;

/** Files read side by side. */
const atOnce = 64;

/** Never rejects: what can't be read is part of the digest as such. @param folder the package's real one */
export async function digestPackage(folder: string): Promise<PackageDigest> {
  const hash = createHash("sha256");
  const files = await codeFiles(folder);
  for (let at = 0; at < files.length; at += atOnce) {
    const some = files.slice(at, at + atOnce);
    const contents = await Promise.all(some.map((file) => content(join(folder, file))));
    for (const [n, file] of some.entries()) hash.update(`\0${file}\0`).update(contents[n] ?? "");
  }
  const dependencies = await dependenciesOf(folder);
  for (const [at, version] of dependencies) hash.update(`\0${at}\0${version}`);
  return { digest: hash.digest("hex"), folders: [folder, ...dependencies.keys()] };
}

async function content(file: string): Promise<Buffer | string> {
  return readFile(file).catch((error: NodeJS.ErrnoException) => String(error.code));
}

/** Relative and sorted; without what is hidden and without packages that lie inside. */
async function codeFiles(folder: string): Promise<string[]> {
  const files: string[] = [];
  const folders = [""];
  let seen = 0;
  for (const at of folders) {
    const entries = await readdir(join(folder, at), { withFileTypes: true }).catch((): Dirent[] => []);
    for (const entry of entries.toSorted((a, b) => (a.name < b.name ? -1 : 1))) {
      if (++seen > mostEntries) return files;
      const path = join(at, entry.name);
      if (entry.name.startsWith(".") || entry.name === "node_modules") continue;
      if (entry.isDirectory()) folders.push(path);
      else if (entry.isFile() && codeExtensions.has(extname(entry.name))) files.push(path);
    }
  }
  return files;
}

/** Of the dependencies and theirs, sorted: real folder -> version. */
async function dependenciesOf(folder: string): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  const seen = new Set([folder]);
  for (let level = [folder]; level.length > 0;) {
    const next = await Promise.all(
      level.map(async (at) => {
        const json = await readPackage(at);
        if (json instanceof Error) return [];
        if (at !== folder) found.set(at, String(json["version"]));
        const names = Object.keys({ ...Object(json["dependencies"]), ...Object(json["optionalDependencies"]) });
        return Promise.all(names.map((name) => resolvePackage(name, at)));
      }),
    );
    level = [...new Set(next.flat())].filter((each) => each !== undefined && !seen.has(each)) as string[];
    level = level.slice(0, mostDependencies - found.size);
    for (const each of level) seen.add(each);
  }
  return new Map([...found].toSorted(([a], [b]) => (a < b ? -1 : 1)));
}
