/** A config on disk -> the spec that the gateway is built from, or every problem with it. Nothing is bound or started here. */
import { stat } from "node:fs/promises";
import { readCertificates } from "./certificates.ts";
import {
  checkNames,
  checkPipeline,
  checkPorts,
  checkPresence,
  checkRules,
  type FilterEntry,
  type PipelineEntry,
} from "./checks.ts";
import { readConfigFiles, type ConfigFiles, type Overlay } from "./config-files.ts";
import type { Problem, RawDocument } from "./documents.ts";
import { isMap, issues, readEntry, validateEntry, type Entry, type Issues } from "./entry.ts";
import { SluiceError } from "./errors.ts";
import { isKernelKind, kernelKindNames, kernelSchemas, type KernelKind } from "./kernel-kinds.ts";
import type { FilterKind, ServiceKind } from "./plugin.ts";
import { findPlugins, type Registry } from "./registry.ts";
import { schemaCompiler, type Compile } from "./schema.ts";
import { showDocument, toGatewaySpec, toPipelineSpec, toProxySpec } from "./spec-builder.ts";
import type { ObjectRef, Spec } from "./spec.ts";

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
  /** Absolute: every file and folder that was read, certificates and `${file:...}` included. */
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
  const registry = await findPlugins({ folder: files.folder, dirs: gateway.plugins.dirs, bins: o.bins, compile });
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

  const codes = await loadKinds([...services, ...drafts.flatMap((draft) => draft.filters)], registry, found);
  const pipelines = drafts.map(({ entry, filters }) => ({
    ...entry,
    filters: filters.map((filter) => withCode(filter, codes)),
  }));
  for (const plugin of [...services, ...pipelines.flatMap((pipeline) => pipeline.filters)])
    runValidate(plugin, codes.get(plugin.kind), found);

  const specs = check({ files, proxies, pipelines, entries, found });
  reportPackages(registry, found);
  found.problems.sort(byPosition);
  found.warnings.sort(byPosition);
  const { problems, warnings } = found;
  const read = {
    registry,
    problems,
    warnings,
    inputs: files.inputs,
    path: files.path,
    texts: files.texts,
    written: written.flatMap(({ kind, name, raw: { file, index } }) => (file ? [{ kind, name, file, index }] : [])),
  };
  if (problems.length > 0 || files.path === undefined) return { spec: undefined, ...read };

  const schemaOf = (kind: string) => (isKernelKind(kind) ? kernelSchemas[kind] : registry.schema(kind));
  const spec: Spec = {
    path: files.path,
    folder: files.folder,
    gateway,
    proxies: proxies.map((proxy, index) => toProxySpec(proxy, specs[index] ?? [])),
    pipelines: pipelines.map(toPipelineSpec),
    services: services.map((service) => ({
      name: service.name,
      kind: codes.get(service.kind) as ServiceKind,
      options: service.options,
    })),
    where: whereOf(proxies, pipelines, services),
    documents: [...gateways, ...proxies, ...pipelines, ...services].map((entry) => showDocument(entry, schemaOf)),
  };
  return { spec, ...read };
}

/** The plugins that a config (where there is one) could use, whatever else may be wrong with it. */
export async function findInstalled(o: LoadOptions): Promise<Registry> {
  const files = await readConfigFiles(o);
  const ignored = issues();
  const compile = schemaCompiler();
  const written = files.documents.flatMap((raw) => readDocument(raw, ignored) ?? []);
  const gateway = validateKind("Gateway", written, compile, ignored).find((entry) => entry.valid);
  const { plugins } = toGatewaySpec(gateway?.options, files.folder);
  return findPlugins({ folder: files.folder, dirs: plugins.dirs, bins: o.bins, compile });
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
  const kinds = new Set(written.map((entry) => entry.kind));
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

function readFilters(pipeline: Entry, registry: Registry, found: Issues): Checked<Entry>[] {
  const { filters } = pipeline.options;
  if (!Array.isArray(filters)) return [];
  const parent = pipeline.name === "" ? `document ${pipeline.raw.index}` : pipeline.name;
  return filters.flatMap((value: unknown, index) => {
    // What isn't a map, or lacks its kind, the pipeline's own schema has reported.
    if (!isMap(value) || typeof value["kind"] !== "string" || typeof value["name"] !== "string") return [];
    const entry = readEntry(pipeline.raw, ["filters", index], value, parent, found);
    return entry === undefined ? [] : validateOptions(entry, registry, found);
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

/** Imports each kind once; what fails is reported at every use of it. */
async function loadKinds(uses: readonly Entry[], registry: Registry, found: Issues): Promise<Map<string, Code>> {
  const codes = new Map<string, Code>();
  const failures = new Map<string, SluiceError>();
  for (const kind of new Set(uses.map((use) => use.kind))) {
    try {
      codes.set(kind, await registry.load(kind, kernelKindNames));
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

function withCode(filter: Checked<Entry>, codes: ReadonlyMap<string, Code>): Checked<FilterEntry> {
  const code = codes.get(filter.kind);
  return { ...filter, code: code !== undefined && "packets" in code ? code : undefined };
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
  proxies: readonly Entry[],
  pipelines: readonly PipelineEntry[],
  services: readonly Entry[],
): Spec["where"] {
  const key = ({ family, name }: ObjectRef): string => `${family} ${name}`;
  const entries = new Map<string, Entry>([
    ...proxies.map((entry) => [key({ family: "proxy", name: entry.name }), entry] as const),
    ...services.map((entry) => [key({ family: "service", name: entry.name }), entry] as const),
    ...pipelines.flatMap(({ name, filters }) =>
      filters.map((entry) => [key({ family: "filter", name: `${name}/${entry.name}` }), entry] as const),
    ),
  ]);
  return (object, field) => entries.get(key(object))?.where(field) ?? object.name;
}

/** Whether the documents fit each other. Returns the certificates of each proxy. */
function check({ files, proxies, pipelines, entries, found }: Parts) {
  checkNames(
    entries.filter((entry) => entry.kind !== "Gateway"),
    found,
  );
  for (const pipeline of pipelines) checkPipeline(pipeline, found);
  for (const proxy of proxies) {
    checkRules(proxy, pipelines, found);
    checkPresence(proxy, pipelines, found);
    mendNumbers(proxy, found);
  }
  checkPorts(proxies, found);
  if (proxies.length === 0 && files.documents.length > 0) {
    found.warning(files.documents[0]!.position([]), "the config has no MQTTProxy document: no device can connect");
  }
  return proxies.map((proxy) => readCertificates(proxy, files.folder, found, files.inputs));
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
function reportPackages(registry: Registry, found: Issues): void {
  for (const problem of registry.problems()) {
    const reported = problem.kinds.some((kind) =>
      found.problems.some((one) => one.code === problem.code && one.message.includes(kind)),
    );
    if (!reported)
      found.warnings.push({
        where: problem.folder,
        message: `the package ${problem.package} ${problem.message}`,
        code: problem.code,
      });
  }
}

/** By file, line and column; what has no place comes last. */
function byPosition(a: Problem, b: Problem): number {
  const parse = ({ where }: Problem) => /^(.*?):(\d+):(\d+)(?: > |$)/.exec(where);
  const [left, right] = [parse(a), parse(b)];
  if (left === null || right === null) return Number(left === null) - Number(right === null);
  return left[1]!.localeCompare(right[1]!) || Number(left[2]) - Number(right[2]) || Number(left[3]) - Number(right[3]);
}
