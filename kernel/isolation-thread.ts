/** One thread of an isolated filter, from the gateway's side: started, watched, ended. */
import { extname } from "node:path";
import { MessageChannel, receiveMessageOnPort, Worker } from "node:worker_threads";
import { cell, type Inward, type Outward, type ThreadData } from "./crossing.ts";
import { messageOf } from "./errors.ts";

/**
 * `exit`: it called process.exit. `crash`: an exception or rejection that nobody caught. `memory`: it is over its limit.
 * `stuck`: it did not come to the end of what it computes. `closed`: we ended it.
 */
export type EndReason = "exit" | "crash" | "memory" | "stuck" | "closed";

export interface ThreadEnd {
  readonly reason: EndReason;
  readonly detail: string;
  /** It can't be stopped, and goes on for as long as the process. */
  readonly isAbandoned: boolean;
}

export interface Thread {
  /** @throws DataCloneError, and then nothing was sent and no block handed over */
  post(message: Inward, transfer?: ArrayBuffer[]): void;
  /** Did it get as far as this packet? */
  hasEntered(id: number): boolean;
  /** Watch it: it has, or hasn't, something to do. */
  setBusy(isBusy: boolean): void;
  end(reason: EndReason, detail: string): void;
  readonly ended: Promise<ThreadEnd>;
}

const watchMs = 100;
/** A loop of compiled code that calls nothing but builtins never looks whether it is to stop. */
const abandonAfterMs = 3000;
const mb = 2 ** 20;
/** V8 collects buffers that nobody holds when there are this many more of them than after the last time. */
const bufferGarbageBytes = 64 * mb;
const inMb = (bytes: number): string => `${Math.round(bytes / mb)} MiB`;

const program = new URL(`./isolation-worker${extname(import.meta.filename)}`, import.meta.url);

/**
 * The memory is watched from here and V8's own limit is set far above: an allocation that V8 can't fit in any more would
 * end the whole process, where one that is caught before ends the thread.
 */
export function startThread(
  data: Omit<ThreadData, "port" | "cells">,
  limits: { readonly heapMb: number; readonly deadlineMs: number },
  receive: (message: Outward) => void,
): Thread {
  const { port1: port, port2 } = new MessageChannel();
  const cells = new Int32Array(new SharedArrayBuffer(cell.count * Int32Array.BYTES_PER_ELEMENT));
  const worker = new Worker(program, {
    name: data.run?.name ?? data.source.kind,
    workerData: { ...data, port: port2, cells } satisfies ThreadData,
    transferList: [port2],
    resourceLimits: { maxOldGenerationSizeMb: 2 * limits.heapMb + 256, maxYoungGenerationSizeMb: 16 },
  });
  const ended = Promise.withResolvers<ThreadEnd>();
  let cause: { reason: EndReason; detail: string } | undefined;
  let isOver = false;
  let isBusy = false;
  let lastProgress = 0;
  let movedAt = performance.now();
  let isMeasuring = false;
  let giveUp: NodeJS.Timeout | undefined;

  function over(how: ThreadEnd): void {
    if (isOver) return;
    isOver = true;
    clearInterval(watch);
    clearTimeout(giveUp);
    port.close();
    ended.resolve(how);
  }

  function end(reason: EndReason, detail: string): void {
    if (cause || isOver) return;
    cause = { reason, detail };
    void worker.terminate();
    giveUp = setTimeout(() => {
      worker.unref();
      // At its end the process would wait for the thread, for ever.
      const kill = (): void => void process.kill(process.pid, "SIGKILL");
      process.once("exit", kill);
      worker.once("exit", () => process.off("exit", kill));
      over({ reason, detail, isAbandoned: true });
    }, abandonAfterMs);
  }

  function look(): void {
    void measure();
    const progress = Atomics.load(cells, cell.progress);
    const now = performance.now();
    if (progress !== lastProgress || !isBusy) {
      lastProgress = progress;
      movedAt = now;
    } else if (now - movedAt > limits.deadlineMs) {
      end("stuck", `it has computed for more than ${limits.deadlineMs / 1000} s without a pause`);
      return;
    }
    // Waiting is no reason to end it: a thread that only waits takes this and shows progress.
    if (isBusy) port.postMessage({} satisfies Inward);
  }

  async function measure(): Promise<void> {
    if (isMeasuring || cause) return;
    isMeasuring = true;
    try {
      const { used_heap_size: heap, external_memory: buffers } = await worker.getHeapStatistics();
      if (heap > limits.heapMb * mb || buffers > limits.heapMb * mb + bufferGarbageBytes)
        end("memory", `it uses ${inMb(heap)} of heap and ${inMb(buffers)} of buffers: more than heapMb allows`);
    } catch {
      // Not up yet, or no more.
    }
    isMeasuring = false;
  }

  const watch = setInterval(look, watchMs).unref();
  port.on("message", receive);
  worker.on("error", (error: NodeJS.ErrnoException) => {
    const reason = error.code === "ERR_WORKER_OUT_OF_MEMORY" ? "memory" : "crash";
    cause ??= { reason, detail: messageOf(error) ?? "undefined was thrown" };
  });
  worker.once("exit", (code) => {
    // What it has sent may still be on its way.
    for (let left = receiveMessageOnPort(port); left && !isOver; left = receiveMessageOnPort(port))
      receive(left.message);
    over({ ...(cause ?? { reason: "exit", detail: `it ended itself with exit code ${code}` }), isAbandoned: false });
  });

  return {
    post: (message, transfer = []) => port.postMessage(message, transfer),
    hasEntered: (id) => ((id - Atomics.load(cells, cell.entered)) | 0) <= 0,
    setBusy(next) {
      if (next && !isBusy) movedAt = performance.now();
      isBusy = next;
    },
    end,
    ended: ended.promise,
  };
}
