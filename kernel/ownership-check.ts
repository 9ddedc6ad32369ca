/**
 * While a node does not reach the engine, each session that it holds may become another's. It is *in doubt* until the engine
 * has said whose it is: nothing that comes from the cluster is delivered to its connection here.
 */
import type { OwnerRecord } from "./cluster-engine.ts";

/** Something that a node owns by an owner record's revision. */
export interface Owned {
  isInDoubt: boolean;
}

export interface OwnershipCheck {
  /** From now on all that is held may become another's. */
  begin(): void;
  /** Asks whose they are, where the engine can be asked: again and again, while it can. */
  retry(): void;
}

export interface OwnershipCheckDeps<T extends Owned> {
  held(): Iterable<T>;
  isReached(): boolean;
  /** What its owner record says now, exactly; undefined = there is none any more. */
  owner(owned: T): Promise<OwnerRecord | undefined>;
  /** By which it is this node's. */
  revision(owned: T): number;
  lost(owned: T): void;
  /** It is still this node's. */
  kept(owned: T): void;
}

/** Questions under way at once. */
const atOnce = 64;
/** Until those are asked about again of whom nothing was heard. */
const againMs = 100;

export function createOwnershipCheck<T extends Owned>(deps: OwnershipCheckDeps<T>): OwnershipCheck {
  let hasBegun = false;
  /** How often it has begun: an answer to a question of before says nothing. */
  let times = 0;
  let doubted: T[] = [];
  let asking = 0;
  let timer: NodeJS.Timeout | undefined;

  function ask(): void {
    while (asking < atOnce && doubted.length > 0 && deps.isReached()) {
      const owned = doubted.pop() as T;
      if (owned.isInDoubt) void askFor(owned);
    }
  }

  async function askFor(owned: T): Promise<void> {
    asking++;
    const at = times;
    try {
      const found = await deps.owner(owned);
      // None: another has ended it.
      if (!found || found.revision > deps.revision(owned)) {
        deps.lost(owned);
      } else if (at === times) {
        owned.isInDoubt = false;
        deps.kept(owned);
      }
    } catch {
      // Away again, or nobody leads: it stays in doubt until the next retry.
    } finally {
      asking--;
    }
    ask();
    if (asking === 0 && hasBegun) timer ??= setTimeout(retry, againMs).unref();
  }

  function retry(): void {
    clearTimeout(timer);
    timer = undefined;
    if (!hasBegun || asking > 0 || !deps.isReached()) return;
    doubted = [...deps.held()].filter(({ isInDoubt }) => isInDoubt);
    hasBegun = doubted.length > 0;
    ask();
  }

  return {
    begin() {
      hasBegun = true;
      times++;
      for (const owned of deps.held()) owned.isInDoubt = true;
    },
    retry,
  };
}
