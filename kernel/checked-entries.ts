/** Documents and filters of a config, read and measured against their schemas. */
import type { RawDocument } from "./documents.ts";
import { isMap, readEntry, validateEntry, type Entry, type Issues } from "./entry.ts";
import { kernelSchemas, type KernelKind } from "./kernel-kinds.ts";
import { plainKind } from "./kind-name.ts";
import type { Registry } from "./registry.ts";
import type { Compile } from "./schema.ts";

/** An entry whose options have been validated. */
export type Checked<E extends Entry> = E & { readonly valid: boolean };
/** A service or filter before its kind is loaded. `isolate` of a filter is the kernel's, not among its options. */
export type Use = Checked<Entry> & { readonly isolate?: unknown };

export function readDocument(raw: RawDocument, found: Issues): Entry | undefined {
  return readEntry(raw, [], raw.value, undefined, found, (kind) => (kind === "Gateway" ? "gateway" : undefined));
}

export function validateKind(
  kind: KernelKind,
  entries: readonly Entry[],
  compile: Compile,
  found: Issues,
): Checked<Entry>[] {
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
export function impliedEntries(registry: Registry, written: readonly Entry[], found: Issues): Entry[] {
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

export function readFilters(pipeline: Entry, registry: Registry, found: Issues): Use[] {
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

export function validateOptions(entry: Entry, registry: Registry, found: Issues): Checked<Entry> {
  const schema = registry.schema(entry.kind);
  const validate = registry.validator(entry.kind);
  if (schema === undefined || validate === undefined) return { ...entry, valid: false };
  const family = entry.base.length === 0 ? "service" : "filter";
  // Its options would only be measured against something that it isn't meant to be.
  if (registry.family(entry.kind) !== family) return { ...entry, valid: false };
  const result = validateEntry(entry, schema, validate, found);
  return { ...result.entry, valid: result.valid };
}
