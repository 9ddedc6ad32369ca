/** Composition root: builds everything a spec names, binds last, and closes it all in reverse order. */
import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { createAddresses } from "./addresses.ts";
import { SluiceError } from "./errors.ts";
import { buildGeneration, closeAll, type Generation, nothing, type Workshop } from "./generation.ts";
import { createHost, type HostSource, type RootLogger, type SharedHost, systemClock } from "./host.ts";
import { kernelKinds } from "./kernel-kinds.ts";
import { createMetrics } from "./metrics.ts";
import { makePlan } from "./plan.ts";
import type { ConfigControl, Host, ObjectHealth, Plan } from "./plugin.ts";
import type { Registry } from "./registry.ts";
import type { Spec } from "./spec.ts";
import { createMemoryStore, type Store } from "./store.ts";

export interface Gateway {
  readonly host: Host;
  /** What is running; undefined before the first apply. */
  readonly spec: Spec | undefined;
  /** For people: where it listens, where records go, what to try. */
  summary(): string[];
  /**
   * The one path of start and change: plan, build all that is new, swap, and retire the old in the background. Calls queue
   * up. An empty plan changes nothing.
   * @throws SluiceError FILTER_CREATE_FAILED, SERVICE_START_FAILED, LISTEN_FAILED, PLUGIN_START_TIMEOUT, CONFIG_INVALID;
   *   what ran before goes on untouched
   */
  apply(wanted: { spec: Spec; registry: Registry }): Promise<Plan>;
  /** A line for `health`, as long as something is wrong with the config; undefined = nothing is. */
  setConfigProblem(problem: string | undefined): void;
  /** What `host.config` changes the config with: whoever reads its files. Until then every change is refused. */
  setConfigControl(control: ConfigControl): void;
  /** Resolves when {@link Host.drain} is called: who runs the gateway stops it then. */
  readonly drainAsked: Promise<void>;
  /** Stops accepting, lets what is under way finish within the drain time-out, closes everything once. */
  stop(): Promise<void>;
}

/** @param o.startDeadlineMs how long a filter's `create` or a service's `start` may take */
export function createGateway(o: { log: RootLogger; version: string; startDeadlineMs?: number }): Gateway {
  const { log, version, startDeadlineMs = 10_000 } = o;
  const metrics = createMetrics();
  const store: Store = createMemoryStore({ id: hostname(), incarnation: randomUUID() });
  const ready = Promise.withResolvers<void>();
  // Nobody may be waiting for it when the start fails.
  ready.promise.catch(() => undefined);
  const asked = Promise.withResolvers<void>();
  const startedAt = systemClock.now();
  let running: Generation = nothing;
  let registry: Registry | undefined;
  let configVersion = 0;
  let configProblem: string | undefined;
  let control: ConfigControl = { apply: refuseChange, history: () => [], rollback: refuseChange };
  let isReady = false;
  let stopped: Promise<void> | undefined;
  let last: Promise<unknown> = Promise.resolve();
  const retiring = new Set<Promise<void>>();

  const shared: SharedHost = {
    get folder() {
      return running.spec?.folder ?? folderOfFirst;
    },
    clock: systemClock,
    async publish(name, message) {
      const proxy = running.proxies.get(name);
      if (!proxy) throw new SluiceError("PROXY_NOT_FOUND", `no proxy is named ${name}`);
      return await proxy.publish(message);
    },
    proxies: { get: (name) => running.proxies.get(name), list: () => [...running.proxies.values()] },
    config: {
      documents: () => running.spec?.documents ?? [],
      version: () => configVersion,
      apply: (wanted, how) => control.apply(wanted, how),
      history: () => control.history(),
      rollback: (to, how) => control.rollback(to, how),
    },
    kinds: () => [...kernelKinds, ...(registry?.kinds() ?? [])],
    health: () => health(),
    about: () => ({ name: "sluice", version, node: process.version, startedAt }),
    logLevel: {
      get: () => log.level,
      set(level) {
        log.level = level;
      },
    },
    ready: ready.promise,
    isReady: () => isReady,
    drain: () => asked.resolve(),
  };
  let folderOfFirst = process.cwd();
  const source: HostSource = { shared, metrics, log };
  const workshop: Workshop = {
    source,
    addresses: createAddresses(),
    store,
    clock: systemClock,
    pipeline: (name) => running.pipelines.get(name),
    startDeadlineMs,
  };
  const { host } = createHost(source, "gateway", {});

  function health(): ObjectHealth[] {
    const { live, reasons } = store.health();
    return [
      { name: "config", ok: configProblem === undefined, ...(configProblem ? { detail: configProblem } : {}) },
      { name: "store", ok: live, ...(reasons.length > 0 ? { detail: reasons.join(", ") } : {}) },
      ...[...running.pipelines.values()].flatMap((pipeline) => pipeline.health()),
      ...[...running.services].map(([name, { service }]) => ({ name, ...(service.health?.() ?? { ok: true }) })),
      ...[...running.proxies.values()].map(({ name, url }) => ({ name, ok: isReady, detail: url })),
    ];
  }

  async function change({ spec, registry: found }: { spec: Spec; registry: Registry }): Promise<Plan> {
    if (stopped) throw new SluiceError("CONFIG_INVALID", "the gateway is stopping; the config is not changed any more");
    const plan = makePlan(running.spec, spec);
    if (plan.isEmpty && running.spec) return plan;
    if (!running.spec) {
      folderOfFirst = spec.folder;
      await store.start();
    }
    const candidate = await buildGeneration(running, spec, workshop);
    if (running.spec?.gateway.log.level !== spec.gateway.log.level) log.level = spec.gateway.log.level;
    running = candidate.next;
    registry = found;
    configVersion++;
    candidate.commit();
    const retired = candidate.retire().finally(() => retiring.delete(retired));
    retiring.add(retired);
    isReady = true;
    ready.resolve();
    return plan;
  }

  return {
    host,
    drainAsked: asked.promise,
    get spec() {
      return running.spec;
    },
    summary: () => [
      ...[...running.proxies.values()].map(({ name, url }) => `${name} listens on ${url}`),
      ...[...running.services].map(([name, { service }]) => `${name}: ${service.health?.().detail ?? "started"}`),
      // Where records go: what the filters of the Publish pipelines say of themselves.
      ...[...new Set(running.spec?.proxies.map(({ rules }) => rules.Publish))]
        .flatMap((name) => running.pipelines.get(name ?? "")?.health() ?? [])
        .filter(({ detail }) => detail !== undefined)
        .map(({ name, detail }) => `${name}: ${detail}`),
      ...(running.spec?.gateway.hints ?? []),
    ],
    apply(wanted) {
      const done = last.then(() => change(wanted));
      last = done.catch((error: unknown) => {
        if (!running.spec) ready.reject(error);
      });
      return done;
    },
    setConfigProblem(problem) {
      configProblem = problem;
    },
    setConfigControl(next) {
      control = next;
    },
    stop() {
      isReady = false;
      return (stopped ??= (async () => {
        await last;
        const drain = running.spec?.gateway.drain ?? { timeoutMs: 0, rate: 0 };
        const reversed = <T>(map: ReadonlyMap<string, T>): [string, T][] => [...map].toReversed();
        await closeAll(
          [
            ...reversed(running.proxies).map(([name, proxy]) => ({ name, close: () => proxy.stop(drain) })),
            { name: "earlier generations", close: () => Promise.all(retiring) },
            ...reversed(running.services).map(([name, each]) => ({ name, close: () => each.close() })),
            ...reversed(running.pipelines).map(([name, pipeline]) => ({ name, close: () => pipeline.drained() })),
            ...reversed(running.filters).map(([name, each]) => ({ name, close: () => each.close() })),
            { name: "store", close: () => store.stop() },
          ],
          source,
          drain.timeoutMs,
        );
      })());
    },
  };
}

function refuseChange(): Promise<never> {
  return Promise.reject(
    new SluiceError("CONFIG_READ_ONLY", "this gateway was not started from files: nothing to write to"),
  );
}
