/** `sluice plugin probe`: the process that `plugin add` has a plugin's code imported in. */
import { messageOf, SluiceError } from "../errors.ts";
import type { ProbeAnswer } from "../plugin-probe.ts";
import { importWithin } from "../plugin-code.ts";
import { findPlugins } from "../registry.ts";
import { toCommand } from "./plugin-command.ts";

export async function probe([place = "", name = "", deadline]: readonly string[]): Promise<number> {
  const answer = await importAll(place, name, Number(deadline)).catch((error: unknown): ProbeAnswer => ({
    code: error instanceof SluiceError ? error.code : "PLUGIN_BROKEN",
    message: messageOf(error) ?? "unknown",
  }));
  await new Promise<void>((resolve) => {
    if (process.send) process.send(answer, () => resolve());
    else resolve();
  });
  return answer.code === undefined ? 0 : 1;
}

/** `place` has a package.json with that one dependency. */
async function importAll(place: string, name: string, importDeadlineMs: number): Promise<ProbeAnswer> {
  const registry = await findPlugins({ folder: place, dirs: [], bins: [], importDeadlineMs });
  for (const { kind } of registry.kinds()) await registry.load(kind);
  for (const [command, { entry }] of registry.commands()) {
    const what = `the command "${command}" of the package ${name}`;
    toCommand(await importWithin(entry, what, importDeadlineMs), command, name);
  }
  return { code: undefined };
}
