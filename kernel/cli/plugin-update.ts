/** `sluice plugin update`: what each plugin's source gives now. */
import { SluiceError } from "../errors.ts";
import { addPlugin } from "../plugin-installer.ts";
import { readPluginLock } from "../plugin-lock.ts";
import { parseSource } from "../plugin-source.ts";
import { isVersion } from "../versions.ts";
import type { Cli, SubcommandOptions } from "./main.ts";
import { describeAdded } from "./plugin-add.ts";
import { withPlugins } from "./plugin-io.ts";

export function update(cli: Cli, names: readonly string[], options: SubcommandOptions): Promise<number> {
  return withPlugins(cli, "update", options, async (io) => {
    const { folder } = io;
    const lock = await readPluginLock(folder);
    const unknown = names.find((name) => !lock.has(name));
    if (unknown !== undefined) {
      const known = [...lock.keys()].join(", ") || "none";
      throw new SluiceError(
        "PLUGIN_NOT_FOUND",
        `plugins.lock in ${folder} does not list ${unknown}; it lists ${known}`,
      );
    }
    for (const [name, { source, version, scripts }] of lock) {
      if (names.length > 0 && !names.includes(name)) continue;
      const parsed = await parseSource(source, folder);
      if (parsed.sort === "registry" && parsed.range !== undefined && isVersion(parsed.range)) {
        cli.stdout.write(`${name} ${version} was added as that very version: sluice plugin add ${name}@VERSION\n`);
        continue;
      }
      // Who may run scripts is not asked again for each version.
      const added = await addPlugin(source, { cwd: folder, allowScripts: scripts.run }, io);
      io.done();
      cli.stdout.write(describeAdded(added));
    }
    if (lock.size === 0) cli.stdout.write(`no plugin is installed in ${folder}\n`);
    return 0;
  });
}
