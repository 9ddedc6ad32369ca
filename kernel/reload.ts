/** From files to the running gateway and back: the one path of start, file change, signal and changes from inside. */
import { isDeepStrictEqual } from "node:util";
import type { LoadedSpec, Problem } from "./config.ts";
import type { Overlay } from "./config-files.ts";
import { createConfigHistory, describePlan } from "./config-history.ts";
import { stageFiles } from "./config-store.ts";
import { changeBetween, changeTexts, digestOf, type Written } from "./config-writer.ts";
import { type Code, configError, messageOf, problemsOf, SluiceError } from "./errors.ts";
import type { Gateway } from "./gateway.ts";
import type { RootLogger } from "./host.ts";
import { makePlan } from "./plan.ts";
import type { ChangeOptions, ConfigChange, ConfigResult, Plan } from "./plugin.ts";
import type { Registry } from "./registry.ts";
import type { Spec } from "./spec.ts";

export interface Reloaded {
  /** Undefined where it failed: what ran before goes on. */
  readonly plan: Plan | undefined;
  readonly problems: readonly Problem[];
  readonly warnings: readonly Problem[];
  /** What the config was read from, whether or not it was any good. */
  readonly inputs: ReadonlySet<string>;
}

export interface Reloader {
  /** Calls queue up, with changes from inside too. Never rejects. @param by who asked: `start`, `file`, `signal` */
  reload(by: string): Promise<Reloaded>;
}

interface Wish extends ChangeOptions {
  /** The files' new texts. */
  readonly texts: (now: LoadedSpec) => Overlay;
}

/** Also becomes what `host.config` changes the config with. @param o.load reads the files, as if they held the overlay */
export function createReloader(o: {
  load: (overlay?: Overlay) => Promise<LoadedSpec>;
  gateway: Gateway;
  log: RootLogger;
}): Reloader {
  const { gateway, log } = o;
  const { metrics, clock, config } = gateway.host;
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
  const history = createConfigHistory();
  let running: Running | undefined;
  let last: Promise<unknown> = Promise.resolve();

  function inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = last.then(work);
    last = done.catch(() => undefined);
    return done;
  }

  async function run(by: string, loaded: LoadedSpec): Promise<Reloaded> {
    const { spec, registry, problems, warnings, inputs } = loaded;
    if (!spec) return failed(by, problems, warnings, inputs);
    let plan: Plan;
    try {
      plan = await gateway.apply({ spec, registry, texts: loaded.texts });
    } catch (error) {
      const code: Code = error instanceof SluiceError ? error.code : "CONFIG_INVALID";
      const found = problemsOf(error) ?? [{ where: spec.path, message: messageOf(error) ?? "unknown" }];
      return failed(
        by,
        found.map((problem) => ({ ...problem, code })),
        warnings,
        inputs,
      );
    }
    succeeded(by, plan, warnings, { ...writtenOf(loaded), spec, registry });
    return { plan, problems: [], warnings, inputs };
  }

  function succeeded(by: string, plan: Plan, warnings: readonly Problem[], next: Running): void {
    running = next;
    gateway.setConfigProblem(undefined);
    state.successful = 1;
    const at = clock.now();
    state.at = at / 1000;
    const version = config.version();
    history.record({ version, by, at, plan, texts: next.texts }, next.spec.gateway.history);
    reloads.inc({ outcome: plan.isEmpty ? "unchanged" : "applied" });
    for (const { where, message } of warnings) log.warn({ where }, message);
    if (by === "start") return;
    log.info(
      { by, version, changed: describePlan(plan) },
      plan.isEmpty ? "The config has not changed" : "The config has changed",
    );
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

  function checkVersion(wanted: number | undefined): void {
    const version = config.version();
    if (wanted === undefined || wanted === version) return;
    throw new SluiceError("CONFIG_CONFLICT", `the running config is version ${version}, not ${wanted}: read it again`);
  }

  async function change({ by, dryRun = false, ifVersion, texts }: Wish): Promise<ConfigResult> {
    checkVersion(ifVersion);
    const now = await o.load();
    // What somebody has just saved comes first, and is a version of its own.
    if (!dryRun && !isDeepStrictEqual(now.texts, history.latest())) {
      await run("file", now);
      checkVersion(ifVersion);
    }
    const changed = texts(now);
    const wanted = await o.load(changed);
    if (!wanted.spec) throw configError(wanted.problems);
    const { spec, registry, warnings } = wanted;
    const { documents } = spec;
    if (dryRun) return { version: config.version(), plan: makePlan(gateway.spec, spec), documents, warnings };
    const next = { ...writtenOf(wanted), spec, registry };
    const plan = await write(by, next, changed, now.texts);
    succeeded(by, plan, warnings, next);
    return { version: config.version(), plan, documents, warnings };
  }

  /** Nothing is applied that can't be written, and nothing written that can't be applied. */
  async function write(by: string, next: Running, changed: Overlay, before: Texts): Promise<Plan> {
    const staged = await stageFiles(changed, before);
    const previous = running;
    let plan: Plan | undefined;
    try {
      plan = await gateway.apply(next);
      await staged.commit();
      return plan;
    } catch (error) {
      await staged.discard();
      if (plan && !plan.isEmpty && previous) {
        const back = await gateway.apply(previous);
        const { texts, spec } = previous;
        history.record({ version: config.version(), by, at: clock.now(), plan: back, texts }, spec.gateway.history);
        log.error({ by, err: error }, "The config could not be written; the one before it is back");
      }
      throw error;
    }
  }

  function textsOf(version: number, now: Texts): Overlay {
    const then = history.textsOf(version);
    if (!then) {
      const known = history.entries().map((entry) => entry.version);
      const message = `version ${version} is not remembered: the history has ${known.join(", ")}`;
      throw new SluiceError("CONFIG_NOT_FOUND", message);
    }
    const gone = [...now.keys()].filter((file) => !then.has(file)).map((file) => [file, undefined] as const);
    return new Map([...[...then].filter(([file, text]) => now.get(file) !== text), ...gone]);
  }

  async function changeBack(version: number): Promise<ConfigChange> {
    const now = await o.load();
    return changeBetween(now, await o.load(textsOf(version, now.texts)));
  }

  gateway.setConfigControl({
    changeBack: (version) => inTurn(() => changeBack(version)),
    digest: () => (running ? digestOf(running) : ""),
    apply: (wanted, how) =>
      inTurn(() => change({ ...how, texts: (now) => changeTexts(now, wanted, config.documents()) })),
    history: () => history.entries(),
    rollback: (version, how) => inTurn(() => change({ ...how, texts: (now) => textsOf(version, now.texts) })),
  });
  return { reload: (by) => inTurn(async () => run(by, await o.load())) };
}

interface Running extends Written {
  readonly spec: Spec;
  readonly registry: Registry;
}

function writtenOf({ path, texts, written }: LoadedSpec): Written {
  return { path, texts, written };
}

type Texts = ReadonlyMap<string, string>;
