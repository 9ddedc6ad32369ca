/**
 * What a cluster keeps of one session, and how it is written: the owner record, the subscriptions, the cursor, and one
 * record for each QoS 2 message between its two steps, in both directions.
 */
import type { ClusterRecords, LogPosition, RecordChange } from "./cluster-engine.ts";
import { SluiceError } from "./errors.ts";
import type { LogCursor } from "./log-reader.ts";
import type { QoS, SubscriptionOptions } from "./plugin.ts";
import { neverExpires } from "./session.ts";

/** Who owns the session, and what all may know of it. Times in milliseconds since the epoch. */
export interface Ownership {
  readonly clientId: string;
  readonly node: string;
  readonly incarnation: string;
  /** Another for each session of this client id: what is remembered of one means nothing to the next. */
  readonly session: string;
  readonly expirySec: number;
  readonly connectedAt: number;
  /** Greater for each later connection of the client. */
  readonly connection: number;
  /** 0 = its client is connected, or its node has died. */
  readonly absentSince: number;
  readonly username: string | undefined;
  readonly address: string;
  /** Where in the log the messages for this client alone begin: shard and seq. */
  readonly direct: readonly (readonly [number, number])[];
}

/** A subscription with where in the log it begins: what is before is not for it. */
export interface KeptSubscription {
  readonly options: SubscriptionOptions;
  /** Shard and seq. */
  readonly since: readonly (readonly [number, number])[];
}

/** A delivery in flight: the message is in the log. */
export interface KeptDelivery {
  readonly position: LogPosition;
  readonly packetId: number;
  readonly qos: QoS;
  readonly released: boolean;
  /** It came by this shared subscription. */
  readonly sharedBy: string | undefined;
}

/** Of the client's QoS 2 messages, by packet id. */
export interface KeptInbound {
  /** Between PUBLISH and PUBREL. */
  readonly isOpen: boolean;
  /** How often the id has been used up: with it two messages under one id are told apart. */
  readonly uses: number;
}

/** What was found of a session. */
export interface KeptSession {
  readonly subscriptions: ReadonlyMap<string, KeptSubscription>;
  readonly cursor: KeptCursor | undefined;
  /** QoS 2. */
  readonly deliveries: readonly KeptDelivery[];
  readonly inbound: ReadonlyMap<number, KeptInbound>;
}

export interface KeptCursor extends LogCursor {
  /** QoS 1, in the order they were sent, as it was when this was written. */
  readonly inflight: readonly KeptDelivery[];
  /** Topics of retained messages that were not settled. */
  readonly retained: readonly string[];
}

export function encodeOwnership(ownership: Ownership): Buffer {
  return Buffer.from(JSON.stringify(ownership));
}

export function decodeOwnership(value: Buffer): Ownership {
  return JSON.parse(value.toString()) as Ownership;
}

/** Its client has been away for longer than the session lasts: it is gone, whoever removes it. */
export function hasExpired({ expirySec, absentSince }: Ownership, now: number): boolean {
  return absentSince > 0 && expirySec !== neverExpires && absentSince + expirySec * 1000 <= now;
}

export function encodeSubscriptions(subscriptions: ReadonlyMap<string, KeptSubscription>): Buffer {
  return Buffer.from(JSON.stringify([...subscriptions]));
}

export function decodeSubscriptions(value: Buffer | undefined): Map<string, KeptSubscription> {
  return new Map(value && (JSON.parse(value.toString()) as [string, KeptSubscription][]));
}

export function encodeCursor({ upTo, settled, inflight, retained }: KeptCursor): Buffer {
  return Buffer.from(JSON.stringify({ upTo: [...upTo], settled, inflight, retained }));
}

export function decodeCursor(value: Buffer): KeptCursor {
  const found = JSON.parse(value.toString()) as Omit<KeptCursor, "upTo"> & { upTo: [number, number][] };
  return { ...found, upTo: new Map(found.upTo) };
}

/** @param cursor newer than the record: an owner that was asked to hand over has told it */
export function decodeSession(records: ReadonlyMap<string, Buffer>, cursor: KeptCursor | undefined): KeptSession {
  const deliveries: KeptDelivery[] = [];
  const inbound = new Map<number, KeptInbound>();
  const written = records.get("cur");
  for (const [key, value] of records) {
    if (key.startsWith("o.")) deliveries.push(JSON.parse(value.toString()) as KeptDelivery);
    if (key.startsWith("i.")) inbound.set(Number(key.slice(2)), JSON.parse(value.toString()) as KeptInbound);
  }
  return {
    subscriptions: decodeSubscriptions(records.get("sub")),
    cursor: cursor ?? (written && decodeCursor(written)),
    deliveries,
    inbound,
  };
}

/** Writes a session's records, one write at a time; what is put meanwhile goes with the next. */
export interface RecordWriter {
  put(key: string, value: Buffer | object | undefined, ttlMs?: number): void;
  /** Resolves when all that was put is durable; undefined = it is. Rejects with STORE_FAILED. */
  commit(): Promise<void> | undefined;
  /** Nothing more is written. What is under way may still be. */
  close(): void;
}

/** A write that failed is tried again after this; until then whoever waits for it waits. */
const retryMs = 250;

export function createRecordWriter(o: {
  readonly records: ClusterRecords;
  readonly clientId: string;
  readonly revision: number;
  /** Another node owns the session. Called once. */
  readonly fenced: () => void;
  readonly failed: (error: unknown) => void;
}): RecordWriter {
  let pending = new Map<string, RecordChange>();
  let batch = Promise.withResolvers<void>();
  let writing: { readonly promise: Promise<void> } | undefined;
  let closed = false;
  let isFenced = false;
  batch.promise.catch(() => undefined);

  /** Takes all that was put, and goes on with what was put meanwhile. */
  async function flush(): Promise<void> {
    if (writing || pending.size === 0 || closed) return;
    const [changes, done] = [pending, batch];
    pending = new Map();
    batch = Promise.withResolvers<void>();
    batch.promise.catch(() => undefined);
    writing = done;
    try {
      const outcome = await write([...changes.values()]);
      writing = undefined;
      if (outcome === "fenced") lose(done);
      else done.resolve();
    } catch (error) {
      o.failed(error);
      await new Promise((resolve) => setTimeout(resolve, retryMs));
      writing = undefined;
      // It may have been applied or not. What was put since is newer.
      const newer = pending;
      pending = changes;
      for (const change of newer.values()) enqueue(change);
      done.reject(new SluiceError("STORE_FAILED", `the session of ${o.clientId} could not be made safe`));
    }
    void flush();
  }

  /** Where nothing has been written of it, a later place in the order; a cursor stays in front of what counts on it. */
  function enqueue(change: RecordChange): void {
    if (change.key !== "cur") pending.delete(change.key);
    pending.set(change.key, change);
  }

  async function write(changes: readonly RecordChange[]): Promise<"written" | "fenced"> {
    return await o.records.write(o.clientId, o.revision, changes);
  }

  function lose(done: { reject: (error: unknown) => void }): void {
    const error = new SluiceError("STORE_FAILED", `another node owns the session of ${o.clientId}`);
    closed = true;
    done.reject(error);
    batch.reject(error);
    if (isFenced) return;
    isFenced = true;
    o.fenced();
  }

  return {
    put(key, value, ttlMs) {
      if (closed) return;
      const bytes = value === undefined || Buffer.isBuffer(value) ? value : Buffer.from(JSON.stringify(value));
      enqueue({ key, value: bytes, ttlMs });
      queueMicrotask(() => void flush());
    },
    commit() {
      if (closed) return Promise.reject(new SluiceError("STORE_FAILED", `the session of ${o.clientId} has ended here`));
      if (pending.size > 0) return batch.promise;
      return writing?.promise;
    },
    close() {
      closed = true;
      batch.reject(new SluiceError("STORE_FAILED", `the session of ${o.clientId} has ended here`));
    },
  };
}
