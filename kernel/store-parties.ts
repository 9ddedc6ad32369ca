/** Who has to do with the store that workers use: proxies, links to workers, and connections there. Types only. */
import type { Channel } from "./channel.ts";
import type { LastWordsDesk } from "./last-words.ts";
import type { PublishOutcome } from "./plugin.ts";
import type { Delivery, LostReason, ProxyStore, SessionExpiry, SessionHandle, WillOfClient } from "./store.ts";
import type { Whereabouts } from "./whereabouts.ts";

/** A proxy as its parts in the workers share it. */
export interface ServedProxy {
  readonly name: string;
  readonly store: ProxyStore;
  /** Clients that may be connected at a time, of all workers; 0 = any number. */
  readonly maxConnections: number;
  /** Its clients' coming and going is told. */
  readonly hasPresence: boolean;
  /** `connectionLimit`, as one of all workers. */
  admit(of: "address" | "proxy", address: string, bytes: number): boolean;
  now(): number;
  /** So many connections have ended with their worker. */
  lost(count: number): void;
  /** So many wills are published by nobody. */
  willsLost(count: number): void;
}

/** A connection of a worker, for as long as anything there can refer to it. */
export interface Holder {
  readonly id: number;
  readonly link: Link;
  readonly proxy: Shared;
  readonly clientId: string;
  readonly client: WillOfClient["client"];
  /** Until it is seen to. */
  will: WillOfClient["will"] | undefined;
  sessionExpiry: SessionExpiry;
  /** Of its connection, once that is known. */
  ordinal: number | undefined;
  /** When its connection ended, in milliseconds since the epoch. */
  endedAt: number | undefined;
  why: LostReason | undefined;
  /** Undefined until it is acquired. */
  handle: SessionHandle | undefined;
  /** Packet ids of QoS 2 messages from the client that are being made safe. */
  readonly writing: Map<number, Promise<unknown>>;
  /** Above QoS 0, handed over and not settled. */
  readonly inflight: Map<number, Delivery>;
  /** Handed over and not taken by the connection. */
  untaken: number;
  untakenBytes: number;
  isBlocked: boolean;
  isOver: boolean;
  /** Called when the worker has given it up. */
  gaveUp: (() => void) | undefined;
}

/** A proxy, with what all links know of it. */
export interface Shared {
  /** The latest of this name: one that was dropped serves until its last packets are through. */
  served: ServedProxy;
  /** Who is connected. */
  readonly holders: Map<string, Holder>;
  readonly whereabouts: Whereabouts<Link>;
  /** The last message of each client that has to wait, whichever worker brought it. */
  readonly publishing: Map<string, Promise<PublishOutcome>>;
  /** Connections that have lost their session to another node just now, by client. */
  readonly movedOn: Map<string, Holder>;
  readonly lastWords: LastWordsDesk<Link>;
  lastOrdinal: number;
  /** The most that were connected at a time. */
  peak: number;
}

export interface Link {
  readonly channel: Channel;
  /** The worker's number for the proxy. */
  numberOf(proxy: Shared): number | undefined;
  post(kind: number, write: () => void): void;
}
