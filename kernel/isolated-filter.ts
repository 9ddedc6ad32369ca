/** An isolated filter as its pipeline sees it: packets wait here, cross in batches, and come back. */
import {
  applyOutcome,
  cloneProblemOf,
  createPacker,
  toPacketIn,
  type Declaration,
  type Inward,
  type Outward,
  type PacketIn,
  type PacketOut,
} from "./crossing.ts";
import { messageOf, SluiceError } from "./errors.ts";
import { createMetricSink } from "./isolation-metrics.ts";
import { createSupervisor } from "./isolation-supervisor.ts";
import type { EndReason, Thread, ThreadEnd } from "./isolation-thread.ts";
import type { Client, Filter, FilterContext, FilterResult, Health, Host } from "./plugin.ts";
import type { IsolationSpec } from "./spec.ts";

/** Packets handed over and not answered; more wait on this side, where they can be taken back. */
const maxInside = 1000;
/** How often those whose deadline is over are looked for. */
const forgetEveryMs = 1000;
/** Shorter waits are not worth asking whether the packet's deadline has passed. */
const shortWaitMs = 100;

/** A packet that waits for the filter, or is with it. */
interface Crossing {
  id: number;
  readonly ctx: FilterContext;
  readonly bytes: number;
  /** When it came: after a while its deadline may have passed. */
  readonly since: number;
  readonly resolve: (result: FilterResult) => void;
  readonly reject: (error: unknown) => void;
}

/** @throws SluiceError FILTER_CREATE_FAILED's cause: what the filter or its thread ended with */
export async function createIsolatedFilter(
  declaration: Declaration,
  isolation: IsolationSpec,
  options: unknown,
  host: Host,
): Promise<Filter> {
  const { name, log, metrics } = host;
  const faults = metrics.counter(
    "sluice_isolated_faults_total",
    "Packets that isolation was at fault for, by reason.",
    ["filter", "reason"],
  );
  const batches = metrics
    .counter("sluice_isolated_batches_total", "Messages with packets to an isolated filter's thread.", ["filter"])
    .with({ filter: name });
  const linesDropped = metrics
    .counter("sluice_isolated_log_lines_dropped_total", "Lines of an isolated filter that were too many.", ["filter"])
    .with({ filter: name });
  metrics.gauge("sluice_isolated_packets", "Packets with an isolated filter or waiting for it.", ["filter"], (gauge) =>
    gauge.set({ filter: name }, waiting.length + inside.size),
  );
  const applyMetrics = createMetricSink(host);

  let waiting: Crossing[] = [];
  const inside = new Map<number, Crossing>();
  let bytes = 0;
  let forgottenAt = 0;
  let lastId = 0;
  let isScheduled = false;
  let retry: NodeJS.Timeout | undefined;
  let health: Health | undefined;

  function fault(crossing: Crossing, reason: EndReason | "full" | "notCloneable", error: SluiceError): void {
    faults.inc({ filter: name, reason });
    bytes -= crossing.bytes;
    crossing.reject(error);
  }

  /** Is its deadline over? Then it is nobody's any more. */
  function isExpired(crossing: Crossing, now: number): boolean {
    if (now - crossing.since < shortWaitMs || !crossing.ctx.signal.aborted) return false;
    bytes -= crossing.bytes;
    crossing.resolve(undefined);
    return true;
  }

  function forgetExpired(): void {
    const now = performance.now();
    if (now - forgottenAt < forgetEveryMs) return;
    forgottenAt = now;
    waiting = waiting.filter((crossing) => !isExpired(crossing, now));
    // What never answers must not take the place of others for ever.
    for (const [id, crossing] of inside) if (isExpired(crossing, now)) inside.delete(id);
  }

  function schedule(): void {
    if (isScheduled) return;
    isScheduled = true;
    setImmediate(flush);
  }

  /** Where all that is inside hangs, nothing else may come that would make room. */
  function lookAgain(): void {
    retry ??= setTimeout(() => {
      retry = undefined;
      schedule();
    }, forgetEveryMs).unref();
  }

  function flush(): void {
    isScheduled = false;
    const { thread } = supervisor;
    if (!thread || waiting.length === 0) return;
    if (inside.size >= maxInside) forgetExpired();
    if (inside.size >= maxInside) {
      lookAgain();
      return;
    }
    const packer = createPacker();
    const clients = new Map<Client, object>();
    const sent: Crossing[] = [];
    const packets: PacketIn[] = [];
    let taken = 0;
    const now = performance.now();
    for (const crossing of waiting) {
      if (inside.size + sent.length >= maxInside) break;
      taken++;
      if (isExpired(crossing, now)) continue;
      crossing.id = lastId = (lastId + 1) | 0;
      try {
        packets.push(toPacketIn(crossing.id, crossing.ctx, packer, clients));
        sent.push(crossing);
      } catch (error) {
        fault(crossing, "notCloneable", new SluiceError("ISOLATION_NOT_CLONEABLE", `${name}: ${messageOf(error)}`));
      }
    }
    waiting.splice(0, taken);
    if (packets.length === 0) return;
    send(thread, { packets, payloads: packer.block() }, sent);
    thread.setBusy(inside.size > 0);
  }

  function send(to: Thread, message: Inward, sent: readonly Crossing[]): void {
    const transfer = message.payloads ? [message.payloads] : [];
    const packets = message.packets ?? [];
    try {
      to.post(message, transfer);
      for (const crossing of sent) inside.set(crossing.id, crossing);
    } catch {
      // Rare: one of them holds what can't be cloned. The others are not to suffer for it.
      const problems = packets.map((packet) => cloneProblemOf(packet));
      const sound = packets.filter((_, index) => problems[index] === undefined);
      to.post({ ...message, packets: sound }, transfer);
      for (const [index, crossing] of sent.entries()) {
        const problem = problems[index];
        if (problem === undefined) inside.set(crossing.id, crossing);
        else fault(crossing, "notCloneable", new SluiceError("ISOLATION_NOT_CLONEABLE", `${name}: ${problem}`));
      }
    }
    batches.inc();
  }

  function settle(out: PacketOut, payloads: ArrayBuffer | undefined): void {
    const crossing = inside.get(out.id);
    if (!crossing) return;
    inside.delete(out.id);
    const { ctx, resolve, reject } = crossing;
    if (out.error) {
      const { message, code, poison } = out.error;
      if (code === "ISOLATION_NOT_CLONEABLE")
        fault(crossing, "notCloneable", new SluiceError(code, `${name}: ${message}`));
      else {
        bytes -= crossing.bytes;
        reject(Object.assign(new Error(message), { code, ...(poison !== undefined && { poison }) }));
      }
      return;
    }
    bytes -= crossing.bytes;
    try {
      applyOutcome(ctx, out, payloads);
      resolve(out.result);
    } catch (error) {
      reject(error);
    }
  }

  function watchSignal(id: number): void {
    const { signal } = inside.get(id)?.ctx ?? {};
    const abort = (): void => {
      if (inside.has(id)) supervisor.thread?.post({ aborted: [id] });
    };
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
  }

  async function publish({ id, proxy, message }: NonNullable<Outward["publish"]>[number], from: Thread): Promise<void> {
    const mended = { ...message, payload: Buffer.from(message.payload) };
    let answer: NonNullable<Inward["published"]>[number];
    try {
      answer = { id, outcome: await host.publish(proxy, mended) };
    } catch (error) {
      answer = { id, error: { message: messageOf(error) ?? "", code: (error as { code?: string }).code } };
    }
    from.post({ published: [answer] });
  }

  function receive(message: Outward, from: Thread): void {
    for (const out of message.packets ?? []) settle(out, message.payloads);
    for (const id of message.watched ?? []) watchSignal(id);
    for (const { level, fields, message: text } of message.logs ?? []) log[level](fields, text);
    if (message.logsDropped !== undefined) linesDropped.inc(message.logsDropped);
    if (message.metrics) applyMetrics(message.metrics);
    if ("health" in message) health = message.health;
    for (const each of message.publish ?? []) void publish(each, from);
    from.setBusy(inside.size > 0);
    if (waiting.length > 0) schedule();
  }

  /** Its thread is no more: what was in it is lost, what wasn't goes to the next. */
  function lost(end: ThreadEnd, old: Thread): void {
    health = undefined;
    const back: Crossing[] = [];
    for (const crossing of inside.values()) {
      if (old.hasEntered(crossing.id))
        fault(crossing, end.reason, new SluiceError("ISOLATION_LOST", `${name}: its thread ended: ${end.detail}`));
      else back.push(crossing);
    }
    inside.clear();
    lastId = 0;
    waiting = [...back, ...waiting];
    if (supervisor.problem?.isFinal) refuseAll(end.reason, supervisor.problem.detail);
  }

  function refuseAll(reason: EndReason, why: string): void {
    const left = waiting;
    waiting = [];
    for (const crossing of left) fault(crossing, reason, new SluiceError("ISOLATION_LOST", `${name}: ${why}`));
  }

  const supervisor = createSupervisor({ declaration, isolation, options, host, receive, ready: flush, lost });
  await supervisor.start();

  return {
    handle(ctx) {
      const { problem } = supervisor;
      if (problem?.isFinal) {
        faults.inc({ filter: name, reason: problem.reason });
        throw new SluiceError("ISOLATION_LOST", `${name}: ${problem.detail}`);
      }
      const size = ctx.type === "Publish" ? ctx.packet.payload.length : 0;
      const isFull = (): boolean =>
        waiting.length + inside.size >= isolation.maxPackets || bytes + size > isolation.maxBytes;
      if (isFull()) forgetExpired();
      if (isFull()) {
        faults.inc({ filter: name, reason: "full" });
        throw new SluiceError("ISOLATION_FULL", `${name}: too many packets wait for it: see maxPackets and maxBytes`);
      }
      const { promise, resolve, reject } = Promise.withResolvers<FilterResult>();
      waiting.push({ id: 0, ctx, bytes: size, since: performance.now(), resolve, reject });
      bytes += size;
      schedule();
      return promise;
    },
    health() {
      const { problem } = supervisor;
      return problem ? { ok: false, detail: problem.detail } : (health ?? { ok: true });
    },
    async close() {
      clearTimeout(retry);
      await supervisor.close();
      refuseAll("closed", "it is closed");
    },
  };
}
