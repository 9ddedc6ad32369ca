/**
 * The plugins' code in this process. Node keeps a module for good, by its URL, so code that has changed in its place gets
 * a URL of its own, by a query; and so does everything that it imports, or new code would run on old.
 */
import { createRequire, registerHooks } from "node:module";
import { sep } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { digestPackage } from "./package-digest.ts";
import type { Logger, Metrics } from "./plugin.ts";

export interface PluginModules {
  /** The URL to import a file of the package by: the same as before unless the package has changed since. */
  url(from: PluginPackage, file: string): Promise<string>;
  /** An import by this URL has failed. Node remembers that too, so the next `url` will be another one. */
  failed(from: PluginPackage, url: string): void;
  close(): void;
}

export interface PluginPackage {
  readonly package: string;
  readonly version: string;
  /** Real. */
  readonly folder: string;
}

/** How the package is in memory: the query of its URLs, `""` for what each folder had first. */
interface Version {
  readonly key: string;
  readonly query: string;
}

interface Known {
  current: Version;
  /** By folder and digest: going back to what is in memory already imports nothing. */
  readonly versions: Map<string, Version>;
}

const parameter = "plugin";

/** Versions of code that nothing needs, from which on a restart is advised. */
const adviseAt = 20;

export function createPluginModules(o: { log: Logger; metrics: Metrics }): PluginModules {
  const packages = new Map<string, Known>();
  const folders = new Set<string>();
  let failures = 0;
  let stale = 0;
  let isAdvised = false;
  let hooks: { deregister(): void } | undefined;
  o.metrics.gauge(
    "sluice_plugin_stale_modules",
    "Earlier versions of plugins' code that are still in memory, since Node can't unload a module.",
    [],
    (gauge) => gauge.set({}, stale),
    { merge: "max" },
  );

  function queryFor({ version, folder }: PluginPackage, digest: string, inside: readonly string[]): string {
    if (!folders.has(folder)) {
      folders.add(folder);
      return "";
    }
    hooks ??= registerHooks({ resolve: inherit, load: requireFirst });
    forgetCommonJs(inside);
    const again = failures === 0 ? "" : `-${failures}`;
    return `?${parameter}=${encodeURIComponent(version)}-${digest.slice(0, 12)}${again}`;
  }

  function countStale(): void {
    stale++;
    if (stale < adviseAt || isAdvised) return;
    isAdvised = true;
    o.log.warn(
      { stale },
      `${stale} earlier versions of plugins' code are still in memory, since Node can't unload a module: restart the gateway when it suits`,
    );
  }

  return {
    async url(from, file) {
      const { digest, folders: inside } = await digestPackage(from.folder);
      const key = `${from.folder}\0${digest}`;
      const known = packages.get(from.package);
      const version = known?.versions.get(key) ?? { key, query: queryFor(from, digest, inside) };
      if (!known) {
        packages.set(from.package, { current: version, versions: new Map([[key, version]]) });
      } else {
        if (!known.versions.has(key)) countStale();
        known.versions.set(key, version);
        known.current = version;
      }
      return pathToFileURL(file).href + version.query;
    },
    failed(from, url) {
      const known = packages.get(from.package);
      if (known && new URL(url).search === known.current.query) known.versions.delete(known.current.key);
      failures++;
    },
    close: () => hooks?.deregister(),
  };
}

/** What a module with our query imports gets it too, whichever package it is of: that one may have changed as well. */
const inherit: Hooks["resolve"] = (specifier, context, next) => {
  const resolved = next(specifier, context);
  const version = versionIn(context.parentURL);
  if (version === undefined || !resolved.url.startsWith("file:")) return resolved;
  const url = new URL(resolved.url);
  url.searchParams.set(parameter, version);
  return { ...resolved, url: url.href };
};

/**
 * CommonJS that was forgotten is loaded by `require` before the importing side analyses it. Otherwise node takes a module
 * that is exported once more (`module.exports = require(...)`) for one of a circle, and hands out its empty exports.
 */
const requireFirst: Hooks["load"] = (url, context, next) => {
  const loaded = next(url, context);
  if (loaded.format === "commonjs" && versionIn(url) !== undefined) require(fileURLToPath(url));
  return loaded;
};

type Hooks = Parameters<typeof registerHooks>[0];

const require = createRequire(import.meta.url);

function versionIn(url: string | undefined): string | undefined {
  if (!url?.startsWith("file:") || !url.includes(`${parameter}=`)) return undefined;
  return new URL(url).searchParams.get(parameter) ?? undefined;
}

/** CommonJS is kept by path, whatever the query. What runs keeps what it has; who asks from here on gets what is there now. */
function forgetCommonJs(folders: readonly string[]): void {
  for (const file of Object.keys(require.cache)) {
    if (folders.some((folder) => file.startsWith(folder + sep))) delete require.cache[file];
  }
}
