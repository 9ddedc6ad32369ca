/** A plugin's manifest: the fields of its package.json that say what it provides, checked without running any of its code. */
import { readFile, realpath, stat } from "node:fs/promises";
import { basename, resolve, sep } from "node:path";
import type { Code } from "./errors.ts";

export interface DeclaredKind {
  readonly family: "filter" | "service";
  /** Absolute, inside the package. */
  readonly entry: string;
  readonly schema: object;
  readonly description: string;
}

export interface Manifest {
  readonly package: string;
  readonly version: string;
  /** The package's real folder. */
  readonly folder: string;
  /** `engines.sluice`, not yet judged. */
  readonly apiRange: string | undefined;
  /** `engines.node`, likewise. */
  readonly nodeRange: string | undefined;
  readonly kinds: ReadonlyMap<string, DeclaredKind>;
  /** Name -> entry, absolute. */
  readonly commands: ReadonlyMap<string, string>;
}

/** A package that can't be used; harmless as long as the config names none of its kinds. */
export interface PackageProblem {
  readonly package: string;
  readonly folder: string;
  readonly code: Code;
  readonly message: string;
  /** The kinds it would provide, as far as its manifest tells. */
  readonly kinds: readonly string[];
}

/** What is wrong with a manifest; caught in {@link readManifest}. */
class Faulty extends Error {}

const isMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Undefined where the package is no plugin: its package.json has neither `sluice` nor the keyword `sluice-plugin`. */
export async function readManifest(
  folder: string,
  json: Record<string, unknown> | Error,
): Promise<{ manifest: Manifest } | { problem: PackageProblem } | undefined> {
  const name = !(json instanceof Error) && typeof json["name"] === "string" ? json["name"] : basename(folder);
  const problem = (message: string, kinds: readonly string[]) => ({
    problem: { package: name, folder, code: "PLUGIN_BROKEN" as const, message, kinds },
  });
  if (json instanceof Error) return problem(`its package.json can't be read: ${json.message}`, []);
  const sluice = json["sluice"];
  const keywords = json["keywords"];
  if (sluice === undefined && !(Array.isArray(keywords) && keywords.includes("sluice-plugin"))) return undefined;
  // A distribution has `implied` documents and no kinds: not a plugin.
  if (
    isMap(sluice) &&
    sluice["kinds"] === undefined &&
    sluice["commands"] === undefined &&
    sluice["implied"] !== undefined
  )
    return undefined;
  const declared = isMap(sluice) && isMap(sluice["kinds"]) ? sluice["kinds"] : {};
  try {
    if (!isMap(sluice))
      throw new Faulty(`its package.json has the keyword sluice-plugin and no "sluice": {"kinds": {...}}`);
    if (sluice["kinds"] !== undefined && !isMap(sluice["kinds"]))
      throw new Faulty("sluice.kinds in its package.json is not a map of kinds");
    const commands = sluice["commands"] ?? {};
    if (!isMap(commands)) throw new Faulty("sluice.commands in its package.json is not a map of commands");
    if (Object.keys(declared).length + Object.keys(commands).length === 0)
      throw new Faulty("its package.json lists no kinds and no commands under sluice");
    const kinds = new Map<string, DeclaredKind>();
    for (const [kind, value] of Object.entries(declared)) {
      // A config may name it as `package#Kind`.
      if (!/^\w[\w.-]*$/.test(kind))
        throw new Faulty(`${JSON.stringify(kind)} in sluice.kinds of its package.json is no name for a kind`);
      kinds.set(kind, await declaredKind(folder, kind, value, json));
    }
    const entries = new Map<string, string>();
    for (const [command, entry] of Object.entries(commands)) {
      entries.set(command, await inside(folder, entry, `sluice.commands.${command}`));
    }
    const engines = json["engines"];
    const range = (of: "node" | "sluice"): string | undefined => {
      const value = isMap(engines) ? engines[of] : undefined;
      return typeof value === "string" ? value : undefined;
    };
    return {
      manifest: {
        package: name,
        version: typeof json["version"] === "string" ? json["version"] : "0.0.0",
        folder,
        apiRange: range("sluice"),
        nodeRange: range("node"),
        kinds,
        commands: entries,
      },
    };
  } catch (error) {
    if (error instanceof Faulty) return problem(error.message, Object.keys(declared));
    throw error;
  }
}

async function declaredKind(
  folder: string,
  kind: string,
  value: unknown,
  json: Record<string, unknown>,
): Promise<DeclaredKind> {
  const field = `sluice.kinds.${kind}`;
  if (!isMap(value)) throw new Faulty(`${field} in its package.json is not a map with family, entry and schema`);
  const { family } = value;
  if (family !== "filter" && family !== "service") {
    throw new Faulty(
      `${field}.family in its package.json is ${JSON.stringify(family) ?? "missing"}: it must be "filter" or "service"`,
    );
  }
  const entry = await inside(folder, value["entry"], `${field}.entry`);
  const schemaFile = await inside(folder, value["schema"], `${field}.schema`);
  let schema: unknown;
  try {
    schema = JSON.parse(await readFile(schemaFile, "utf8"));
  } catch (error) {
    throw new Faulty(`the schema of ${kind} (${schemaFile}) can't be read: ${(error as Error).message}`);
  }
  if (!isMap(schema) || schema["type"] !== "object") {
    throw new Faulty(`the schema of ${kind} (${schemaFile}) must describe a map: "type": "object" at its top`);
  }
  const described = schema["description"] ?? json["description"];
  return { family, entry, schema, description: typeof described === "string" ? described : "" };
}

async function inside(folder: string, path: unknown, field: string): Promise<string> {
  if (typeof path !== "string") throw new Faulty(`${field} is missing in its package.json`);
  const full = resolve(folder, path);
  // By its real path, so that a link can't lead out of the package either.
  const real = await realpath(full).catch(() => undefined);
  if (!(real ?? full).startsWith(folder + sep)) throw new Faulty(`${field} (${path}) lies outside the package`);
  if (real === undefined || !(await stat(real)).isFile())
    throw new Faulty(`${field} (${path}) does not exist in the package`);
  if (/\.[cm]?ts$/.test(real) && real.split(sep).includes("node_modules")) {
    throw new Faulty(
      `${field} is TypeScript (${real}), which Node does not run under node_modules: the package must ship JavaScript`,
    );
  }
  return real;
}
