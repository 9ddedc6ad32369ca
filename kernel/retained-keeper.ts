/** Retained messages of a cluster, kept within a bound that all nodes share and none of them counts by itself. */
import type { ClusterEngine, ClusterMessage, ClusterRetained, LogPosition } from "./cluster-engine.ts";
import { costOf } from "./session.ts";
import type { StoreOptions } from "./store.ts";

export interface RetainedKeeper {
  /** Where the proxy has as many as it may, a message only takes the place of its topic's. */
  keep(message: ClusterMessage, position: LogPosition | undefined): Promise<void>;
}

export interface RetainedKeeperDeps {
  readonly engine: Pick<ClusterEngine, "peers">;
  readonly retained: ClusterRetained;
  /** Of now. */
  limits(): StoreOptions["retained"];
  /** A message was not kept. */
  refused(): void;
}

type Room = Parameters<ClusterRetained["set"]>[2];

const freely: Room = Object.freeze({ mayAdd: true, mayGrow: true });

export function createRetainedKeeper(deps: RetainedKeeperDeps): RetainedKeeper {
  const { engine, retained } = deps;

  /** If the others have set as much as this node since it has heard of them, half of the room that there was is gone. */
  function isDoubtful(): boolean {
    const { maxMessages, maxBytes } = deps.limits();
    const { messages, bytes, unheard } = retained.counts;
    if (unheard.messages === 0) return false;
    const nodes = 1 + engine.peers().filter(({ isUp }) => isUp).length;
    const isOver = (set: number, all: number, max: number): boolean => set * nodes * 2 > max - (all - set);
    return isOver(unheard.messages, messages, maxMessages) || isOver(unheard.bytes, bytes, maxBytes);
  }

  function roomNow(message: ClusterMessage): Room {
    const { maxMessages, maxBytes } = deps.limits();
    const { messages, bytes } = retained.counts;
    const mayGrow = bytes + costOf(message) <= maxBytes;
    const mayAdd = mayGrow && messages < maxMessages;
    return mayAdd ? freely : { mayAdd, mayGrow };
  }

  async function roomFor(message: ClusterMessage): Promise<Room> {
    if (isDoubtful() || roomNow(message) !== freely) {
      try {
        await retained.recount();
      } catch {
        // What was heard last is what is known.
      }
    }
    return roomNow(message);
  }

  return {
    async keep(message, position) {
      const room = message.payload.length === 0 ? freely : await roomFor(message);
      if (!(await retained.set(message, position, room))) deps.refused();
    },
  };
}
