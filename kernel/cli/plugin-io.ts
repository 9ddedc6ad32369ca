/** What the commands under `sluice plugin` share: the installer's surroundings, progress, and how an error is told. */
import { constants } from "node:os";
import type { LoadOptions } from "../config.ts";
import { findInstalled, type Installed } from "../installed-plugins.ts";
import { SluiceError } from "../errors.ts";
import type { InstallerOptions } from "../plugin-installer.ts";
import type { Cli, SubcommandOptions } from "./main.ts";

export interface PluginIo extends InstallerOptions {
  readonly installed: Installed;
  /** Ends the line of progress, if there is one. */
  done(): void;
}

/**
 * Runs a command's work and tells what it throws. SIGINT and SIGTERM abort it: what is under way is taken back.
 * @returns the exit code
 */
export async function withPlugins(
  cli: Cli,
  name: string,
  options: SubcommandOptions,
  work: (io: PluginIo) => Promise<number>,
): Promise<number> {
  const abort = new AbortController();
  const onSignal = (signal: NodeJS.Signals): void => {
    if (abort.signal.aborted) process.exit(128 + constants.signals[signal]);
    abort.abort();
  };
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  const progress = showProgress(cli);
  try {
    const config: LoadOptions = { ...cli, ...(options.config === undefined ? {} : { path: options.config }) };
    const installed = await findInstalled(config);
    if (options.config !== undefined && !installed.isThere) {
      throw new SluiceError("CONFIG_NOT_FOUND", `${options.config}: there is no such file or folder`);
    }
    const { folder } = installed;
    return await work({ config, folder, installed, signal: abort.signal, ...progress });
  } catch (error) {
    progress.done();
    const code = error instanceof SluiceError ? ` (${error.code})` : "";
    cli.stderr.write(`sluice plugin ${name}: ${error instanceof Error ? error.message : String(error)}${code}\n`);
    return 1;
  } finally {
    process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
  }
}

/** One line that changes, on a terminal; nothing elsewhere. */
function showProgress({ stderr }: Cli): { step(what: string): void; done(): void } {
  if (!stderr.isTTY) return { step: () => undefined, done: () => undefined };
  const clear = "\r\u001b[K";
  return {
    step: (what) => void stderr.write(`${clear}${what} ...`),
    done: () => void stderr.write(clear),
  };
}
