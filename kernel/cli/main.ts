/** The command line: the kernel's own commands and those that installed plugins bring. */
import { Command, CommanderError } from "commander";
import manifest from "../package.json" with { type: "json" };
import type { Registry } from "../registry.ts";
import { pluginCommands } from "./plugin.ts";

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

interface Options {
  readonly config?: string;
  readonly watch: boolean;
  readonly plugin: string;
}

/** One of several commands under a common name. */
export interface Subcommand {
  /** With its arguments: `add <source>`. */
  readonly usage: string;
  readonly description: string;
  /** Flags and what they do, besides `-c`; those with `list` may be given several times. */
  readonly options?: readonly { readonly flags: string; readonly description: string; readonly list?: boolean }[];
  /** Behind the options. */
  readonly help?: string;
  /** For the program itself. */
  readonly isHidden?: boolean;
  run(cli: Cli, args: readonly string[], options: SubcommandOptions): Promise<number>;
}

export interface SubcommandOptions {
  readonly config?: string;
  readonly [name: string]: string | boolean | readonly string[] | undefined;
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
  // Each is imported when it is run: the whole gateway need not be loaded to print a version.
  own(
    program,
    "run",
    "start the gateway and run until SIGINT or SIGTERM; SIGHUP reads the config again",
    async (config, { watch }) => {
      code = await (await import("./run.ts")).run(cli, { watch, ...(config === undefined ? {} : { config }) });
    },
  ).option("--no-watch", "do not follow changes of the config's files");
  own(
    program,
    "dev",
    "run a gateway with the plugin in a folder, built and loaded anew whenever a file of it is saved",
    async (config, { plugin }) => {
      code = await (await import("./dev.ts")).dev(cli, { plugin, ...(config === undefined ? {} : { config }) });
    },
  ).requiredOption("--plugin <folder>", "the plugin; without -c, its folder's own config, else one made for it");
  own(program, "check", "validate the config as run would, and start nothing", async (path) => {
    code = await (await import("./check.ts")).check(cli, path);
  });
  own(program, "schema", "write the JSON Schema of a config document, for editors", async (path) => {
    code = await (await import("./schema.ts")).schema(cli, path);
  });

  nest(program, "plugin", "install, remove and look at plugins", pluginCommands, async (command, given, options) => {
    code = await command.run(cli, given, options);
  });

  const builtIn = program.commands.map((command) => command.name());
  const [first = ""] = args;
  try {
    if (!builtIn.includes(first) && first !== "--version" && first !== "-V") {
      const { findInstalled } = await import("../installed-plugins.ts");
      const { registry } = await findInstalled(cli);
      const name = first === "help" ? (args[1] ?? "") : first;
      const command = builtIn.includes(name) ? undefined : registry.commands().get(name);
      if (command !== undefined) {
        const { runPluginCommand } = await import("./plugin-command.ts");
        return await runPluginCommand(name, command, first === "help" ? ["--help"] : args.slice(1), cli);
      }
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

const configOption = [
  "-c, --config <file|folder>",
  "the config; without it sluice.yaml is looked for here and above",
] as const;

function nest(
  program: Command,
  name: string,
  description: string,
  subcommands: readonly Subcommand[],
  action: (command: Subcommand, args: readonly string[], options: SubcommandOptions) => Promise<void>,
): void {
  const parent = program.command(name).description(description).addHelpText("after", exitCodes);
  for (const each of subcommands) {
    const command = parent.command(each.usage, { hidden: each.isHidden === true }).description(each.description);
    command.option(...configOption).addHelpText("after", `${each.help ?? ""}${exitCodes}`);
    for (const { flags, description: meaning, list } of each.options ?? []) {
      if (list) command.option(flags, meaning, (value, all: readonly string[] | undefined) => [...(all ?? []), value]);
      else command.option(flags, meaning);
    }
    command.action(() => action(each, command.args, command.opts()));
  }
}

function own(
  program: Command,
  name: string,
  description: string,
  action: (path: string | undefined, options: Options) => Promise<void>,
): Command {
  return program
    .command(name)
    .description(description)
    .option(...configOption)
    .addHelpText("after", exitCodes)
    .action((options: Options) => action(options.config, options));
}

/** For the help and for "did you mean": the plugins' code is not run. */
function listPluginCommands(program: Command, builtIn: readonly string[], registry: Registry): void {
  for (const [name, { package: from }] of registry.commands()) {
    if (!builtIn.includes(name)) program.command(name).description(`from ${from}`).helpOption(false);
  }
}
