/** What runs: built beside the running generation, swapped in at once, the old one retired afterwards. */
import type { Addresses } from "./addresses.ts";
import { within } from "./deadline.ts";
import { configError, messageOf, SluiceError } from "./errors.ts";
import { createHost, type HostSource } from "./host.ts";
import { createPipeline, type FilterInstance, type Pipeline } from "./pipeline.ts";
import type { Clock, Service } from "./plugin.ts";
import { filterChanges, filtersOf, isSuccessor } from "./plan.ts";
import { createProxy, type Proxy, type ProxyChange, type ProxyDeps } from "./proxy.ts";
import type { Siblings } from "./siblings.ts";
import type { FilterSpec, ObjectRef, PipelineSpec, ProxySpec, ServiceSpec, Spec } from "./spec.ts";
import type { Store } from "./store.ts";
import { isDeepStrictEqual } from "node:util";

export interface ServiceInstance {
  readonly spec: ServiceSpec;
  readonly service: Service;
  readonly close: () => Promise<void>;
}

export interface Generation {
  readonly spec: Spec | undefined;
  /** By `pipeline/filter`. */
  readonly filters: ReadonlyMap<string, FilterInstance>;
  readonly pipelines: ReadonlyMap<string, Pipeline>;
  readonly services: ReadonlyMap<string, ServiceInstance>;
  readonly proxies: ReadonlyMap<string, Proxy>;
}

export const nothing: Generation = {
  spec: undefined,
  filters: new Map(),
  pipelines: new Map(),
  services: new Map(),
  proxies: new Map(),
};

/** A generation that is ready to run: one of `commit` and `rollback` is called, once; `retire` after `commit`. */
export interface Candidate {
  readonly next: Generation;
  /** Can't fail. */
  commit(): void;
  /** Closes what was built; the running generation has not been touched. */
  rollback(): Promise<void>;
  /** Lets what is under way in the old generation finish, then closes what the new one does not use. */
  retire(): Promise<void>;
}

export interface Workshop {
  readonly source: HostSource;
  readonly addresses: Addresses;
  readonly store: Store;
  readonly clock: Clock;
  /** The running generation's, at the time of the call. */
  pipeline(name: string): Pipeline | undefined;
  /** How long a filter's `create` or a service's `start` may take. */
  readonly startDeadlineMs: number;
  /** In place of a proxy with listeners of its own. */
  createProxy?(spec: ProxySpec, deps: ProxyDeps): Proxy;
  /** Of a proxy whose clients are shared out among workers. */
  siblings?(proxy: string): Siblings | undefined;
}

/** How long a service's `stop` or a filter's `close` may take before the others are closed without it. */
const closeDeadlineMs = 10_000;

/** @throws SluiceError FILTER_CREATE_FAILED, SERVICE_START_FAILED, LISTEN_FAILED, PLUGIN_START_TIMEOUT; nothing is left open then. */
export async function buildGeneration(running: Generation, spec: Spec, workshop: Workshop): Promise<Candidate> {
  const { source } = workshop;
  const built: { name: string; close: () => Promise<unknown> }[] = [];
  const filters = new Map<string, FilterInstance>();
  const services = new Map<string, ServiceInstance>();
  const proxies = new Map<string, Proxy>();
  const changes: (ProxyChange & { readonly name: string })[] = [];
  const rollback = async (): Promise<void> => closeAll(built.toReversed(), source);
  const makeProxy = (wanted: ProxySpec, deps: ProxyDeps): Proxy =>
    workshop.createProxy?.(wanted, deps) ?? createProxy(wanted, deps);
  try {
    for (const wanted of filtersOf(spec)) {
      const old = running.filters.get(wanted.name);
      if (old && filterChanges(old, wanted).length === 0) {
        filters.set(wanted.name, old);
        continue;
      }
      const made = await located(spec, { family: "filter", name: wanted.name }, createFilter(wanted, workshop));
      built.push({ name: wanted.name, close: made.close });
      filters.set(wanted.name, made);
    }
    for (const wanted of spec.proxies) {
      const proxy =
        running.proxies.get(wanted.name) ??
        makeProxy(wanted, {
          pipeline: (name) => workshop.pipeline(name),
          addresses: workshop.addresses,
          store: workshop.store,
          metrics: source.metrics,
          log: source.log.child({ proxy: wanted.name }),
          clock: workshop.clock,
          version: source.shared.about().version,
          siblings: workshop.siblings?.(wanted.name),
        });
      const change = await located(spec, { family: "proxy", name: wanted.name }, proxy.prepare(wanted));
      built.push({ name: wanted.name, close: () => Promise.resolve(change.rollback()) });
      changes.push({ ...change, name: wanted.name });
      proxies.set(wanted.name, proxy);
    }
    checkAddresses(changes, spec);
    // Last, since a service that has adopted is the one that a rollback concerns most.
    for (const wanted of spec.services) {
      // The gateway's own: it outlives every generation.
      if (wanted.kind.role === "store") continue;
      const old = running.services.get(wanted.name);
      if (old && old.spec.kind === wanted.kind && isDeepStrictEqual(old.spec.options, wanted.options)) {
        services.set(wanted.name, old);
        continue;
      }
      const previous = old && isSuccessor(old.spec, wanted) ? old.service : undefined;
      const made = await located(
        spec,
        { family: "service", name: wanted.name },
        startService(wanted, previous, workshop),
      );
      built.push({ name: wanted.name, close: made.close });
      services.set(wanted.name, made);
    }
  } catch (error) {
    await rollback();
    throw error;
  }
  const pipelines = new Map(
    spec.pipelines.map((wanted) => [wanted.name, pipelineOf(wanted, running, filters, source)] as const),
  );
  return {
    next: { spec, filters, pipelines, services, proxies },
    rollback,
    commit() {
      for (const [name, next] of filters) {
        const { filter } = next;
        const old = running.filters.get(name);
        if (!old || old.filter === filter || !isSuccessor(old, next)) continue;
        try {
          filter.adopt?.(old.filter);
        } catch (error) {
          source.log.error({ filter: name, error: messageOf(error) }, "A filter could not adopt the one it replaces");
        }
      }
      for (const change of changes) change.commit();
      for (const [name, proxy] of running.proxies) {
        if (!proxies.has(name)) proxy.orphan((pipeline) => running.pipelines.get(pipeline));
      }
    },
    async retire() {
      const { drain } = spec.gateway;
      const gone = <T>(old: ReadonlyMap<string, T>, next: ReadonlyMap<string, T>): [string, T][] =>
        [...old].filter(([name, each]) => next.get(name) !== each);
      // Side by side, so that one that hangs delays nobody.
      const close = (each: { name: string; close: () => Promise<unknown> }): Promise<void> =>
        closeAll([each], source, drain.timeoutMs);
      await Promise.all([
        ...gone(running.proxies, proxies).map(([name, proxy]) => close({ name, close: () => proxy.stop(drain) })),
        ...gone(running.services, services).map(([name, each]) => close({ name, close: each.close })),
        ...changes.map((change) => close({ name: change.name, close: () => change.retire(drain) })),
      ]);
      // Their packets' own deadline bounds it: no filter is closed with a packet in it.
      await Promise.all(gone(running.pipelines, pipelines).map(([, pipeline]) => pipeline.drained()));
      await Promise.all(gone(running.filters, filters).map(([name, each]) => close({ name, close: each.close })));
    },
  };
}

/** What can't be built is told with the place in the config that asks for it. */
async function located<T>(
  spec: Spec,
  object: ObjectRef | { readonly family: "proxy"; readonly name: string },
  building: Promise<T>,
): Promise<T> {
  try {
    return await building;
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    const { family, name } = object;
    const part = error.listener === undefined ? name : `${name}/${error.listener}`;
    const where = spec.where(family === "proxy" ? { family: "listener", name: part } : { family, name });
    throw configError([{ where, message: error.message }], error.code, { cause: error });
  }
}

/** The service that the sessions live in, where the config has one. */
export function storeServiceOf(spec: Spec): ServiceSpec | undefined {
  return spec.services.find(({ kind }) => kind.role === "store");
}

/**
 * The config names no address twice, but one that it names may be what the system chose for another: to be shared while
 * it passes on, not by two that both stay.
 */
function checkAddresses(changes: readonly (ProxyChange & { readonly name: string })[], spec: Spec): void {
  const owners = new Map<string, string>();
  for (const { name, addresses } of changes) {
    for (const address of addresses) {
      const other = owners.get(address);
      if (other !== undefined) {
        const what = `${name} and ${other} can't both listen on ${address}`;
        const why = "for one of them the system has chosen this port (its port is 0)";
        const where = spec.where({ family: "listener", name: `${name}/default` });
        throw configError([{ where, message: `${what}; ${why}: set another for the other` }], "LISTEN_FAILED");
      }
      owners.set(address, name);
    }
  }
}

/** In the order given; one that fails or hangs doesn't keep the others open. */
export async function closeAll(
  each: readonly { name: string; close: () => Promise<unknown> }[],
  { log }: HostSource,
  extraMs = 0,
): Promise<void> {
  for (const { name, close } of each) {
    try {
      await inTime(closeDeadlineMs + extraMs, close(), `${name} did not close`);
    } catch (error) {
      log.error({ object: name, error: messageOf(error) }, "Closing failed");
    }
  }
}

/** The running one where nothing of it differs: it goes on with the packets it has. */
function pipelineOf(
  wanted: PipelineSpec,
  running: Generation,
  filters: ReadonlyMap<string, FilterInstance>,
  source: HostSource,
): Pipeline {
  const old = running.pipelines.get(wanted.name);
  const oldSpec = running.spec?.pipelines.find(({ name }) => name === wanted.name);
  const own = new Map(
    wanted.filters.flatMap(({ name }) => {
      const instance = filters.get(`${wanted.name}/${name}`);
      return instance ? [[name, instance] as const] : [];
    }),
  );
  const isSame =
    oldSpec !== undefined &&
    isDeepStrictEqual(
      [oldSpec.flow, oldSpec.data, oldSpec.timeoutMs, oldSpec.filters.map(({ name }) => name)],
      [wanted.flow, wanted.data, wanted.timeoutMs, wanted.filters.map(({ name }) => name)],
    ) &&
    [...own].every(([name, instance]) => running.filters.get(`${wanted.name}/${name}`) === instance);
  return old && isSame ? old : createPipeline(wanted, own, source);
}

async function createFilter(
  { name, kind, from, options, isolation }: FilterSpec,
  { source, startDeadlineMs }: Workshop,
): Promise<FilterInstance> {
  const [pipeline, filterName] = splitName(name);
  const { host, abort } = createHost(source, name, { pipeline, filter: filterName });
  const creating = Promise.try(() => kind.create(options, host));
  try {
    const filter = await inTime(startDeadlineMs, creating, `${kind.kind} was not created`);
    return {
      name: filterName,
      kind,
      from,
      filter,
      options,
      isolation,
      async close() {
        await filter.close?.();
        abort();
      },
    };
  } catch (error) {
    abort();
    // One that comes too late is nobody's, and still has to be closed.
    void creating.then(
      (late) => closeAll([{ name, close: async () => late.close?.() }], source),
      () => undefined,
    );
    throw failure("FILTER_CREATE_FAILED", `${kind.kind} can't be created`, error);
  }
}

/** @throws SluiceError SERVICE_START_FAILED, PLUGIN_START_TIMEOUT; it is stopped then */
export async function startService(
  spec: ServiceSpec,
  previous: Service | undefined,
  { source, startDeadlineMs }: Workshop,
): Promise<ServiceInstance> {
  const { name, kind, options } = spec;
  const { host, abort } = createHost(source, name, { service: name });
  const creating = Promise.try(() => kind.create(options, host));
  const start = async (): Promise<Service> => {
    const service = await creating;
    if (previous) service.adopt?.(previous);
    await service.start?.();
    return service;
  };
  try {
    const service = await inTime(startDeadlineMs, start(), `${kind.kind} did not start`);
    return {
      spec,
      service,
      async close() {
        await service.stop?.();
        abort();
      },
    };
  } catch (error) {
    abort();
    const stopped = creating.then(
      (late) => closeAll([{ name, close: async () => late.stop?.() }], source),
      () => undefined,
    );
    // Where it hangs in `create`, there is nothing to wait for.
    if (!isTimeout(error)) await stopped;
    throw failure("SERVICE_START_FAILED", `${kind.kind} can't be started`, error);
  }
}

function splitName(name: string): [string, string] {
  const at = name.indexOf("/");
  return [name.slice(0, at), name.slice(at + 1)];
}

function failure(code: "FILTER_CREATE_FAILED" | "SERVICE_START_FAILED", what: string, error: unknown): SluiceError {
  if (isTimeout(error)) return error;
  return new SluiceError(code, `${what}: ${messageOf(error)}`, { cause: error });
}

function isTimeout(error: unknown): error is SluiceError {
  return error instanceof SluiceError && error.code === "PLUGIN_START_TIMEOUT";
}

/** @throws SluiceError PLUGIN_START_TIMEOUT */
function inTime<T>(ms: number, work: Promise<T>, what: string): Promise<T> {
  return within(ms, work, () => new SluiceError("PLUGIN_START_TIMEOUT", `${what} within ${ms / 1000} s`));
}
