/**
 * The gateway that the end-to-end suites run: this workspace's, or, where SLUICE_TEST_HOME names a folder in which the
 * package `sluice` is installed, that one, both its command and its kernel's modules.
 */
import { realpathSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

interface Place {
  /** The file that `node` runs as `sluice`. */
  readonly bin: string;
  /** The kernel's module of this name. */
  readonly file: (name: string) => string;
}

function workspace(): Place {
  const folder = join(import.meta.dirname, "../../kernel");
  return { bin: join(folder, "cli.ts"), file: (name) => join(folder, `${name}.ts`) };
}

function installation(home: string): Place {
  const manifest = realpathSync(join(home, "node_modules/sluice/package.json"));
  const require = createRequire(manifest);
  const { bin } = require(manifest) as { bin: { sluice: string } };
  const folder = join(dirname(require.resolve("@sluice/kernel/package.json")), "dist");
  return { bin: join(dirname(manifest), bin.sluice), file: (name) => join(folder, `${name}.js`) };
}

const home = process.env["SLUICE_TEST_HOME"];
const place = home ? installation(home) : workspace();

async function kernel<T>(name: string): Promise<T> {
  return (await import(pathToFileURL(place.file(name)).href)) as T;
}

export const { bin } = place;
export const { loadSpec } = await kernel<typeof import("../../kernel/config.ts")>("config");
export const { createGateway } = await kernel<typeof import("../../kernel/gateway.ts")>("gateway");
export const { createPluginModules } = await kernel<typeof import("../../kernel/plugin-modules.ts")>("plugin-modules");
export const { createReloader } = await kernel<typeof import("../../kernel/reload.ts")>("reload");
export const { schemaCompiler } = await kernel<typeof import("../../kernel/schema.ts")>("schema");
export const { watchInputs } = await kernel<typeof import("../../kernel/watch.ts")>("watch");
