/** What tests read in a page: fenced blocks with the comment in front of them, tables, headings, links. */

export interface Block {
  /** 1-based, of the fence. */
  readonly line: number;
  /** The fence's first word: `sh`, `yaml`. */
  readonly language: string;
  readonly text: string;
  /** The HTML comment right in front of the block, without its marks: `fragment of: Pipeline`. */
  readonly note: string;
}

export interface Table {
  readonly line: number;
  /** The comment in front of it. */
  readonly note: string;
  readonly head: readonly string[];
  /** Cells as they are written, save for `\|`. */
  readonly rows: readonly (readonly string[])[];
}

export interface Page {
  readonly blocks: readonly Block[];
  readonly tables: readonly Table[];
  /** As GitHub makes them of headings: `# Of a session` -> `of-a-session`. */
  readonly anchors: ReadonlySet<string>;
  readonly links: readonly { readonly line: number; readonly target: string }[];
}

export function parsePage(text: string): Page {
  const lines = text.split("\n");
  const blocks: Block[] = [];
  const tables: Table[] = [];
  const anchors = new Set<string>();
  const links: { line: number; target: string }[] = [];
  let note = "";
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at] ?? "";
    const fence = /^( *)```(\S*)/.exec(line);
    if (fence) {
      const [, indent = "", language = ""] = fence;
      const end = lines.indexOf(`${indent}\`\`\``, at + 1);
      if (end < 0) throw new Error(`line ${at + 1}: the block has no end`);
      const content = lines.slice(at + 1, end).map((each) => each.slice(Math.min(indent.length, each.search(/\S|$/))));
      blocks.push({ line: at + 1, language, text: `${content.join("\n")}\n`, note });
      note = "";
      at = end;
      continue;
    }
    const comment = /^ *<!-- (.*) -->$/.exec(line);
    if (comment) {
      // The formatter's own word.
      if (comment[1] !== "prettier-ignore") note = comment[1] ?? "";
      continue;
    }
    for (const [, target = ""] of withoutCode(line).matchAll(/\]\(([^)\s]+)\)/g)) links.push({ line: at + 1, target });
    const heading = /^#+ (.*)$/.exec(line);
    if (heading) anchors.add(slug(heading[1] ?? ""));
    if (line.startsWith("|") && /^\|[\s:|-]+\|$/.test(lines[at + 1] ?? "")) {
      let end = at + 2;
      while (lines[end]?.startsWith("|")) end++;
      for (let row = at + 2; row < end; row++) {
        for (const [, target = ""] of withoutCode(lines[row] ?? "").matchAll(/\]\(([^)\s]+)\)/g)) {
          links.push({ line: row + 1, target });
        }
      }
      tables.push({ line: at + 1, note, head: cellsOf(line), rows: lines.slice(at + 2, end).map(cellsOf) });
      at = end - 1;
    }
    if (line.trim() !== "") note = "";
  }
  return { blocks, tables, anchors, links };
}

function withoutCode(line: string): string {
  return line.replaceAll(/`[^`]*`/g, "");
}

function cellsOf(line: string): string[] {
  return line
    .replaceAll("\\|", "\u0000")
    .split("|")
    .slice(1, -1)
    .map((cell) => cell.replaceAll("\u0000", "|").trim());
}

function slug(heading: string): string {
  return heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N}\s_-]/gu, "")
    .replaceAll(" ", "-");
}
