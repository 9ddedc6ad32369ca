/** Problems as lines for people; editors and terminals make `file:line:column` at their beginning clickable. */
import { styleText } from "node:util";
import type { Problem } from "../config.ts";

export function problemLine({ where, message }: Problem, sort: "problem" | "warning", colors: boolean): string {
  const paint = (style: Parameters<typeof styleText>[0], text: string) =>
    colors ? styleText(style, text, { validateStream: false }) : text;
  const prefix = sort === "warning" ? `${paint("yellow", "warning")}: ` : "";
  return `${prefix}${paint("bold", where)}: ${message}\n`;
}

export const count = (number: number, noun: string): string =>
  `${number === 0 ? "no" : number} ${noun}${number === 1 ? "" : "s"}`;
