/** A change of documents -> new texts of the config's files. Pure: nothing is read or written here. */
import { createHash } from "node:crypto";
import { basename, join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { LoadedSpec, WrittenDocument } from "./config.ts";
import { configError, SluiceError } from "./errors.ts";
import { plainKind } from "./kind-name.ts";
import { reveal } from "./masked.ts";
import type { ConfigChange, ConfigDocument } from "./plugin.ts";
import { editDocument, readDocumentText, renderDocument } from "./yaml-edit.ts";

/** The files as they are: of a {@link LoadedSpec}. */
export type Written = Pick<LoadedSpec, "path" | "texts" | "written">;

/** One file's text between its `---`, so that each part can be changed alone. */
interface Section {
  /** What follows the `---`, its line break included; of the first one what stands before any. */
  readonly text: string;
  readonly document: { readonly kind: string; readonly name: string } | undefined;
}

/** Easegress' rule for names, which also keeps a file that is named after a document inside the config's folder. */
const nameRule = /^[\p{L}\p{N}\-_.~]{1,253}$/u;

/**
 * The new text of each file that changes; undefined where the file goes. `shown` are the running documents, whose `***`
 * stand for secrets.
 * @throws SluiceError CONFIG_INVALID, CONFIG_NOT_FOUND, CONFIG_READ_ONLY
 */
export function changeTexts(
  now: Written,
  change: ConfigChange,
  shown: readonly ConfigDocument[],
): Map<string, string | undefined> {
  for (const file of now.texts.keys()) {
    if (basename(file) !== "package.json") continue;
    throw new SluiceError("CONFIG_READ_ONLY", `${file} is not changed from here: move the config to a file of its own`);
  }
  const files = new Map([...now.texts].map(([file, text]) => [file, split(file, text, now.written)]));
  for (const wanted of change.remove ?? []) remove(files, wanted, shown);
  for (const document of change.put ?? []) put(files, now, asWritten(document), shown);
  const changed = new Map<string, string | undefined>();
  for (const [file, sections] of files) {
    const text = sections.some((section) => section.document) ? joined(sections) : undefined;
    if (text === now.texts.get(file)) continue;
    if (text === undefined && file === now.path)
      throw configError([{ where: file, message: "this would leave no document: a config has at least one" }]);
    changed.set(file, text);
  }
  return changed;
}

/** What has to be put and removed to come from one to the other: as it is written, `${...}` included. */
export function changeBetween(before: Written, after: Written): ConfigChange {
  const [old, next] = [documentsOf(before), documentsOf(after)];
  return {
    put: [...next].filter(([key, document]) => !isDeepStrictEqual(old.get(key), document)).map(([, each]) => each),
    remove: [...old].filter(([key]) => !next.has(key)).map(([, { kind, name }]) => ({ kind, name })),
  };
}

/** Of the documents as they are written, whatever their order, files and comments. */
export function digestOf(written: Written): string {
  let texts: readonly string[];
  try {
    texts = [...documentsOf(written).values()].map((document) => JSON.stringify(sorted(document))).toSorted();
  } catch {
    // YAML that can be read, but not be parted into its documents.
    texts = [...written.texts.values()];
  }
  return createHash("sha256").update(texts.join("\n")).digest("hex").slice(0, 12);
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(entries.map(([key, part]) => [key, sorted(part)]));
}

function documentsOf({ texts, written }: Written): Map<string, ConfigDocument> {
  const found = new Map<string, ConfigDocument>();
  for (const [file, text] of texts) {
    for (const section of split(file, text, written)) {
      if (!section.document) continue;
      const { kind, name } = section.document;
      const value = readDocumentText(section.text)?.value as object;
      found.set(`${kind} ${name}`, { ...value, kind, name });
    }
  }
  return found;
}

/** Plain data, as it will be read again. */
function asWritten(document: ConfigDocument): ConfigDocument {
  let plain: ConfigDocument;
  try {
    plain = JSON.parse(JSON.stringify(document)) as ConfigDocument;
  } catch (error) {
    throw configError([{ where: "document", message: `is no plain data: ${(error as Error).message}` }]);
  }
  const { kind, name = kind === "Gateway" ? "gateway" : undefined, ...rest } = plain as Partial<ConfigDocument>;
  if (typeof kind !== "string" || kind === "")
    throw configError([{ where: `document ${String(name)}`, message: "kind is missing: say what it is" }]);
  if (typeof name !== "string" || !nameRule.test(name)) {
    const message = `${JSON.stringify(name)} is not a valid name: use 1 to 253 letters, digits and -_.~`;
    throw configError([{ where: `a document of kind ${kind}`, message }]);
  }
  return { kind, name, ...rest };
}

function put(
  files: Map<string, Section[]>,
  now: Written,
  document: ConfigDocument,
  shown: readonly ConfigDocument[],
): void {
  const { kind, name } = document;
  const isIt = (each: { kind: string; name: string } | undefined): boolean => each?.kind === kind && each.name === name;
  const running = shown.find(isIt);
  for (const [file, sections] of files) {
    const index = sections.findIndex((section) => isIt(section.document));
    const section = sections[index];
    if (!section) continue;
    const wanted = revealed(document, running, readDocumentText(section.text)?.value);
    const text = editDocument(section.text, wanted, file.endsWith(".json"));
    sections[index] = { text, document: { kind, name } };
    return;
  }
  const wanted = revealed(document, undefined, undefined);
  const file = fileOfNew(files, now, document);
  const sections = files.get(file) ?? [];
  if (file.endsWith(".json"))
    throw configError([{ where: file, message: "a JSON file holds one document: use YAML, or a folder of files" }]);
  files.set(file, [
    ...sections,
    { text: `${sections.length > 0 ? "\n" : ""}${renderDocument(wanted, false)}`, document: { kind, name } },
  ]);
}

function revealed(document: ConfigDocument, running: unknown, written: unknown): unknown {
  const missing: string[] = [];
  const value = reveal(document, running, written, (path) => missing.push(path));
  if (missing.length === 0) return value;
  throw configError(
    missing.map((path) => ({
      where: `${document.name} > ${path}`,
      message: "reads ***, and there is nothing written that it could stand for: give the value",
    })),
  );
}

/** Of a document that stands nowhere yet. */
function fileOfNew(
  files: ReadonlyMap<string, Section[]>,
  { path = "", texts }: Written,
  document: ConfigDocument,
): string {
  const [only] = texts.keys();
  if (texts.size === 1 && only === path) return path;
  const own = join(path, `${document.name}.yaml`);
  return files.has(own) ? join(path, `${plainKind(document.kind)}-${document.name}.yaml`) : own;
}

function remove(
  files: Map<string, Section[]>,
  wanted: { readonly kind?: string; readonly name: string },
  shown: readonly ConfigDocument[],
): void {
  const isIt = (each: { kind: string; name: string } | undefined): boolean =>
    each?.name === wanted.name && (wanted.kind === undefined || each.kind === wanted.kind);
  const label = [wanted.kind, wanted.name].filter((part) => part !== undefined).join(" ");
  const hits = [...files].flatMap(([file, sections]) =>
    sections.filter((section) => isIt(section.document)).map((section) => ({ file, section })),
  );
  const [hit, other] = hits;
  if (!hit) {
    const message = shown.some(isIt)
      ? `${label} is implied by the distribution and stands in no file: there is nothing to remove`
      : `there is no ${label} to remove`;
    throw new SluiceError("CONFIG_NOT_FOUND", message);
  }
  if (other) {
    const kinds = hits.map(({ section }) => section.document?.kind).join(", ");
    throw configError([{ where: wanted.name, message: `several documents have this name: say which kind (${kinds})` }]);
  }
  const sections = files.get(hit.file) ?? [];
  const index = sections.indexOf(hit.section);
  // The file's own head stays, where a blank line parts it from the comment of the document.
  const head = index === 0 ? headOf(hit.section.text) : undefined;
  const rest = sections.filter((section) => section !== hit.section);
  if (head) files.set(hit.file, [{ text: head, document: undefined }, ...rest]);
  else files.set(hit.file, index === 0 ? firstOf(rest) : rest);
}

function headOf(text: string): string {
  const comments = /^(?:[ \t]*(?:#.*)?\r?\n)*/.exec(text)?.[0] ?? "";
  const own = comments.slice(0, comments.lastIndexOf("\n\n") + 1);
  return own.includes("#") ? own : (/^# yaml-language-server:.*\n/.exec(comments)?.[0] ?? "");
}

/** Without the rest of the `---` line that the first section does not have. */
function firstOf(sections: readonly Section[]): Section[] {
  const [first, ...rest] = sections;
  return first ? [{ ...first, text: first.text.replace(/^[ \t]*\r?\n/, "") }, ...rest] : [];
}

/** `---` at the begin of a line is a separator wherever it stands, in a block of text too. */
function split(file: string, text: string, written: readonly WrittenDocument[]): Section[] {
  let count = 0;
  return text.split(/^---(?=\s|$)/m).map((part) => {
    const read = readDocumentText(part);
    if (part.trim() === "" || read?.value === null) return { text: part, document: undefined };
    if (!read && /^\s*(#.*\s*)*$/.test(part)) return { text: part, document: undefined };
    if (!read) {
      const message = "can't be changed from here as it has a YAML error, `...` or a `%` directive: edit it by hand";
      throw configError([{ where: file, message }]);
    }
    count++;
    const document = written.find((each) => each.file === file && each.index === count);
    return { text: part, document };
  });
}

function joined(sections: readonly Section[]): string {
  return sections
    .map(({ text }, index) => (index < sections.length - 1 && text !== "" && !text.endsWith("\n") ? `${text}\n` : text))
    .join("---");
}
