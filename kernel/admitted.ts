/** An admitted client, and what the parts that serve it are handed. Types only. */
import type { Connection } from "./connection.ts";
import type { InboundWork } from "./inbound-work.ts";
import type { Outcome } from "./outcome.ts";
import type { ConnectIn } from "./packet.ts";
import type { DeadLetter, Poison } from "./poison.ts";
import type { Done, Job } from "./pipeline.ts";
import type { Client } from "./plugin.ts";
import type { ProxyMetrics } from "./proxy-metrics.ts";
import type { ProxySpec } from "./spec.ts";
import type { ProxyStore, SessionExpiry, SessionHandle } from "./store.ts";
import type { Wills } from "./will.ts";

export interface Admitted {
  readonly connection: Connection;
  readonly client: Client;
  readonly handle: SessionHandle;
  /** Without its password. */
  readonly connect: ConnectIn;
  /** As granted. */
  readonly sessionExpiry: SessionExpiry;
  /** What the client was told that we take: QoS 1 and 2 PUBLISHes at a time, and aliases. */
  readonly receiveMaximum: number;
  readonly topicAliasMaximum: number;
}

/** What all clients of a proxy share. */
export interface PeerDeps {
  /** The options of now. */
  readonly spec: ProxySpec;
  readonly store: ProxyStore;
  readonly meters: ProxyMetrics;
  readonly wills: Wills;
  readonly inboundWork: InboundWork<Outcome>;
  readonly poison: Poison;
  now(): number;
  /** Returns the outcome where it is there at once; else calls `done` later. */
  run<J extends Job>(job: J, done: Done<J>): Outcome | undefined;
  /** Runs what outlives the connection, until it calls `done`: a stop waits for it. */
  outlive(run: (done: () => void) => void): void;
  /** The dead-letter pipeline has run. @param failed how, where it did not pass */
  buried(clientId: string, letter: DeadLetter, failed: Outcome | undefined): void;
  /** The store failed this client. */
  storeFailed(clientId: string, error: unknown): void;
}
