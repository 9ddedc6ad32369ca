/** A frozen flow of filters: run, jumpIf, deadline, per-filter counters, retire. */
import { messageOf, SluiceError } from "./errors.ts";
import type { Outcome } from "./outcome.ts";
import type {
  Authentication,
  Client,
  Filter,
  FilterContext,
  FilterKind,
  FilterResult,
  Logger,
  Metrics,
  ObjectHealth,
  PacketType,
  PendingResult,
  Reason,
} from "./plugin.ts";
import type { IsolationSpec, KindOrigin, PipelineSpec } from "./spec.ts";
import { createThrottle } from "./throttle.ts";

const passed: Outcome = { kind: "passed" };
const dropped: Outcome = { kind: "dropped" };

/** The packets of one connection in one pipeline, oldest first: what keeps their order in front of each filter. */
export interface Lane {
  last: PacketRun | undefined;
}

export function createLane(): Lane {
  return { last: undefined };
}

/** One packet, as handed to a pipeline. */
export interface Job {
  readonly type: PacketType;
  readonly origin: FilterContext["origin"];
  readonly packet: FilterContext["packet"];
  readonly client: Client;
  readonly lane: Lane;
  /** Instead of the one that the proxy's rules name. */
  readonly pipeline?: string | undefined;
  /** What filters find in `ctx.data` besides PIPELINE. */
  readonly data?: readonly (readonly [key: string, value: unknown])[] | undefined;
  /** Of a Connect whose client named an authentication method. */
  readonly auth?: Authentication | undefined;
  /**
   * Runs behind the last filter, in the connection's order (brokerMode's fan-out). A throw or rejection is a fault. It is
   * handed the job, so that all jobs of a kind can share it.
   */
  readonly final?: ((job: Job) => void | Promise<unknown>) | undefined;
  /** `final` keeps the order itself: the next packet's is called while this one's is under way. */
  readonly finalKeepsOrder?: boolean | undefined;
}

/** How a run ends that was not over at once. It is handed the job, so that all jobs of a kind can share it. */
export type Done<J extends Job> = (outcome: Outcome, job: J) => void;

export interface Pipeline {
  readonly name: string;
  /** Returns the outcome where every filter answered synchronously; else nothing, and calls `done` later, once. */
  run<J extends Job>(job: J, done: Done<J>): Outcome | undefined;
  /** Packets under way. */
  readonly active: number;
  health(): ObjectHealth[];
  /** Resolves when no packet is under way; their deadline bounds that. */
  drained(): Promise<void>;
}

export interface FilterInstance {
  readonly name: string;
  readonly kind: FilterKind;
  readonly from: KindOrigin;
  readonly filter: Filter;
  /** What it was made from: a filter whose kind and options are the same is kept over a change. */
  readonly options: unknown;
  readonly isolation?: IsolationSpec | undefined;
  readonly close: () => Promise<void>;
}

interface Node {
  readonly name: string;
  readonly kind: FilterKind;
  readonly filter: Filter;
  /** Result -> index of the node to go on with; the flow's length for END. */
  readonly jumps: ReadonlyMap<string, number>;
  readonly count: (outcome: string) => void;
  /** {@link count} of what goes on. */
  readonly countOk: () => void;
  readonly observe: (seconds: number) => void;
}

/** What the runs of one pipeline share. */
interface Flow {
  readonly name: string;
  /** Nothing where the flow names END. */
  readonly nodes: readonly (Node | undefined)[];
  readonly data: Readonly<Record<string, unknown>>;
  /** It could not end at once. */
  started(run: PacketRun): void;
  /** Of a run that had to wait, before its `done`. */
  finished(run: PacketRun, outcome: Outcome): void;
  fault(node: string, error: unknown): void;
}

/**
 * One packet's way through the flow; filters see it as their context. A class, since one is made a packet and its shape
 * and methods have to be shared. Runs of a lane are a linked list: a run enters a filter once its predecessor is past it
 * (or inside it, where the kind is `concurrent`).
 */
class PacketRun {
  readonly type: PacketType;
  readonly origin: FilterContext["origin"];
  readonly packet: FilterContext["packet"];
  readonly client: Client;
  readonly auth: Authentication | undefined;
  startedAt = 0;
  /** Its neighbours among the runs of the pipeline that wait; the flow's. */
  older: PacketRun | undefined;
  newer: PacketRun | undefined;
  private readonly flow: Flow;
  private readonly lane: Lane;
  private readonly job: Job;
  private map: Map<string, unknown> | undefined;
  private controller: AbortController | undefined;
  private verdict: Outcome | undefined;
  private done: Done<Job> | undefined;
  private previous: PacketRun | undefined;
  private next: PacketRun | undefined;
  /** The node it is in, or in front of. */
  private position = 0;
  private inside = false;
  private waiting = false;
  private ended = false;
  /** It is calling `then`. */
  private asking = false;
  private enteredAt = 0;

  constructor(flow: Flow, job: Job) {
    this.flow = flow;
    this.type = job.type;
    this.origin = job.origin;
    this.packet = job.packet;
    this.client = job.client;
    this.auth = job.auth;
    this.lane = job.lane;
    this.job = job;
  }

  get data(): Map<string, unknown> {
    return (this.map ??= new Map<string, unknown>([["PIPELINE", this.flow.data], ...(this.job.data ?? [])]));
  }

  get signal(): AbortSignal {
    this.controller ??= new AbortController();
    if (this.ended && !this.controller.signal.aborted) this.controller.abort();
    return this.controller.signal;
  }

  drop(): void {
    this.verdict = dropped;
  }

  reject(reason: Reason, text?: string): void {
    this.verdict = { kind: "rejected", reason, ...(text !== undefined && { text }) };
  }

  disconnect(reason: Reason, text?: string): void {
    this.verdict = { kind: "disconnected", reason, ...(text !== undefined && { text }) };
  }

  start(done: Done<Job>): Outcome | undefined {
    const { last } = this.lane;
    if (last) {
      this.previous = last;
      last.next = this;
    }
    this.lane.last = this;
    const outcome = this.advance();
    if (outcome) return outcome;
    this.done = done;
    this.flow.started(this);
    return undefined;
  }

  expire(error: SluiceError): void {
    this.flow.fault(this.flow.nodes[this.position]?.name ?? "delivery", error);
    this.settle({ kind: "fault", error });
    this.controller?.abort(error);
  }

  /** @param isFresh `enteredAt` is now: it has just left a filter */
  private advance(isFresh = false): Outcome | undefined {
    const { nodes } = this.flow;
    let hasTime = isFresh;
    while (this.position < nodes.length) {
      const node = nodes[this.position];
      if (!node) {
        this.position = nodes.length;
        break;
      }
      if (!this.mayEnter(node.kind.concurrent === true)) return undefined;
      this.inside = true;
      if (!hasTime) this.enteredAt = performance.now();
      if (this.startedAt === 0) this.startedAt = this.enteredAt;
      let result: FilterResult | PendingResult;
      try {
        result = node.filter.handle(this as unknown as FilterContext);
      } catch (error) {
        return this.failed(node, error);
      }
      if (isPending(result)) {
        this.asking = true;
        void result.then(
          (value) => this.resume(() => this.left(node, value)),
          (error: unknown) => this.resume(() => this.failed(node, error)),
        );
        this.asking = false;
        // The successor may go in as well where the kind keeps the order itself.
        if (node.kind.concurrent) this.next?.wake();
        return undefined;
      }
      const outcome = this.left(node, result);
      if (outcome) return outcome;
      hasTime = true;
    }
    const { final, finalKeepsOrder = false } = this.job;
    if (!final) return this.end(passed);
    if (!this.mayEnter(finalKeepsOrder)) return undefined;
    this.inside = true;
    try {
      const delivered = final(this.job);
      if (!isPromise(delivered)) return this.end(passed);
      if (finalKeepsOrder) this.next?.wake();
      delivered.then(
        () => this.resume(() => this.end(passed)),
        (error: unknown) => this.resume(() => this.undelivered(error)),
      );
      return undefined;
    } catch (error) {
      return this.undelivered(error);
    }
  }

  /** After a promise: unless the deadline came first, do the step and go on. */
  private resume(step: () => Outcome | undefined): void {
    if (this.ended) return;
    // No promise answers so soon, and start() is not ready for it.
    if (this.asking) {
      queueMicrotask(() => this.resume(step));
      return;
    }
    const outcome = step() ?? this.advance(true);
    if (outcome) this.report(outcome);
  }

  private mayEnter(concurrent: boolean): boolean {
    const ahead = this.previous;
    const free =
      !ahead ||
      // Of an older generation of the pipeline: positions can't be compared, so its packets end first.
      (ahead.flow === this.flow &&
        (ahead.position > this.position || (concurrent && ahead.position === this.position && ahead.inside)));
    this.waiting = !free;
    return free;
  }

  private wake(): void {
    if (!this.waiting || this.ended) return;
    const outcome = this.advance();
    if (outcome) this.report(outcome);
  }

  /** The filter has answered: where to go on, or how it ends. */
  private left(node: Node, value: FilterResult): Outcome | undefined {
    this.inside = false;
    const now = performance.now();
    node.observe((now - this.enteredAt) / 1000);
    // The next filter begins where this one ends.
    this.enteredAt = now;
    const result = value ?? "";
    const target = node.jumps.size === 0 ? undefined : node.jumps.get(result);
    if (result === "") {
      node.countOk();
      if (this.verdict) return this.end(this.verdict);
      this.position = target ?? this.position + 1;
    } else if (!node.kind.results.includes(result)) {
      return this.failed(node, new Error(`it returned "${result}", which its kind ${node.kind.kind} does not declare`));
    } else {
      node.count(result);
      if (target === undefined) {
        return this.end(
          this.verdict ?? { kind: "unhandled", result, verdict: node.kind.discards?.includes(result) ?? false },
        );
      }
      this.verdict = undefined;
      this.position = target;
    }
    this.next?.wake();
    return undefined;
  }

  private failed(node: Node, error: unknown): Outcome {
    node.count("fault");
    this.flow.fault(node.name, error);
    return this.end({ kind: "fault", error });
  }

  private undelivered(error: unknown): Outcome {
    this.flow.fault("delivery", error);
    return this.end({ kind: "fault", error });
  }

  /** Out of the lane; the successor sees the next older run, if any. */
  private end(outcome: Outcome): Outcome {
    this.ended = true;
    const { previous, next } = this;
    if (previous) previous.next = next;
    if (next) next.previous = previous;
    else this.lane.last = previous;
    this.previous = this.next = undefined;
    next?.wake();
    return outcome;
  }

  private settle(outcome: Outcome): void {
    if (this.ended) return;
    this.report(this.end(outcome));
  }

  private report(outcome: Outcome): void {
    // Without `done` the run is still inside start(), which returns the outcome itself.
    const { done } = this;
    if (!done) return;
    this.done = undefined;
    this.flow.finished(this, outcome);
    done(outcome, this.job);
  }
}

export function createPipeline(
  spec: PipelineSpec,
  filters: ReadonlyMap<string, FilterInstance>,
  deps: { log: Logger; metrics: Metrics },
): Pipeline {
  const nodes = buildNodes(spec, filters, deps.metrics);
  const outcomes = deps.metrics.counter("sluice_pipeline_packets_total", "Packets that ended a pipeline, by outcome.", [
    "pipeline",
    "packet",
    "outcome",
  ]);
  const counters = new Map<PacketType, Map<Outcome["kind"], { inc(): void }>>();
  // Started in order and with one deadline for all, so the oldest is the first: one timer serves every run. A list that
  // hangs together by the runs themselves, since a set costs more than the rest of a run.
  let oldest: PacketRun | undefined;
  let newest: PacketRun | undefined;
  const throttle = createThrottle(5000);
  let timer: NodeJS.Timeout | undefined;
  let active = 0;
  let idle: (() => void) | undefined;

  function count(type: PacketType, { kind }: Outcome): void {
    let byKind = counters.get(type);
    if (!byKind) counters.set(type, (byKind = new Map()));
    let counter = byKind.get(kind);
    if (!counter) byKind.set(kind, (counter = outcomes.with({ pipeline: spec.name, packet: type, outcome: kind })));
    counter.inc();
  }

  function over(type: PacketType, outcome: Outcome): void {
    active--;
    count(type, outcome);
    if (active === 0) idle?.();
  }

  function watch(): void {
    timer = undefined;
    const now = performance.now();
    for (let run = oldest; run; run = oldest) {
      const left = run.startedAt + spec.timeoutMs - now;
      if (left > 0) {
        timer = setTimeout(watch, left).unref();
        return;
      }
      run.expire(
        new SluiceError("PIPELINE_DEADLINE", `${spec.name} did not finish a ${run.type} within ${spec.timeoutMs} ms`),
      );
    }
  }

  const flow: Flow = {
    name: spec.name,
    nodes,
    data: spec.data,
    started(run) {
      if (run.startedAt === 0) run.startedAt = performance.now();
      run.older = newest;
      if (newest) newest.newer = run;
      else oldest = run;
      newest = run;
      timer ??= setTimeout(watch, spec.timeoutMs).unref();
    },
    finished(run, outcome) {
      const { older, newer } = run;
      if (older) older.newer = newer;
      else oldest = newer;
      if (newer) newer.older = older;
      else newest = older;
      run.older = run.newer = undefined;
      over(run.type, outcome);
    },
    fault(node, error) {
      throttle(node, (suppressed) => {
        deps.log.error(
          { pipeline: spec.name, filter: node, error: messageOf(error), suppressed },
          "A filter failed; its packet is not acknowledged",
        );
      });
    },
  };

  return {
    name: spec.name,
    get active() {
      return active;
    },
    run(job, done) {
      active++;
      // Its own job is all that a run hands to `done`.
      const outcome = new PacketRun(flow, job).start(done as Done<Job>);
      if (outcome) over(job.type, outcome);
      return outcome;
    },
    health: () =>
      [...filters.values()].map(({ name, filter }) => ({
        name: `${spec.name}/${name}`,
        ...(filter.health?.() ?? { ok: true }),
      })),
    async drained() {
      if (active > 0) await new Promise<void>((resolve) => (idle = resolve));
      clearTimeout(timer);
      timer = undefined;
    },
  };
}

function buildNodes(
  spec: PipelineSpec,
  filters: ReadonlyMap<string, FilterInstance>,
  metrics: Metrics,
): (Node | undefined)[] {
  const { flow } = spec;
  const indexOf = new Map(flow.map((node, index) => [node.alias, index]));
  indexOf.set("END", flow.length);
  const packets = metrics.counter("sluice_filter_packets_total", "Packets a filter handled, by outcome.", [
    "pipeline",
    "filter",
    "kind",
    "outcome",
  ]);
  const durations = metrics.histogram("sluice_filter_duration_seconds", "Time a filter took for a packet.", [
    "pipeline",
    "filter",
    "kind",
  ]);
  return flow.map((node) => {
    if (node.filter === "END") return undefined;
    const instance = filters.get(node.filter);
    if (!instance)
      throw new SluiceError("CONFIG_INVALID", `${spec.name}: the flow names ${node.filter}, no filter of it`);
    const labels = { pipeline: spec.name, filter: node.alias, kind: instance.kind.kind };
    const counters = new Map<string, { inc(): void }>();
    const duration = durations.with(labels);
    let ok: { inc(): void } | undefined;
    return {
      name: node.alias,
      kind: instance.kind,
      filter: instance.filter,
      jumps: new Map(Object.entries(node.jumpIf).map(([result, to]) => [result, indexOf.get(to) ?? flow.length])),
      count(outcome) {
        let counter = counters.get(outcome);
        if (!counter) counters.set(outcome, (counter = packets.with({ ...labels, outcome })));
        counter.inc();
      },
      countOk() {
        ok ??= packets.with({ ...labels, outcome: "ok" });
        ok.inc();
      },
      observe: (seconds) => duration.observe(seconds),
    };
  });
}

function isPromise<T>(value: T | Promise<T>): value is Promise<T> {
  return typeof (value as { then?: unknown } | undefined)?.then === "function";
}

function isPending(value: FilterResult | PendingResult): value is PendingResult {
  return typeof value === "object" && typeof value.then === "function";
}
