/** `${ENV}`, `${ENV:-default}` and `${file:path}` in a scalar of the config; `$${` is a plain `${`. */
import { readFileSync } from "node:fs";
import { resolve } from "node:path";

export interface Substituted {
  readonly text: string;
  /** The scalar was one `${ENV}` and nothing else, so that it may become what the schema wants. */
  readonly whole: boolean;
  /** A file's content is in it: never to be shown. */
  readonly fromFile: boolean;
  readonly problems: readonly string[];
}

export interface Surroundings {
  readonly env: NodeJS.ProcessEnv;
  /** What `${file:...}` is relative to. */
  readonly folder: string;
  readonly onRead?: (file: string) => void;
}

/** Undefined where the text has nothing to substitute. */
export function substitute(text: string, { env, folder, onRead }: Surroundings): Substituted | undefined {
  if (!text.includes("${")) return undefined;
  const problems: string[] = [];
  let fromFile = false;
  let whole = false;
  const result = text.replaceAll(/\$?\$\{([^}]*)\}|\$\$\{/g, (found, inner: string | undefined) => {
    if (found.startsWith("$$") || inner === undefined) return found.slice(1);
    const file = /^file:(.+)$/s.exec(inner)?.[1];
    if (file !== undefined) {
      fromFile = true;
      try {
        onRead?.(resolve(folder, file));
        return readFileSync(resolve(folder, file), "utf8").replace(/\r?\n$/, "");
      } catch (error) {
        problems.push(`${found} can't be read: ${(error as Error).message}`);
        return "";
      }
    }
    const variable = /^([A-Za-z_]\w*)(?::-(.*))?$/s.exec(inner);
    if (variable === null) {
      problems.push(
        `${found} is neither \${VARIABLE}, \${VARIABLE:-default} nor \${file:path}; write $${found} for the text itself`,
      );
      return "";
    }
    const [, name = "", fallback] = variable;
    const value = env[name];
    whole ||= found === text;
    if (fallback !== undefined) return value === undefined || value === "" ? fallback : value;
    if (value === undefined) {
      problems.push(`the environment variable ${name} is not set: set it, or write \${${name}:-default}`);
      return "";
    }
    return value;
  });
  return { text: result, whole, fromFile, problems };
}
