/** Composition root: builds everything a spec names, binds last, and closes it all in reverse order. */
import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { createAddresses } from "./addresses.ts";
import { isDeepStrictEqual } from "node:util";
import { SluiceError } from "./errors.ts";
import {
  buildGeneration,
  type Candidate,
  closeAll,
  type Generation,
  nothing,
  type ServiceInstance,
  startService,
  storeServiceOf,
  type Workshop,
} from "./generation.ts";
import { createHost, type HostSource, type RootLogger, type SharedHost, systemClock } from "./host.ts";
import { kernelKinds } from "./kernel-kinds.ts";
import { createMetrics } from "./metrics.ts";
import { isSuccessor, makePlan } from "./plan.ts";
import { answerMembers, queryMembers, reportOf } from "./members.ts";
import type { ClusterEngine, ClusterService } from "./cluster-engine.ts";
import { createSharedConfig, type LocalConfig, takeChanges } from "./shared-config.ts";
import type { ConfigControl, Host, MemberReport, ObjectHealth, Plan } from "./plugin.ts";
import type { Registry } from "./registry.ts";
import type { Spec } from "./spec.ts";
import { createMemoryStore } from "./memory-store.ts";
import type { Store } from "./store.ts";

export interface Gateway {
  readonly host: Host;
  /** What is running; undefined before the first apply. */
  readonly spec: Spec | undefined;
  /** For people: where it listens, where records go, what to try. */
  summary(): string[];
  /**
   * The one path of start and change: plan, build all that is new, swap, and retire the old in the background. Calls queue
   * up. An empty plan changes nothing.
   * @throws SluiceError FILTER_CREATE_FAILED, SERVICE_START_FAILED, LISTEN_FAILED, PLUGIN_START_TIMEOUT, CONFIG_INVALID,
   *   STORE_FAILED, RESTART_NEEDED; what ran before goes on untouched
   */
  apply(wanted: { spec: Spec; registry: Registry }): Promise<Plan>;
  /** A line for `health`, as long as something is wrong with the config; undefined = nothing is. */
  setConfigProblem(problem: string | undefined): void;
  /** What `host.config` changes the config with: whoever reads its files. Until then every change is refused. */
  setConfigControl(control: LocalConfig): void;
  /** Resolves when {@link Host.drain} is called: who runs the gateway stops it then. */
  readonly drainAsked: Promise<void>;
  /** Stops accepting, lets what is under way finish within the drain time-out, closes everything once. */
  stop(): Promise<void>;
}

/** @param o.startDeadlineMs how long a filter's `create` or a service's `start` may take */
export function createGateway(o: { log: RootLogger; version: string; startDeadlineMs?: number }): Gateway {
  const { log, version, startDeadlineMs = 10_000 } = o;
  const metrics = createMetrics();
  const node = { id: hostname(), incarnation: randomUUID() };
  let store: Store | undefined;
  let storeService: ServiceInstance | undefined;
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
  let local: LocalConfig | undefined;
  let cluster: ClusterEngine | undefined;
  let isReady = false;
  let stopped: Promise<void> | undefined;
  let last: Promise<unknown> = Promise.resolve();
  const retiring = new Set<Promise<void>>();

  const shared: SharedHost = {
    get folder() {
      return running.spec?.folder ?? folderOfFirst;
    },
    clock: systemClock,
    async publish(name, message, request) {
      const proxy = running.proxies.get(name);
      if (!proxy) throw new SluiceError("PROXY_NOT_FOUND", `no proxy is named ${name}`);
      return await proxy.publish(message, request);
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
    cluster: {
      get isJoined() {
        return cluster !== undefined;
      },
      members: () => queryMembers(cluster, node, report),
    },
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
    get store() {
      // Nothing is built before it is there.
      return store as Store;
    },
    clock: systemClock,
    pipeline: (name) => running.pipelines.get(name),
    startDeadlineMs,
  };
  const { host } = createHost(source, "gateway", {});

  function report(): MemberReport {
    return reportOf(host, local?.digest() ?? "");
  }

  function health(): ObjectHealth[] {
    const { live, durable, reasons } = store?.health() ?? { live: false, durable: false, reasons: ["not started"] };
    return [
      { name: "config", ok: configProblem === undefined, ...(configProblem ? { detail: configProblem } : {}) },
      { name: "store", ok: live && durable, ...(reasons.length > 0 ? { detail: reasons.join(", ") } : {}) },
      ...[...running.pipelines.values()].flatMap((pipeline) => pipeline.health()),
      ...services().map(([name, { service }]) => ({ name, ...(service.health?.() ?? { ok: true }) })),
      ...[...running.proxies.values()].map(({ name, urls }) => ({ name, ok: isReady, detail: urls.join(", ") })),
    ];
  }

  function services(): [string, ServiceInstance][] {
    return [
      ...(storeService ? [[storeService.spec.name, storeService] as [string, ServiceInstance]] : []),
      ...running.services,
    ];
  }

  /** Before everything else, since all sessions live in it. */
  async function openStore(spec: Spec): Promise<void> {
    const wanted = storeServiceOf(spec);
    storeService = wanted && (await startService(wanted, undefined, workshop));
    store = createMemoryStore({
      node,
      journal: storeService?.service.journal,
      log,
      metrics,
      now: () => systemClock.now(),
    });
    await store.start();
    const service: Partial<ClusterService> | undefined = storeService?.service;
    cluster = service?.cluster;
    if (!cluster) return;
    answerMembers(cluster, report);
    takeChanges(cluster, () => local);
  }

  /** After everything else. */
  function storeToClose(): { name: string; close: () => Promise<unknown> }[] {
    return [
      { name: "store", close: () => store?.stop() ?? Promise.resolve() },
      ...(storeService ? [{ name: storeService.spec.name, close: storeService.close }] : []),
    ];
  }

  /** @throws SluiceError RESTART_NEEDED */
  function refuseOtherStore(spec: Spec): void {
    const [old, next] = [running.spec && storeServiceOf(running.spec), storeServiceOf(spec)];
    // Other code of the same kind waits for a restart, and keeps nothing else waiting.
    const isSame = old && next && old.name === next.name && isSuccessor(old, next);
    if (isSame ? isDeepStrictEqual(old.options, next.options) : old === next) return;
    const { name, kind } = next ?? old ?? { name: "", kind: { kind: "" } };
    throw new SluiceError(
      "RESTART_NEEDED",
      `${name} (${kind.kind}) holds the sessions, so that it can't be added, changed or removed while the gateway runs: restart it for this change`,
    );
  }

  async function change({ spec, registry: found }: { spec: Spec; registry: Registry }): Promise<Plan> {
    if (stopped) throw new SluiceError("CONFIG_INVALID", "the gateway is stopping; the config is not changed any more");
    const plan = makePlan(running.spec, spec);
    if (plan.isEmpty && running.spec) {
      // A plugin may have come that the config does not use yet.
      registry = found;
      return plan;
    }
    if (running.spec) refuseOtherStore(spec);
    let candidate: Candidate;
    try {
      if (!running.spec) {
        folderOfFirst = spec.folder;
        await openStore(spec);
      }
      candidate = await buildGeneration(running, spec, workshop);
    } catch (error) {
      if (!running.spec) {
        await closeAll(storeToClose(), source);
        store = storeService = undefined;
      }
      throw error;
    }
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
      ...[...running.proxies.values()].flatMap(({ name, urls }) => urls.map((url) => `${name} listens on ${url}`)),
      ...services().map(([name, { service }]) => `${name}: ${service.health?.().detail ?? "started"}`),
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
      local = next;
      control = createSharedConfig(next, () => cluster);
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
            ...storeToClose(),
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
