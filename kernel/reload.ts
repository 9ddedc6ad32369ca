/** From files to the running gateway: the one path of start, file change and signal. */
import type { LoadedSpec, Problem } from "./config.ts";
import { type Code, messageOf, SluiceError } from "./errors.ts";
import type { Gateway } from "./gateway.ts";
import type { RootLogger } from "./host.ts";
import type { Plan } from "./plugin.ts";

export interface Reloaded {
  /** Undefined where it failed: what ran before goes on. */
  readonly plan: Plan | undefined;
  readonly problems: readonly Problem[];
  readonly warnings: readonly Problem[];
  /** What the config was read from, whether or not it was any good. */
  readonly inputs: ReadonlySet<string>;
}

export interface Reloader {
  /** Calls queue up. Never rejects. @param by who asked: `start`, `file`, `signal` */
  reload(by: string): Promise<Reloaded>;
}

export function createReloader(o: { load: () => Promise<LoadedSpec>; gateway: Gateway; log: RootLogger }): Reloader {
  const { gateway, log } = o;
  const { metrics } = gateway.host;
  const reloads = metrics.counter("sluice_config_reloads_total", "Times the config was read, by outcome.", ["outcome"]);
  const state = { successful: 1, at: 0 };
  metrics.gauge(
    "sluice_config_last_reload_successful",
    "1 where the config on disk is the one that runs.",
    [],
    (gauge) => gauge.set({}, state.successful),
  );
  metrics.gauge(
    "sluice_config_last_reload_success_timestamp_seconds",
    "When the config was last found good, in seconds since the epoch.",
    [],
    (gauge) => gauge.set({}, state.at),
  );
  let last: Promise<unknown> = Promise.resolve();

  async function run(by: string): Promise<Reloaded> {
    const { spec, registry, problems, warnings, inputs } = await o.load();
    if (!spec) return failed(by, problems, warnings, inputs);
    let plan: Plan;
    try {
      plan = await gateway.apply({ spec, registry });
    } catch (error) {
      const code: Code = error instanceof SluiceError ? error.code : "CONFIG_INVALID";
      return failed(by, [{ where: spec.path, message: messageOf(error) ?? "unknown", code }], warnings, inputs);
    }
    gateway.setConfigProblem(undefined);
    state.successful = 1;
    state.at = gateway.host.clock.now() / 1000;
    reloads.inc({ outcome: plan.isEmpty ? "unchanged" : "applied" });
    for (const { where, message } of warnings) log.warn({ where }, message);
    if (by !== "start") {
      const changed = plan.items.filter(({ action }) => action !== "keep");
      log.info(
        { by, version: gateway.host.config.version(), changed: changed.map(describe) },
        plan.isEmpty ? "The config has not changed" : "The config has changed",
      );
    }
    return { plan, problems: [], warnings, inputs };
  }

  function failed(
    by: string,
    problems: readonly Problem[],
    warnings: readonly Problem[],
    inputs: ReadonlySet<string>,
  ): Reloaded {
    state.successful = 0;
    reloads.inc({ outcome: "failed" });
    const [first] = problems;
    gateway.setConfigProblem(
      `the config has ${problems.length} problem${problems.length === 1 ? "" : "s"}, the one before it runs on: ${first?.where}: ${first?.message}`,
    );
    if (by !== "start") {
      for (const { where, message, code } of problems) log.error({ by, where, code }, message);
      log.error({ by, problems: problems.length }, "The config was not changed");
    }
    return { plan: undefined, problems, warnings, inputs };
  }

  return {
    reload(by) {
      const done = last.then(() => run(by));
      last = done.catch(() => undefined);
      return done;
    },
  };
}

function describe({ action, kind, name, fields, notes }: Plan["items"][number]): string {
  const what = [fields.join(", "), ...notes].filter((each) => each !== "").join("; ");
  return `${action} ${kind} ${name}${what === "" ? "" : ` (${what})`}`;
}
