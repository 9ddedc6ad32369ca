/** What the commands here have in common: help, and the one way out for errors. */
import type { Command, CommandIo } from "@sluice/kernel";
import { exit } from "./api.ts";

/** `run` throws `failure(...)`, or what parseArgs throws, and returns the exit code otherwise. */
export function defineCommand(
  summary: string,
  help: string,
  run: (args: string[], io: CommandIo) => Promise<number>,
): Command {
  return {
    summary,
    help,
    async run(args, io) {
      if (args.some((arg, index) => (arg === "--help" || arg === "-h") && !args.slice(0, index).includes("--"))) {
        io.stdout.write(`${help}\n`);
        return exit.done;
      }
      try {
        return await run([...args], io);
      } catch (error) {
        if (io.signal.aborted) return exit.interrupted;
        if (!(error instanceof Error)) throw error;
        if ("exitCode" in error && typeof error.exitCode === "number") {
          io.stderr.write(`${error.message}\n`);
          return error.exitCode;
        }
        if ("code" in error && typeof error.code === "string" && error.code.startsWith("ERR_PARSE_ARGS")) {
          io.stderr.write(`${error.message}\nSee --help.\n`);
          return exit.usage;
        }
        throw error;
      }
    },
  };
}
