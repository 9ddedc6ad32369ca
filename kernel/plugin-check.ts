/** Whether a package, by its manifest, can be used by this gateway: API, Node, kinds and schemas. None of its code runs. */
import type { Code } from "./errors.ts";
import { isKernelKind } from "./kernel-kinds.ts";
import type { Manifest } from "./manifest.ts";
import type { Compile, Validate } from "./schema.ts";
import { isRange, satisfies } from "./versions.ts";

/** The plugin API's version, which `engines.sluice` of a plugin's package.json is matched against. */
export const apiVersion: string = "1.1.0";

export interface Misfit {
  readonly code: Code;
  readonly message: string;
}

/** What checks each kind's options, or why the package can't be used. */
export function checkManifest(manifest: Manifest, compile: Compile): ReadonlyMap<string, Validate> | Misfit {
  const { apiRange, nodeRange, kinds } = manifest;
  if (apiRange === undefined || !isRange(apiRange)) {
    return broken(
      `its package.json has no valid engines.sluice (${apiRange ?? "missing"}): give the range of plugin API versions it works with, such as "^${apiVersion}"`,
    );
  }
  if (!satisfies(apiVersion, apiRange)) {
    return incompatible(
      `needs plugin API ${apiRange}, and this gateway has ${apiVersion}: install a version of the package that fits, or another version of the gateway`,
    );
  }
  if (nodeRange !== undefined && !isRange(nodeRange)) {
    return broken(`engines.node in its package.json (${nodeRange}) is no range of versions`);
  }
  if (nodeRange !== undefined && !satisfies(process.versions.node, nodeRange)) {
    return incompatible(
      `needs Node.js ${nodeRange}, and this is ${process.versions.node}: install a version of the package that fits, or run the gateway with such a Node.js`,
    );
  }
  const own = [...kinds.keys()].find(isKernelKind);
  if (own !== undefined) return broken(`it provides the kind ${own}, which is the kernel's own: rename it`);
  const validators = new Map<string, Validate>();
  for (const [kind, { schema }] of kinds) {
    try {
      validators.set(kind, compile(schema));
    } catch (error) {
      return broken(`the schema of ${kind} does not compile: ${(error as Error).message}`);
    }
  }
  return validators;
}

const broken = (message: string): Misfit => ({ code: "PLUGIN_BROKEN", message });
const incompatible = (message: string): Misfit => ({ code: "PLUGIN_INCOMPATIBLE", message });
