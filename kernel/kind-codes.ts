/** The code of the kinds that a config uses: imported, and asked for its own check of the options. */
import type { Checked, Use } from "./checked-entries.ts";
import type { FilterEntry } from "./checks.ts";
import type { Entry, Issues } from "./entry.ts";
import { SluiceError } from "./errors.ts";
import { inspect } from "./isolation.ts";
import { isKernelKind, kernelKindNames } from "./kernel-kinds.ts";
import type { FilterKind, ServiceKind } from "./plugin.ts";
import type { Registry } from "./registry.ts";
import { toIsolationSpec } from "./spec-builder.ts";

export type Code = FilterKind | ServiceKind;

/** Imports each kind once, where it may and not all its uses are isolated; what fails is reported at every use of it. */
export async function loadKinds(
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

export function isStore(code: Code | undefined): boolean {
  return code !== undefined && "role" in code && code.role === "store";
}

export function withCode(filter: Use, codes: ReadonlyMap<string, Code>): FilterEntry {
  const code = codes.get(filter.kind);
  const isFilter = code !== undefined && "packets" in code;
  return { ...filter, code: isFilter ? code : undefined, isolate: undefined, isolation: undefined };
}

/** Imports the kind of an isolated filter where it will run, in a thread, and has its own check of the options made there. */
export async function inspectIsolated(
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
export function runValidate(entry: Checked<Entry>, code: Code | undefined, found: Issues): void {
  if (!entry.valid || code?.validate === undefined) return;
  try {
    for (const { field, message } of code.validate(entry.options)) found.problem(entry.where(field), message);
  } catch (error) {
    found.problem(entry.where(), `the plugin's own check failed: ${(error as Error).message}`, "PLUGIN_BROKEN");
  }
}
