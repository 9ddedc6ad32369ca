/** Which kinds the installed packages provide: manifests read and checked without running anything, code imported when a kind is in use. */
import { join, sep } from "node:path";
import { pathToFileURL } from "node:url";
import semver from "semver";
import { SluiceError, type Code } from "./errors.ts";
import { isKernelKind } from "./kernel-kinds.ts";
import { readManifest, type Manifest, type PackageProblem } from "./manifest.ts";
import { packagesIn, searchPlaces, type ImpliedDocument, type SearchPlace } from "./packages.ts";
import type { FilterKind, KindInfo, PacketType, ServiceKind } from "./plugin.ts";
import type { PluginModules } from "./plugin-modules.ts";
import { schemaCompiler, type Compile, type Validate } from "./schema.ts";
import type { KindOrigin } from "./spec.ts";
import { didYouMean } from "./suggest.ts";

/** The plugin API's version, which `engines.sluice` of a plugin's package.json is matched against. */
export const apiVersion: string = "1.0.0";

/** How long a plugin's module may take to import. */
const standardImportDeadlineMs = 10_000;

export const packetTypes: readonly PacketType[] = ["Connect", "Publish", "Subscribe", "Unsubscribe", "Disconnect"];

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

  return {
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
      const from = find(kind, others);
      for (const file of filesThatTell(from, kind)) inUse.add(file);
      let promise = loading.get(kind);
      if (promise === undefined) {
        promise = importKind(kind, from, { deadlineMs, modules }).then((code) => {
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

async function importKind(
  kind: string,
  manifest: Manifest,
  { deadlineMs, modules }: { readonly deadlineMs: number; readonly modules: PluginModules | undefined },
): Promise<FilterKind | ServiceKind> {
  const { entry, family } = manifest.kinds.get(kind)!;
  const url = await modules?.url(manifest, entry);
  const module = await importWithin(entry, `${kind} of the package ${manifest.package}`, deadlineMs, url).catch(
    (error: unknown) => {
      if (url !== undefined) modules?.failed(manifest, url);
      throw error;
    },
  );
  const code = defaultExport(module);
  const faults = family === "filter" ? filterFaults(kind, code) : serviceFaults(kind, code);
  if (faults.length > 0) {
    throw new SluiceError(
      "PLUGIN_BROKEN",
      `the package ${manifest.package} can't be used: the default export of ${entry} ${faults.join(", and ")}`,
    );
  }
  return code as FilterKind | ServiceKind;
}

/** Imports a plugin's file, by its URL where that has a query, under the start deadline; `what` names it in the errors. */
export async function importWithin(
  entry: string,
  what: string,
  deadlineMs = standardImportDeadlineMs,
  url = pathToFileURL(entry).href,
): Promise<unknown> {
  let timer: NodeJS.Timeout | undefined;
  const deadline = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () =>
        reject(
          new SluiceError(
            "PLUGIN_START_TIMEOUT",
            `${what} did not finish importing within ${deadlineMs / 1000} s: ${entry} waits for something at its top level`,
          ),
        ),
      deadlineMs,
    );
  });
  try {
    return await Promise.race([import(url), deadline]);
  } catch (error) {
    throw importError(error, entry, what);
  } finally {
    clearTimeout(timer);
  }
}

function importError(error: unknown, entry: string, what: string): SluiceError {
  if (error instanceof SluiceError) return error;
  const { code, message } =
    error instanceof Error ? (error as NodeJS.ErrnoException) : { code: undefined, message: String(error) };
  if (code === "ERR_MODULE_NOT_FOUND" || code === "MODULE_NOT_FOUND") {
    const missing = /Cannot find (?:package|module) '([^']+)'/.exec(message)?.[1];
    if (missing !== undefined && !/^(\/|\.|[A-Za-z]:\\|file:)/.test(missing)) {
      return new SluiceError(
        "PLUGIN_DEPENDENCY_MISSING",
        `${what} needs the package "${missing}", which is not installed: install it where the plugin is installed (npm install)`,
        { cause: error },
      );
    }
  }
  return new SluiceError("PLUGIN_BROKEN", `${what} failed while ${entry} was imported: ${message.split("\n")[0]}`, {
    cause: error,
  });
}

/** A CommonJS module compiled from TypeScript has its default export one level further down. */
function defaultExport(module: unknown): unknown {
  const first = (module as { default?: unknown }).default;
  const second = (first as { default?: unknown } | null | undefined)?.default;
  return second === undefined ? first : second;
}

const isNames = (value: unknown): value is string[] =>
  Array.isArray(value) && value.every((name) => typeof name === "string");

function serviceFaults(kind: string, code: unknown): string[] {
  if (typeof code !== "object" || code === null) return ["is missing or not an object"];
  const faults: string[] = [];
  const { kind: name, create } = code as Partial<Record<keyof ServiceKind, unknown>>;
  if (name !== kind) faults.push(`says kind ${JSON.stringify(name)} where the manifest says "${kind}"`);
  if (typeof create !== "function") faults.push("has no function create");
  return faults;
}

function filterFaults(kind: string, code: unknown): string[] {
  const faults = serviceFaults(kind, code);
  if (typeof code !== "object" || code === null) return faults;
  const { packets, results, discards = [] } = code as Partial<Record<keyof FilterKind, unknown>>;
  if (!isNames(packets) || packets.some((type) => !(packetTypes as readonly string[]).includes(type))) {
    faults.push(`has no list packets of ${packetTypes.join(", ")}`);
  }
  if (!isNames(results) || new Set(results).size !== results.length || results.includes("")) {
    faults.push("has no list results of distinct names");
  } else if (!isNames(discards) || discards.some((name) => !results.includes(name))) {
    faults.push("has discards that are not among its results");
  }
  return faults;
}
