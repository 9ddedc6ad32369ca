/** A plugin fetched and installed by npm in a folder of its own, where nobody looks for plugins yet. */
import { createHash } from "node:crypto";
import { copyFile, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { SluiceError } from "./errors.ts";
import { runNpm, type NpmOptions } from "./npm.ts";
import type { PluginSource } from "./plugin-source.ts";
import { filesDigest } from "./plugin-store.ts";

export interface StagedPlugin {
  readonly name: string;
  readonly version: string;
  readonly integrity: string;
  /** What node_modules is in. */
  readonly place: string;
  readonly files: string;
  readonly scripts: { readonly run: readonly string[]; readonly skipped: readonly string[] };
}

/** What npm calls a package in its lock file. */
interface NpmPackage {
  readonly version?: string;
  readonly integrity?: string;
  readonly hasInstallScript?: boolean;
}

/** No scripts, nothing for development, no second copy of what the gateway itself is; and nothing but the package. */
const installOptions = [
  "--ignore-scripts",
  "--omit=dev",
  "--omit=peer",
  "--save-exact",
  "--no-audit",
  "--no-fund",
  "--no-update-notifier",
  "--no-bin-links",
  "--no-progress",
  "--install-strategy=hoisted",
  "--loglevel=error",
];

/**
 * @param o.place an empty folder
 * @param o.allowScripts packages whose install scripts may run
 * @throws SluiceError PLUGIN_INSTALL_FAILED
 */
export async function stagePlugin(
  source: PluginSource,
  o: NpmOptions & { readonly place: string; readonly allowScripts: readonly string[]; step(what: string): void },
): Promise<StagedPlugin> {
  const { place } = o;
  const npm = (...args: string[]): Promise<string> => runNpm([...args], o);
  await writeFile(join(place, "package.json"), '{ "private": true }\n');
  // npm reads it from where it installs to; it may say which registry has whose packages.
  const settings = join(place, ".npmrc");
  await copyFile(join(o.cwd, ".npmrc"), settings).catch(() => undefined);

  let spec: string;
  let tarball = source.sort === "tarball" ? source.path : undefined;
  if (source.sort === "folder") {
    o.step(`packing ${source.written}`);
    tarball = join(place, await pack(source.path, place, npm));
  }
  if (source.sort === "registry") spec = source.range === undefined ? source.name : `${source.name}@${source.range}`;
  else spec = tarball ?? source.path;
  o.step(`installing ${source.written}`);
  await npm("install", "--prefix", place, ...installOptions, "--", spec);

  const name = await onlyDependency(place, source);
  const packages = await installedPackages(place);
  const own = packages.get(`node_modules/${name}`);
  if (own?.version === undefined) throw failed(`${source.written}: npm did not install ${name}`);
  const integrity = tarball === undefined ? own.integrity : await integrityOf(tarball);
  if (integrity === undefined) throw failed(`${source.written}: npm gives no integrity of ${name}: add its tarball`);
  const scripts = await runScripts(packages, o, npm);
  await rm(settings, { force: true });
  if (source.sort === "folder" && tarball !== undefined) await rm(tarball);
  o.step(`checking ${name}`);
  return { name, version: own.version, integrity, place, files: await filesDigest(place), scripts };
}

/** Returns the tarball's name. */
async function pack(folder: string, to: string, npm: (...args: string[]) => Promise<string>): Promise<string> {
  const options = ["--json", "--ignore-scripts", "--no-update-notifier", "--loglevel=error", "--pack-destination", to];
  const printed = await npm("pack", ...options, "--", folder);
  const packed = JSON.parse(printed) as { filename?: string }[] | Record<string, { filename?: string }>;
  const [first] = Object.values(packed);
  if (first?.filename === undefined) throw failed(`npm pack ${folder} did not say what it made`);
  return first.filename;
}

/** What was asked for, by the name that its own package.json gives it. */
async function onlyDependency(place: string, { written }: PluginSource): Promise<string> {
  const { dependencies } = JSON.parse(await readFile(join(place, "package.json"), "utf8")) as { dependencies?: object };
  const [name] = Object.keys(dependencies ?? {});
  if (name === undefined) throw failed(`${written}: npm installed nothing`);
  return name;
}

/** By path below `place`. */
async function installedPackages(place: string): Promise<Map<string, NpmPackage>> {
  const text = await readFile(join(place, "node_modules/.package-lock.json"), "utf8");
  return new Map(Object.entries((JSON.parse(text) as { packages: Record<string, NpmPackage> }).packages));
}

async function runScripts(
  packages: ReadonlyMap<string, NpmPackage>,
  o: { place: string; allowScripts: readonly string[]; step(what: string): void },
  npm: (...args: string[]) => Promise<string>,
): Promise<StagedPlugin["scripts"]> {
  const nameOf = (path: string): string => path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length);
  const having = [...packages].flatMap(([path, { hasInstallScript }]) => (hasInstallScript ? nameOf(path) : []));
  const names = [...new Set(having)].toSorted();
  const run = names.filter((name) => o.allowScripts.includes(name));
  if (run.length > 0) {
    o.step(`running the install scripts of ${run.join(", ")}`);
    await npm(
      "rebuild",
      "--prefix",
      o.place,
      "--no-ignore-scripts",
      "--no-bin-links",
      "--loglevel=error",
      "--",
      ...run,
    );
  }
  return { run, skipped: names.filter((name) => !run.includes(name)) };
}

async function integrityOf(tarball: string): Promise<string> {
  return `sha512-${createHash("sha512")
    .update(await readFile(tarball))
    .digest("base64")}`;
}

const failed = (message: string): SluiceError => new SluiceError("PLUGIN_INSTALL_FAILED", message);
