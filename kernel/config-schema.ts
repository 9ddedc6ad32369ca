/** One JSON Schema for any document of a config, with the options of every installed kind: what editors complete and check by. */
import { kernelKinds, kernelSchemas } from "./kernel-kinds.ts";
import type { KindInfo } from "./plugin.ts";

type Json = { readonly [key: string]: unknown };

const name = {
  type: "string",
  description: "Name, by which others refer to it: letters, digits and -_.~",
  minLength: 1,
  maxLength: 253,
};

/** Accepted for Easegress' sake on everything, with a warning. */
const tolerated = {
  version: { description: "Ignored." },
  labels: { description: "Ignored." },
  createdAt: { description: "Ignored." },
};

/** What the kernel adds to every filter. */
const { isolate } = kernelSchemas.Pipeline.properties.filters.items.properties;

/** `kinds`: those of the installed plugins. */
export function configSchema(kinds: readonly KindInfo[]): object {
  const filters = kinds.filter((one) => one.family === "filter");
  const documents = [...kernelKinds, ...kinds.filter((one) => one.family === "service")];
  const all = [...documents, ...filters];
  /** A kind that several packages provide goes by its package too. */
  const keyOf = ({ kind, package: from }: KindInfo): string =>
    all.filter((one) => one.kind === kind).length === 1 ? kind : `${from}#${kind}`;
  const reference = (info: KindInfo): Json => ({ $ref: pointerTo(keyOf(info)) });
  const definitions = all.map((info) => [keyOf(info), definition(info, keyOf(info), filters.map(reference))] as const);
  return {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    title: "Sluice config",
    description: "A document of a Sluice config; one file may hold several, separated by ---.",
    oneOf: documents.map(reference),
    $defs: Object.fromEntries(definitions),
  };
}

const pointerTo = (key: string): string => `#/$defs/${encodeURIComponent(key.replaceAll("/", "~1"))}`;

/** A kind's options with its name and kind, and its own references led to where it now stands. */
function definition(info: KindInfo, key: string, filters: readonly Json[]): Json {
  const { $schema: _, $id: _id, ...schema } = rebase(info.schema, pointerTo(key)) as Json;
  const names = info.family === "kernel" || key !== info.kind ? [key] : [key, `${info.package}#${key}`];
  const properties = schema["properties"] as Json | undefined;
  const required = (schema["required"] ?? []) as string[];
  const nameNeeded = info.kind === "Gateway" ? [] : ["name"];
  return {
    ...schema,
    properties: {
      kind: { ...(names.length === 1 ? { const: key } : { enum: names }), description: info.description },
      name,
      ...tolerated,
      ...properties,
      ...(info.family === "filter" ? { isolate: rebase(isolate, "") } : {}),
      ...(info.kind === "Pipeline" ? { filters: filterList(properties?.["filters"] as Json, filters) } : {}),
    },
    required: ["kind", ...nameNeeded, ...required],
  };
}

const filterList = (filtersSchema: Json, filters: readonly Json[]): Json => ({
  ...filtersSchema,
  items: { oneOf: filters },
});

/** What may stand for a number, a boolean or a list as well: `${PORT}`. */
const variable = "^\\$\\{[^}]+\\}$";

function rebase(schema: unknown, root: string): unknown {
  if (Array.isArray(schema)) return schema.map((part: unknown) => rebase(part, root));
  if (typeof schema !== "object" || schema === null) return schema;
  const result: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(schema)) {
    if (key === "$ref" && typeof value === "string" && value.startsWith("#")) result[key] = root + value.slice(1);
    // Data, not schemas.
    else if (["default", "const", "enum", "examples", "required"].includes(key)) result[key] = value;
    else result[key] = rebase(value, root);
  }
  const { type, enum: names } = result;
  if (typeof type === "string" && ["integer", "number", "boolean", "array"].includes(type) && names === undefined) {
    result["type"] = [type, "string"];
    result["pattern"] = variable;
  }
  return result;
}
