/** A plugin's entry: imported under a deadline, and its default export checked against what its manifest says. */
import { pathToFileURL } from "node:url";
import { within } from "./deadline.ts";
import { SluiceError } from "./errors.ts";
import type { FilterKind, PacketType, ServiceKind } from "./plugin.ts";

/** How long a plugin's module may take to import. */
export const standardImportDeadlineMs = 10_000;

export const packetTypes: readonly PacketType[] = ["Connect", "Publish", "Subscribe", "Unsubscribe", "Disconnect"];

/** What there is to import. */
export interface KindSource {
  readonly kind: string;
  readonly family: "filter" | "service";
  readonly package: string;
  readonly version: string;
  /** Absolute. */
  readonly entry: string;
}

/** By which URL a file of the package is imported, where there may be an earlier version of it in memory. */
export interface EntryUrls {
  url(file: string): Promise<string>;
  /** An import by this URL has failed. */
  failed(url: string): void;
}

/** @throws SluiceError PLUGIN_BROKEN, PLUGIN_DEPENDENCY_MISSING, PLUGIN_START_TIMEOUT */
export async function importKind(
  { kind, family, package: name, entry }: KindSource,
  deadlineMs: number,
  urls?: EntryUrls,
): Promise<FilterKind | ServiceKind> {
  const url = await urls?.url(entry);
  const module = await importWithin(entry, `${kind} of the package ${name}`, deadlineMs, url).catch(
    (error: unknown) => {
      if (url !== undefined) urls?.failed(url);
      throw error;
    },
  );
  const code = defaultExport(module);
  const faults = family === "filter" ? filterFaults(kind, code) : serviceFaults(kind, code);
  if (faults.length > 0) {
    throw new SluiceError(
      "PLUGIN_BROKEN",
      `the package ${name} can't be used: the default export of ${entry} ${faults.join(", and ")}`,
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
  const late = (): SluiceError =>
    new SluiceError(
      "PLUGIN_START_TIMEOUT",
      `${what} did not finish importing within ${deadlineMs / 1000} s: ${entry} waits for something at its top level`,
    );
  try {
    return await within(deadlineMs, import(url), late);
  } catch (error) {
    throw importError(error, entry, what);
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
