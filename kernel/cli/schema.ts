/** `sluice schema`: for an editor's `# yaml-language-server: $schema=`. */
import { configSchema } from "../config-schema.ts";
import { findInstalled } from "../installed-plugins.ts";
import type { Cli } from "./main.ts";

export async function schema(cli: Cli, path: string | undefined): Promise<number> {
  const { registry } = await findInstalled({ ...cli, ...(path === undefined ? {} : { path }) });
  cli.stdout.write(`${JSON.stringify(configSchema(registry.kinds()), undefined, 2)}\n`);
  return 0;
}
