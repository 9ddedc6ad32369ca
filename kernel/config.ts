/** A config on disk -> the spec that the gateway is built from, or every problem with it. Nothing is bound or started here. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import {
  checkAddresses,
  checkNames,
  checkPipeline,
  checkDeadLetter,
  checkPresence,
  checkRules,
  checkStore,
  checkTrust,
  type FilterEntry,
  type PipelineEntry,
} from "./checks.ts";
import { readConfigFiles, type ConfigFiles, type Overlay } from "./config-files.ts";
import type { Problem, RawDocument } from "./documents.ts";
import { isMap, issues, readEntry, validateEntry, type Entry, type Issues } from "./entry.ts";
import { SluiceError } from "./errors.ts";
import { isKernelKind, kernelKindNames, kernelSchemas, type KernelKind } from "./kernel-kinds.ts";
import { parseKindName, plainKind } from "./kind-name.ts";
import { type ReadListener, readListeners } from "./listener-options.ts";
import { nearestPackageFile } from "./packages.ts";
import { lockPath } from "./plugin-lock.ts";
import type { FilterKind, ServiceKind } from "./plugin.ts";
import { inspect } from "./isolation.ts";
import type { PluginModules } from "./plugin-modules.ts";
import { findPlugins, type FindOptions, type Registry } from "./registry.ts";
import { schemaCompiler, type Compile } from "./schema.ts";
import { showDocument, toGatewaySpec, toIsolationSpec, toPipelineSpec, toProxySpec } from "./spec-builder.ts";
import type { KindOrigin, ObjectRef, Spec } from "./spec.ts";

export type { Problem } from "./documents.ts";

export interface LoadOptions {
  /** A file or folder; without it one is looked for from `cwd`. */
  readonly path?: string;
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
  /** The running `sluice` bin, by its real path and by the path it was called by: above it lie the distribution's plugins. */
  readonly bins: readonly string[];
  /** Texts that files of the config are taken to hold, to see what would become of it. */
  readonly overlay?: Overlay;
  /** One for all loads of a process: compiling the schemas is what most of a load's time would go to. */
  readonly compile?: Compile;
  /** Folders of packages, absolute, that hide their installed namesakes: what is being developed. */
  readonly ahead?: readonly string[];
  /** Where a gateway may run already: what it has in memory of the plugins' code. */
  readonly modules?: PluginModules;
  /** A plugin that is taken to be installed, or not to be any more, likewise. */
  readonly candidate?: FindOptions["candidate"];
}

/** Where a document stands. */
export interface WrittenDocument {
  readonly kind: string;
  readonly name: string;
  /** Absolute. */
  readonly file: string;
  /** Its number within its file, from 1. */
  readonly index: number;
}

export interface LoadedSpec {
  /** Undefined where there are problems. */
  spec: Spec | undefined;
  registry: Registry;
  problems: Problem[];
  warnings: Problem[];
  /** Absolute: every file and folder that was read, certificates, `${file:...}` and lists of plugins included. */
  inputs: ReadonlySet<string>;
  /** Absolute: the file or folder; undefined where none was found. */
  path: string | undefined;
  /** Of each file that holds documents, by absolute path. */
  texts: ReadonlyMap<string, string>;
  /** The documents in them, in their order. */
  written: readonly WrittenDocument[];
}

/** An entry whose options have been validated. */
type Checked<E extends Entry> = E & { readonly valid: boolean };
/** A service or filter before its kind is loaded. `isolate` of a filter is the kernel's, not among its options. */
type Use = Checked<Entry> & { readonly isolate?: unknown };
type Code = FilterKind | ServiceKind;

/** Reads and validates the config and imports the kinds it names. What is wrong with it is in `problems`, all at once. */
export async function loadSpec(o: LoadOptions): Promise<LoadedSpec> {
  const files = await readConfigFiles(o);
  const found = issues();
  found.problems.push(...files.problems);
  const compile = o.compile ?? schemaCompiler();
  const written = files.documents.flatMap((raw) => readDocument(raw, found) ?? []);

  const gateways = validateKind("Gateway", written, compile, found);
  for (const entry of gateways.slice(1))
    found.problem(entry.where(["kind"]), "a config has one Gateway document at most: merge them");
  const gateway = toGatewaySpec(gateways[0]?.valid === true ? gateways[0].options : undefined, files.folder);
  await checkFolders(gateways[0], gateway.plugins.dirs, found);
  await addPluginLists(files);
  const registry = await findPlugins({
    ...o,
    ...gateway.plugins,
    folder: files.folder,
    trust: gateway.plugins,
    compile,
  });
  const mayImport = knowsTrust(gateways, files, registry, found);
  const entries = [...written, ...impliedEntries(registry, written, found)];

  // All options are validated before any plugin's code runs.
  const proxies = validateKind("MQTTProxy", entries, compile, found);
  const drafts = validateKind("Pipeline", entries, compile, found).map((entry) => ({
    entry,
    filters: readFilters(entry, registry, found),
  }));
  const services = entries
    .filter((entry) => !isKernelKind(entry.kind))
    .map((entry) => validateOptions(entry, registry, found));

  const uses: Use[] = [...services, ...drafts.flatMap((draft) => draft.filters)];
  const codes = await loadKinds(uses, registry, mayImport, found);
  const pipelines: PipelineEntry[] = [];
  for (const { entry, filters } of drafts) {
    const loaded = filters.map(async (filter) =>
      filter.isolate === undefined
        ? withCode(filter, codes)
        : inspectIsolated(filter, mayImport && entry.valid, registry, found),
    );
    pipelines.push({ ...entry, filters: await Promise.all(loaded) });
  }
  for (const use of uses) if (use.isolate === undefined) runValidate(use, codes.get(use.kind), found);

  checkStore(
    services.filter(({ kind }) => isStore(codes.get(kind))),
    found,
  );
  const listeners = check({ files, proxies, pipelines, entries, found });
  reportPackages(registry, uses, found);
  found.problems.sort(byPosition);
  found.warnings.sort(byPosition);
  const { problems, warnings } = found;
  const read = {
    registry,
    problems,
    warnings,
    inputs: new Set([...files.inputs, ...registry.inputs()]),
    path: files.path,
    texts: files.texts,
    written: written.flatMap(({ kind, name, raw: { file, index } }) => (file ? [{ kind, name, file, index }] : [])),
  };
  if (problems.length > 0 || files.path === undefined) return { spec: undefined, ...read };

  const schemaOf = (kind: string) => (isKernelKind(kind) ? kernelSchemas[kind] : registry.schema(kind));
  const originOf = (kind: string): KindOrigin => {
    const origin = registry.origin(kind);
    if (!origin) throw new Error(`${kind} comes from no package, and no problem says so`);
    return { package: origin.package, version: origin.version };
  };
  const spec: Spec = {
    path: files.path,
    folder: files.folder,
    gateway,
    proxies: proxies.map((proxy, index) =>
      toProxySpec(
        proxy,
        (listeners[index] ?? []).map((one) => one.spec),
      ),
    ),
    pipelines: pipelines.map((pipeline) => toPipelineSpec(pipeline, originOf)),
    services: services.map((service) => ({
      name: service.name,
      kind: codes.get(service.kind) as ServiceKind,
      from: originOf(service.kind),
      options: service.options,
    })),
    where: whereOf(listeners.flat(), pipelines, services),
    documents: [...gateways, ...proxies, ...pipelines, ...services].map((entry) => showDocument(entry, schemaOf)),
  };
  return { spec, ...read };
}

export interface Installed {
  readonly registry: Registry;
  /** Absolute: where the config lies, or where one is looked for. */
  readonly folder: string;
  /** Absolute: the file or folder; undefined where none was found. */
  readonly path: string | undefined;
  /** Whether `path` exists. */
  readonly isThere: boolean;
  /** False where the Gateway document, which says what may be used, has problems: then only the distribution's own may. */
  readonly isTrustKnown: boolean;
  /** By kind as it is written: the documents and `pipeline/filter`s that are of it. */
  readonly uses: ReadonlyMap<string, readonly string[]>;
}

/** The plugins that a config (where there is one) could use, whatever else may be wrong with it. */
export async function findInstalled(o: LoadOptions): Promise<Installed> {
  const files = await readConfigFiles(o);
  const ignored = issues();
  const compile = schemaCompiler();
  const written = files.documents.flatMap((raw) => readDocument(raw, ignored) ?? []);
  const gateways = validateKind("Gateway", written, compile, ignored);
  const { plugins } = toGatewaySpec(gateways.find((entry) => entry.valid)?.options, files.folder);
  const isTrustKnown = gateways.every((entry) => entry.valid && checkTrust(entry, ignored));
  // Where it can't be told which packages may be used, the distribution's own may.
  const trust = isTrustKnown ? plugins : { ...plugins, allow: [] };
  const registry = await findPlugins({ ...o, ...plugins, folder: files.folder, trust, compile });
  return {
    registry,
    folder: files.folder,
    path: files.path,
    isThere: files.path !== undefined && (await stat(files.path).catch(() => undefined)) !== undefined,
    isTrustKnown,
    uses: usesIn([...written, ...impliedEntries(registry, written, ignored)]),
  };
}

function usesIn(entries: readonly Entry[]): Map<string, string[]> {
  const uses = new Map<string, string[]>();
  const add = (kind: unknown, label: string): void => {
    if (typeof kind === "string") uses.set(kind, [...(uses.get(kind) ?? []), label]);
  };
  for (const { kind, name, options } of entries) {
    add(kind, name);
    const filters = kind === "Pipeline" && Array.isArray(options["filters"]) ? (options["filters"] as unknown[]) : [];
    for (const filter of filters) if (isMap(filter)) add(filter["kind"], `${name}/${String(filter["name"])}`);
  }
  return uses;
}

/** What lists plugins beside the config is read, though it may not be there yet. */
async function addPluginLists({ folder, inputs }: ConfigFiles): Promise<void> {
  inputs.add(lockPath(folder));
  inputs.add((await nearestPackageFile(folder)) ?? join(folder, "package.json"));
}

/** Whether it is known which packages may be used: nothing of theirs runs before that. */
function knowsTrust(
  gateways: readonly Checked<Entry>[],
  files: ConfigFiles,
  registry: Registry,
  found: Issues,
): boolean {
  // A document that can't be read is none, and may be the one that says it.
  const isReadable = gateways.length > 0 || [...files.texts.values()].every((text) => !text.includes("Gateway"));
  const isValid = gateways.length <= 1 && gateways.every((entry) => entry.valid && checkTrust(entry, found));
  return isReadable && isValid && registry.problems().every(({ code }) => code !== "PLUGIN_LOCK_INVALID");
}

function readDocument(raw: RawDocument, found: Issues): Entry | undefined {
  return readEntry(raw, [], raw.value, undefined, found, (kind) => (kind === "Gateway" ? "gateway" : undefined));
}

async function checkFolders(gateway: Entry | undefined, dirs: readonly string[], found: Issues): Promise<void> {
  for (const [index, dir] of dirs.entries()) {
    const isFolder = await stat(dir).then(
      (stats) => stats.isDirectory(),
      () => false,
    );
    if (!isFolder)
      found.problem(
        gateway!.where(["plugins", "dirs", index]),
        `there is no folder ${dir}: name one that holds plugins`,
      );
  }
}

function validateKind(kind: KernelKind, entries: readonly Entry[], compile: Compile, found: Issues): Checked<Entry>[] {
  const schema = kernelSchemas[kind];
  const validate = compile(schema);
  return entries
    .filter((entry) => entry.kind === kind)
    .map((entry) => {
      const result = validateEntry(entry, schema, validate, found);
      return { ...result.entry, valid: result.valid };
    });
}

/** What the distribution adds: a document of the config replaces the implied ones of its kind. */
function impliedEntries(registry: Registry, written: readonly Entry[], found: Issues): Entry[] {
  const kinds = new Set(written.map((entry) => plainKind(entry.kind)));
  return registry
    .implied()
    .filter(({ kind }) => !kinds.has(kind))
    .flatMap((value, index) => {
      const raw: RawDocument = {
        file: undefined,
        index: index + 1,
        value,
        position: () => "implied by the distribution",
        isWhole: () => false,
        isFromFile: () => false,
        isUnresolved: () => false,
      };
      return readDocument(raw, found) ?? [];
    });
}

function readFilters(pipeline: Entry, registry: Registry, found: Issues): Use[] {
  const { filters } = pipeline.options;
  if (!Array.isArray(filters)) return [];
  const parent = pipeline.name === "" ? `document ${pipeline.raw.index}` : pipeline.name;
  return filters.flatMap((value: unknown, index) => {
    // What isn't a map, or lacks its kind, the pipeline's own schema has reported.
    if (!isMap(value) || typeof value["kind"] !== "string" || typeof value["name"] !== "string") return [];
    const entry = readEntry(pipeline.raw, ["filters", index], value, parent, found);
    if (entry === undefined) return [];
    const { isolate, ...options } = entry.options;
    return { ...validateOptions({ ...entry, options }, registry, found), isolate };
  });
}

function validateOptions(entry: Entry, registry: Registry, found: Issues): Checked<Entry> {
  const schema = registry.schema(entry.kind);
  const validate = registry.validator(entry.kind);
  if (schema === undefined || validate === undefined) return { ...entry, valid: false };
  const family = entry.base.length === 0 ? "service" : "filter";
  // Its options would only be measured against something that it isn't meant to be.
  if (registry.family(entry.kind) !== family) return { ...entry, valid: false };
  const result = validateEntry(entry, schema, validate, found);
  return { ...result.entry, valid: result.valid };
}

/** Imports each kind once, where it may and not all its uses are isolated; what fails is reported at every use of it. */
async function loadKinds(
  uses: readonly Use[],
  registry: Registry,
  mayImport: boolean,
  found: Issues,
): Promise<Map<string, Code>> {
  const codes = new Map<string, Code>();
  const failures = new Map<string, SluiceError>();
  for (const kind of new Set(uses.map((use) => use.kind))) {
    const isImported = uses.some((use) => use.kind === kind && use.isolate === undefined);
    try {
      if (isImported && mayImport) codes.set(kind, await registry.load(kind, kernelKindNames));
      else registry.find(kind, kernelKindNames);
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error;
      failures.set(kind, error);
    }
  }
  for (const use of uses) {
    const asFilter = use.base.length > 0;
    const family = registry.family(use.kind);
    const failure = failures.get(use.kind);
    if (asFilter && isKernelKind(use.kind)) {
      found.problem(use.where(["kind"]), `${use.kind} is not a filter: write it as a document of its own`);
    } else if (failure !== undefined) {
      found.problem(use.where(["kind"]), failure.message, failure.code);
    } else if (asFilter && family === "service") {
      found.problem(use.where(["kind"]), `${use.kind} is a service, not a filter: write it as a document of its own`);
    } else if (!asFilter && family === "filter") {
      found.problem(use.where(["kind"]), `${use.kind} is a filter: list it under filters of a Pipeline`);
    }
  }
  return codes;
}

function isStore(code: Code | undefined): boolean {
  return code !== undefined && "role" in code && code.role === "store";
}

function withCode(filter: Use, codes: ReadonlyMap<string, Code>): FilterEntry {
  const code = codes.get(filter.kind);
  const isFilter = code !== undefined && "packets" in code;
  return { ...filter, code: isFilter ? code : undefined, isolate: undefined, isolation: undefined };
}

/** Imports the kind of an isolated filter where it will run, in a thread, and has its own check of the options made there. */
async function inspectIsolated(
  filter: Use,
  areLimitsValid: boolean,
  registry: Registry,
  found: Issues,
): Promise<FilterEntry> {
  const without = { ...filter, isolate: filter.isolate, isolation: undefined, code: undefined };
  if (!areLimitsValid || registry.family(filter.kind) !== "filter") return without;
  const isolation = toIsolationSpec(filter.isolate, registry.source(filter.kind));
  if (!isolation) return without;
  try {
    const { kind, faults } = await inspect(isolation, filter.valid ? filter.options : undefined);
    for (const { field, message } of faults) found.problem(filter.where(field), message);
    return { ...without, isolation, code: kind };
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    found.problem(filter.where(["kind"]), error.message, error.code);
    return without;
  }
}

/** A kind's own check of its options, where they have passed its schema. */
function runValidate(entry: Checked<Entry>, code: Code | undefined, found: Issues): void {
  if (!entry.valid || code?.validate === undefined) return;
  try {
    for (const { field, message } of code.validate(entry.options)) found.problem(entry.where(field), message);
  } catch (error) {
    found.problem(entry.where(), `the plugin's own check failed: ${(error as Error).message}`, "PLUGIN_BROKEN");
  }
}

interface Parts {
  readonly files: ConfigFiles;
  readonly proxies: readonly Entry[];
  readonly pipelines: readonly PipelineEntry[];
  readonly entries: readonly Entry[];
  readonly found: Issues;
}

function whereOf(
  listeners: readonly ReadListener[],
  pipelines: readonly PipelineEntry[],
  services: readonly Entry[],
): Spec["where"] {
  const key = ({ family, name }: ObjectRef): string => `${family} ${name}`;
  const places = new Map<string, () => string>([
    ...listeners.map(({ proxy, path, spec }): [string, () => string] => [
      key({ family: "listener", name: `${proxy.name}/${spec.name}` }),
      () => proxy.where(path),
    ]),
    ...services.map((entry): [string, () => string] => [
      key({ family: "service", name: entry.name }),
      () => entry.where(),
    ]),
    ...pipelines.flatMap(({ name, filters }) =>
      filters.map((entry): [string, () => string] => [
        key({ family: "filter", name: `${name}/${entry.name}` }),
        () => entry.where(),
      ]),
    ),
  ]);
  return (object) => places.get(key(object))?.() ?? object.name;
}

/** Whether the documents fit each other. Returns the listeners of each proxy. */
function check({ files, proxies, pipelines, entries, found }: Parts): ReadListener[][] {
  checkNames(
    entries.filter((entry) => entry.kind !== "Gateway"),
    found,
  );
  for (const pipeline of pipelines) checkPipeline(pipeline, found);
  const known = { byName: new Map(pipelines.map((each) => [each.name, each])), areAll: files.isPartial !== true };
  const reading = { folder: files.folder, found, inputs: files.inputs };
  const listeners = proxies.map((proxy) => {
    const own = readListeners(proxy, reading);
    const isOpen = own.some(({ spec }) => spec.tls?.clientCertificate !== "require");
    checkRules(proxy, known, isOpen, found);
    checkPresence(proxy, known, found);
    checkDeadLetter(proxy, known, found);
    mendNumbers(proxy, found);
    return own;
  });
  checkAddresses(listeners.flat(), found);
  if (proxies.length === 0 && files.documents.length > 0) {
    found.warning(files.documents[0]!.position([]), "the config has no MQTTProxy document: no device can connect");
  }
  return listeners;
}

/** Easegress takes its default where one of these is 0 or less; so do we, aloud. */
function mendNumbers(proxy: Entry, found: Issues): void {
  for (const [field, standard] of [
    ["retryInterval", 30],
    ["topicCacheSize", 100_000],
  ] as const) {
    const value = proxy.options[field];
    if (typeof value !== "number" || value > 0) continue;
    found.warning(proxy.where([field]), `is ${value}: ${standard} is used`);
    proxy.options[field] = standard;
  }
}

/** Packages that can't be used are worth a word even where nothing needs them. */
function reportPackages(registry: Registry, uses: readonly Entry[], found: Issues): void {
  const qualified = new Set(
    uses.map(({ kind }) => parseKindName(kind)).flatMap((name) => (name.package ? name.kind : [])),
  );
  for (const problem of registry.problems()) {
    const reported = problem.kinds.some((kind) =>
      found.problems.some((one) => one.code === problem.code && one.message.includes(kind)),
    );
    // Who names a kind with its package knows that there are two.
    const isSettled = problem.code === "PLUGIN_DUPLICATE_KIND" && problem.kinds.every((kind) => qualified.has(kind));
    if (problem.code === "PLUGIN_LOCK_INVALID") {
      found.problems.push({ where: problem.folder, message: problem.message, code: problem.code });
    } else if (!reported && !isSettled) {
      found.warnings.push({
        where: problem.folder,
        message: `the package ${problem.package} ${problem.message}`,
        code: problem.code,
      });
    }
  }
}

/** By file, line and column; what has no place comes last. */
function byPosition(a: Problem, b: Problem): number {
  const parse = ({ where }: Problem) => /^(.*?):(\d+):(\d+)(?: > |$)/.exec(where);
  const [left, right] = [parse(a), parse(b)];
  if (left === null || right === null) return Number(left === null) - Number(right === null);
  return left[1]!.localeCompare(right[1]!) || Number(left[2]) - Number(right[2]) || Number(left[3]) - Number(right[3]);
}
