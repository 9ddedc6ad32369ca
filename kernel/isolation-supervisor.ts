/** Keeps a thread running for an isolated filter: creates the filter in it, starts another where it ends, gives up where it can't. */
import { isDeepStrictEqual } from "node:util";
import type { Declaration, Outward } from "./crossing.ts";
import { SluiceError } from "./errors.ts";
import { startThread, type EndReason, type Thread, type ThreadEnd } from "./isolation-thread.ts";
import type { Host } from "./plugin.ts";
import type { IsolationSpec } from "./spec.ts";
import { createThrottle } from "./throttle.ts";

const startDeadlineMs = 10_000;
const closeDeadlineMs = 5000;
const firstBackOffMs = 100;
const maxBackOffMs = 30_000;

export interface Supervisor {
  /** The one that takes packets; undefined while there is none. */
  readonly thread: Thread | undefined;
  /** Why there is none; `isFinal` where none will come. */
  readonly problem: { readonly reason: EndReason; readonly detail: string; readonly isFinal: boolean } | undefined;
  /** Resolves when the filter has been created; aborting the host's signal ends it. Rejects with why it can't be, and then nothing runs. */
  start(): Promise<void>;
  /** Lets the filter close itself, for a while; then its thread is ended. */
  close(): Promise<void>;
}

export function createSupervisor(o: {
  readonly declaration: Declaration;
  readonly isolation: IsolationSpec;
  readonly options: unknown;
  readonly host: Host;
  /** What comes from a thread, in their order. */
  receive(message: Outward, from: Thread): void;
  /** There is a thread that takes packets. */
  ready(): void;
  /** It has ended, `problem` says so already. */
  lost(end: ThreadEnd, thread: Thread): void;
}): Supervisor {
  const { isolation, host } = o;
  const { name, log } = host;
  const restarts = host.metrics.counter(
    "sluice_isolated_restarts_total",
    "Ends of an isolated filter's thread, by reason.",
    ["filter", "reason"],
  );
  const throttle = createThrottle(5000);
  let thread: Thread | undefined;
  let isReady = false;
  let readyAt = 0;
  let hasStarted = false;
  let isClosing = false;
  let failures = 0;
  let timer: NodeJS.Timeout | undefined;
  let lastEnd: ThreadEnd | undefined;
  let closed: (() => void) | undefined;

  async function start(deadlineMs: number): Promise<void> {
    const started = Promise.withResolvers<Outward>();
    const current = startThread(
      {
        source: isolation.source,
        options: o.options,
        importDeadlineMs: deadlineMs,
        run: { name, folder: host.folder, about: host.about(), worker: host.worker },
      },
      isolation,
      (message) => {
        if (message.ready || message.failed) started.resolve(message);
        else if (message.closed) closed?.();
        else o.receive(message, current);
      },
    );
    thread = current;
    const late = setTimeout(() => current.end("stuck", `it was not created within ${deadlineMs / 1000} s`), deadlineMs);
    const ended = current.ended.then((end) => {
      over(end, current);
      throw new SluiceError("ISOLATION_LOST", end.detail);
    });
    try {
      const { ready, failed } = await Promise.race([started.promise, ended]);
      ended.catch(() => undefined);
      if (failed) {
        current.end("crash", failed.message);
        throw Object.assign(new Error(failed.message), { code: failed.code });
      }
      if (!isDeepStrictEqual(ready, o.declaration)) {
        const detail = `${isolation.source.entry} is not what was checked any more: reload the config`;
        current.end("crash", detail);
        throw new Error(detail);
      }
    } finally {
      clearTimeout(late);
    }
    readyAt = performance.now();
    isReady = true;
    o.ready();
  }

  function over(end: ThreadEnd, old: Thread): void {
    const hasRunWell = isReady && performance.now() - readyAt > maxBackOffMs;
    thread = undefined;
    isReady = false;
    lastEnd = end;
    closed?.();
    o.lost(end, old);
    // The first start's failure is told to who wanted it.
    if (!hasStarted || isClosing) return;
    restarts.inc({ filter: name, reason: end.reason });
    throttle(end.reason, (suppressed) => {
      const fields = { filter: name, reason: end.reason, error: end.detail, suppressed };
      if (end.isAbandoned) log.error(fields, "An isolated filter's thread can't be stopped; it keeps a core busy");
      else log.error(fields, "An isolated filter's thread has ended; it is started again");
    });
    // The next one would very likely take another core.
    if (end.isAbandoned) return;
    if (hasRunWell) failures = 0;
    timer = setTimeout(
      // Its end is seen to where it comes.
      () => void start(startDeadlineMs).catch(() => undefined),
      Math.min(maxBackOffMs, firstBackOffMs * 2 ** failures++),
    );
  }

  return {
    get thread() {
      return isReady ? thread : undefined;
    },
    get problem(): Supervisor["problem"] {
      if (isClosing) return { reason: "closed", detail: "it is closed", isFinal: true };
      if (isReady) return undefined;
      const { reason, detail, isAbandoned } = lastEnd ?? { reason: "closed", detail: "not yet", isAbandoned: false };
      if (!isAbandoned)
        return { reason, detail: `its thread has ended (${detail}) and is started again`, isFinal: false };
      const text = `its thread hangs in a loop that can't be stopped and keeps a core busy: restart the gateway (a change of the filter's options starts another thread)`;
      return { reason, detail: text, isFinal: true };
    },
    async start() {
      const giveUp = (): void => thread?.end("closed", "its creation was given up");
      host.signal.addEventListener("abort", giveUp, { once: true });
      // Whoever waits for it gives up in time.
      await start(2 ** 31 - 1);
      hasStarted = true;
    },
    async close() {
      isClosing = true;
      clearTimeout(timer);
      const current = thread;
      if (!current) return;
      if (isReady) {
        const answered = new Promise<void>((resolve) => (closed = resolve));
        const late = setTimeout(() => {
          log.error({ filter: name }, "An isolated filter did not close in time; its thread is ended");
          closed?.();
        }, closeDeadlineMs);
        current.setBusy(false);
        current.post({ close: true });
        await answered;
        clearTimeout(late);
      }
      current.end("closed", "it is closed");
      await current.ended;
    },
  };
}
