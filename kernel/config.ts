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
  type PipelineEntry,
} from "./checks.ts";
import {
  impliedEntries,
  readDocument,
  readFilters,
  validateKind,
  validateOptions,
  type Checked,
  type Use,
} from "./checked-entries.ts";
import { readConfigFiles, type ConfigFiles, type Overlay } from "./config-files.ts";
import type { Problem } from "./documents.ts";
import { issues, type Entry, type Issues } from "./entry.ts";
import { isKernelKind, kernelSchemas } from "./kernel-kinds.ts";
import { inspectIsolated, isStore, loadKinds, runValidate, withCode } from "./kind-codes.ts";
import { parseKindName } from "./kind-name.ts";
import { type ReadListener, readListeners } from "./listener-options.ts";
import { nearestPackageFile } from "./packages.ts";
import { lockPath } from "./plugin-lock.ts";
import type { ServiceKind } from "./plugin.ts";
import type { PluginModules } from "./plugin-modules.ts";
import { findPlugins, type FindOptions, type Registry } from "./registry.ts";
import { schemaCompiler, type Compile } from "./schema.ts";
import { showDocument, toGatewaySpec, toPipelineSpec, toProxySpec } from "./spec-builder.ts";
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
