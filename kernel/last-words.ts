/**
 * What is still to be said for clients of a worker that has ended: their wills, and that they are gone. They wait here for
 * their delay, and go to the workers that are left.
 */
import type { Clock } from "./plugin.ts";
import type { LastWords } from "./siblings.ts";
import { createWills } from "./will.ts";

export interface LastWordsDesk<L> {
  /**
   * @param delaySec until the will is published, unless its client comes back; 0 where there is none
   * @param over called when it has left a worker's pipeline, or is given up
   */
  left(words: LastWords, delaySec: number, over?: () => void): void;
  /** The client is connected again. @param resumed its session goes on */
  back(clientId: string, resumed: boolean): void;
  /** The session has ended. */
  ended(clientId: string): void;
  /** From now on this worker's pipelines run. */
  ready(worker: L): void;
  /** What the worker was given under this number is about to enter its pipelines. */
  begun(worker: L, id: number): void;
  /** What the worker was given under this number has left its pipelines. */
  said(worker: L, id: number): void;
  /** It has ended. What was in its pipelines is not given to the next one: it may be what ended it. */
  gone(worker: L): void;
  /** Waits for nothing any more; resolves when all is said. What is left behind from now on is forgotten. */
  close(): Promise<void>;
}

export interface LastWordsDeps<L> {
  readonly clock: Clock;
  give(worker: L, id: number, words: LastWords): void;
  /** So many wills are published by nobody. */
  dropped(count: number): void;
}

/** Clients whose words wait for a worker. */
const maxWaiting = 100_000;
/** Of one worker: a crash leaves many at a time. */
const maxGiven = 100;

interface Said {
  readonly words: LastWords;
  readonly over: (() => void) | undefined;
  hasBegun: boolean;
}

export function createLastWords<L>(deps: LastWordsDeps<L>): LastWordsDesk<L> {
  const wills = createWills(deps.clock);
  const waiting = new Set<Said>();
  const given = new Map<L, Map<number, Said>>();
  let lastId = 0;
  let isClosed = false;
  let quiet: (() => void) | undefined;

  function say(words: LastWords, over?: () => void): void {
    wait({ words, over, hasBegun: false });
    pump();
  }

  function wait(each: Said): void {
    if (waiting.size < maxWaiting) waiting.add(each);
    else giveUp(each);
  }

  function giveUp({ words, over }: Said): void {
    if (words.will) deps.dropped(1);
    over?.();
  }

  function pump(): void {
    for (const each of waiting) {
      const [worker, its] = leastBusy();
      if (!worker || !its || its.size >= maxGiven) break;
      waiting.delete(each);
      its.set(++lastId, each);
      deps.give(worker, lastId, each.words);
    }
    const isQuiet = waiting.size === 0 && [...given.values()].every(({ size }) => size === 0);
    if (isQuiet || given.size === 0) quiet?.();
  }

  function leastBusy(): [L, Map<number, Said>] | [] {
    let least: [L, Map<number, Said>] | [] = [];
    for (const each of given) if (!least[1] || each[1].size < least[1].size) least = each;
    return least;
  }

  return {
    left(words, delaySec, over) {
      const { will, client } = words;
      if (isClosed) return;
      if (!will || delaySec <= 0) {
        say(words, over);
        return;
      }
      wills.wait(client.id, delaySec, () => say({ client, will, connection: undefined }, over), over);
      if (words.connection !== undefined) say({ ...words, will: undefined });
    },
    back: (clientId, resumed) => wills.back(clientId, resumed),
    ended: (clientId) => wills.ended(clientId),
    ready(worker) {
      if (!given.has(worker)) given.set(worker, new Map());
      pump();
    },
    begun(worker, id) {
      const each = given.get(worker)?.get(id);
      if (each) each.hasBegun = true;
    },
    said(worker, id) {
      const its = given.get(worker);
      const each = its?.get(id);
      its?.delete(id);
      each?.over?.();
      pump();
    },
    gone(worker) {
      const its = given.get(worker);
      given.delete(worker);
      for (const each of its?.values() ?? []) {
        if (each.hasBegun) giveUp(each);
        else wait(each);
      }
      pump();
    },
    close() {
      wills.close();
      const { promise, resolve } = Promise.withResolvers<void>();
      quiet = resolve;
      isClosed = true;
      pump();
      return promise;
    },
  };
}
