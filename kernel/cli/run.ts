/** `sluice run`: the gateway in the foreground. */
import { constants } from "node:os";
import { pino, type DestinationStream, type Logger } from "pino";
import { loadSpec } from "../config.ts";
import { SluiceError } from "../errors.ts";
import { type Gateway, startGateway } from "../gateway.ts";
import type { Cli } from "./main.ts";
import { count, problemLine } from "./report.ts";

export async function run(cli: Cli, path: string | undefined): Promise<number> {
  const { spec, registry, problems, warnings } = await loadSpec({ ...cli, ...(path === undefined ? {} : { path }) });
  if (spec === undefined) {
    for (const problem of problems) cli.stderr.write(problemLine(problem, "problem", cli.colors));
    cli.stderr.write(`${count(problems.length, "problem")}: nothing was started\n`);
    return 1;
  }
  const log = pino({ level: spec.gateway.log.level, timestamp: pino.stdTimeFunctions.isoTime }, await logStream(cli));
  for (const { where, message } of warnings) log.warn({ where }, message);

  const signals = catchSignals();
  try {
    const gateway = await startGateway({ spec, registry, log, version: cli.version });
    surviveStrays(gateway, log);
    // Where logs are read by a program, stdout is theirs alone.
    const banner = cli.stdout.isTTY ? cli.stdout : cli.stderr;
    for (const line of gateway.summary()) banner.write(`${line}\n`);
    const signal = await signals.first;
    log.info({ signal }, "stopping");
    await gateway.stop();
    return 0;
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    cli.stderr.write(`sluice could not start: ${error.message}\n`);
    return 1;
  } finally {
    signals.release();
  }
}

/**
 * A plugin's timer that throws, or a promise that nobody awaits, must not end everybody's connections. It is logged and
 * counted; what a filter's own `handle` throws never comes this far.
 */
function surviveStrays({ host }: Gateway, log: Logger): void {
  const strays = host.metrics.counter(
    "sluice_stray_errors_total",
    "Errors that nothing caught: a plugin's defect, or ours.",
  );
  process.on("uncaughtException", (error, origin) => {
    strays.inc();
    log.error({ err: error, origin }, "An error that nothing caught; the gateway goes on");
  });
}

async function logStream(cli: Cli): Promise<DestinationStream> {
  if (!cli.stdout.isTTY) return pino.destination({ dest: 1, sync: true });
  const { default: pretty } = await import("pino-pretty");
  return pretty({ colorize: cli.colors, ignore: "pid,hostname", translateTime: "SYS:HH:MM:ss.l", sync: true });
}

/** The first SIGINT or SIGTERM asks for a stop; the second one ends the process at once. */
function catchSignals(): { first: Promise<NodeJS.Signals>; release(): void } {
  const { promise, resolve } = Promise.withResolvers<NodeJS.Signals>();
  let asked = false;
  const onSignal = (signal: NodeJS.Signals) => {
    if (asked) process.exit(128 + constants.signals[signal]);
    asked = true;
    resolve(signal);
  };
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  return { first: promise, release: () => void process.off("SIGINT", onSignal).off("SIGTERM", onSignal) };
}
