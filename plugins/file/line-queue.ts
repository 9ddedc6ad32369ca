/**
 * Lines that wait to be written, in batches. Where a batch is not written, what its senders have in the queue behind it is
 * not either: they send the earlier line again, and it must not come after a later one.
 */
import type { Client, Clock } from "@sluice/kernel";
import { beginHold } from "./hold.ts";

export interface LineQueue {
  readonly isEmpty: boolean;
  /**
   * Resolves when the line is written; rejects where it is not.
   * @param keeper who sends it again where it is not written
   */
  add(text: string, bytes: number, keeper: Client | undefined): Promise<void>;
  /** The next lines to be written, and those of which it is known that they must not be. */
  take(): TakenBatch | undefined;
}

export interface TakenBatch {
  readonly lines: readonly string[];
  /** Of its lines, those that are behind one that was not written. */
  readonly withheld: number;
  /** Of all, before any was withheld. */
  readonly bytes: number;
  written(): void;
  failed(problem: Error): void;
}

interface Batch {
  /** Counts the batches of the queue. */
  readonly number: number;
  readonly lines: string[];
  /** Of each line. */
  readonly keepers: (Client | undefined)[];
  bytes: number;
  readonly done: PromiseWithResolvers<void>;
  /** By id of the client: why its lines were not written with the others. */
  withheld?: ReadonlyMap<string, Error>;
}

/** @param batchLimit bytes of a batch, unless one line alone has more */
export function createLineQueue(batchLimit: number, clock: Clock): LineQueue {
  const batches: Batch[] = [];
  let lastNumber = 0;
  /**
   * Who has to send again, and up to which batch what else of theirs may wait; the lowest first. By id: in a thread of its
   * own (`isolate: worker`) the filter sees another object for the same client in each packet.
   */
  const refused = new Map<string, { readonly problem: Error; readonly upTo: number }>();

  function refuse(keeper: Client, problem: Error): void {
    beginHold(keeper, clock);
    refused.delete(keeper.id);
    refused.set(keeper.id, { problem, upTo: lastNumber });
  }

  /** The lines of the batch that may be written. */
  function sift(batch: Batch): readonly string[] {
    for (const [id, { upTo }] of refused) {
      if (upTo >= batch.number) break;
      refused.delete(id);
    }
    if (refused.size === 0) return batch.lines;
    const withheld = new Map<string, Error>();
    batch.withheld = withheld;
    return batch.lines.filter((_, at) => {
      const keeper = batch.keepers[at];
      const found = keeper && refused.get(keeper.id);
      if (found) withheld.set(keeper.id, found.problem);
      return !found;
    });
  }

  return {
    get isEmpty() {
      return batches.length === 0;
    },
    add(text, bytes, keeper) {
      let batch = batches.at(-1);
      if (!batch || batch.bytes + bytes > batchLimit) {
        batch = { number: ++lastNumber, lines: [], keepers: [], bytes: 0, done: Promise.withResolvers() };
        batches.push(batch);
      }
      batch.lines.push(text);
      batch.keepers.push(keeper);
      batch.bytes += bytes;
      const its = batch;
      if (!keeper) return its.done.promise;
      return its.done.promise.then(() => {
        const problem = its.withheld?.get(keeper.id);
        if (problem) throw problem;
        return undefined;
      });
    },
    take() {
      const batch = batches.shift();
      if (!batch) return undefined;
      const lines = sift(batch);
      return {
        lines,
        withheld: batch.lines.length - lines.length,
        bytes: batch.bytes,
        written: () => batch.done.resolve(),
        failed(problem) {
          for (const keeper of batch.keepers) if (keeper) refuse(keeper, problem);
          batch.done.reject(problem);
        },
      };
    },
  };
}
