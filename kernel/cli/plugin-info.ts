/** `sluice plugin info`. */
import { SluiceError } from "../errors.ts";
import { kernelKinds } from "../kernel-kinds.ts";
import { parseKindName } from "../kind-name.ts";
import { optionRows } from "../option-rows.ts";
import type { KindInfo } from "../plugin.ts";
import { columns } from "./columns.ts";
import type { Cli, SubcommandOptions } from "./main.ts";
import { withPlugins } from "./plugin-io.ts";

type Schema = { readonly [keyword: string]: unknown };

export function info(cli: Cli, [written = ""]: readonly string[], options: SubcommandOptions): Promise<number> {
  return withPlugins(cli, "info", options, async ({ installed: { registry } }) => {
    const wanted = parseKindName(written);
    const fits = (each: KindInfo): boolean =>
      each.kind === wanted.kind && (wanted.package ?? each.package) === each.package;
    const found = [...kernelKinds, ...registry.kinds()].filter(fits);
    // The registry says why.
    if (found.length === 0)
      registry.find(
        written,
        kernelKinds.map(({ kind }) => kind),
      );
    if (found.length > 1) {
      const names = found.map((each) => `${each.package}#${each.kind}`).join(" or ");
      throw new SluiceError("PLUGIN_DUPLICATE_KIND", `several packages provide ${written}: say ${names}`);
    }
    for (const each of found) cli.stdout.write(describeKind(each, written));
    return 0;
  });
}

/** @param name as it is to be written in a config */
function describeKind(kind: KindInfo, name: string): string {
  const schema = kind.schema as Schema;
  const rows = optionRows(schema).map(({ option, type, isRequired, standard, description }) => [
    option,
    type.replaceAll("`", ""),
    isRequired ? "required" : standard === undefined ? "-" : JSON.stringify(standard),
    description ?? "",
  ]);
  const table = rows.length === 0 ? "none\n" : columns(["OPTION", "TYPE", "DEFAULT", "MEANING"], rows);
  return [
    `${name}: ${kind.family === "kernel" ? "a kind of the kernel" : `a ${kind.family}`}, of ${kind.package} ${kind.version}\n`,
    kind.description && `${kind.description}\n`,
    `\nOptions\n\n${table}`,
    `\nExample\n\n${example(kind, name)}`,
  ].join("");
}

/** The schema's own first, else what can't be left out, each with a value of its type. */
function example({ schema, family, kind }: KindInfo, name: string): string {
  const { examples } = schema as { examples?: unknown };
  const [own] = Array.isArray(examples) ? (examples as unknown[]) : [];
  const options =
    typeof own === "object" && own !== null ? own : (sample(schema as Schema, schema as Schema) as object);
  const lines = Object.entries({ name: kind.toLowerCase(), kind: name, ...options }).map(
    ([key, value]) =>
      `${key}: ${typeof value === "string" && /^[\w][\w./-]*$/.test(value) ? value : JSON.stringify(value)}`,
  );
  if (family !== "filter") return lines.map((line) => `${line}\n`).join("");
  return lines.map((line, index) => `${index === 0 ? "- " : "  "}${line}\n`).join("");
}

function sample(schema: Schema, root: Schema, depth = 0): unknown {
  if (schema["default"] !== undefined) return schema["default"];
  const [first] = [schema["examples"], schema["enum"]].flatMap((values) =>
    Array.isArray(values) ? (values as unknown[]) : [],
  );
  if (first !== undefined) return first;
  const ref = schema["$ref"];
  const definitions = (root["$defs"] ?? {}) as Record<string, Schema>;
  if (typeof ref === "string") return sample(definitions[ref.replace("#/$defs/", "")] ?? {}, root, depth + 1);
  switch (schema["type"]) {
    case "object": {
      const properties = (schema["properties"] ?? {}) as Record<string, Schema>;
      const required = depth > 5 ? [] : ((schema["required"] ?? []) as string[]);
      return Object.fromEntries(required.map((key) => [key, sample(properties[key] ?? {}, root, depth + 1)]));
    }
    case "array":
      return Number(schema["minItems"] ?? 0) > 0 ? [sample((schema["items"] ?? {}) as Schema, root, depth + 1)] : [];
    case "integer":
    case "number":
      return schema["minimum"] ?? 1;
    case "boolean":
      return false;
    default:
      return "...";
  }
}
