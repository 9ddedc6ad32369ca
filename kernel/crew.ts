/** The workers of a gateway: started, told of changes in two steps, watched, started again, stopped. */
import { availableParallelism } from "node:os";
import { createAddressDesk } from "./address-desk.ts";
import type { Addresses } from "./addresses.ts";
import type { WorkerProblem } from "./crew-wire.ts";
import { createCrewView, type CrewView } from "./crew-view.ts";
import { configError, messageOf, SluiceError } from "./errors.ts";
import type { Clock, Metrics } from "./plugin.ts";
import type { RootLogger } from "./host.ts";
import type { StoreLink } from "./store-link.ts";
import type { StoreServer } from "./store-server.ts";
import { type Mate, MateError, type MateOptions, startMate } from "./mate.ts";

export type Texts = ReadonlyMap<string, string>;

export interface Crew {
  /**
   * Every worker builds what is new; the first call starts them. One that can't: the others forget what they have built.
   * @throws SluiceError what the worker found, with its place
   */
  prepare(texts: Texts): Promise<CrewChange>;
  readonly view: CrewView;
  /** Workers that have the config that runs. */
  readonly running: number;
  /** What all workers have counted; one that does not answer in time is shown as it was last. */
  measure(): ReturnType<CrewView["metrics"]>;
  setLogLevel(level: string): void;
  /** Stops accepting, then the workers; those that are not done after `limitMs` are ended. */
  stop(limitMs: number): Promise<void>;
}

export interface CrewChange {
  commit(): Promise<void>;
  rollback(): void;
}

export interface CrewDeps extends Omit<MateOptions, "index" | "onMessage" | "onEnd" | "log"> {
  readonly addresses: Addresses;
  readonly server: StoreServer;
  readonly log: RootLogger;
  readonly metrics: Metrics;
  readonly clock: Clock;
  /** A filter asks for the gateway to stop. */
  readonly onDrain: () => void;
}

/** Until a worker that has ended is started again: doubled each time, and back to the first once it has run for a while. */
const backOff = { firstMs: 200, mostMs: 30_000, forgottenMs: 60_000 };
const prepareMs = 120_000;
const commitMs = 10_000;
const measureMs = 2000;
const watchMs = 5000;
/** At a stop, for what clients of workers that ended have left to say. */
const lastWordsMs = 1000;
/** So many times nothing was heard: it hangs. */
const mostMissed = 6;

export function createCrew(deps: CrewDeps): Crew {
  const { log, metrics, clock, server } = deps;
  const { count } = deps.start;
  const restarts = metrics.counter("sluice_worker_restarts_total", "Workers started again, by why they had ended.", [
    "reason",
  ]);
  metrics.gauge("sluice_workers", "Workers that run.", [], (gauge) => gauge.set({}, mates().length));
  if (count > availableParallelism()) {
    log.warn({ workers: count, cores: availableParallelism() }, "There are more workers than cores");
  }
  const view = createCrewView(count);
  const links = new WeakMap<Mate, StoreLink>();
  const places: (Mate | undefined)[] = Array.from({ length: count });
  let current: { readonly version: number; readonly texts: Texts } | undefined;
  let version = 0;
  let stopping = false;
  const sleeping = new Set<() => void>();
  const watching = setInterval(watch, watchMs).unref();

  const desk = createAddressDesk<Mate>(deps.addresses, log);

  /** Those that have the config that runs. */
  function mates(): Mate[] {
    return places.filter((mate) => mate !== undefined && mate.version === current?.version) as Mate[];
  }

  function launch(index: number): Mate {
    const own = log.child({ worker: index });
    const mate = startMate({
      ...deps,
      log: own,
      index,
      onMessage(message) {
        switch (message.type) {
          case "claim":
            void claim(mate, message);
            break;
          case "open":
            desk.open(mate, message.id);
            break;
          case "release":
            desk.release(mate, message.id);
            break;
          case "report":
            view.reported(index, message.report);
            break;
          case "drain":
            deps.onDrain();
            break;
          default:
        }
      },
      onEnd: () => ended(mate, index),
    });
    own.info({ pid: mate.pid }, "A worker is started");
    links.set(mate, server.connect(mate.stream));
    places[index] = mate;
    return mate;
  }

  async function claim(mate: Mate, message: { id: number; address: Parameters<Addresses["claim"]>[0]; by: string }) {
    const { id, address, by } = message;
    try {
      const bound = await desk.claim(mate, id, address, by);
      if (mate.hasEnded) desk.dropped(mate);
      else mate.send({ type: "claimed", id, address: bound });
    } catch (error) {
      const code = error instanceof SluiceError ? error.code : "LISTEN_FAILED";
      mate.send({ type: "refused", id, code, message: messageOf(error) ?? "" });
    }
  }

  function ended(mate: Mate, index: number): void {
    desk.dropped(mate);
    view.ended(index);
    if (places[index] !== mate) return;
    places[index] = undefined;
    if (!stopping && mate.isMember) replace(mate);
  }

  function replace(mate: Mate): void {
    const { index, endReason: reason, startedAt, backOffMs } = mate;
    restarts.inc({ reason });
    log.error({ worker: index, reason }, "A worker has ended; its clients connect again, to the others");
    void revive(index, clock.now() - startedAt > backOff.forgottenMs ? backOff.firstMs : backOffMs);
  }

  async function revive(index: number, waitMs: number): Promise<void> {
    await sleep(waitMs);
    if (stopping) return;
    const mate = launch(index);
    mate.isMember = true;
    mate.backOffMs = Math.min(waitMs * 2, backOff.mostMs);
    try {
      await bringUp(mate);
      log.info({ worker: index }, "A worker runs again");
    } catch (error) {
      log.error({ worker: index, error: messageOf(error) }, "A worker could not be started again");
      mate.end();
    }
  }

  /** Gives it the config that runs, which may change meanwhile. */
  async function bringUp(mate: Mate): Promise<void> {
    while (current && mate.version !== current.version && !stopping) {
      const wanted = current;
      const id = await prepareOne(mate, wanted.texts);
      if (wanted !== current) {
        mate.send({ type: "rollback", id });
        continue;
      }
      mate.version = wanted.version;
      await mate.ask({ type: "commit", id }, commitMs);
    }
  }

  async function prepareOne(mate: Mate, texts: Texts): Promise<number> {
    const id = mate.nextId();
    try {
      await mate.ask({ type: "prepare", id, texts: [...texts] }, prepareMs);
      return id;
    } catch (error) {
      // One that only takes too long must not keep what it comes to.
      mate.send({ type: "rollback", id });
      throw error;
    }
  }

  function sleep(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = clock.setTimeout(over, ms);
    function over(): void {
      timer.clear();
      sleeping.delete(over);
      resolve();
    }
    sleeping.add(over);
    return promise;
  }

  function watch(): void {
    for (const mate of mates()) {
      if (++mate.missed < mostMissed) continue;
      log.error({ worker: mate.index }, "A worker hangs, and is ended");
      mate.endReason = "hung";
      mate.end();
    }
  }

  async function endAll(all: readonly Mate[], limitMs: number): Promise<void> {
    const connections = all.map((mate) => Math.max(1, links.get(mate)?.connections ?? 0));
    const total = connections.reduce((sum, each) => sum + each, 0);
    // So that all are done at the same time, also where a worker that was started late has few.
    for (const [at, mate] of all.entries()) mate.send({ type: "stop", share: (connections[at] ?? 1) / total });
    const timer = clock.setTimeout(() => {
      for (const mate of all) mate.end();
    }, limitMs);
    await Promise.all(all.map((mate) => mate.over));
    timer.clear();
  }

  return {
    view,
    get running() {
      return mates().length;
    },
    async prepare(texts) {
      const isFirst = current === undefined;
      const all = isFirst ? places.map((_, index) => launch(index)) : mates();
      const done = await Promise.allSettled(all.map((mate) => prepareOne(mate, texts)));
      const prepared = all.flatMap((mate, at) => {
        const each = done[at];
        return each?.status === "fulfilled" ? [{ mate, id: each.value }] : [];
      });
      const rollback = (): void => {
        for (const { mate, id } of prepared) mate.send({ type: "rollback", id });
        if (isFirst) void endAll(all, 0);
      };
      const failed = done.find((each) => each.status === "rejected");
      if (failed) {
        rollback();
        if (isFirst) await Promise.all(all.map((mate) => mate.over));
        throw failed.reason instanceof MateError ? failureOf(failed.reason, deps.start.path) : failed.reason;
      }
      return {
        rollback,
        async commit() {
          current = { version: ++version, texts };
          for (const { mate } of prepared) {
            mate.version = version;
            if (mate.isMember) continue;
            mate.isMember = true;
            if (mate.hasEnded) replace(mate);
          }
          await Promise.allSettled(prepared.map(({ mate, id }) => mate.ask({ type: "commit", id }, commitMs)));
          desk.tidy();
          for (const mate of places)
            if (mate && mate.version !== version && mate.version !== undefined) void late(mate);
        },
      };
    },
    async measure() {
      await Promise.allSettled(
        mates().map(async (mate) => {
          const measured = await mate.ask({ type: "measure", id: mate.nextId() }, measureMs);
          if (measured.type === "measured") view.measured(mate.index, measured.metrics);
        }),
      );
      return view.metrics();
    },
    setLogLevel(level) {
      deps.start.logLevel = level;
      for (const mate of places) mate?.send({ type: "logLevel", level });
    },
    async stop(limitMs) {
      stopping = true;
      clearInterval(watching);
      desk.close();
      await Promise.race([server.close(), sleep(lastWordsMs)]);
      for (const over of sleeping) over();
      await endAll(
        places.filter((mate) => mate !== undefined),
        limitMs,
      );
    },
  };

  /** It was being started while the config changed. */
  async function late(mate: Mate): Promise<void> {
    try {
      await bringUp(mate);
    } catch (error) {
      log.error({ worker: mate.index, error: messageOf(error) }, "A worker could not follow a change, and is ended");
      mate.end();
    }
  }
}

function failureOf({ code, problems }: MateError, path: string): SluiceError {
  const found: readonly WorkerProblem[] = problems.map(({ where, message }) => ({ where: where || path, message }));
  return configError(found, code);
}
