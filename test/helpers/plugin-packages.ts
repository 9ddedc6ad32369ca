/** Plugins made for a test: as folders, and as the tarballs that npm makes of them. */
import { execFile } from "node:child_process";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** The node that runs the tests is the one that `#!/usr/bin/env node` finds. */
export const nodeEnv: NodeJS.ProcessEnv = {
  ...process.env,
  PATH: [dirname(process.execPath), process.env["PATH"]].join(delimiter),
};

export interface PluginPackage {
  readonly name: string;
  readonly version?: string;
  /** Of one filter that puts a mark in front of payloads. */
  readonly kind?: string;
  /** Its option's default. */
  readonly mark?: string;
  /** More fields of package.json, in place of those made here. */
  readonly manifest?: object;
  /** More files, or others, by name. */
  readonly files?: Readonly<Record<string, string>>;
}

/** Returns the package's folder, which is below `parent`. */
export async function writePlugin(parent: string, plugin: PluginPackage): Promise<string> {
  const { name, version = "1.0.0", kind = "Mark", mark = "marked", manifest = {}, files = {} } = plugin;
  const folder = join(parent, `${name.replace("@", "").replace("/", "-")}-${version}`);
  await mkdir(folder, { recursive: true });
  const all = {
    "package.json": JSON.stringify({
      name,
      version,
      type: "module",
      engines: { sluice: "^1.0.0" },
      sluice: { kinds: { [kind]: { family: "filter", entry: "./index.js", schema: "./schema.json" } } },
      ...manifest,
    }),
    "schema.json": JSON.stringify({
      description: "Marks payloads.",
      type: "object",
      additionalProperties: false,
      properties: { mark: { description: "What is put in front.", type: "string", default: mark } },
    }),
    "index.js": `export default {
  kind: ${JSON.stringify(kind)},
  packets: ["Publish"],
  results: [],
  create: ({ mark }) => ({
    handle(ctx) {
      ctx.packet.payload = Buffer.from(mark + ":" + ctx.packet.payload);
    },
  }),
};
`,
    ...files,
  };
  for (const [file, text] of Object.entries(all)) await writeFile(join(folder, file), text);
  return folder;
}

export interface Tarball {
  readonly path: string;
  /** As npm computes it. */
  readonly integrity: string;
}

/** @param to the folder that it is made in */
export async function pack(folder: string, to: string): Promise<Tarball> {
  const args = ["pack", "--json", "--ignore-scripts", "--pack-destination", to, "--", folder];
  const { stdout } = await run("npm", args, { env: nodeEnv });
  const [made] = JSON.parse(stdout) as { filename: string; integrity: string }[];
  if (!made) throw new Error(`npm pack said ${stdout}`);
  return { path: join(to, made.filename), integrity: made.integrity };
}

export async function packPlugin(parent: string, plugin: PluginPackage): Promise<Tarball> {
  return pack(await writePlugin(parent, plugin), parent);
}

export async function readJson(file: string): Promise<Record<string, unknown>> {
  return JSON.parse(await readFile(file, "utf8")) as Record<string, unknown>;
}
