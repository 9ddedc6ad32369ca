/** `sluice run`: the gateway in the foreground. */
import { type ChildProcess, fork } from "node:child_process";
import { constants } from "node:os";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import { loadSpec } from "../config.ts";
import { createGateway } from "../gateway.ts";
import { createPluginModules } from "../plugin-modules.ts";
import { createReloader } from "../reload.ts";
import { schemaCompiler } from "../schema.ts";
import { type Watcher, watchInputs } from "../watch.ts";
import { createLog } from "./log.ts";
import type { Cli } from "./main.ts";
import { count, problemLine } from "./report.ts";
import { surviveStrays } from "./strays.ts";

const workerProgram = fileURLToPath(new URL(`./worker${extname(import.meta.filename)}`, import.meta.url));

/** @param o.load takes the place of `loadSpec` */
export async function run(
  cli: Cli,
  o: { readonly config?: string; readonly watch: boolean; readonly load?: typeof loadSpec },
): Promise<number> {
  const { config, watch, load = loadSpec } = o;
  // The config says the level, and whether it can be read at all is not known yet.
  const log = await createLog({ isTTY: cli.stdout.isTTY, colors: cli.colors });
  const gateway = createGateway({
    log,
    version: cli.version,
    // A worker reads the config as it is on the disk, and not as another `load` makes it.
    ...(o.load ? {} : { crew: { fork: forkWorker, cwd: cli.cwd, bins: cli.bins } }),
  });
  const from = {
    ...cli,
    compile: schemaCompiler(),
    modules: createPluginModules({ log, metrics: gateway.host.metrics }),
    ...(config === undefined ? {} : { path: config }),
  };
  const reloader = createReloader({
    load: (overlay = new Map()) => load({ ...from, overlay }),
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
  from.modules.close();
  // Only now: without a listener, a SIGHUP would end the process in the middle of its stop.
  process.off("SIGHUP", onHangup);
  signals.release();
  return 0;
}

/** Its log goes where ours goes. A debugger's port can't be had twice. */
function forkWorker(): ChildProcess {
  const execArgv = process.execArgv.filter((flag) => !flag.startsWith("--inspect"));
  return fork(workerProgram, [], { execArgv, stdio: ["ignore", "inherit", "inherit", "ipc", "pipe"] });
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
