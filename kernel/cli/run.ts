/** `sluice run`: the gateway in the foreground. */
import { constants } from "node:os";
import { pino, type DestinationStream, type Logger } from "pino";
import { loadSpec } from "../config.ts";
import { createGateway, type Gateway } from "../gateway.ts";
import { createReloader } from "../reload.ts";
import { schemaCompiler } from "../schema.ts";
import { type Watcher, watchInputs } from "../watch.ts";
import type { Cli } from "./main.ts";
import { count, problemLine } from "./report.ts";

export async function run(cli: Cli, { config, watch }: { config?: string; watch: boolean }): Promise<number> {
  // The config says the level, and whether it can be read at all is not known yet.
  const log = pino({ timestamp: pino.stdTimeFunctions.isoTime }, await logStream(cli));
  const gateway = createGateway({ log, version: cli.version });
  const from = { ...cli, compile: schemaCompiler(), ...(config === undefined ? {} : { path: config }) };
  const reloader = createReloader({
    load: (overlay = new Map()) => loadSpec({ ...from, overlay }),
    gateway,
    log,
  });
  const signals = catchSignals();
  let watcher: Watcher | undefined;
  const reload = async (by: string): Promise<void> => {
    await watcher?.mark();
    const readAt = Date.now();
    // What a config that is no good was read from is watched too: that is where it will be mended.
    const { inputs: read } = await reloader.reload(by);
    await watcher?.follow(read, readAt);
  };
  // From the first moment: without a listener a SIGHUP ends the process. One that comes during the start queues up.
  const onHangup = (): void => void reload("signal");
  process.on("SIGHUP", onHangup);
  const startedAt = Date.now();
  const { plan, problems, inputs } = await reloader.reload("start");
  if (!plan) {
    process.off("SIGHUP", onHangup);
    signals.release();
    for (const problem of problems) cli.stderr.write(problemLine(problem, "problem", cli.colors));
    cli.stderr.write(`${count(problems.length, "problem")}: nothing was started\n`);
    return 1;
  }
  surviveStrays(gateway, log);
  // Where logs are read by a program, stdout is theirs alone.
  const banner = cli.stdout.isTTY ? cli.stdout : cli.stderr;
  for (const line of gateway.summary()) banner.write(`${line}\n`);

  watcher = watch ? watchInputs({ onChange: () => void reload("file") }) : undefined;
  await watcher?.follow(inputs, startedAt);
  const signal = await Promise.race([signals.first, gateway.drainAsked.then(() => "drain")]);
  log.info({ signal }, "stopping");
  watcher?.close();
  await gateway.stop();
  // Only now: without a listener, a SIGHUP would end the process in the middle of its stop.
  process.off("SIGHUP", onHangup);
  signals.release();
  return 0;
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
