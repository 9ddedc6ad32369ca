/** One document's text changed so that it says something else, every byte that need not change left as it is. */
import { isDeepStrictEqual } from "node:util";
import {
  isAlias,
  isMap,
  isScalar,
  isSeq,
  parseAllDocuments,
  stringify,
  type Document,
  type ParsedNode,
  type ToStringOptions,
  type YAMLMap,
  type YAMLSeq,
} from "yaml";

interface Edit {
  readonly start: number;
  readonly end: number;
  readonly text: string;
}

interface Source {
  readonly text: string;
  readonly yaml: Document.Parsed;
  readonly isJson: boolean;
}

type Parts = Readonly<Record<string, unknown>>;

const isParts = (value: unknown): value is Parts =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const style: ToStringOptions = { lineWidth: 0, indentSeq: false };

/** As where the config is read. */
const limits = { maxAliasCount: 1000 };

/** The one document in `text`; undefined where it holds none, several, or what is no YAML. */
export function readDocumentText(text: string): { value: unknown } | undefined {
  const yaml = parseOne(text);
  try {
    return yaml && { value: yaml.toJS(limits) as unknown };
  } catch {
    // An alias whose anchor has gone.
    return undefined;
  }
}

function parseOne(text: string): Document.Parsed | undefined {
  const all = parseAllDocuments(text, { merge: true, prettyErrors: false });
  const [yaml, ...rest] = Array.isArray(all) ? all : [];
  return yaml && rest.length === 0 && yaml.errors.length === 0 ? yaml : undefined;
}

/** A document as YAML, or JSON, that ends with a line break. */
export function renderDocument(value: unknown, isJson: boolean): string {
  return isJson ? `${JSON.stringify(value, null, 2)}\n` : stringify(value, { ...style, aliasDuplicateObjects: false });
}

/**
 * `text`, which holds one document, so that it reads as `wanted`: comments, order, anchors and spelling of what is the
 * same stay. Where the parts can't be changed one by one, the whole document is written anew under its head comment.
 */
export function editDocument(text: string, wanted: unknown, isJson: boolean): string {
  const whole = text.endsWith("\n") ? text : `${text}\n`;
  const yaml = parseOne(whole);
  const root = yaml?.contents;
  if (!yaml || !root) return renderDocument(wanted, isJson);
  const edits = editsFor(root, wanted, { text: whole, yaml, isJson });
  if (edits?.length === 0) return text;
  const edited = edits && applyEdits(whole, edits);
  if (edited !== undefined && isDeepStrictEqual(readDocumentText(edited)?.value, wanted)) return edited;
  const before = whole.slice(0, root.range[0]).replace(/[ \t]+$/, "");
  const head = before === "" || before.endsWith("\n") ? before : `${before}\n`;
  return head + renderDocument(wanted, isJson);
}

function applyEdits(text: string, edits: readonly Edit[]): string {
  let result = "";
  let at = 0;
  for (const { start, end, text: by } of edits.toSorted((a, b) => a.start - b.start)) {
    result += text.slice(at, start) + by;
    at = Math.max(at, end);
  }
  return result + text.slice(at);
}

/** Undefined where the node has to be written anew. */
function editsFor(node: ParsedNode, wanted: unknown, source: Source): Edit[] | undefined {
  if (isDeepStrictEqual(node.toJS(source.yaml, limits), wanted)) return [];
  if (isAlias(node)) return undefined;
  if (isMap(node) && isParts(wanted)) return mapEdits(node, wanted, source);
  if (isSeq(node) && Array.isArray(wanted)) return listEdits(node, wanted, source);
  return undefined;
}

const keyOf = (key: unknown): string => (isScalar(key) ? String(key.value) : "");

function mapEdits(map: YAMLMap.Parsed, wanted: Parts, source: Source): Edit[] | undefined {
  const { text, isJson } = source;
  const isGone = (key: unknown): boolean => !Object.hasOwn(wanted, keyOf(key));
  const names = new Set(map.items.map(({ key }) => keyOf(key)));
  const added = Object.entries(wanted).filter(([name]) => !names.has(name));
  // `<<` is a symbol: what it brings stands elsewhere.
  const isPlain = map.items.every(({ key }) => isScalar(key) && typeof key.value !== "symbol");
  if (!isPlain || map.items.every(({ key }) => isGone(key))) return undefined;
  if (map.flow && (added.length > 0 || map.items.some(({ key }) => isGone(key)))) return undefined;
  const edits: Edit[] = [];
  for (const { key, value } of map.items) {
    const colon = text.indexOf(":", key.range[1]);
    const end = value && value.range[1] > colon ? value.range[1] : colon + 1;
    if (isGone(key)) {
      const lines = wholeLines(text, key.range[0], end);
      if (!lines) return undefined;
      edits.push({ ...lines, text: "" });
      continue;
    }
    const next = wanted[keyOf(key)];
    const inner = value ? editsFor(value, next, source) : undefined;
    if (inner) edits.push(...inner);
    else if (map.flow) edits.push({ start: colon + 1, end, text: ` ${inFlow(next, text, key.range[0], isJson)}` });
    else edits.push(replaced(text, colon + 1, end, blockValue(next, value), columnOf(text, key.range[0])));
  }
  if (added.length > 0) {
    const at = nextLine(text, map.range[1]);
    const lines = stringify(Object.fromEntries(added), style);
    const indent = " ".repeat(columnOf(text, map.items[0]!.key.range[0]));
    edits.push({ start: at, end: at, text: indent + indented(lines.trimEnd(), indent) + "\n" });
  }
  return edits;
}

function listEdits(list: YAMLSeq.Parsed, wanted: readonly unknown[], source: Source): Edit[] | undefined {
  const { text, yaml, isJson } = source;
  const { items } = list;
  if (items.length === 0 || wanted.length === 0 || (list.flow && items.length !== wanted.length)) return undefined;
  const column = columnOf(text, list.range[0]);
  const edits: Edit[] = [];
  // Fewer: the rest must be as it was, or which ones are gone can't be told.
  let at = 0;
  const isShorter = wanted.length < items.length;
  for (const item of items) {
    if (isShorter && !isDeepStrictEqual(item.toJS(yaml, limits), wanted[at])) {
      const dash = text.lastIndexOf("-", item.range[0] - 1);
      const lines = dash < 0 ? undefined : wholeLines(text, dash, item.range[1]);
      if (!lines) return undefined;
      edits.push({ ...lines, text: "" });
      continue;
    }
    const next = wanted[at++];
    const inner = editsFor(item, next, source);
    const [start, end] = item.range;
    if (inner) edits.push(...inner);
    else if (list.flow) edits.push({ start, end, text: inFlow(next, text, start, isJson) });
    else edits.push(replaced(text, start, end, stringify([next], style).slice(2), column));
  }
  if (at < wanted.length && isShorter) return undefined;
  if (at < wanted.length) {
    const start = nextLine(text, list.range[1]);
    const indent = " ".repeat(column);
    const lines = stringify(wanted.slice(at), style).trimEnd();
    edits.push({ start, end: start, text: `${indent}${indented(lines, indent)}\n` });
  }
  return edits;
}

/** What stands behind `key:`; a list or map that was on one line stays so while it is simple. */
function blockValue(value: unknown, old: ParsedNode | null): string {
  const wasFlow = (isMap(old) || isSeq(old)) && old.flow === true;
  const parts = typeof value === "object" && value !== null ? Object.values(value) : [];
  const isSimple = parts.length > 0 && parts.every((part) => typeof part !== "object" || part === null);
  if (wasFlow && isSimple)
    return ` ${stringify(value, { ...style, collectionStyle: "flow", flowCollectionPadding: false })}`;
  return stringify({ a: value }, style).slice(2);
}

function replaced(text: string, start: number, end: number, by: string, column: number): Edit {
  const lines = indented(by.trimEnd(), " ".repeat(column));
  return { start, end, text: text.slice(start, end).endsWith("\n") ? `${lines}\n` : lines };
}

function inFlow(value: unknown, text: string, at: number, isJson: boolean): string {
  if (!isJson) return JSON.stringify(value);
  const line = text.slice(text.lastIndexOf("\n", at - 1) + 1);
  return indented(JSON.stringify(value, null, 2), /^[ \t]*/.exec(line)?.[0] ?? "");
}

/** All lines but the first. */
const indented = (text: string, indent: string): string => text.replaceAll(/\n(?=[^\n])/g, `\n${indent}`);

const columnOf = (text: string, offset: number): number => offset - (text.lastIndexOf("\n", offset - 1) + 1);

/** Where the line that ends at or after `offset` has ended. */
function nextLine(text: string, offset: number): number {
  if (text[offset - 1] === "\n") return offset;
  const end = text.indexOf("\n", offset);
  return end < 0 ? text.length : end + 1;
}

/** The lines of a part that is alone on them. */
function wholeLines(text: string, start: number, end: number): { start: number; end: number } | undefined {
  const from = text.lastIndexOf("\n", start - 1) + 1;
  return text.slice(from, start).trim() === "" ? { start: from, end: nextLine(text, end) } : undefined;
}
