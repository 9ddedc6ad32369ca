/** Composition root: builds everything a spec names, binds last, and closes it all in reverse order. */
import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { isDeepStrictEqual } from "node:util";
import { type Addresses, createAddresses } from "./addresses.ts";
import { createCrew, type Crew, type CrewDeps, type Texts } from "./crew.ts";
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
import { createFrontProxy } from "./front-proxy.ts";
import { createMetrics, type MetricSnapshot } from "./metrics.ts";
import { isSuccessor, makePlan } from "./plan.ts";
import type { ClusterEngine, ClusterService } from "./cluster-engine.ts";
import { createClusterStore } from "./cluster-store.ts";
import { answerMembers, queryMembers, reportOf } from "./members.ts";
import type { ConfigControl, Host, MemberReport, ObjectHealth, Plan, Service } from "./plugin.ts";
import { createProcessMetrics } from "./process-metrics.ts";
import { createProxy } from "./proxy.ts";
import { createSharedConfig, type LocalConfig, takeChanges } from "./shared-config.ts";
import type { Registry } from "./registry.ts";
import type { Spec } from "./spec.ts";
import type { WorkerReport } from "./crew-wire.ts";
import { createMemoryStore } from "./memory-store.ts";
import type { RemoteStore } from "./remote-store.ts";
import type { Store } from "./store.ts";
import { createStoreServer, type ServedProxy } from "./store-server.ts";

/** What a config comes as. */
export interface Wanted {
  readonly spec: Spec;
  readonly registry: Registry;
  /** What the files hold, for workers to read. */
  readonly texts?: Texts | undefined;
}

/** All of a change that can fail is done: one of the two is called, once. */
export interface PreparedChange {
  readonly plan: Plan;
  commit(): Promise<void>;
  rollback(): Promise<void>;
}

/** What a gateway that is one of several workers has from the main process. */
export interface WorkerSide {
  readonly index: number;
  readonly count: number;
  readonly store: RemoteStore;
  readonly addresses: Addresses;
  /** Asks the main process for a stop. */
  drain(): void;
}

/** How a gateway starts workers. */
export type CrewStart = Pick<CrewDeps, "fork"> & Pick<CrewDeps["start"], "cwd" | "bins">;

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
  apply(wanted: Wanted): Promise<Plan>;
  /** The same in two steps. No other change begins before the second. */
  prepare(wanted: Wanted): Promise<PreparedChange>;
  /** What a worker tells of itself. */
  report(): WorkerReport;
  snapshot(): Promise<readonly MetricSnapshot[]>;
  /** A line for `health`, as long as something is wrong with the config; undefined = nothing is. */
  setConfigProblem(problem: string | undefined): void;
  /** What `host.config` changes the config with: whoever reads its files. Until then every change is refused. */
  setConfigControl(control: LocalConfig): void;
  /** Resolves when {@link Host.drain} is called: who runs the gateway stops it then. */
  readonly drainAsked: Promise<void>;
  /**
   * Stops accepting, lets what is under way finish within the drain time-out, closes everything once.
   * @param rate clients closed a second, instead of the config's `drain.rate`
   */
  stop(rate?: number): Promise<void>;
}

/**
 * @param o.startDeadlineMs how long a filter's `create` or a service's `start` may take
 * @param o.worker this is one of several, and has no services
 * @param o.crew without it the gateway can't have workers
 */
export function createGateway(o: {
  log: RootLogger;
  version: string;
  startDeadlineMs?: number;
  worker?: WorkerSide;
  crew?: CrewStart;
}): Gateway {
  const { log, version, startDeadlineMs = 10_000, worker } = o;
  const metrics = createMetrics(() => crew?.measure() ?? Promise.resolve([]));
  const processMetrics = createProcessMetrics(metrics, worker === undefined ? "main" : String(worker.index));
  const node = worker?.store.node ?? { id: hostname(), incarnation: randomUUID() };
  let store: Store | undefined = worker?.store;
  let crew: Crew | undefined;
  const served = new Map<string, ServedProxy>();
  const server = createStoreServer((name) => served.get(name), systemClock);
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
      set: setLogLevel,
    },
    ready: ready.promise,
    isReady: () => isReady && crew?.running !== 0,
    drain: () => (worker ? worker.drain() : asked.resolve()),
    worker: { index: worker?.index ?? 0, count: worker?.count ?? 1 },
  };
  let folderOfFirst = process.cwd();
  const source: HostSource = { shared, metrics, log };
  const workshop: Workshop = {
    source,
    addresses: worker?.addresses ?? createAddresses(),
    get store() {
      // Nothing is built before it is there.
      return store as Store;
    },
    clock: systemClock,
    pipeline: (name) => running.pipelines.get(name),
    startDeadlineMs,
    siblings: (name) => worker?.store.open(name).siblings,
    createProxy: (spec, deps) => {
      if (!crew) return createProxy(spec, deps);
      const { view } = crew;
      return createFrontProxy(spec, deps, {
        listeners: (name) => view.listeners(name),
        totals: (name) => view.totals(name),
        connected: (name) => server.connected(name),
        ended: (name, clientId) => server.ended(name, clientId),
        back: (name, clientId, resumed) => server.back(name, clientId, resumed),
        speakFor: (name, will, dueAt) => server.speakFor(name, will, dueAt),
        serve: (proxy) => void served.set(proxy.name, proxy),
      });
    },
  };
  const { host } = createHost(source, "gateway", {});
  metrics.gauge("sluice_pipeline_packets_active", "Packets that are in a pipeline.", ["pipeline"], (gauge) => {
    for (const [pipeline, { active }] of running.pipelines) gauge.set({ pipeline }, active);
  });

  function report(): MemberReport {
    return reportOf(host, local?.digest() ?? "");
  }

  function health(): ObjectHealth[] {
    const { live, durable, reasons } = store?.health() ?? { live: false, durable: false, reasons: ["not started"] };
    return [
      { name: "config", ok: configProblem === undefined, ...(configProblem ? { detail: configProblem } : {}) },
      { name: "store", ok: live && durable, ...(reasons.length > 0 ? { detail: reasons.join(", ") } : {}) },
      ...(crew ? crew.view.health() : filterHealth()),
      ...services().map(([name, { service }]) => ({ name, ...(service.health?.() ?? { ok: true }) })),
      ...[...running.proxies.values()].map(({ name, urls }) => ({ name, ok: isReady, detail: urls.join(", ") })),
    ];
  }

  function filterHealth(): ObjectHealth[] {
    return [...running.pipelines.values()].flatMap((pipeline) => pipeline.health());
  }

  function setLogLevel(level: string): void {
    log.level = level;
    crew?.setLogLevel(level);
  }

  function services(): [string, ServiceInstance][] {
    return [
      ...(storeService ? [[storeService.spec.name, storeService] as [string, ServiceInstance]] : []),
      ...running.services,
    ];
  }

  /** Before everything else, since all sessions live in it. */
  async function openStore(spec: Spec): Promise<void> {
    if (worker) return;
    const wanted = storeServiceOf(spec);
    storeService = wanted && (await startService(wanted, undefined, workshop));
    cluster = storeService && engineOf(storeService.service);
    const common = { log, metrics, now: () => systemClock.now() };
    store = cluster
      ? createClusterStore({ engine: cluster, ...common })
      : createMemoryStore({ node, journal: storeService?.service.journal, ...common });
    await store.start();
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

  /** @throws SluiceError RESTART_NEEDED */
  function refuseOtherWorkers({ gateway }: Spec): void {
    const now = running.spec?.gateway.workers;
    if (now === undefined || now === gateway.workers) return;
    throw new SluiceError(
      "RESTART_NEEDED",
      `the gateway runs with workers: ${now}, and takes ${gateway.workers} when it is restarted`,
    );
  }

  /** Before anything is built here: what can't be built there fails the change. */
  async function prepareCrew(spec: Spec, texts: Texts | undefined) {
    const count = spec.gateway.workers;
    if (count === 1 || worker) return undefined;
    if (!o.crew || !texts) {
      throw new SluiceError("CONFIG_INVALID", "this program runs the gateway in one process: set workers to 1");
    }
    crew ??= createCrew({
      fork: o.crew.fork,
      start: {
        count,
        node,
        caps: (store as Store).caps,
        version,
        logLevel: log.level,
        startDeadlineMs,
        path: spec.path,
        cwd: o.crew.cwd,
        bins: o.crew.bins,
      },
      addresses: createAddresses({ pauseOnConnect: true }),
      server,
      log,
      metrics,
      clock: systemClock,
      onDrain: () => asked.resolve(),
    });
    return await crew.prepare(texts);
  }

  async function prepare({ spec, registry: found, texts }: Wanted): Promise<PreparedChange> {
    if (stopped) throw new SluiceError("CONFIG_INVALID", "the gateway is stopping; the config is not changed any more");
    const plan = makePlan(running.spec, spec);
    if (plan.isEmpty && running.spec) {
      // A plugin may have come that the config does not use yet.
      return {
        plan,
        commit() {
          registry = found;
          return Promise.resolve();
        },
        rollback: () => Promise.resolve(),
      };
    }
    if (running.spec && !worker) {
      refuseOtherWorkers(spec);
      refuseOtherStore(spec);
    }
    let candidate: Candidate;
    let theirs: Awaited<ReturnType<typeof prepareCrew>>;
    try {
      if (!running.spec) {
        folderOfFirst = spec.folder;
        await openStore(spec);
      }
      theirs = await prepareCrew(spec, texts);
      // The pipelines are the workers'.
      candidate = await buildGeneration(running, theirs ? { ...spec, pipelines: [] } : spec, workshop);
    } catch (error) {
      theirs?.rollback();
      if (!running.spec) {
        await crew?.stop(0);
        await closeAll(storeToClose(), source);
        store = storeService = crew = undefined;
      }
      throw error;
    }
    return {
      plan,
      async commit() {
        if (running.spec?.gateway.log.level !== spec.gateway.log.level) setLogLevel(spec.gateway.log.level);
        running = { ...candidate.next, spec };
        registry = found;
        configVersion++;
        candidate.commit();
        await theirs?.commit();
        const retired = candidate.retire().finally(() => retiring.delete(retired));
        retiring.add(retired);
        isReady = true;
        ready.resolve();
      },
      async rollback() {
        theirs?.rollback();
        await candidate.rollback();
      },
    };
  }

  /** Changes queue up, each until its second step is done. */
  function inTurn(wanted: Wanted): Promise<PreparedChange> {
    const over = Promise.withResolvers<void>();
    const preparing = last.then(() => prepare(wanted));
    last = preparing.then(
      () => over.promise,
      (error: unknown) => {
        if (!running.spec) ready.reject(error);
      },
    );
    return preparing.then((change) => ({
      plan: change.plan,
      commit: () => change.commit().finally(over.resolve),
      rollback: () => change.rollback().finally(over.resolve),
    }));
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
        .flatMap((name) =>
          crew
            ? crew.view.health().filter((each) => each.name.startsWith(`${name}/`))
            : (running.pipelines.get(name ?? "")?.health() ?? []),
        )
        .filter(({ detail }) => detail !== undefined)
        .map(({ name, detail }) => `${name}: ${detail}`),
      ...(running.spec?.gateway.hints ?? []),
    ],
    async apply(wanted) {
      const change = await inTurn(wanted);
      await change.commit();
      return change.plan;
    },
    prepare: inTurn,
    report: () => ({
      health: filterHealth(),
      proxies: [...running.proxies.values()].map((proxy) => {
        const { listeners, address } = proxy.status() as {
          listeners: { name: string; url: string }[];
          address: string;
        };
        return {
          name: proxy.name,
          totals: { ...proxy.totals },
          listeners: listeners.map((each) => ({ ...each, address })),
        };
      }),
    }),
    snapshot: () => metrics.snapshot(),
    setConfigProblem(problem) {
      configProblem = problem;
    },
    setConfigControl(next) {
      local = next;
      control = createSharedConfig(next, () => cluster);
    },
    stop(rate) {
      isReady = false;
      return (stopped ??= (async () => {
        await last;
        const { drain: wanted = { timeoutMs: 0, rate: 0 } } = running.spec?.gateway ?? {};
        const drain = { ...wanted, rate: rate ?? wanted.rate };
        const reversed = <T>(map: ReadonlyMap<string, T>): [string, T][] => [...map].toReversed();
        await closeAll(
          [
            { name: "workers", close: () => crew?.stop(drain.timeoutMs + workersMs) ?? Promise.resolve() },
            ...reversed(running.proxies).map(([name, proxy]) => ({ name, close: () => proxy.stop(drain, true) })),
            { name: "earlier generations", close: () => Promise.all(retiring) },
            ...reversed(running.services).map(([name, each]) => ({ name, close: () => each.close() })),
            ...reversed(running.pipelines).map(([name, pipeline]) => ({ name, close: () => pipeline.drained() })),
            ...reversed(running.filters).map(([name, each]) => ({ name, close: () => each.close() })),
            ...storeToClose(),
          ],
          source,
          drain.timeoutMs + (crew ? workersMs : 0),
        );
        processMetrics.close();
      })());
    },
  };
}

/** Of a service that joins nodes to a cluster. */
function engineOf(service: Service | Partial<ClusterService>): ClusterEngine | undefined {
  return "cluster" in service ? service.cluster : undefined;
}

/** What workers may take beyond the drain time to close all that they have. */
const workersMs = 15_000;

function refuseChange(): Promise<never> {
  return Promise.reject(
    new SluiceError("CONFIG_READ_ONLY", "this gateway was not started from files: nothing to write to"),
  );
}
