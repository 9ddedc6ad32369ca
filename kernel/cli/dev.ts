/** `sluice dev`: a gateway with the plugin that is being written, built and loaded anew whenever a file of it is saved. */
import { access } from "node:fs/promises";
import { join, resolve, sep } from "node:path";
import { readConfigFiles } from "../config-files.ts";
import { loadSpec } from "../config.ts";
import { makeDevConfig } from "./dev-config.ts";
import { openDevPlugin, type DevPlugin } from "./dev-plugin.ts";
import type { Cli } from "./main.ts";
import { run } from "./run.ts";

export async function dev(cli: Cli, { plugin, config }: { plugin: string; config?: string }): Promise<number> {
  const folder = resolve(cli.cwd, plugin);
  if (
    !(await access(join(folder, "package.json")).then(
      () => true,
      () => false,
    ))
  ) {
    cli.stderr.write(`${folder} has no package.json: name the plugin's folder with --plugin\n`);
    return 2;
  }
  const path = config === undefined ? await ownConfig(cli, folder) : resolve(cli.cwd, config);
  const opened = await openDevPlugin(folder, path === undefined ? [] : [path]);
  try {
    return await run(cli, { watch: true, load: createLoad(opened, path) });
  } finally {
    await opened.close();
  }
}

/** What `sluice run` would find in the plugin's folder. */
async function ownConfig({ env }: Cli, folder: string): Promise<string | undefined> {
  const { path, problems } = await readConfigFiles({ cwd: folder, env });
  return problems.some(({ code }) => code === "CONFIG_NOT_FOUND") ? undefined : path;
}

/** @param path of the config; undefined where one has to be made */
function createLoad(plugin: DevPlugin, path: string | undefined): typeof loadSpec {
  return async (options) => {
    const { ahead, problems, files } = await plugin.refresh();
    const [copy] = ahead;
    const made = path ?? join(plugin.scratch, "sluice.yaml");
    if (path === undefined && copy !== undefined) await makeDevConfig(made, copy);
    const loaded = await loadSpec({ ...options, path: made, ahead });
    // What was copied and made just now is new to the watcher: it would have it all loaded a second time.
    const written = [...loaded.inputs].filter((input) => !input.startsWith(plugin.scratch + sep));
    const inputs = new Set([...written, ...files]);
    if (problems.length === 0) return { ...loaded, inputs };
    // Where nothing could be built yet, no config was made that anything could be said of.
    const others = path === undefined && copy === undefined ? [] : loaded.problems;
    return { ...loaded, inputs, spec: undefined, problems: [...problems, ...others] };
  };
}
