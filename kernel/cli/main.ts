/** The command line: the kernel's own commands and those that installed plugins bring. */
import { Command, CommanderError } from "commander";
import { findInstalled } from "../config.ts";
import manifest from "../package.json" with { type: "json" };
import type { Registry } from "../registry.ts";
import { check } from "./check.ts";
import { runPluginCommand } from "./plugin-command.ts";
import { run } from "./run.ts";
import { schema } from "./schema.ts";

/** What a command works with. */
export interface Cli {
  readonly version: string;
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
  /** The running bin, as called and by its real path. */
  readonly bins: readonly string[];
  readonly stdin: NodeJS.ReadStream;
  readonly stdout: NodeJS.WriteStream;
  readonly stderr: NodeJS.WriteStream;
  /** True where stdout is a terminal and NO_COLOR is not set. */
  readonly colors: boolean;
}

interface ConfigOption {
  readonly config?: string;
}

const exitCodes = `
Exit codes:
  0  done
  1  problems (they are listed), or the gateway could not start
  2  wrong usage
  3  a running gateway could not be reached (commands that talk to one)`;

/** Runs the command that `args` name and returns the exit code. */
export async function main(args: readonly string[], bins: readonly string[]): Promise<number> {
  const { env, stdin, stdout, stderr } = process;
  const colors = stdout.isTTY && !env["NO_COLOR"];
  const cli: Cli = { version: manifest.version, cwd: process.cwd(), env, bins, stdin, stdout, stderr, colors };
  let code = 0;
  const program = new Command("sluice")
    .description("An MQTT gateway: devices speak MQTT, backends speak Kafka and HTTP, every filter is an npm package.")
    .version(manifest.version)
    .exitOverride()
    .configureOutput({ writeOut: (text) => stdout.write(text), writeErr: (text) => stderr.write(text) });
  // A subcommand inherits exitOverride and output only when it is made after them.
  own(program, "run", "start the gateway and run until SIGINT or SIGTERM", cli, run, (result) => (code = result));
  own(program, "check", "validate the config as run would, and start nothing", cli, check, (result) => (code = result));
  own(
    program,
    "schema",
    "write the JSON Schema of a config document, for editors",
    cli,
    schema,
    (result) => (code = result),
  );

  const builtIn = program.commands.map((command) => command.name());
  const [first = ""] = args;
  try {
    if (!builtIn.includes(first) && first !== "--version" && first !== "-V") {
      const registry = await findInstalled(cli);
      const name = first === "help" ? (args[1] ?? "") : first;
      const command = builtIn.includes(name) ? undefined : registry.commands().get(name);
      if (command !== undefined)
        return await runPluginCommand(name, command, first === "help" ? ["--help"] : args.slice(1), cli);
      listPluginCommands(program, builtIn, registry);
      program.addHelpText("after", exitCodes);
    }
    await program.parseAsync([...args], { from: "user" });
    return code;
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    return error.exitCode === 0 ? 0 : 2;
  }
}

function own(
  program: Command,
  name: string,
  description: string,
  cli: Cli,
  action: (cli: Cli, path: string | undefined) => Promise<number>,
  done: (code: number) => void,
): void {
  program
    .command(name)
    .description(description)
    .option("-c, --config <file|folder>", "the config; without it sluice.yaml is looked for here and above")
    .addHelpText("after", exitCodes)
    .action(async (options: ConfigOption) => done(await action(cli, options.config)));
}

/** For the help and for "did you mean": the plugins' code is not run. */
function listPluginCommands(program: Command, builtIn: readonly string[], registry: Registry): void {
  for (const [name, { package: from }] of registry.commands()) {
    if (!builtIn.includes(name)) program.command(name).description(`from ${from}`).helpOption(false);
  }
}
