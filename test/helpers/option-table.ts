/** The options of a kind as rows of a page's table, from its JSON Schema. */

type Schema = { readonly [keyword: string]: unknown };

export const optionHead = ["Option", "Type", "Default", "Meaning"] as const;

/** Option, type, default, meaning; in the schema's order, what is inside an option right behind it. */
export function optionRows(schema: Schema, root: Schema = schema, prefix = ""): string[][] {
  const required = (schema["required"] ?? []) as string[];
  return Object.entries((schema["properties"] ?? {}) as Record<string, Schema>).flatMap(([name, written]) => {
    const option = resolve(written, root);
    const description = written["description"] ?? option["description"];
    if (typeof description !== "string") throw new Error(`${prefix}${name} has no description`);
    const items = option["items"] === undefined ? undefined : resolve(option["items"] as Schema, root);
    const type = typeOf(items ? { ...option, items } : option);
    const row = [`\`${prefix}${name}\``, type, defaultOf(option, required.includes(name)), description];
    const branches = (option["anyOf"] ?? []) as Schema[];
    const inside = [
      ...optionRows(option, root, `${prefix}${name}.`),
      ...branches.flatMap((branch) => optionRows(branch, root, `${prefix}${name}.`)),
      ...(items ? optionRows(items, root, `${prefix}${name}[].`) : []),
    ];
    return [row, ...inside];
  });
}

/** As a page holds it. */
export function optionTable(schema: Schema): string {
  const row = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  return [row(optionHead), row(optionHead.map(() => "---")), ...optionRows(schema).map(row)].join("\n");
}

function resolve(schema: Schema, root: Schema): Schema {
  const ref = schema["$ref"];
  if (typeof ref !== "string") return schema;
  const definitions = root["$defs"] as Record<string, Schema>;
  return definitions[ref.replace("#/$defs/", "")] ?? {};
}

const names: Readonly<Record<string, string>> = { object: "map", array: "list", integer: "whole number" };

function typeOf(schema: Schema): string {
  const values = schema["enum"] as unknown[] | undefined;
  if (values) return values.map((value) => `\`${String(value)}\``).join(", ");
  const type = schema["type"];
  if (type === "array") {
    const items = typeOf((schema["items"] ?? {}) as Schema);
    return items === "map" ? "list of maps" : `list of ${items}s`;
  }
  if (typeof type === "string") return names[type] ?? type;
  const branches = schema["anyOf"] as Schema[] | undefined;
  return branches ? branches.map(typeOf).join(" or ") : "any";
}

function defaultOf(schema: Schema, isRequired: boolean): string {
  if (isRequired) return "required";
  const value = schema["default"];
  // A map's default is its members'.
  if (value === undefined || (typeof value === "object" && schema["properties"] !== undefined)) return "-";
  return `\`${typeof value === "string" && value !== "" ? value : JSON.stringify(value)}\``;
}
