/** A record on its way to Kafka. */
import type { Failure } from "./failure.ts";
import type { Content } from "./record.ts";

export type Outcome = "acked" | "illegalTopic" | "recordTooLarge" | "invalidRecord" | "expired" | "closed";

/** Who is told what became of an entry: a filter, or the drain of its buffer. */
export interface Owner {
  /** Called once for each entry, when its fate is known. */
  settled(entry: Entry, outcome: Outcome, lastFailure: Failure | undefined): void;
}

export interface Entry extends Omit<Content, "partition"> {
  /** Set when the record is first sent, so that a batch sent again is the same batch (see lane.ts). */
  partition?: number | undefined;
  /** Milliseconds since the epoch after which it is given up. */
  readonly expiresAt: number;
  /** Whose order has to be kept: once one of its entries is given up, so are those behind it. */
  readonly clientId: string | undefined;
  /** Changed to one that does not listen when the entry has been abandoned but may still be on its way. */
  owner: Owner;
  /** Number in the disk buffer. */
  readonly sequence?: number | undefined;
}

/** Of entries that nobody asks about any more. */
export const nobody: Owner = { settled: () => undefined };
