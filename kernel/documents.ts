/** YAML text -> documents whose every part knows its line and column. */
import { relative } from "node:path";
import {
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  parseAllDocuments,
  visit,
  type Alias,
  type Document,
  type ParsedNode,
  type YAMLError,
} from "yaml";
import type { Code } from "./errors.ts";
import type { Path } from "./schema.ts";
import { substitute } from "./substitution.ts";

/** `where` reads `sluice.yaml:14:7 > pipeline-mqtt-publish > publish-kafka-backend > backend`. */
export interface Problem {
  readonly where: string;
  /** What is wrong and what to do. */
  readonly message: string;
  readonly code: Code;
}

/** One document of the config as it was written, after substitution. */
export interface RawDocument {
  /** Absolute; undefined where it stands in none. */
  readonly file: string | undefined;
  /** Its number within its file, from 1. */
  readonly index: number;
  readonly value: unknown;
  /** `file:line:column` of a part, or of the nearest part around it that exists. */
  position(path: Path): string;
  /** The part was one `${ENV}` and nothing else. */
  isWhole(path: Path): boolean;
  /** The part has the content of a `${file:...}`. */
  isFromFile(path: Path): boolean;
  /** What it refers to could not be had, which is a problem already reported: its text means nothing. */
  isUnresolved(path: Path): boolean;
}

export interface Parsed {
  readonly documents: readonly RawDocument[];
  readonly problems: readonly Problem[];
  /** Some document could not be read, so that what others refer to may well be there. */
  readonly isPartial?: boolean;
}

/** More uses of anchors than this, counted through one another, are an attack rather than a config. */
const maxAliasCount = 1000;

export interface ParseOptions {
  /** Absolute. */
  readonly file: string;
  /** What positions are shown relative to. */
  readonly cwd: string;
  readonly folder: string;
  readonly env: NodeJS.ProcessEnv;
  /** Called with each file that a `${file:...}` names, absolute. */
  readonly onRead?: (file: string) => void;
}

/** A file's path as people want it: short where it is near. */
export function shownPath(file: string, cwd: string): string {
  const short = relative(cwd, file);
  return short === "" ? "." : short.startsWith("..") ? file : short;
}

/** `within`: only what stands under this key of the one document (package.json); a list there is several documents. */
export function parseDocuments(text: string, o: ParseOptions, within?: string): Parsed {
  const lines = new LineCounter();
  const file = shownPath(o.file, o.cwd);
  const position = (offset: number) => {
    const { line, col } = lines.linePos(offset);
    return `${file}:${line}:${col}`;
  };
  // `merge` for `<<`, which the YAML of Easegress' time has. An endless nesting would exhaust the parser's stack.
  let parsed: Document.Parsed[];
  try {
    const all = parseAllDocuments(text, { lineCounter: lines, merge: true, prettyErrors: false });
    parsed = Array.isArray(all) ? [...all] : [];
  } catch (error) {
    const message = `can't be parsed: ${(error as Error).message}`;
    return { documents: [], problems: [invalid(file, message)], isPartial: true };
  }
  const documents: RawDocument[] = [];
  const problems: Problem[] = [];
  let isPartial = false;
  for (const yaml of parsed) {
    // What follows the first error of a document is mostly a consequence of it.
    const error: YAMLError | undefined = yaml.errors[0] ?? yaml.warnings[0];
    if (error !== undefined) {
      problems.push(invalid(position(error.pos[0]), `the YAML is not valid: ${explain(error)}`));
      isPartial = true;
      continue;
    }
    for (const root of roots(yaml, within)) {
      // Between two `---` there may well be nothing, or comments only.
      if (root === null || (isScalar(root) && root.value === null)) continue;
      const { whole, fromFile, unresolved } = substituteIn(root, o, (node, message) =>
        problems.push(invalid(position(node.range[0]), message)),
      );
      const at = (path: Path) => locate(root, path, yaml);
      let value: unknown;
      try {
        value = root.toJS(yaml, { maxAliasCount });
      } catch (failure) {
        const alias = danglingAlias(root, yaml);
        const message =
          alias === undefined ? (failure as Error).message : `no anchor &${alias.source} comes before this`;
        problems.push(invalid(position((alias ?? root).range[0]), `the YAML is not valid: ${message}`));
        isPartial = true;
        continue;
      }
      documents.push({
        file: o.file,
        index: documents.length + 1,
        value,
        position: (path) => position(at(path).offset),
        isWhole: (path) => whole.has(at(path).node),
        isFromFile: (path) => fromFile.has(at(path).node),
        isUnresolved: (path) => unresolved.has(at(path).node),
      });
    }
  }
  if (documents.length === 0 && problems.length === 0) {
    problems.push(invalid(`${file}:1:1`, "has no document: write at least one with kind and name"));
  }
  return { documents, problems, isPartial };
}

const invalid = (where: string, message: string): Problem => ({ where, message, code: "CONFIG_INVALID" });

function roots(yaml: Document.Parsed, within: string | undefined): (ParsedNode | null)[] {
  if (within === undefined) return [yaml.contents];
  const part = isMap(yaml.contents) ? (yaml.contents.get(within, true) as ParsedNode | undefined) : undefined;
  if (part === undefined) return [];
  return isSeq(part) ? part.items : [part];
}

function danglingAlias(root: ParsedNode, yaml: Document.Parsed): Alias.Parsed | undefined {
  let found: Alias.Parsed | undefined;
  visit(root, {
    Alias(_, node) {
      if (node.resolve(yaml) !== undefined) return undefined;
      found = node as Alias.Parsed;
      return visit.BREAK;
    },
  });
  return found;
}

/** Replaces in the nodes themselves, so that text which came from outside is never parsed as YAML. */
function substituteIn(root: ParsedNode, o: ParseOptions, report: (node: ParsedNode, message: string) => void) {
  const whole = new WeakSet<object>();
  const fromFile = new WeakSet<object>();
  const unresolved = new WeakSet<object>();
  visit(root, {
    Scalar(key, node) {
      if (key === "key" || typeof node.value !== "string") return;
      const result = substitute(node.value, o);
      if (result === undefined) return;
      for (const message of result.problems) report(node as ParsedNode, message);
      node.value = result.text;
      if (result.problems.length > 0) unresolved.add(node);
      if (result.whole) whole.add(node);
      if (result.fromFile) fromFile.add(node);
    },
  });
  return { whole, fromFile, unresolved };
}

/** The node at `path` and where it begins: for a map's value that is its key. Keys in another case are found too. */
function locate(root: ParsedNode, path: Path, yaml: Document.Parsed): { node: object; offset: number } {
  let node: ParsedNode = root;
  let offset = firstOffset(root);
  for (const step of path) {
    const next = enter(isAlias(node) ? (node.resolve(yaml) as ParsedNode) : node, step, yaml);
    if (next === undefined) return { node: {}, offset };
    ({ node, offset } = next);
  }
  return { node: isAlias(node) ? ((node.resolve(yaml) as ParsedNode | undefined) ?? node) : node, offset };
}

const firstOffset = (node: ParsedNode): number => node.range[0];

function enter(
  node: ParsedNode | undefined,
  step: string | number,
  yaml: Document.Parsed,
): { node: ParsedNode; offset: number } | undefined {
  if (isSeq(node)) {
    const item = node.items[Number(step)];
    return item === undefined ? undefined : { node: item, offset: firstOffset(item) };
  }
  if (!isMap(node)) return undefined;
  const wanted = String(step);
  const nameOf = (key: unknown) => {
    if (!isScalar(key)) return "";
    // The merge key's value is a symbol.
    return typeof key.value === "symbol" ? (key.source ?? "") : String(key.value);
  };
  const pair =
    node.items.find(({ key }) => nameOf(key) === wanted) ??
    node.items.find(({ key }) => nameOf(key).toLowerCase() === wanted.toLowerCase());
  if (pair !== undefined) {
    const { key } = pair;
    return { node: pair.value ?? key, offset: firstOffset(key) };
  }
  for (const { key, value } of node.items) {
    if (nameOf(key) !== "<<") continue;
    const sources = isSeq(value) ? value.items : [value as ParsedNode];
    for (const source of sources) {
      const found = enter(isAlias(source) ? (source.resolve(yaml) as ParsedNode) : source, step, yaml);
      if (found !== undefined) return found;
    }
  }
  return undefined;
}

function explain(error: YAMLError): string {
  switch (error.code) {
    case "BLOCK_AS_IMPLICIT_KEY":
    case "MULTILINE_IMPLICIT_KEY":
      return "the next line is indented further than this one, which has a value already: align the two";
    case "TAB_AS_INDENT":
      return "a tab is used as indentation: use spaces";
    case "DUPLICATE_KEY":
      return "this key stands twice in the same map: remove one";
    case "BAD_INDENT":
    case "BAD_COLLECTION_TYPE":
      return `${error.message} (check the indentation)`;
    default:
      return error.message;
  }
}
