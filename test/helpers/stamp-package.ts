/** The package `stamp` with the filter Stamp, which writes the versions of all its parts into each payload. */
import { execFile } from "node:child_process";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** The node that runs the tests is the one that npm runs. */
const env = { ...process.env, PATH: [dirname(process.execPath), process.env["PATH"]].join(delimiter) };

const npmFlags = ["--offline", "--no-audit", "--no-fund", "--loglevel=error"];

/** npm, in a folder, of which nothing asks a registry. Returns what it prints. */
export async function npm(folder: string, ...args: readonly string[]): Promise<string> {
  return (await run("npm", [...args, ...npmFlags], { cwd: folder, env })).stdout;
}

export interface StampOptions {
  /** The version of `stamp-dep`, a CommonJS package that it needs. */
  readonly dependency?: string;
  /** Put at the beginning of its entry. */
  readonly prelude?: string;
  /** Members of the filter beside `handle`, as source. */
  readonly more?: string;
}

/**
 * Writes the package into a folder, which is emptied. A payload becomes `<version in an inner ES module> <in an inner
 * CommonJS one> <of the dependency> <messages so far, adopted from the one before> <times the entry was imported>`.
 */
export async function writeStamp(folder: string, version: string, options: StampOptions = {}): Promise<void> {
  const { dependency, prelude = "", more = "" } = options;
  const files = {
    "package.json": JSON.stringify({
      name: "stamp",
      version,
      keywords: ["sluice-plugin"],
      type: "module",
      ...(dependency ? { dependencies: { "stamp-dep": dependency } } : {}),
      engines: { sluice: "^1.0.0" },
      sluice: { kinds: { Stamp: { family: "filter", entry: "./index.js", schema: "./schema.json" } } },
    }),
    "schema.json": JSON.stringify({ type: "object", additionalProperties: false, properties: {} }),
    "index.js": `${prelude}
import { inner } from "./inner.js";
import common from "./common.cjs";
${dependency ? 'import dependency from "stamp-dep";' : 'const dependency = "none";'}
globalThis.stampImports = (globalThis.stampImports ?? 0) + 1;
export default {
  kind: "Stamp",
  packets: ["Publish"],
  results: [],
  create: () => ({
    count: 0,
    handle(ctx) {
      ctx.packet.payload = Buffer.from([inner, common, dependency, ++this.count, globalThis.stampImports].join(" "));
    },
    adopt(previous) {
      this.count = previous.count;
    },
    ${more}
  }),
};
`,
    "inner.js": `export const inner = "${version}";\n`,
    "common.cjs": `module.exports = require("./common-inner.cjs");\n`,
    "common-inner.cjs": `module.exports = "${version}";\n`,
  };
  await write(folder, files);
}

export async function writeStampDependency(folder: string, version: string): Promise<void> {
  await write(folder, {
    "package.json": JSON.stringify({ name: "stamp-dep", version, main: "./index.js" }),
    "index.js": `module.exports = "dep-${version}";\n`,
  });
}

async function write(folder: string, files: Record<string, string>): Promise<void> {
  await rm(folder, { recursive: true, force: true });
  await mkdir(folder, { recursive: true });
  for (const [name, text] of Object.entries(files)) await writeFile(join(folder, name), text);
}
