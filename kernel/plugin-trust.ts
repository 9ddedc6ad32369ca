/** Which packages a config lets in: `plugins.allow`, `deny` and `strict` of its Gateway document. */
import { isRange, satisfies } from "./versions.ts";

export interface Trust {
  /** Undefined = every package; the distribution's own need not be listed. */
  readonly allow: readonly string[] | undefined;
  readonly deny: readonly string[];
  /** Only what plugins.lock lists, and only as it was when it was installed; the distribution's own are not asked. */
  readonly strict: boolean;
}

export const trustAll: Trust = { allow: undefined, deny: [], strict: false };

interface Pattern {
  /** A name, `@scope/*` or `*`. */
  readonly name: string;
  readonly range: string;
}

function parsePattern(text: string): Pattern {
  const at = text.indexOf("@", 1);
  return at < 0 ? { name: text, range: "*" } : { name: text.slice(0, at), range: text.slice(at + 1) };
}

/** What is wrong with an entry of `allow` or `deny`, beyond what the schema says. */
export function patternFault(text: string): string | undefined {
  const { range } = parsePattern(text);
  return isRange(range) ? undefined : `"${range}" is no range of versions: write one such as ^1.2.0, or leave it out`;
}

function matches({ name, range }: Pattern, of: string, version: string): boolean {
  const isNamed = name === "*" || name === of || (name.endsWith("/*") && of.startsWith(name.slice(0, -1)));
  return isNamed && satisfies(version, range);
}

/** Why `allow` and `deny` keep a package out; undefined where they don't. Who is on both lists stays out. */
export function refusalOf(
  { name, version, isDistribution }: { name: string; version: string; isDistribution: boolean },
  { allow, deny }: Trust,
): string | undefined {
  const denied = deny.find((text) => matches(parsePattern(text), name, version));
  if (denied !== undefined) return `plugins.deny has "${denied}"`;
  if (allow === undefined || isDistribution) return undefined;
  if (allow.some((text) => matches(parsePattern(text), name, version))) return undefined;
  return `plugins.allow does not have ${name}@${version}`;
}
