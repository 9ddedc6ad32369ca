/** Which kinds the installed packages provide: manifests read and checked without running anything, code imported when a kind is in use. */
import { join, sep } from "node:path";
import { messageOf, SluiceError } from "./errors.ts";
import { parseKindName } from "./kind-name.ts";
import { readManifest, type Manifest, type PackageProblem } from "./manifest.ts";
import { packagesIn, searchPlaces, type FoundPackage, type ImpliedDocument, type SearchPlace } from "./packages.ts";
import { checkManifest, type Misfit } from "./plugin-check.ts";
import { importKind, standardImportDeadlineMs, type KindSource } from "./plugin-code.ts";
import { lockPath, readPluginLock, type LockedPlugin, type PluginLock } from "./plugin-lock.ts";
import { filesDigest, packageFolder, placeOf } from "./plugin-store.ts";
import { refusalOf, trustAll, type Trust } from "./plugin-trust.ts";
import type { FilterKind, KindInfo, ServiceKind } from "./plugin.ts";
import type { PluginModules } from "./plugin-modules.ts";
import { schemaCompiler, type Compile, type Validate } from "./schema.ts";
import type { KindOrigin } from "./spec.ts";
import { didYouMean } from "./suggest.ts";

export { apiVersion } from "./plugin-check.ts";

/** A package that provides kinds or commands, and can be used. */
export interface InstalledPlugin {
  readonly manifest: Manifest;
  readonly place: SearchPlace;
  /** What plugins.lock says of it; undefined where it comes from elsewhere. */
  readonly locked: LockedPlugin | undefined;
}

/** Kinds are named as in a config: `Kind`, or `package#Kind` where several packages provide it. */
export interface Registry {
  /** Every kind found in installed plugins, with `results` and `packets` once loaded; not the kernel's own. */
  kinds(): readonly KindInfo[];
  has(kind: string): boolean;
  /**
   * Imports the kind's entry, once. Rejects with a SluiceError: PLUGIN_NOT_FOUND, PLUGIN_BROKEN, PLUGIN_INCOMPATIBLE,
   * PLUGIN_REFUSED, PLUGIN_CHANGED, PLUGIN_DEPENDENCY_MISSING, PLUGIN_DUPLICATE_KIND or PLUGIN_START_TIMEOUT. `others`
   * are names that the caller knows besides, for "did you mean".
   */
  load(kind: string, others?: readonly string[]): Promise<FilterKind | ServiceKind>;
  /** Where its code is, without importing it. @throws SluiceError as `load`, but for what only an import shows */
  source(kind: string, others?: readonly string[]): KindSource;
  /** Throws what {@link load} would reject with before it imports anything. */
  find(kind: string, others?: readonly string[]): void;
  family(kind: string): "filter" | "service" | undefined;
  /** The package that provides the kind. */
  origin(kind: string): KindOrigin | undefined;
  schema(kind: string): object | undefined;
  /** Checks a kind's options and fills in their defaults. */
  validator(kind: string): Validate | undefined;
  /** Of the installed plugins, by name; `entry` is absolute. */
  commands(): ReadonlyMap<string, { readonly package: string; readonly entry: string }>;
  plugins(): readonly InstalledPlugin[];
  problems(): readonly PackageProblem[];
  /** Where was looked, in that order. */
  places(): readonly SearchPlace[];
  /** Packages that are not used because one of the same name was found before. */
  copies(): readonly { readonly package: string; readonly folder: string; readonly used: string }[];
  /** Documents that the distribution adds to every config that has none of their kind. */
  implied(): readonly ImpliedDocument[];
  /** Files, there or not, in which it shows that packages were added, removed or changed. */
  inputs(): readonly string[];
}

export interface FindOptions {
  /** Folders of packages, absolute, that hide their namesakes wherever those lie: what is being developed. */
  readonly ahead?: readonly string[];
  /** Where the config lies. */
  readonly folder: string;
  /** `plugins.dirs`, absolute: folders whose subfolders, or which themselves, are packages. */
  readonly dirs: readonly string[];
  /** The running `sluice` bin, by its real path and by the path it was called by. */
  readonly bins: readonly string[];
  readonly trust?: Trust;
  /** To see what would become of it: the place of a plugin that plugins.lock does not list yet, or undefined for one that it is to lose. */
  readonly candidate?: { readonly name: string; readonly place: string | undefined } | undefined;
  readonly compile?: Compile;
  /** How long a plugin's module may take to import. */
  readonly importDeadlineMs?: number;
  /** The code that is in memory already; without it, code is imported as this process first saw it. */
  readonly modules?: PluginModules | undefined;
}

export async function findPlugins(o: FindOptions): Promise<Registry> {
  const compile = o.compile ?? schemaCompiler();
  const { lock, problems } = await lockOf(o.folder);
  const placeByName = new Map([...lock].map(([name, { version }]) => [name, placeOf(o.folder, name, version)]));
  if (o.candidate?.place !== undefined) placeByName.set(o.candidate.name, o.candidate.place);
  else if (o.candidate) placeByName.delete(o.candidate.name);
  const locked = new Map([...placeByName].map(([name, place]) => [name, packageFolder(place, name)]));
  const places = await searchPlaces({ ...o, locked });
  const plugins: Plugin[] = [];
  const copies: { package: string; folder: string; used: string }[] = [];
  const seen = new Map<string, string>();
  for (const found of await packagesIn(places)) {
    const read = await readManifest(found.folder, found.json);
    if (read === undefined) continue;
    // As in node's own resolution, a package found first hides its namesakes further away.
    const { package: name, folder } = "manifest" in read ? read.manifest : read.problem;
    const used = seen.get(name);
    if (used !== undefined) {
      copies.push({ package: name, folder, used });
      continue;
    }
    seen.set(name, folder);
    if ("problem" in read) {
      problems.push(read.problem);
      continue;
    }
    const { manifest } = read;
    const entry = found.place.sort === "lock" && o.candidate?.name !== name ? lock.get(name) : undefined;
    const judged = (await distrust(manifest, found, entry, o)) ?? checkManifest(manifest, compile);
    if ("code" in judged) problems.push({ package: name, folder, kinds: [...manifest.kinds.keys()], ...judged });
    else plugins.push({ manifest, place: found.place, locked: entry, validators: judged });
  }
  return registryOf({ ...o, plugins, problems, places, copies });
}

interface Plugin extends InstalledPlugin {
  readonly validators: ReadonlyMap<string, Validate>;
}

async function lockOf(folder: string): Promise<{ lock: PluginLock; problems: PackageProblem[] }> {
  try {
    return { lock: await readPluginLock(folder), problems: [] };
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    const { code, message } = error;
    return {
      lock: new Map(),
      problems: [{ package: "plugins.lock", folder: lockPath(folder), code, message, kinds: [] }],
    };
  }
}

/** Why the config does not let a package in. */
async function distrust(
  { package: name, version }: Manifest,
  { place }: FoundPackage,
  entry: LockedPlugin | undefined,
  { folder, trust = trustAll, candidate }: FindOptions,
): Promise<Misfit | undefined> {
  const isDistribution = place.sort === "distribution";
  const refusal = refusalOf({ name, version, isDistribution }, trust);
  if (refusal !== undefined) return { code: "PLUGIN_REFUSED", message: `is kept out: ${refusal}` };
  if (!trust.strict || isDistribution || (candidate?.name === name && place.sort === "lock")) return undefined;
  if (entry === undefined) {
    const message = `is kept out: plugins.strict is set, and plugins.lock does not list it (sluice plugin add)`;
    return { code: "PLUGIN_REFUSED", message };
  }
  const files = await filesDigest(placeOf(folder, name, entry.version)).catch((error: unknown) => messageOf(error));
  if (files === entry.files) return undefined;
  const message = `is kept out: plugins.strict is set, and its files are not those that were installed (sluice plugin remove, then add)`;
  return { code: "PLUGIN_CHANGED", message };
}

function registryOf(o: {
  readonly plugins: readonly Plugin[];
  readonly problems: PackageProblem[];
  readonly places: readonly SearchPlace[];
  readonly copies: readonly { package: string; folder: string; used: string }[];
  readonly importDeadlineMs?: number;
  readonly modules?: PluginModules | undefined;
}): Registry {
  const { plugins, problems, places, copies, modules, importDeadlineMs: deadlineMs = standardImportDeadlineMs } = o;
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
  for (const [kind, [first, ...more]] of providers) {
    for (const { manifest } of more) {
      problems.push({
        package: manifest.package,
        folder: manifest.folder,
        code: "PLUGIN_DUPLICATE_KIND",
        kinds: [kind],
        message: `provides ${kind}, and so does ${first?.manifest.package}: uninstall one of them, or name the kind with its package, as in ${manifest.package}#${kind}`,
      });
    }
  }

  const inUse = new Set<string>();
  /** By package and kind. */
  const loading = new Map<string, Promise<FilterKind | ServiceKind>>();
  const loaded = new Map<string, FilterKind | ServiceKind>();
  const keyOf = (manifest: Manifest, kind: string): string => `${manifest.package}#${kind}`;
  const candidates = (written: string): Plugin[] => {
    const name = parseKindName(written);
    const all = providers.get(name.kind) ?? [];
    return name.package === undefined ? all : all.filter(({ manifest }) => manifest.package === name.package);
  };
  /** Undefined also where two provide it, since neither is to be preferred. */
  const provider = (written: string): Plugin | undefined => {
    const [first, second] = candidates(written);
    return second === undefined ? first : undefined;
  };
  const declared = (written: string) => provider(written)?.manifest.kinds.get(parseKindName(written).kind);

  function find(written: string, others: readonly string[]): Manifest {
    const { package: wanted, kind } = parseKindName(written);
    const [first, second] = candidates(written);
    if (first !== undefined && second !== undefined) {
      const both = [first, second].map(({ manifest }) => `${manifest.package} (${manifest.folder})`).join(" and ");
      const names = [first, second].map(({ manifest }) => `"${keyOf(manifest, kind)}"`).join(" or ");
      throw new SluiceError(
        "PLUGIN_DUPLICATE_KIND",
        `two packages provide the kind ${kind}: ${both}; uninstall one of them, or write ${names}`,
      );
    }
    if (first !== undefined) return first.manifest;
    const broken = problems.find(
      (problem) =>
        problem.kinds.includes(kind) &&
        problem.code !== "PLUGIN_DUPLICATE_KIND" &&
        (wanted ?? problem.package) === problem.package,
    );
    if (broken !== undefined) {
      throw new SluiceError(
        broken.code,
        `${kind} comes from the package ${broken.package} (${broken.folder}), which can't be used: ${broken.message}`,
      );
    }
    const missing = places.flatMap((place) => place.missing);
    const notInstalled = missing.length === 0 ? "" : `; listed but not installed: ${[...new Set(missing)].join(", ")}`;
    // A package whose manifest can't be read may be the one that is looked for.
    const unread = problems.filter((problem) => problem.code === "PLUGIN_BROKEN" && problem.kinds.length === 0);
    const unreadable = unread.map((problem) => `; ${problem.package} could not be read: ${problem.message}`).join("");
    const lookedAt =
      ` (looked at ${[...new Set(places.map((place) => place.label))].join("; ") || "no place: there is no package.json"})` +
      `${notInstalled}${unreadable}`;
    if (wanted !== undefined) throw new SluiceError("PLUGIN_NOT_FOUND", `${notProvided(wanted, kind)}${lookedAt}`);
    throw new SluiceError(
      "PLUGIN_NOT_FOUND",
      `no installed package provides the kind "${kind}"${didYouMean(kind, [...providers.keys(), ...others]) || ": install the package that does"}${lookedAt}`,
    );
  }

  /** Of a kind that is written with its package. */
  function notProvided(wanted: string, kind: string): string {
    const from = plugins.find(({ manifest }) => manifest.package === wanted);
    const others = (providers.get(kind) ?? []).map(({ manifest }) => manifest.package);
    const elsewhere = others.length === 0 ? "" : `; ${kind} is provided by ${others.join(" and ")}`;
    if (from === undefined) return `the package ${wanted} is not installed${elsewhere || ": install it"}`;
    const own = [...from.manifest.kinds.keys()].join(", ") || "none";
    return `the package ${wanted} does not provide the kind "${kind}": its kinds are ${own}${elsewhere}`;
  }

  function source(written: string, others: readonly string[] = []): KindSource {
    const { package: name, version, kinds } = find(written, others);
    const { kind } = parseKindName(written);
    const { family, entry } = kinds.get(kind)!;
    return { kind, family, package: name, version, entry };
  }

  return {
    source,
    kinds: () =>
      [...providers].flatMap(([kind, all]) =>
        all.map(({ manifest: from }) => {
          const { family, schema, description } = from.kinds.get(kind)!;
          const code = loaded.get(keyOf(from, kind));
          const runtime = code !== undefined && isFilter(code) ? { results: code.results, packets: code.packets } : {};
          return { kind, family, package: from.package, version: from.version, description, schema, ...runtime };
        }),
      ),
    has: (kind) => candidates(kind).length > 0,
    async load(written, others = []) {
      const from = find(written, others);
      const { kind } = parseKindName(written);
      for (const file of filesThatTell(from, kind)) inUse.add(file);
      const key = keyOf(from, kind);
      let promise = loading.get(key);
      if (promise === undefined) {
        const urls = modules && {
          url: (file: string) => modules.url(from, file),
          failed: (url: string) => modules.failed(from, url),
        };
        promise = importKind(source(written, others), deadlineMs, urls).then((code) => {
          loaded.set(key, code);
          return code;
        });
        loading.set(key, promise);
      }
      return promise;
    },
    find: (kind, others = []) => void find(kind, others),
    family: (kind) => declared(kind)?.family,
    origin: (kind) => provider(kind)?.manifest,
    schema: (kind) => declared(kind)?.schema,
    validator: (kind) => provider(kind)?.validators.get(parseKindName(kind).kind),
    commands: () => commands,
    plugins: () => plugins,
    problems: () => problems,
    places: () => places,
    copies: () => copies,
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
