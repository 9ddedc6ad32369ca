import { RE2JS, RE2JSSyntaxException } from "re2js";

/** Tests whether a text holds a match anywhere (unanchored), in time linear in the text's length. */
export interface Pattern {
  test(text: string): boolean;
}

export function compilePattern(source: string): Pattern {
  return RE2JS.compile(source);
}

/** Why `source` is no RE2 expression, with the place and what to do; undefined where it compiles. */
export function patternProblem(source: string): string | undefined {
  try {
    RE2JS.compile(source);
    return undefined;
  } catch (error) {
    if (!(error instanceof RE2JSSyntaxException)) {
      return `${JSON.stringify(source)} can't be used as an expression: ${error instanceof Error ? error.message : String(error)}`;
    }
    const part = error.input;
    const at = part === null ? -1 : source.indexOf(part);
    const where = at < 0 ? "" : ` at character ${at + 1}, ${JSON.stringify(part)}`;
    return `${JSON.stringify(source)} is not an RE2 expression: ${error.error}${where}${hint(source, part ?? "")}`;
  }
}

/** What people coming from other engines write, and what to write here. */
function hint(source: string, part: string): string {
  if (/\(\?<?[=!]/.test(part) || part.startsWith("(?>")) {
    return ". RE2 has no look-around and no atomic groups: list the wanted texts as several expressions instead";
  }
  if (/^\\[1-9]/.test(part)) return ". RE2 has no back-references";
  if (/^[*+?]$/.test(part) && source.startsWith(part)) {
    return `. This is a regular expression, not a wildcard: "anything" is ".*"`;
  }
  if (/^[*+?}]*\+$/.test(part)) return ". RE2 has no possessive quantifiers: leave out the last +";
  if (part.startsWith("{")) return ". RE2 repeats at most 1000 times";
  return "; correct it, or put \\ before a character that is meant literally";
}
