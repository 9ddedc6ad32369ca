/** An isolated filter as its pipeline sees it: packets wait here, cross in batches, and come back; its thread is started again. */
import { isDeepStrictEqual } from "node:util";
import {
  applyChanges,
  cloneProblemOf,
  createPacker,
  mergeInto,
  toPacketIn,
  type Declaration,
  type Inward,
  type Outward,
  type PacketIn,
  type PacketOut,
} from "./crossing.ts";
import { messageOf, SluiceError } from "./errors.ts";
import { createMetricSink } from "./isolation-metrics.ts";
import { startThread, type EndReason, type Thread, type ThreadEnd } from "./isolation-thread.ts";
import type { Client, Filter, FilterContext, FilterResult, Health, Host } from "./plugin.ts";
import type { IsolationSpec } from "./spec.ts";
import { createThrottle } from "./throttle.ts";

/** Packets handed over and not answered; more wait on this side, where they can be taken back. */
const maxInside = 1000;
const startDeadlineMs = 10_000;
const closeDeadlineMs = 5000;
const firstBackOffMs = 100;
const maxBackOffMs = 30_000;
/** Shorter waits are not worth asking whether the packet's deadline has passed. */
const shortWaitMs = 100;

const abandonedText =
  "its thread hangs in a loop that can't be stopped and keeps a core busy: restart the gateway (a change of the filter's options starts another thread)";

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
  const restarts = metrics.counter(
    "sluice_isolated_restarts_total",
    "Ends of an isolated filter's thread, by reason.",
    ["filter", "reason"],
  );
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
  const throttle = createThrottle(5000);

  let thread: Thread | undefined;
  /** It takes packets. */
  let isReady = false;
  let readyAt = 0;
  let waiting: Crossing[] = [];
  const inside = new Map<number, Crossing>();
  let bytes = 0;
  let forgottenAt = 0;
  let lastId = 0;
  let isScheduled = false;
  let failures = 0;
  let restartTimer: NodeJS.Timeout | undefined;
  let isClosing = false;
  let lastEnd: ThreadEnd | undefined;
  let health: Health | undefined;
  let closed: (() => void) | undefined;

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
    if (now - forgottenAt < 1000) return;
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

  function flush(): void {
    isScheduled = false;
    if (!thread || !isReady || waiting.length === 0) return;
    if (inside.size >= maxInside) forgetExpired();
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
      const { message, code } = out.error;
      if (code === "ISOLATION_NOT_CLONEABLE")
        fault(crossing, "notCloneable", new SluiceError(code, `${name}: ${message}`));
      else {
        bytes -= crossing.bytes;
        reject(Object.assign(new Error(message), { code }));
      }
      return;
    }
    bytes -= crossing.bytes;
    try {
      apply(out, ctx, payloads);
      resolve(out.result);
    } catch (error) {
      reject(error);
    }
  }

  /** What the filter has done there is done here. */
  function apply(out: PacketOut, ctx: FilterContext, payloads: ArrayBuffer | undefined): void {
    const packet = ctx.packet as unknown as Record<string, unknown>;
    if (out.packet) mergeInto(packet, out.packet);
    if (out.payload) packet["payload"] = payloads ? Buffer.from(payloads, ...out.payload) : Buffer.alloc(0);
    if (out.data) applyChanges(ctx.data, out.data);
    if (out.clientData) applyChanges(ctx.client.data, out.clientData);
    if (out.verdict) {
      const [verdict, reason] = out.verdict;
      if (verdict === "drop") ctx.drop();
      else ctx[verdict](reason);
    }
  }

  function watchSignal(id: number): void {
    const { signal } = inside.get(id)?.ctx ?? {};
    const abort = (): void => {
      if (inside.has(id)) thread?.post({ aborted: [id] });
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
    if (from === thread) from.post({ published: [answer] });
  }

  function receive(message: Outward, from: Thread): void {
    if (from !== thread) return;
    for (const out of message.packets ?? []) settle(out, message.payloads);
    for (const id of message.watched ?? []) watchSignal(id);
    for (const { level, fields, message: text } of message.logs ?? []) log[level](fields, text);
    if (message.logsDropped !== undefined) linesDropped.inc(message.logsDropped);
    if (message.metrics) applyMetrics(message.metrics);
    if ("health" in message) health = message.health;
    for (const each of message.publish ?? []) void publish(each, from);
    if (message.closed) closed?.();
    from.setBusy(inside.size > 0);
    if (waiting.length > 0) schedule();
  }

  /** Resolves when the filter has been created there. */
  async function start(deadlineMs: number): Promise<void> {
    const started = Promise.withResolvers<Outward>();
    const current = startThread(
      {
        source: isolation.source,
        options,
        importDeadlineMs: deadlineMs,
        run: { name, folder: host.folder, about: host.about() },
      },
      isolation,
      (message) => {
        if (message.ready || message.failed) started.resolve(message);
        else receive(message, current);
      },
    );
    thread = current;
    isReady = false;
    lastId = 0;
    // Not `deadlineMs`, since an import may well take longer than a packet.
    const timer = setTimeout(
      () => current.end("stuck", `it was not created within ${deadlineMs / 1000} s`),
      deadlineMs,
    );
    const ended = current.ended.then((end) => {
      over(end);
      throw new SluiceError("ISOLATION_LOST", end.detail);
    });
    try {
      const { ready, failed } = await Promise.race([started.promise, ended]);
      ended.catch(() => undefined);
      if (failed) {
        current.end("crash", failed.message);
        throw Object.assign(new Error(failed.message), { code: failed.code });
      }
      if (!isDeepStrictEqual(ready, declaration)) {
        const detail = `${isolation.source.entry} is not what was checked any more: reload the config`;
        current.end("crash", detail);
        throw new Error(detail);
      }
      readyAt = performance.now();
      isReady = true;
      flush();
    } finally {
      clearTimeout(timer);
    }
  }

  /** The thread is no more: what was in it is lost, what wasn't goes to the next. */
  function over(end: ThreadEnd): void {
    const old = thread;
    thread = undefined;
    const wasReady = isReady;
    isReady = false;
    health = undefined;
    closed?.();
    const back: Crossing[] = [];
    for (const crossing of inside.values()) {
      if (old?.hasEntered(crossing.id) === false) back.push(crossing);
      else fault(crossing, end.reason, new SluiceError("ISOLATION_LOST", `${name}: its thread ended: ${end.detail}`));
    }
    inside.clear();
    waiting = [...back, ...waiting];
    if (isClosing) {
      refuseAll(end.reason, "it is closed");
      return;
    }
    lastEnd = end;
    // The first start's failure is told to who wanted it.
    if (!hasStarted) return;
    restarts.inc({ filter: name, reason: end.reason });
    throttle(end.reason, (suppressed) => {
      const fields = { filter: name, reason: end.reason, error: end.detail, suppressed };
      if (end.isAbandoned) log.error(fields, "An isolated filter's thread can't be stopped; it keeps a core busy");
      else log.error(fields, "An isolated filter's thread has ended; it is started again");
    });
    if (end.isAbandoned) {
      refuseAll(end.reason, abandonedText);
      return;
    }
    if (wasReady && performance.now() - readyAt > maxBackOffMs) failures = 0;
    const delayMs = Math.min(maxBackOffMs, firstBackOffMs * 2 ** failures++);
    restartTimer = setTimeout(() => {
      restartTimer = undefined;
      // Its end has been seen to.
      start(startDeadlineMs).catch(() => undefined);
    }, delayMs);
  }

  function refuseAll(reason: EndReason, why: string): void {
    const left = waiting;
    waiting = [];
    for (const crossing of left) fault(crossing, reason, new SluiceError("ISOLATION_LOST", `${name}: ${why}`));
  }

  let hasStarted = false;
  // Whoever waits for `create` may give up; then nothing is to go on here.
  const giveUp = (): void => thread?.end("closed", "its creation was given up");
  host.signal.addEventListener("abort", giveUp, { once: true });
  await start(2 ** 31 - 1);
  hasStarted = true;

  return {
    handle(ctx) {
      if (isClosing) throw new SluiceError("ISOLATION_LOST", `${name}: it is closed`);
      if (lastEnd?.isAbandoned) {
        faults.inc({ filter: name, reason: lastEnd.reason });
        throw new SluiceError("ISOLATION_LOST", `${name}: ${abandonedText}`);
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
      if (lastEnd?.isAbandoned) return { ok: false, detail: abandonedText };
      if (!isReady) return { ok: false, detail: `its thread has ended (${lastEnd?.detail}) and is started again` };
      return health ?? { ok: true };
    },
    async close() {
      isClosing = true;
      clearTimeout(restartTimer);
      const current = thread;
      if (!current) {
        refuseAll("closed", "it is closed");
        return;
      }
      if (isReady) {
        const answered = new Promise<void>((resolve) => (closed = resolve));
        const timer = setTimeout(() => {
          log.error({ filter: name }, "An isolated filter did not close in time; its thread is ended");
          closed?.();
        }, closeDeadlineMs);
        current.setBusy(false);
        current.post({ close: true });
        await answered;
        clearTimeout(timer);
      }
      current.end("closed", "it is closed");
      await current.ended;
    },
  };
}
