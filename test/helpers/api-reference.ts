/** The plugin API as TypeScript emits it, and as the page that explains it. */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

const root = join(import.meta.dirname, "../..");
const run = promisify(execFile);

/** The declarations of kernel/plugin.ts. */
export async function emitApi(o: { readonly comments: boolean }): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-api-"));
  try {
    const settings = ["--ignoreConfig", "--target", "es2024", "--module", "nodenext", "--types", "node"];
    const emit = [
      "--declaration",
      "--emitDeclarationOnly",
      "--removeComments",
      String(!o.comments),
      "--outDir",
      folder,
    ];
    const source = join(root, "kernel/plugin.ts");
    await run(join(root, "node_modules/.bin/tsc"), [...settings, ...emit, "--allowImportingTsExtensions", source], {
      cwd: root,
    });
    return await readFile(join(folder, "plugin.d.ts"), "utf8");
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

export interface Member {
  /** As it is declared, in one line. */
  readonly code: string;
  readonly meaning: string;
  /** Undefined where it has none of its own. */
  readonly since: string | undefined;
}

export interface Declaration extends Member {
  readonly name: string;
  /** Of an interface. */
  readonly members: readonly Member[];
}

/** @param text what {@link emitApi} gives, with comments */
export function parseApi(text: string): Declaration[] {
  return statementsOf(text)
    .filter(({ code }) => /^(export )?(interface|type) /.test(code))
    .map(({ code, comment }) => {
      const body = /^(?:export )?interface [^{]*\{(.*)\}$/s.exec(code)?.[1];
      const name = /(?:interface|type) (\w+)/.exec(code)?.[1] ?? "";
      const head = (body === undefined ? code : code.slice(0, code.indexOf("{"))).replace(/^export /, "");
      const members = statementsOf(body ?? "").map((each) => {
        const { meaning, since } = read(each.comment);
        return { code: inOneLine(each.code), meaning: [meaning, ...innerMeanings(each.code)].join(" ").trim(), since };
      });
      return { name, code: inOneLine(head), ...read(comment), members };
    });
}

interface Statement {
  readonly code: string;
  readonly comment: string;
}

/** What stands at the outermost level of a text: each up to its semicolon or closing brace, with the comment before it. */
function statementsOf(text: string): Statement[] {
  const found: Statement[] = [];
  let comment = "";
  let code = "";
  let depth = 0;
  const lines = text.split("\n");
  for (let at = 0; at < lines.length; at++) {
    const line = (lines[at] ?? "").trim();
    if (depth === 0 && code === "" && line.startsWith("/**")) {
      const end = lines.findIndex((each, index) => index >= at && each.includes("*/"));
      comment = lines.slice(at, end + 1).join("\n");
      at = end;
      continue;
    }
    if (line === "") continue;
    code += `${line}\n`;
    // An arrow, or what a comment says, opens and closes nothing.
    const plain = /^(\/\*\*|\*)/.test(line) ? "" : line.replaceAll("=>", "");
    depth += plain.split(/[{(<[]/).length - plain.split(/[})>\]]/).length;
    if (depth > 0 || !/[;}]$/.test(line)) continue;
    found.push({ code: code.trim(), comment });
    comment = code = "";
  }
  return found;
}

/** Of what is declared inside of a member, as far as it has comments. */
function innerMeanings(code: string): string[] {
  return [...code.matchAll(/(\/\*\*.*?\*\/)\s*(?:readonly )?(\w+)/gs)].map(
    ([, comment = "", name = ""]) => `\`${name}\`: ${read(comment).meaning}`,
  );
}

/** Comments inside, and line breaks, left out. */
function inOneLine(code: string): string {
  return code
    .replaceAll(/\/\*\*.*?\*\//gs, "")
    .replaceAll(/\s+/g, " ")
    .replace(/;$/, "")
    .trim();
}

function read(comment: string): { meaning: string; since: string | undefined } {
  const text = comment
    .replaceAll(/^\s*\/?\*+\/?|\*\/$/gm, "")
    .replaceAll(/\{@link ([^}]+)\}/g, "`$1`")
    .replaceAll(/\s+/g, " ")
    .trim();
  const since = /@since (\S+)/.exec(text)?.[1];
  return { meaning: text.replace(/ ?@since \S+/, ""), since };
}

/** @param first the version that everything without a `@since` of its own has been there from */
export function renderApi(declarations: readonly Declaration[], first: string): string {
  const cell = (text: string) => text.replaceAll("|", "\\|");
  return declarations
    .map(({ name, code, meaning, since, members }) => {
      const from = since ?? first;
      const isType = code.startsWith("type ");
      const head = [`### ${name}`, ...(isType || code.includes(" extends ") ? [`\`${code}\``] : [])];
      const rows = members.map(
        (each) => `| \`${cell(each.code)}\` | ${cell(each.meaning) || "-"} | ${each.since ?? from} |`,
      );
      const table = ["<!-- prettier-ignore -->", "| Member | Meaning | Since |", "| --- | --- | --- |", ...rows].join(
        "\n",
      );
      return [
        ...head,
        `${meaning === "" ? "" : `${meaning} `}Since ${from}.`,
        ...(rows.length > 0 ? [table] : []),
      ].join("\n\n");
    })
    .join("\n\n");
}
