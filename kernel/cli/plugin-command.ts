/** A command that a plugin brings: imported when it is run, and not before. */
import { constants } from "node:os";
import { loadSpec } from "../config.ts";
import { SluiceError } from "../errors.ts";
import type { Command, CommandIo, LoadedConfig } from "../plugin.ts";
import { importWithin } from "../plugin-code.ts";
import type { Cli } from "./main.ts";
import { problemLine } from "./report.ts";

export async function runPluginCommand(
  name: string,
  { package: from, entry }: { readonly package: string; readonly entry: string },
  args: readonly string[],
  cli: Cli,
): Promise<number> {
  const abort = new AbortController();
  const onSignal = (signal: NodeJS.Signals) => {
    if (abort.signal.aborted) process.exit(128 + constants.signals[signal]);
    abort.abort();
  };
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  try {
    const command = toCommand(await importWithin(entry, `the command "${name}" of the package ${from}`), name, from);
    const options = args.includes("--") ? args.slice(0, args.indexOf("--")) : args;
    if (options.includes("--help") || options.includes("-h")) {
      cli.stdout.write(`${command.help.trimEnd()}\n`);
      return 0;
    }
    const { stdin, stdout, stderr, env, colors } = cli;
    const io: CommandIo = {
      stdin,
      stdout,
      stderr,
      env,
      colors,
      signal: abort.signal,
      loadConfig: (path) => loadConfig(cli, path),
    };
    return await command.run(args, io);
  } catch (error) {
    cli.stderr.write(`sluice ${name}: ${error instanceof Error ? error.message : String(error)}\n`);
    return 1;
  } finally {
    process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
  }
}

/** @throws SluiceError PLUGIN_BROKEN */
export function toCommand(module: unknown, name: string, from: string): Command {
  const command = (module as { default?: Partial<Command> }).default;
  if (typeof command?.run !== "function" || typeof command.help !== "string") {
    throw new SluiceError(
      "PLUGIN_BROKEN",
      `the command "${name}" of the package ${from} has no default export with run and help`,
    );
  }
  return command as Command;
}

async function loadConfig(cli: Cli, path: string | undefined): Promise<LoadedConfig> {
  const { spec, problems } = await loadSpec({ ...cli, ...(path === undefined ? {} : { path }) });
  if (spec === undefined) {
    const lines = problems.map((problem) => problemLine(problem, "problem", false)).join("");
    throw new SluiceError("CONFIG_INVALID", `the config has problems\n${lines.trimEnd()}`);
  }
  return { path: spec.path, folder: spec.folder, documents: spec.documents };
}
