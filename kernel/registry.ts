/** Which kinds the installed packages provide: manifests read and checked without running anything, code imported when a kind is in use. */
import { join, sep } from "node:path";
import semver from "semver";
import { SluiceError, type Code } from "./errors.ts";
import { isKernelKind } from "./kernel-kinds.ts";
import { readManifest, type Manifest, type PackageProblem } from "./manifest.ts";
import { packagesIn, searchPlaces, type ImpliedDocument, type SearchPlace } from "./packages.ts";
import { importKind, standardImportDeadlineMs, type KindSource } from "./plugin-code.ts";
import type { FilterKind, KindInfo, ServiceKind } from "./plugin.ts";
import type { PluginModules } from "./plugin-modules.ts";
import { schemaCompiler, type Compile, type Validate } from "./schema.ts";
import type { KindOrigin } from "./spec.ts";
import { didYouMean } from "./suggest.ts";

/** The plugin API's version, which `engines.sluice` of a plugin's package.json is matched against. */
export const apiVersion: string = "1.0.0";

export interface Registry {
  /** Every kind found in installed plugins, with `results` and `packets` once loaded; not the kernel's own. */
  kinds(): readonly KindInfo[];
  has(kind: string): boolean;
  /**
   * Imports the kind's entry, once. Rejects with a SluiceError: PLUGIN_NOT_FOUND, PLUGIN_BROKEN, PLUGIN_INCOMPATIBLE,
   * PLUGIN_DEPENDENCY_MISSING, PLUGIN_DUPLICATE_KIND or PLUGIN_START_TIMEOUT. `others` are names that the caller knows
   * besides, for "did you mean".
   */
  load(kind: string, others?: readonly string[]): Promise<FilterKind | ServiceKind>;
  /** Where its code is, without importing it. @throws SluiceError as `load`, but for what only an import shows */
  source(kind: string, others?: readonly string[]): KindSource;
  family(kind: string): "filter" | "service" | undefined;
  /** The package that provides the kind. */
  origin(kind: string): KindOrigin | undefined;
  schema(kind: string): object | undefined;
  /** Checks a kind's options and fills in their defaults. */
  validator(kind: string): Validate | undefined;
  /** Of the installed plugins, by name; `entry` is absolute. */
  commands(): ReadonlyMap<string, { readonly package: string; readonly entry: string }>;
  problems(): readonly PackageProblem[];
  /** Documents that the distribution adds to every config that has none of their kind. */
  implied(): readonly ImpliedDocument[];
  /** Files, there or not, in which it shows that packages were added, removed or changed. */
  inputs(): readonly string[];
}

export async function findPlugins(o: {
  /** Folders of packages, absolute, that hide their namesakes wherever those lie: what is being developed. */
  readonly ahead?: readonly string[];
  /** Where the config lies. */
  readonly folder: string;
  /** `plugins.dirs`, absolute: folders whose subfolders, or which themselves, are packages. */
  readonly dirs: readonly string[];
  /** The running `sluice` bin, by its real path and by the path it was called by. */
  readonly bins: readonly string[];
  readonly compile?: Compile;
  /** How long a plugin's module may take to import. */
  readonly importDeadlineMs?: number;
  /** The code that is in memory already; without it, code is imported as this process first saw it. */
  readonly modules?: PluginModules | undefined;
}): Promise<Registry> {
  const compile = o.compile ?? schemaCompiler();
  const places = await searchPlaces(o);
  const plugins: Plugin[] = [];
  const problems: PackageProblem[] = [];
  const seen = new Set<string>();
  for (const found of await packagesIn(places)) {
    const read = await readManifest(found.folder, found.json);
    if (read === undefined) continue;
    // As in node's own resolution, a package found first hides its namesakes further away.
    const name = "manifest" in read ? read.manifest.package : read.problem.package;
    if (seen.has(name)) continue;
    seen.add(name);
    const checked = "problem" in read ? read : check(read.manifest, compile);
    if ("problem" in checked) problems.push(checked.problem);
    else plugins.push(checked);
  }
  return registryOf({ ...o, plugins, problems, places });
}

interface Plugin {
  readonly manifest: Manifest;
  readonly validators: ReadonlyMap<string, Validate>;
}

function check(manifest: Manifest, compile: Compile): Plugin | { problem: PackageProblem } {
  const problem = (code: Code, message: string): { problem: PackageProblem } => ({
    problem: { package: manifest.package, folder: manifest.folder, code, message, kinds: [...manifest.kinds.keys()] },
  });
  const range = manifest.apiRange;
  if (range === undefined || semver.validRange(range) === null) {
    return problem(
      "PLUGIN_BROKEN",
      `its package.json has no valid engines.sluice (${range ?? "missing"}): give the range of plugin API versions it works with, such as "^${apiVersion}"`,
    );
  }
  if (!semver.satisfies(apiVersion, range, { includePrerelease: true })) {
    return problem(
      "PLUGIN_INCOMPATIBLE",
      `needs plugin API ${range}, and this gateway has ${apiVersion}: install a version of the package that fits, or another version of the gateway`,
    );
  }
  const own = [...manifest.kinds.keys()].find(isKernelKind);
  if (own !== undefined)
    return problem("PLUGIN_BROKEN", `it provides the kind ${own}, which is the kernel's own: rename it`);
  const validators = new Map<string, Validate>();
  for (const [kind, { schema }] of manifest.kinds) {
    try {
      validators.set(kind, compile(schema));
    } catch (error) {
      return problem("PLUGIN_BROKEN", `the schema of ${kind} does not compile: ${(error as Error).message}`);
    }
  }
  return { manifest, validators };
}

function registryOf({
  plugins,
  problems,
  places,
  importDeadlineMs: deadlineMs = standardImportDeadlineMs,
  modules,
}: {
  readonly plugins: readonly Plugin[];
  readonly problems: PackageProblem[];
  readonly places: readonly SearchPlace[];
  readonly importDeadlineMs?: number;
  readonly modules?: PluginModules | undefined;
}): Registry {
  const providers = new Map<string, Plugin[]>();
  const commands = new Map<string, { package: string; entry: string }>();
  for (const plugin of plugins) {
    const { manifest } = plugin;
    for (const kind of manifest.kinds.keys()) providers.set(kind, [...(providers.get(kind) ?? []), plugin]);
    for (const [name, entry] of manifest.commands) {
      const other = commands.get(name);
      if (other === undefined) commands.set(name, { package: manifest.package, entry });
      else
        problems.push({
          package: manifest.package,
          folder: manifest.folder,
          code: "PLUGIN_BROKEN",
          kinds: [],
          message: `its command "${name}" is not available, since ${other.package} has one of that name`,
        });
    }
  }
  for (const [kind, [first, second]] of providers) {
    if (first === undefined || second === undefined) continue;
    const { package: name, folder } = second.manifest;
    problems.push({
      package: name,
      folder,
      code: "PLUGIN_DUPLICATE_KIND",
      kinds: [kind],
      message: `provides ${kind}, and so does ${first.manifest.package}: uninstall one of them`,
    });
  }

  const inUse = new Set<string>();
  const loading = new Map<string, Promise<FilterKind | ServiceKind>>();
  const loaded = new Map<string, FilterKind | ServiceKind>();
  /** Undefined also where two provide it, since neither is to be preferred. */
  const provider = (kind: string) => {
    const [first, second] = providers.get(kind) ?? [];
    return second === undefined ? first : undefined;
  };
  const declared = (kind: string) => provider(kind)?.manifest.kinds.get(kind);

  function find(kind: string, others: readonly string[]): Manifest {
    const [first, second] = providers.get(kind) ?? [];
    if (first !== undefined && second !== undefined) {
      const both = [first, second].map(({ manifest }) => `${manifest.package} (${manifest.folder})`).join(" and ");
      throw new SluiceError(
        "PLUGIN_DUPLICATE_KIND",
        `two packages provide the kind ${kind}: ${both}; uninstall one of them`,
      );
    }
    if (first !== undefined) return first.manifest;
    const broken = problems.find((problem) => problem.kinds.includes(kind));
    if (broken !== undefined) {
      throw new SluiceError(
        broken.code,
        `${kind} comes from the package ${broken.package} (${broken.folder}), which can't be used: ${broken.message}`,
      );
    }
    const missing = places.flatMap((place) => place.missing);
    const notInstalled =
      missing.length === 0 ? "" : `; listed but not installed: ${[...new Set(missing)].join(", ")} (npm install)`;
    // A package whose manifest can't be read may be the one that is looked for.
    const unread = problems.filter((problem) => problem.code === "PLUGIN_BROKEN" && problem.kinds.length === 0);
    const unreadable = unread.map((problem) => `; ${problem.package} could not be read: ${problem.message}`).join("");
    throw new SluiceError(
      "PLUGIN_NOT_FOUND",
      `no installed package provides the kind "${kind}"${didYouMean(kind, [...providers.keys(), ...others]) || ": install the package that does"}` +
        ` (looked at ${places.map((place) => place.label).join("; ") || "no place: there is no package.json"})${notInstalled}${unreadable}`,
    );
  }

  function source(kind: string, others: readonly string[] = []): KindSource {
    const { package: name, version, kinds } = find(kind, others);
    const { family, entry } = kinds.get(kind)!;
    return { kind, family, package: name, version, entry };
  }

  return {
    source,
    kinds: () =>
      [...providers].map(([kind, [plugin]]) => {
        const from = plugin!.manifest;
        const { family, schema, description } = from.kinds.get(kind)!;
        const code = loaded.get(kind);
        const runtime = code !== undefined && isFilter(code) ? { results: code.results, packets: code.packets } : {};
        return { kind, family, package: from.package, version: from.version, description, schema, ...runtime };
      }),
    has: (kind) => providers.has(kind),
    async load(kind, others = []) {
      const from = source(kind, others);
      const manifest = find(kind, others);
      for (const file of filesThatTell(manifest, kind)) inUse.add(file);
      let promise = loading.get(kind);
      if (promise === undefined) {
        const urls = modules && {
          url: (file: string) => modules.url(manifest, file),
          failed: (url: string) => modules.failed(manifest, url),
        };
        promise = importKind(from, deadlineMs, urls).then((code) => {
          loaded.set(kind, code);
          return code;
        });
        loading.set(kind, promise);
      }
      return promise;
    },
    family: (kind) => declared(kind)?.family,
    origin: (kind) => provider(kind)?.manifest,
    schema: (kind) => declared(kind)?.schema,
    validator: (kind) => provider(kind)?.validators.get(kind),
    commands: () => commands,
    problems: () => problems,
    implied: () => places.flatMap((place) => place.implied),
    inputs: () => [...places.flatMap((place) => place.receipts), ...inUse],
  };
}

/** In which it shows that a kind's code has changed. */
function filesThatTell({ folder, kinds }: Manifest, kind: string): string[] {
  const entry = kinds.get(kind)?.entry;
  // What lies in node_modules changes by an install, at the end of which the package manager says so.
  if (entry === undefined || folder.split(sep).includes("node_modules")) return [];
  return [join(folder, "package.json"), entry];
}

const isFilter = (code: FilterKind | ServiceKind): code is FilterKind => "packets" in code;
