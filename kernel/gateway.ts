/** Composition root: builds everything a spec names, binds last, and closes it all in reverse order. */
import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { messageOf, SluiceError } from "./errors.ts";
import { createHost, type HostSource, type RootLogger, type SharedHost, systemClock } from "./host.ts";
import { kernelKinds } from "./kernel-kinds.ts";
import { createMetrics } from "./metrics.ts";
import { createPipeline, type FilterInstance, type Pipeline } from "./pipeline.ts";
import type { Host, ObjectHealth, Service } from "./plugin.ts";
import { createProxy, type Proxy } from "./proxy.ts";
import type { Registry } from "./registry.ts";
import type { PipelineSpec, ServiceSpec, Spec } from "./spec.ts";
import { createMemoryStore, type Store } from "./store.ts";

export interface Gateway {
  readonly host: Host;
  /** For people: where it listens, where records go, what to try. */
  summary(): string[];
  /** Stops accepting, lets what is under way finish within the drain time-out, closes everything once. */
  stop(): Promise<void>;
}

export interface GatewayOptions {
  readonly spec: Spec;
  readonly registry: Registry;
  readonly log: RootLogger;
  readonly version: string;
}

/** How long a filter's `create` or a service's `start` may take. */
const startDeadlineMs = 10_000;

/** How long a service's `stop` or a filter's `close` may take before the others are closed without it. */
const closeDeadlineMs = 10_000;

/** @throws SluiceError FILTER_CREATE_FAILED, SERVICE_START_FAILED, LISTEN_FAILED, PLUGIN_START_TIMEOUT; nothing is left open then. */
export async function startGateway({ spec, registry, log, version }: GatewayOptions): Promise<Gateway> {
  const closers: { name: string; close: () => Promise<void> }[] = [];
  const metrics = createMetrics();
  const pipelines = new Map<string, Pipeline>();
  const proxies = new Map<string, Proxy>();
  const services = new Map<string, Service>();
  const store: Store = createMemoryStore({ id: hostname(), incarnation: randomUUID() });
  const ready = Promise.withResolvers<void>();
  // Nobody may be waiting for it when the start fails.
  ready.promise.catch(() => undefined);
  const startedAt = systemClock.now();
  let isReady = false;
  let stopped: Promise<void> | undefined;

  const shared: SharedHost = {
    folder: spec.folder,
    clock: systemClock,
    async publish(name, message) {
      const proxy = proxies.get(name);
      if (!proxy) throw new SluiceError("PROXY_NOT_FOUND", `no proxy is named ${name}`);
      return await proxy.publish(message);
    },
    proxies: { get: (name) => proxies.get(name), list: () => [...proxies.values()] },
    config: { documents: () => spec.documents, version: () => 1 },
    kinds: () => [...kernelKinds, ...registry.kinds()],
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
  };
  const source: HostSource = { shared, metrics, log };

  function health(): ObjectHealth[] {
    const { live, reasons } = store.health();
    return [
      { name: "store", ok: live, ...(reasons.length > 0 ? { detail: reasons.join(", ") } : {}) },
      ...[...pipelines.values()].flatMap((pipeline) => pipeline.health()),
      ...[...services].map(([name, service]) => ({ name, ...(service.health?.() ?? { ok: true }) })),
      ...[...proxies.values()].map(({ name, url }) => ({ name, ok: isReady, detail: url })),
    ];
  }

  /** In reverse order; one that fails or hangs doesn't keep the others open. */
  async function closeAll(): Promise<void> {
    for (const { name, close } of closers.splice(0).toReversed()) {
      try {
        await within(closeDeadlineMs + spec.gateway.drainTimeoutMs, close(), `${name} did not close`);
      } catch (error) {
        log.error({ object: name, error: messageOf(error) }, "Closing failed");
      }
    }
  }

  function owns(name: string, close: () => Promise<void>): void {
    closers.push({ name, close });
  }

  try {
    await store.start();
    owns("store", () => store.stop());
    for (const pipeline of spec.pipelines) {
      const built = await buildPipeline(pipeline, source);
      pipelines.set(pipeline.name, built);
      owns(pipeline.name, () => built.close());
    }
    for (const each of spec.services) {
      const { service, close } = await startService(each, source);
      services.set(each.name, service);
      owns(each.name, close);
    }
    for (const each of spec.proxies) {
      const proxy = createProxy(each, {
        pipeline: (name) => pipelines.get(name),
        store,
        metrics,
        log: log.child({ proxy: each.name }),
        clock: systemClock,
      });
      proxies.set(each.name, proxy);
      owns(each.name, () => proxy.stop(spec.gateway.drainTimeoutMs));
    }
    // Everything is there before the first packet can come.
    for (const proxy of proxies.values()) await proxy.listen();
  } catch (error) {
    ready.reject(error);
    await closeAll();
    throw error;
  }
  isReady = true;
  ready.resolve();
  const { host } = createHost(source, "gateway", {});

  return {
    host,
    summary: () => [
      ...[...proxies.values()].map(({ name, url }) => `${name} listens on ${url}`),
      ...[...services].map(([name, service]) => `${name}: ${service.health?.().detail ?? "started"}`),
      // Where records go: what the filters of the Publish pipelines say of themselves.
      ...[...new Set(spec.proxies.map(({ rules }) => rules.Publish))]
        .flatMap((name) => pipelines.get(name ?? "")?.health() ?? [])
        .filter(({ detail }) => detail !== undefined)
        .map(({ name, detail }) => `${name}: ${detail}`),
      ...spec.gateway.hints,
    ],
    stop() {
      isReady = false;
      return (stopped ??= closeAll());
    },
  };
}

async function buildPipeline(spec: PipelineSpec, source: HostSource): Promise<Pipeline> {
  const filters = new Map<string, FilterInstance>();
  try {
    for (const { name, kind, options } of spec.filters) {
      const where = `${spec.name}/${name}`;
      const { host, abort } = createHost(source, where, { pipeline: spec.name, filter: name });
      const filter = await within(
        startDeadlineMs,
        Promise.try(() => kind.create(options, host)),
        `${where} (${kind.kind}) was not created`,
      ).catch((error: unknown) => {
        abort();
        throw failure("FILTER_CREATE_FAILED", `${spec.name} > ${name}: ${kind.kind} can't be created`, error);
      });
      filters.set(name, {
        name,
        kind,
        filter,
        async close() {
          await filter.close?.();
          abort();
        },
      });
    }
    return createPipeline(spec, filters, source);
  } catch (error) {
    for (const { close } of [...filters.values()].toReversed()) await close();
    throw error;
  }
}

async function startService(
  { name, kind, options }: ServiceSpec,
  source: HostSource,
): Promise<{ service: Service; close: () => Promise<void> }> {
  const { host, abort } = createHost(source, name, { service: name });
  try {
    const service = await within(
      startDeadlineMs,
      Promise.try(async () => {
        const made = await kind.create(options, host);
        await made.start?.();
        return made;
      }),
      `${name} (${kind.kind}) did not start`,
    );
    return {
      service,
      async close() {
        await service.stop?.();
        abort();
      },
    };
  } catch (error) {
    abort();
    throw failure("SERVICE_START_FAILED", `${name}: ${kind.kind} can't be started`, error);
  }
}

function failure(code: "FILTER_CREATE_FAILED" | "SERVICE_START_FAILED", what: string, error: unknown): SluiceError {
  if (error instanceof SluiceError && error.code === "PLUGIN_START_TIMEOUT") return error;
  return new SluiceError(code, `${what}: ${messageOf(error)}`, { cause: error });
}

/** @throws SluiceError PLUGIN_START_TIMEOUT */
async function within<T>(ms: number, work: Promise<T>, what: string): Promise<T> {
  const timer = Promise.withResolvers<never>();
  const handle = setTimeout(
    () => timer.reject(new SluiceError("PLUGIN_START_TIMEOUT", `${what} within ${ms / 1000} s`)),
    ms,
  );
  try {
    return await Promise.race([work, timer.promise]);
  } finally {
    clearTimeout(handle);
  }
}
