/** A whole pipeline in memory: read from YAML, checked, built and changed as the gateway does it, without a network. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Clock, Filter, FilterContext, FilterKind, ObjectHealth } from "@sluice/kernel";
import {
  buildGeneration,
  createAddresses,
  createLane,
  createMemoryStore,
  loadSpec,
  nothing,
  SluiceError,
  type Lane,
  type Outcome,
  type Spec,
} from "@sluice/kernel/internal";
import { createTestSource, type LogLine } from "./host.ts";

export type { Outcome } from "@sluice/kernel/internal";

/** What one filter answered. */
export interface Step {
  readonly filter: string;
  /** Undefined where it returned nothing. */
  readonly result?: string;
  /** What it threw. */
  readonly error?: unknown;
}

/** A packet's way through the pipeline. */
export interface Run {
  readonly outcome: Outcome;
  /** The filters that were entered and have answered, in that order. */
  readonly steps: readonly Step[];
  /** What they left for each other. */
  readonly data: ReadonlyMap<string, unknown>;
}

export interface TestPipeline {
  /** Packets of one client enter each filter in the order in which they are sent. The packet is changed in place. */
  send(context: Pick<FilterContext, "type" | "origin" | "packet" | "client">): Promise<Run>;
  /** Replaces the config as a hot reload does. Rejects, with nothing changed, where it has problems. */
  reload(yaml: string): Promise<void>;
  health(): readonly ObjectHealth[];
  readonly logs: readonly LogLine[];
  /** See {@link createTestHost}. */
  readonly metricValue: (name: string, labels?: Record<string, string>) => Promise<number | undefined>;
  /** What relative paths in the config are relative to; removed with it. */
  readonly folder: string;
  /** Lets packets under way finish, then closes the filters. */
  close(): Promise<void>;
}

export interface PipelineOptions {
  /** Folders of packages whose kinds the config may name; without them only those that are installed here. */
  readonly plugins?: readonly (string | URL)[];
  /** Which one, where the config has several. */
  readonly name?: string;
  readonly clock?: Clock;
  /** Where `${NAME}` in the config is taken from. */
  readonly env?: NodeJS.ProcessEnv;
}

/** How long a filter's `create` may take. */
const startDeadlineMs = 10_000;

/** What each filter has said of a packet that is under way. */
type Recording = { steps: Step[]; data: ReadonlyMap<string, unknown> };

/**
 * @param yaml a config; its proxies and services are checked and not started
 * @throws with every problem of the config
 */
export async function openPipeline(yaml: string, options: PipelineOptions = {}): Promise<TestPipeline> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-pipeline-"));
  const { source, logs, metricValue } = createTestSource(folder, options.clock);
  const recordings = new WeakMap<object, Recording>();
  const record = createRecorder(recordings);
  const lanes = new Map<string, Lane>();
  let running = nothing;
  const workshop = {
    source,
    addresses: createAddresses(),
    store: createMemoryStore({
      node: { id: "testkit", incarnation: "1" },
      log: source.log,
      metrics: source.metrics,
      now: () => source.shared.clock.now(),
    }),
    clock: source.shared.clock,
    pipeline: (name: string) => running.pipelines.get(name),
    startDeadlineMs,
  };

  async function load(text: string): Promise<Spec> {
    const file = join(folder, "sluice.yaml");
    await writeFile(file, text);
    const { spec, problems } = await loadSpec({
      path: file,
      cwd: folder,
      env: options.env ?? process.env,
      bins: [fileURLToPath(import.meta.resolve("@sluice/kernel"))],
      ahead: (options.plugins ?? []).map((each) => (each instanceof URL ? fileURLToPath(each) : each)),
    });
    if (!spec) {
      const lines = problems.map(({ where, message }) => `${where}: ${message}`);
      throw new SluiceError(problems[0]?.code ?? "CONFIG_INVALID", lines.join("\n"));
    }
    const pipelines = spec.pipelines.map((pipeline) => ({
      ...pipeline,
      filters: pipeline.filters.map((filter) => ({ ...filter, kind: record(filter.kind) })),
    }));
    return { ...spec, pipelines, proxies: [], services: [] };
  }

  async function apply(text: string): Promise<void> {
    const candidate = await buildGeneration(running, await load(text), workshop);
    running = candidate.next;
    candidate.commit();
    await candidate.retire();
  }

  try {
    await apply(yaml);
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
  const all = (): ObjectHealth[] => [...running.pipelines.values()].flatMap((pipeline) => pipeline.health());
  return {
    folder,
    logs,
    metricValue,
    health: all,
    reload: apply,
    async send({ type, origin, packet, client }) {
      const name = options.name ?? running.pipelines.keys().next().value ?? "";
      const pipeline = running.pipelines.get(name);
      if (!pipeline)
        throw new Error(`the config has no pipeline ${name}: it has ${[...running.pipelines.keys()].join(", ")}`);
      let lane = lanes.get(client.id);
      if (!lane) lanes.set(client.id, (lane = createLane()));
      const recording: Recording = { steps: [], data: new Map() };
      recordings.set(packet, recording);
      const outcome = await new Promise<Outcome>((resolve) => {
        const now = pipeline.run({ type, origin, packet, client, lane }, resolve);
        if (now) resolve(now);
      });
      return { outcome, ...recording };
    },
    async close() {
      await Promise.all([...running.pipelines.values()].map((pipeline) => pipeline.drained()));
      for (const each of [...running.filters.values()].toReversed()) await each.close();
      await workshop.store.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** Kinds whose filters write down what they answer. A kind is the same each time, for a reload keeps what is the same. */
function createRecorder(recordings: WeakMap<object, Recording>): (kind: FilterKind) => FilterKind {
  const kinds = new WeakMap<FilterKind, FilterKind>();
  const inner = new WeakMap<Filter, Filter>();

  function wrap(filter: Filter, name: string): Filter {
    const wrapped: Filter = {
      handle(ctx) {
        const recording = recordings.get(ctx.packet);
        if (recording) recording.data = ctx.data;
        const say = (step: Omit<Step, "filter">): void => void recording?.steps.push({ filter: name, ...step });
        const answered = (result: string | void): string | void => {
          say(typeof result === "string" ? { result } : {});
          return result;
        };
        const failed = (error: unknown): never => {
          say({ error });
          throw error;
        };
        try {
          const result = filter.handle(ctx);
          return typeof result === "object" ? Promise.resolve(result).then(answered, failed) : answered(result);
        } catch (error) {
          return failed(error);
        }
      },
      adopt: (previous) => filter.adopt?.(inner.get(previous) ?? previous),
      close: () => filter.close?.(),
      health: () => filter.health?.() ?? { ok: true },
    };
    inner.set(wrapped, filter);
    return wrapped;
  }

  return (kind) => {
    const known = kinds.get(kind);
    if (known) return known;
    const create: FilterKind["create"] = async (config, host) =>
      wrap(await kind.create(config, host), host.name.slice(host.name.indexOf("/") + 1));
    const made = Object.create(kind, { create: { value: create } }) as FilterKind;
    kinds.set(kind, made);
    return made;
  };
}
