/** The options of a kind as rows, from its JSON Schema: for people, in a terminal or on a page. */

type Schema = { readonly [keyword: string]: unknown };

export interface OptionRow {
  /** With what it is in: `route[].topic`. */
  readonly option: string;
  /** In plain words: `list of strings`. */
  readonly type: string;
  readonly isRequired: boolean;
  /** Undefined where there is none, or where it is its members'. */
  readonly standard: unknown;
  readonly description: string | undefined;
}

/** In the schema's order, what is inside an option right behind it. */
export function optionRows(
  schema: Schema,
  root: Schema = schema,
  prefix = "",
  seen: readonly Schema[] = [],
): OptionRow[] {
  // A schema may refer to itself.
  if (seen.includes(schema)) return [];
  const inner = [...seen, schema];
  const required = (schema["required"] ?? []) as string[];
  return Object.entries((schema["properties"] ?? {}) as Record<string, Schema>).flatMap(([name, written]) => {
    const option = resolve(written, root);
    const description = written["description"] ?? option["description"];
    const items = option["items"] as Schema | undefined;
    const branches = (option["anyOf"] ?? []) as Schema[];
    const isMapOfOptions = typeof option["default"] === "object" && option["properties"] !== undefined;
    return [
      {
        option: `${prefix}${name}`,
        type: typeOf(option, root),
        isRequired: required.includes(name),
        standard: isMapOfOptions ? undefined : option["default"],
        description: typeof description === "string" ? description : undefined,
      },
      ...optionRows(option, root, `${prefix}${name}.`, inner),
      ...branches.flatMap((branch) => optionRows(branch, root, `${prefix}${name}.`, inner)),
      ...(items ? optionRows(resolve(items, root), root, `${prefix}${name}[].`, inner) : []),
    ];
  });
}

function resolve(schema: Schema, root: Schema): Schema {
  const ref = schema["$ref"];
  if (typeof ref !== "string") return schema;
  const definitions = (root["$defs"] ?? {}) as Record<string, Schema>;
  return definitions[ref.replace("#/$defs/", "")] ?? {};
}

const names: Readonly<Record<string, string>> = { object: "map", array: "list", integer: "whole number" };

function typeOf(schema: Schema, root: Schema): string {
  const values = schema["enum"] as unknown[] | undefined;
  if (values) return values.map((value) => `\`${String(value)}\``).join(", ");
  const type = schema["type"];
  if (type === "array") {
    const items = typeOf(resolve((schema["items"] ?? {}) as Schema, root), root);
    return items === "map" ? "list of maps" : `list of ${items}s`;
  }
  if (typeof type === "string") return names[type] ?? type;
  if (Array.isArray(type)) return type.map((each) => typeOf({ type: each as string }, root)).join(" or ");
  const branches = schema["anyOf"] as Schema[] | undefined;
  return branches ? branches.map((branch) => typeOf(branch, root)).join(" or ") : "any";
}
