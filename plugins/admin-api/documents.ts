/** Text with one or more config documents -> documents as they were written: `${...}` stays what it is. */
import { LineCounter, parseAllDocuments } from "yaml";
import type { ConfigDocument } from "@sluice/kernel";

export interface DocumentProblem {
  /** `deploy.yaml:3:1`, or `deploy.yaml: document 2`. */
  readonly where: string;
  readonly message: string;
}

export interface Documents {
  readonly documents: readonly ConfigDocument[];
  readonly problems: readonly DocumentProblem[];
}

/** More uses of anchors than this, counted through one another, are an attack rather than a config. */
const maxAliasCount = 100;

/** JSON is YAML too: a JSON array, like several `---` parts, is several documents. `source` begins every `where`. */
export function readDocuments(text: string, source: string, isJson = false): Documents {
  const problems: DocumentProblem[] = [];
  const values = isJson ? parseJson(text, source, problems) : parseYaml(text, source, problems);
  const documents: ConfigDocument[] = [];
  for (const [index, value] of values.entries()) {
    const found = toDocument(value);
    if (typeof found === "string") problems.push({ where: `${source}: document ${index + 1}`, message: found });
    else documents.push(found);
  }
  const seen = new Set<string>();
  for (const { kind, name } of documents) {
    if (seen.has(`${kind} ${name}`)) problems.push({ where: source, message: `${kind} ${name} stands there twice` });
    seen.add(`${kind} ${name}`);
  }
  if (documents.length + problems.length === 0) problems.push({ where: source, message: "there is no document in it" });
  return { documents, problems };
}

function parseJson(text: string, source: string, problems: DocumentProblem[]): unknown[] {
  try {
    const value: unknown = JSON.parse(text);
    return Array.isArray(value) ? value : [value];
  } catch (error) {
    problems.push({ where: source, message: `is not JSON: ${(error as Error).message}` });
    return [];
  }
}

function parseYaml(text: string, source: string, problems: DocumentProblem[]): unknown[] {
  const lines = new LineCounter();
  try {
    const parsed = parseAllDocuments(text, { lineCounter: lines, merge: true, prettyErrors: false });
    const values: unknown[] = [];
    for (const document of parsed) {
      for (const error of document.errors) {
        const { line, col } = lines.linePos(error.pos[0]);
        problems.push({ where: `${source}:${line}:${col}`, message: error.message });
      }
      if (document.errors.length > 0) continue;
      const value: unknown = document.toJS({ maxAliasCount });
      // What is left of a file that ends with `---`, or of comments alone.
      if (value === null || value === undefined) continue;
      if (Array.isArray(value)) values.push(...(value as unknown[]));
      else values.push(value);
    }
    return values;
  } catch (error) {
    // Aliases that don't resolve or are too many, and a nesting that exhausts the stack.
    problems.push({ where: source, message: `can't be parsed: ${(error as Error).message}` });
    return [];
  }
}

/** The document, or what is wrong with it. Whether its options are right is the kernel's to say. */
function toDocument(value: unknown): ConfigDocument | string {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return "is not an object with kind and name";
  const { kind, name = kind === "Gateway" ? "gateway" : undefined } = value as Record<string, unknown>;
  if (typeof kind !== "string" || kind === "") return "has no kind";
  if (typeof name !== "string" || name === "") return `the ${kind} has no name`;
  return { ...value, kind, name };
}
