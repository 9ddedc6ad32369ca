/** One worker of the gateway, from the main process: started, asked, ended. */
import type { ChildProcess } from "node:child_process";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { FromWorker, ToWorker, WorkerProblem, WorkerStart } from "./crew-wire.ts";
import type { Code } from "./errors.ts";
import type { Clock, Logger } from "./plugin.ts";

export interface MateOptions {
  readonly index: number;
  /** Starts the program of a worker, with a stream on {@link storeFd} and a channel for messages and sockets. */
  readonly fork: (index: number) => ChildProcess;
  readonly start: Omit<WorkerStart, "index" | "logLevel"> & { logLevel: string };
  readonly clock: Clock;
  readonly log: Logger;
  onMessage(message: FromWorker): void;
  onEnd(): void;
}

/** Sockets on their way to a worker, from which on the others get those that come. */
const maxHanding = 64;

/** Its number for the worker's stream to the store. */
export const storeFd = 4;

export interface Mate {
  readonly index: number;
  /** Of the store. */
  readonly stream: Duplex;
  readonly startedAt: number;
  readonly pid: number | undefined;
  /** Of the config that it runs; undefined = none yet. */
  version: number | undefined;
  /** Times in a row that nothing was heard of it. */
  missed: number;
  /** It is started again when it ends. */
  isMember: boolean;
  /** How long that waits then. */
  backOffMs: number;
  readonly hasEnded: boolean;
  endReason: string;
  /** Resolves when it has ended. */
  readonly over: Promise<void>;
  nextId(): number;
  send(message: ToWorker): void;
  /** Resolves with the answer to `id`; rejects with a {@link MateError}. */
  ask(message: Extract<ToWorker, { id: number }>, withinMs: number): Promise<FromWorker>;
  /** Gives it a socket; where it ends before it has it, the socket is closed. */
  hand(claim: number, socket: Socket): void;
  /** It does not take what it is handed. */
  readonly isStuck: boolean;
  /** At once. */
  end(): void;
}

/** Why a worker did not do as it was asked. */
export class MateError extends Error {
  readonly code: Code;
  readonly problems: readonly WorkerProblem[];
  constructor(code: Code, problems: readonly WorkerProblem[]) {
    super(problems[0]?.message);
    this.code = code;
    this.problems = problems;
  }
}

export function startMate(o: MateOptions): Mate {
  const { index, clock } = o;
  const child = o.fork(index);
  const stream = child.stdio[storeFd] as unknown as Duplex;
  const over = Promise.withResolvers<void>();
  const asked = new Map<number, PromiseWithResolvers<FromWorker>>();
  /**
   * Handed over, and not known to have come. Ours is open until then: Node forgets to close one that was on its way to a
   * process that has died, and its client would wait.
   */
  const handing = new Map<number, Socket>();
  /** Until it listens. */
  let unsent: ToWorker[] | undefined = [];
  let lastId = 0;
  let lastSocket = 0;
  let hasEnded = false;

  function send(message: ToWorker): void {
    if (unsent) unsent.push(message);
    else post(message);
  }

  function post(message: ToWorker, socket?: Socket): void {
    // Without a callback an error would be thrown: it can only be that the worker is ending, which is noticed anyway.
    if (!hasEnded && child.connected) child.send(message, socket, { keepOpen: true }, ignore);
  }

  function end(): void {
    if (hasEnded) return;
    hasEnded = true;
    const error = new MateError("CONFIG_INVALID", [
      { where: "", message: `worker ${index} has ended (${mate.endReason}) before it was done; see its log` },
    ]);
    for (const { reject } of asked.values()) reject(error);
    asked.clear();
    stream.destroy();
    o.onEnd();
    for (const socket of handing.values()) socket.destroy();
    handing.clear();
    over.resolve();
  }

  child.on("message", (message: FromWorker) => {
    mate.missed = 0;
    if (message.type === "up") {
      const waiting = unsent ?? [];
      unsent = undefined;
      post({ type: "start", ...o.start, index });
      for (const each of waiting) post(each);
      return;
    }
    if (message.type === "got") {
      handing.get(message.id)?.destroy();
      handing.delete(message.id);
      return;
    }
    if (message.type === "failed") {
      settle(message.id)?.reject(new MateError(message.code, message.problems));
      return;
    }
    if (message.type === "prepared" || message.type === "committed" || message.type === "measured") {
      settle(message.id)?.resolve(message);
      return;
    }
    o.onMessage(message);
  });
  child.once("exit", (code, signal) => {
    if (mate.endReason === "") mate.endReason = signal ?? `exit ${code}`;
    end();
  });
  child.once("error", (error) => {
    mate.endReason = error.message;
    end();
  });

  function settle(id: number): PromiseWithResolvers<FromWorker> | undefined {
    const waiting = asked.get(id);
    asked.delete(id);
    return waiting;
  }

  const mate: Mate = {
    index,
    stream,
    startedAt: clock.now(),
    pid: child.pid,
    version: undefined,
    missed: 0,
    isMember: false,
    backOffMs: 200,
    get hasEnded() {
      return hasEnded;
    },
    endReason: "",
    over: over.promise,
    nextId: () => ++lastId,
    send,
    async ask(message, withinMs) {
      const answer = Promise.withResolvers<FromWorker>();
      if (hasEnded) throw new MateError("CONFIG_INVALID", [{ where: "", message: `worker ${index} has ended` }]);
      asked.set(message.id, answer);
      send(message);
      const timer = clock.setTimeout(() => {
        const what = `worker ${index} did not answer within ${withinMs / 1000} s`;
        settle(message.id)?.reject(new MateError("CONFIG_INVALID", [{ where: "", message: what }]));
      }, withinMs);
      try {
        return await answer.promise;
      } finally {
        timer.clear();
      }
    },
    hand(claim, socket) {
      const id = ++lastSocket;
      handing.set(id, socket);
      post({ type: "socket", id, claim }, socket);
    },
    get isStuck() {
      return handing.size > maxHanding;
    },
    end: () => void child.kill("SIGKILL"),
  };
  return mate;
}

function ignore(): void {
  // Its end is what counts.
}
