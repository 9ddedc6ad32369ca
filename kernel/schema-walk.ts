/** What a schema says about a value's parts: used to forgive spelling, to convert what an environment variable gave, to hide secrets. */
import type { Path } from "./schema.ts";

type Schema = Readonly<Record<string, unknown>>;

/** How deep configs and schemas may nest: more is a mistake or an attack. */
export const maxDepth = 100;

const isMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** The schema and all that it refers to or combines: a value's parts may be described by any of them. */
function open(schema: unknown, root: Schema, seen = new Set<unknown>()): Schema[] {
  if (!isMap(schema) || seen.has(schema)) return [];
  seen.add(schema);
  const found: Schema[] = [schema];
  const ref = schema["$ref"];
  if (typeof ref === "string" && ref.startsWith("#")) found.push(...open(pointer(root, ref), root, seen));
  for (const keyword of ["allOf", "anyOf", "oneOf"]) {
    const parts = schema[keyword];
    if (Array.isArray(parts)) for (const part of parts) found.push(...open(part, root, seen));
  }
  for (const keyword of ["then", "else"]) found.push(...open(schema[keyword], root, seen));
  return found;
}

function pointer(root: Schema, ref: string): unknown {
  let at: unknown = root;
  for (const key of ref.split("/").slice(1)) {
    if (!isMap(at) && !Array.isArray(at)) return undefined;
    at = (at as Record<string, unknown>)[decodeURIComponent(key).replaceAll("~1", "/").replaceAll("~0", "~")];
  }
  return at;
}

function ofKey(schemas: readonly Schema[], key: string, root: Schema): Schema[] {
  return schemas.flatMap((schema) => {
    const properties = schema["properties"];
    if (isMap(properties) && Object.hasOwn(properties, key)) return open(properties[key], root);
    const patterns = schema["patternProperties"];
    if (isMap(patterns)) {
      const hit = Object.keys(patterns).find((pattern) => new RegExp(pattern, "u").test(key));
      if (hit !== undefined) return open(patterns[hit], root);
    }
    return open(schema["additionalProperties"], root);
  });
}

function ofIndex(schemas: readonly Schema[], index: number, root: Schema): Schema[] {
  return schemas.flatMap((schema) => {
    const prefix = schema["prefixItems"];
    if (Array.isArray(prefix) && index < prefix.length) return open(prefix[index], root);
    return open(schema["items"], root);
  });
}

const knownKeys = (schemas: readonly Schema[]): string[] =>
  schemas.flatMap((schema) => (isMap(schema["properties"]) ? Object.keys(schema["properties"]) : []));

const typesOf = (schemas: readonly Schema[]): Set<unknown> =>
  new Set(schemas.flatMap((schema) => schema["type"] ?? []).flat());

interface Hooks {
  /** Another value for this part, which is then not gone into; or undefined to go on. */
  part?(value: unknown, path: Path, schemas: readonly Schema[]): { value: unknown } | undefined;
  /** The key to use for `key`, or undefined to leave it out. */
  key?(
    key: string,
    value: unknown,
    path: Path,
    schemas: readonly Schema[],
    keys: readonly string[],
  ): string | undefined;
}

/** A copy of `value`, part by part, each with what the schema says of it. Throws RangeError beyond {@link maxDepth}. */
function copy(value: unknown, path: Path, schemas: readonly Schema[], root: Schema, hooks: Hooks): unknown {
  if (path.length > maxDepth) throw new RangeError(`is nested more than ${maxDepth} levels deep, or contains itself`);
  const other = hooks.part?.(value, path, schemas);
  if (other !== undefined) return other.value;
  if (Array.isArray(value)) {
    return value.map((item, index) => copy(item, [...path, index], ofIndex(schemas, index, root), root, hooks));
  }
  if (!isMap(value)) return value;
  const keys = Object.keys(value);
  const entries: [string, unknown][] = [];
  for (const original of keys) {
    const key = hooks.key === undefined ? original : hooks.key(original, value[original], path, schemas, keys);
    if (key === undefined) continue;
    entries.push([key, copy(value[original], [...path, key], ofKey(schemas, key, root), root, hooks)]);
  }
  // Unlike assignment, fromEntries makes even `__proto__` a property like any other.
  return Object.fromEntries(entries);
}

/**
 * A copy that is nearer to what the schema asks for: keys in another case get the schema's (each reported), options
 * given without a value are left out, and strings for which `converts` answers true become the number, boolean or list
 * that the schema wants.
 */
export function fit(
  value: unknown,
  schema: object,
  o: { readonly converts: (path: Path) => boolean; readonly renamed: (path: Path, key: string) => void },
): unknown {
  const root = schema as Schema;
  return copy(value, [], open(root, root), root, {
    key(key, part, path, schemas, keys) {
      const known = knownKeys(schemas);
      let name = key;
      if (!known.includes(key)) {
        const right = known.find((candidate) => candidate.toLowerCase() === key.toLowerCase());
        if (right !== undefined && !keys.includes(right)) {
          name = right;
          o.renamed([...path, right], key);
        }
      }
      const empty = part === null && known.includes(name) && !typesOf(ofKey(schemas, name, root)).has("null");
      return empty ? undefined : name;
    },
    part(part, path, schemas) {
      if (typeof part !== "string" || !o.converts(path)) return undefined;
      return { value: convert(part, typesOf(schemas)) };
    },
  });
}

function convert(text: string, types: ReadonlySet<unknown>): unknown {
  if (types.has("string") || types.size === 0) return text;
  const trimmed = text.trim();
  if (types.has("array")) {
    return trimmed
      .split(",")
      .map((part) => part.trim())
      .filter((part) => part !== "");
  }
  if (types.has("boolean") && /^(true|false)$/.test(trimmed)) return trimmed === "true";
  if (types.has("integer") && /^-?\d+$/.test(trimmed)) return Number(trimmed);
  if (types.has("number") && /^-?\d+(\.\d+)?([eE][-+]?\d+)?$/.test(trimmed)) return Number(trimmed);
  return text;
}

/** A copy whose secrets (`writeOnly` in the schema, or `secret(path)`) read `***`. */
export function redact(value: unknown, schema: object, secret: (path: Path) => boolean): unknown {
  const root = schema as Schema;
  return copy(value, [], open(root, root), root, {
    part(part, path, schemas) {
      if (path.length === 0 || part === null || part === undefined) return undefined;
      return secret(path) || schemas.some((one) => one["writeOnly"] === true) ? { value: "***" } : undefined;
    },
  });
}
