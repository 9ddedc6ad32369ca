/** What has a kind, a name and options: a document, or a filter in one. Read, fitted to its kind's schema and validated here. */
import type { Code } from "./errors.ts";
import type { Problem, RawDocument } from "./documents.ts";
import { fit } from "./schema-walk.ts";
import type { Path, Validate } from "./schema.ts";

export type Options = Record<string, unknown>;

/** Collects; nothing stops at the first problem. */
export interface Issues {
  readonly problems: Problem[];
  readonly warnings: Problem[];
  problem(where: string, message: string, code?: Code): void;
  warning(where: string, message: string): void;
}

export function issues(): Issues {
  const problems: Problem[] = [];
  const warnings: Problem[] = [];
  return {
    problems,
    warnings,
    problem: (where, message, code = "CONFIG_INVALID") => void problems.push({ where, message, code }),
    warning: (where, message) => void warnings.push({ where, message, code: "CONFIG_INVALID" }),
  };
}

export interface Entry {
  readonly kind: string;
  /** Empty where it has none, which is a problem already reported. */
  readonly name: string;
  /** Without name and kind; defaults applied by {@link validateEntry}. */
  readonly options: Options;
  /** The document that it is, or is in, and where in it. */
  readonly raw: RawDocument;
  readonly base: Path;
  /** `file:line:column > document > filter > field`. */
  where(path?: Path): string;
}

/** Keys that Easegress allows on everything and that mean nothing here. */
const tolerated = ["version", "labels", "createdAt"];
const head = { properties: Object.fromEntries(["kind", "name", ...tolerated].map((key) => [key, {}])) };

export const isMap = (value: unknown): value is Options =>
  typeof value === "object" && value !== null && !Array.isArray(value);

export const fieldPath = (path: Path): string =>
  path.map((key, index) => (typeof key === "number" ? `[${key}]` : index === 0 ? key : `.${key}`)).join("");

/** Easegress' rule for names. */
const nameRule = /^[\p{L}\p{N}\-_.~]{1,253}$/u;

/**
 * Reads the kind and name of what stands at `base` of a document. `parent` is the label of what it is in. Undefined, and
 * a problem, where it is no map or has no kind.
 */
export function readEntry(
  raw: RawDocument,
  base: Path,
  value: unknown,
  parent: string | undefined,
  found: Issues,
  defaultName?: (kind: string) => string | undefined,
): Entry | undefined {
  const ordinal = parent === undefined ? `document ${raw.index}` : fieldPath(base);
  let label = ordinal;
  const labels = () => [parent, label].filter((part) => part !== undefined).join(" > ");
  const where = (path: Path = []) =>
    [raw.position([...base, ...path]), labels(), ...(path.length === 0 ? [] : [fieldPath(path)])].join(" > ");
  if (!isMap(value)) {
    found.problem(where(), "must be a map with kind and name");
    return undefined;
  }
  let all: Options;
  const renamed: { path: Path; key: string }[] = [];
  try {
    all = fit(value, head, { converts: () => false, renamed: (path, key) => renamed.push({ path, key }) }) as Options;
  } catch (error) {
    found.problem(where(), (error as Error).message);
    return undefined;
  }
  const { kind, name, ...options } = all;
  const given = typeof name === "string" ? name : typeof kind === "string" ? defaultName?.(kind) : undefined;
  if (given !== undefined && given !== "") label = given;
  for (const { path, key } of renamed) found.warning(where(path), spelling(path, key));
  if (name !== undefined && typeof name !== "string") {
    found.problem(where(["name"]), "must be a string: put it in quotes");
  } else if (given === undefined) {
    found.problem(where(["name"]), "is missing: give it a name");
  } else if (!nameRule.test(given)) {
    found.problem(
      where(["name"]),
      `${JSON.stringify(given)} is not a valid name: use 1 to 253 letters, digits and -_.~`,
    );
  }
  if (typeof kind !== "string" || kind === "") {
    found.problem(
      where(["kind"]),
      kind === undefined ? "is missing: say what it is" : "must be a string that names a kind",
    );
    return undefined;
  }
  return {
    kind,
    name: given ?? "",
    options,
    raw,
    base,
    where,
  };
}

const spelling = (path: Path, key: string) => `is written "${key}": write "${String(path.at(-1))}"`;

/** The entry with its options fitted to the schema and defaults applied; `valid` false where problems were found. */
export function validateEntry<E extends Entry>(
  entry: E,
  schema: object,
  validate: Validate,
  found: Issues,
): { entry: E; valid: boolean } {
  const own = (schema as { properties?: Options }).properties ?? {};
  const options = { ...entry.options };
  for (const key of tolerated) {
    if (!(key in options) || key in own) continue;
    found.warning(entry.where([key]), "is ignored: it has no meaning here");
    delete options[key];
  }
  let fitted: Options;
  try {
    fitted = fit(options, schema, {
      converts: (path) => entry.raw.isWhole([...entry.base, ...path]),
      renamed: (path, key) => found.warning(entry.where(path), spelling(path, key)),
    }) as Options;
  } catch (error) {
    found.problem(entry.where(), (error as Error).message);
    return { entry, valid: false };
  }
  const faults = validate(fitted, (path) => entry.raw.isFromFile([...entry.base, ...path]));
  for (const fault of faults) {
    if (entry.raw.isUnresolved([...entry.base, ...fault.path])) continue;
    found.problem(entry.where(fault.path), fault.message);
  }
  return { entry: { ...entry, options: fitted }, valid: faults.length === 0 };
}
