/** The plugins that a config could use, for commands that look at them or change them. */
import { stat } from "node:fs/promises";
import { impliedEntries, readDocument, validateKind } from "./checked-entries.ts";
import { checkTrust } from "./checks.ts";
import { readConfigFiles } from "./config-files.ts";
import type { LoadOptions } from "./config.ts";
import { isMap, issues, type Entry } from "./entry.ts";
import { findPlugins, type Registry } from "./registry.ts";
import { schemaCompiler } from "./schema.ts";
import { toGatewaySpec } from "./spec-builder.ts";

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
