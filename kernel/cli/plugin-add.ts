/** `sluice plugin add`. */
import { addPlugin, type Added } from "../plugin-installer.ts";
import type { Cli, SubcommandOptions } from "./main.ts";
import { withPlugins } from "./plugin-io.ts";

export function add(cli: Cli, [source = ""]: readonly string[], options: SubcommandOptions): Promise<number> {
  return withPlugins(cli, "add", options, async (io) => {
    const given = (options["allowScripts"] ?? []) as readonly string[];
    const allowScripts = given.flatMap((names) => names.split(","));
    const added = await addPlugin(source, { cwd: cli.cwd, allowScripts }, io);
    io.done();
    cli.stdout.write(describeAdded(added));
    return 0;
  });
}

/** For people: what there is now, and what to do with it. */
export function describeAdded(added: Added): string {
  const { name, version, previous, isChanged, plugin, scriptsSkipped, warnings } = added;
  const before = previous === undefined || previous === version ? "" : ` (before: ${previous})`;
  const lines = [isChanged ? `${name} ${version} is installed${before}` : `${name} ${version} was installed already`];
  for (const [kind, { family, description }] of plugin.manifest.kinds) {
    lines.push(`  ${kind} (${family})${description && `: ${description}`}`);
  }
  for (const command of plugin.manifest.commands.keys()) lines.push(`  sluice ${command} (command)`);
  for (const warning of warnings) lines.push(`warning: ${warning}`);
  if (scriptsSkipped.length > 0) {
    const flags = scriptsSkipped.map((each) => `--allow-scripts ${each}`).join(" ");
    lines.push(`warning: install scripts were not run, of ${scriptsSkipped.join(", ")}; if it needs them: ${flags}`);
  }
  return `${lines.join("\n")}\n`;
}
