/** The options of a kind as rows of a page's table. */
import { optionRows as rowsOf } from "../../kernel/option-rows.ts";

type Schema = { readonly [keyword: string]: unknown };

export const optionHead = ["Option", "Type", "Default", "Meaning"] as const;

/** Option, type, default, meaning; in the schema's order, what is inside an option right behind it. */
export function optionRows(schema: Schema): string[][] {
  return rowsOf(schema).map(({ option, type, isRequired, standard, description }) => {
    if (description === undefined) throw new Error(`${option} has no description`);
    return [`\`${option}\``, type, isRequired ? "required" : defaultOf(standard), description];
  });
}

/** As a page holds it. */
export function optionTable(schema: Schema): string {
  const row = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  return [row(optionHead), row(optionHead.map(() => "---")), ...optionRows(schema).map(row)].join("\n");
}

function defaultOf(value: unknown): string {
  if (value === undefined) return "-";
  return `\`${typeof value === "string" && value !== "" ? value : JSON.stringify(value)}\``;
}
