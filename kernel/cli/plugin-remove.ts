/** `sluice plugin remove`. */
import { removePlugin } from "../plugin-installer.ts";
import type { Cli, SubcommandOptions } from "./main.ts";
import { withPlugins } from "./plugin-io.ts";

export function remove(cli: Cli, [name = ""]: readonly string[], options: SubcommandOptions): Promise<number> {
  return withPlugins(cli, "remove", options, async (io) => {
    const { version } = await removePlugin(name, { ...io, force: options["force"] === true });
    io.done();
    cli.stdout.write(`${name} ${version} is removed\n`);
    return 0;
  });
}
