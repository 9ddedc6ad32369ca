/**
 * What goes between the gateway's thread and an isolated filter's: one message a tick each way, with all that has come up.
 * A Buffer is a view, and cloning it would take along all that it is a view on; so payloads are packed into one new block
 * of memory that changes hands, and other Buffers are copied to their own size.
 */
import type {
  Client,
  FilterContext,
  FilterKind,
  GaugeOptions,
  Health,
  Host,
  Message,
  PublishOutcome,
} from "./plugin.ts";
import type { KindSource } from "./plugin-code.ts";
import type { MessagePort } from "node:worker_threads";

/** What a kind says of itself, without its code. */
export type Declaration = Pick<FilterKind, "kind" | "packets" | "results" | "discards" | "concurrent">;

/** What a thread is given at its start. */
export interface ThreadData {
  readonly source: KindSource;
  readonly importDeadlineMs: number;
  readonly port: MessagePort;
  /** See {@link cell}. */
  readonly cells: Int32Array;
  /** To run a filter; else only to declare the kind and validate options. */
  readonly run?: {
    readonly name: string;
    readonly folder: string;
    readonly about: object;
    readonly worker: Host["worker"];
  };
  readonly options: unknown;
}

/** Written by the filter's thread and read by the gateway's, whatever the former is busy with. */
export const cell = {
  /** Changes with each packet and each message: what stands still is stuck. */
  progress: 0,
  /** The packet that the filter was given last. */
  entered: 1,
  count: 2,
} as const;

/** Offset and length in the block of payloads. */
export type Slice = readonly [offset: number, length: number];
type Entries = readonly (readonly [key: string, value: unknown])[];

export interface PacketIn {
  /** Counts up, and wraps around at 32 bits. */
  readonly id: number;
  readonly type: FilterContext["type"];
  readonly origin: FilterContext["origin"];
  /** Of a client, the same object for all its packets in one message. */
  readonly client: object;
  readonly clientData: Entries;
  readonly packet: Record<string, unknown>;
  readonly payload: Slice | undefined;
  readonly data: Entries;
}

/** What a filter has done to a Map. */
export interface MapChanges {
  readonly set: Entries;
  readonly deleted: readonly string[];
}

export interface PacketOut {
  readonly id: number;
  readonly result?: string | undefined;
  /** In place of a result: it threw or rejected. */
  readonly error?: ThreadError;
  readonly verdict?: readonly ["drop"] | readonly ["reject" | "disconnect", ...Parameters<FilterContext["reject"]>];
  /** Fields that were replaced. */
  readonly packet?: Record<string, unknown> | undefined;
  readonly payload?: Slice | undefined;
  readonly data?: MapChanges | undefined;
  readonly clientData?: MapChanges | undefined;
}

/** To the filter's thread. */
export interface Inward {
  readonly packets?: readonly PacketIn[];
  readonly payloads?: ArrayBuffer | undefined;
  /** Packets whose deadline has passed. */
  readonly aborted?: readonly number[];
  readonly published?: readonly {
    readonly id: number;
    readonly outcome?: PublishOutcome;
    readonly error?: ThreadError;
  }[];
  readonly close?: true;
}

export interface ThreadError {
  readonly message: string;
  readonly code: string | undefined;
  /** As a {@link Fault} says it. */
  readonly poison?: boolean | undefined;
}

export interface LogLine {
  readonly level: "debug" | "info" | "warn" | "error";
  readonly fields: object;
  readonly message: string;
}

export interface MetricDefinition {
  readonly type: "counter" | "gauge" | "histogram";
  readonly name: string;
  readonly help: string;
  readonly labels: readonly string[];
  readonly buckets?: readonly number[] | undefined;
  /** Of a gauge. */
  readonly options?: GaugeOptions | undefined;
}

export interface MetricChanges {
  readonly definitions: readonly MetricDefinition[];
  /** Name, labels and: how much a counter grew, what a gauge is, what a histogram observed. */
  readonly values: readonly (readonly [name: string, labels: Record<string, string>, values: readonly number[]])[];
  /** All that a gauge's `collect` has set. */
  readonly collected: readonly (readonly [
    name: string,
    series: readonly (readonly [Record<string, string>, number])[],
  ])[];
}

/** From the filter's thread. */
export interface Outward {
  /** The kind was imported and, to run, the filter created. `faults`: what `validate` found. */
  readonly ready?: Declaration;
  readonly faults?: readonly { readonly field: readonly (string | number)[]; readonly message: string }[];
  /** It could not be. */
  readonly failed?: ThreadError;
  readonly packets?: readonly PacketOut[];
  readonly payloads?: ArrayBuffer | undefined;
  /** Packets whose `signal` the filter has looked at. */
  readonly watched?: readonly number[];
  readonly publish?: readonly { readonly id: number; readonly proxy: string; readonly message: Message }[];
  readonly logs?: readonly LogLine[];
  /** Lines that were too many. */
  readonly logsDropped?: number;
  readonly metrics?: MetricChanges | undefined;
  readonly health?: Health | undefined;
  readonly closed?: true;
}

/** Puts payloads one behind the other. Take the block when all are in, and hand it over. */
export function createPacker(): { add(payload: Uint8Array): Slice; block(): ArrayBuffer | undefined } {
  const parts: Uint8Array[] = [];
  let length = 0;
  return {
    add(payload) {
      parts.push(payload);
      length += payload.length;
      return [length - payload.length, payload.length];
    },
    block() {
      if (length === 0) return undefined;
      const block = new Uint8Array(length);
      let at = 0;
      for (const part of parts) {
        block.set(part, at);
        at += part.length;
      }
      return block.buffer;
    },
  };
}

const empty = Buffer.alloc(0);

export function unpack(block: ArrayBuffer | undefined, [offset, length]: Slice): Buffer {
  return block === undefined ? empty : Buffer.from(block, offset, length);
}

const isPlain = (value: unknown): value is Record<string, unknown> => {
  if (typeof value !== "object" || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
};

/** A value as it is sent: its Buffers copied to their own size. `copies` are those made, for a value may contain itself. */
export function toCarry(value: unknown, copies?: Map<object, unknown>): unknown {
  if (typeof value !== "object" || value === null) return value;
  if (Buffer.isBuffer(value)) return new Uint8Array(value);
  const isList = Array.isArray(value);
  if (!isList && !isPlain(value)) return value;
  const known = copies?.get(value);
  if (known !== undefined) return known;
  const copy: Record<string, unknown> = isList ? ([] as unknown as Record<string, unknown>) : {};
  const all = (copies ?? new Map<object, unknown>()).set(value, copy);
  for (const [key, part] of Object.entries(value)) copy[key] = toCarry(part, all);
  return copy;
}

/** A value as it has come, changed in place: cloning makes a Uint8Array of a Buffer. */
export function fromCarry(value: unknown, seen?: Set<object>): unknown {
  if (typeof value !== "object" || value === null) return value;
  if (value instanceof Uint8Array) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  if ((!Array.isArray(value) && !isPlain(value)) || seen?.has(value)) return value;
  const all = (seen ?? new Set()).add(value);
  for (const [key, part] of Object.entries(value)) {
    if (typeof part === "object" && part !== null) (value as Record<string, unknown>)[key] = fromCarry(part, all);
  }
  return value;
}

/** Writes what has come back into an object that others hold: maps and lists are gone into, not replaced. */
function mergeInto(target: Record<string, unknown>, changes: Record<string, unknown>): void {
  for (const [key, value] of Object.entries(changes)) {
    const old = target[key];
    const isSame = (isPlain(old) && isPlain(value)) || (Array.isArray(old) && Array.isArray(value));
    if (isSame && Object.keys(old).length === Object.keys(value).length)
      mergeInto(old as Record<string, unknown>, value as Record<string, unknown>);
    else if (old !== value) target[key] = fromCarry(value);
  }
}

/** Why this value can't be cloned; undefined where it can. */
export function cloneProblem(value: unknown): string | undefined {
  try {
    structuredClone(value);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

/** Of what is to be sent for a packet, the part that can't be. */
export function cloneProblemOf(o: {
  data?: Entries;
  clientData?: Entries;
  packet?: object | undefined;
}): string | undefined {
  for (const [map, entries] of [
    ["ctx.data", o.data ?? []],
    ["ctx.client.data", o.clientData ?? []],
  ] as const) {
    for (const [key, value] of entries) {
      const problem = cloneProblem(value);
      if (problem !== undefined)
        return `"${key}" of ${map} can't be copied to another thread (${problem}): keep to plain data, or don't isolate`;
    }
  }
  const problem = cloneProblem(o.packet);
  return problem === undefined ? undefined : `the packet can't be copied to another thread: ${problem}`;
}

/** @param clients those of the same message, so that each is in it once */
export function toPacketIn(
  id: number,
  ctx: FilterContext,
  packer: ReturnType<typeof createPacker>,
  clients: Map<Client, object>,
): PacketIn {
  let client = clients.get(ctx.client);
  if (!client) {
    const { data: _, certificate, ...rest } = ctx.client;
    client = { ...rest, ...(certificate && { certificate: new Uint8Array(certificate.raw) }) };
    clients.set(ctx.client, client);
  }
  const packet: Record<string, unknown> = {};
  let payload: PacketIn["payload"];
  for (const [key, value] of Object.entries(ctx.packet) as [string, unknown][]) {
    if (key === "payload" && value instanceof Uint8Array) payload = packer.add(value);
    else packet[key] = toCarry(value);
  }
  return {
    id,
    type: ctx.type,
    origin: ctx.origin,
    client,
    clientData: toEntries(ctx.client.data),
    packet,
    payload,
    data: toEntries(ctx.data),
  };
}

const none: PacketIn["data"] = [];

function toEntries(map: ReadonlyMap<string, unknown>): PacketIn["data"] {
  if (map.size === 0) return none;
  const entries: [string, unknown][] = [];
  for (const [key, value] of map) {
    if (key !== "PIPELINE") entries.push([key, toCarry(value)]);
    // The same for all packets, which cloning notices; most pipelines have none.
    else if (!isPlain(value) || Object.keys(value).length > 0) entries.push([key, value]);
  }
  return entries;
}

/** What the filter has done to its copy is done to the packet itself. */
export function applyOutcome(ctx: FilterContext, out: PacketOut, payloads: ArrayBuffer | undefined): void {
  const packet = ctx.packet as unknown as Record<string, unknown>;
  if (out.packet) mergeInto(packet, out.packet);
  if (out.payload) packet["payload"] = unpack(payloads, out.payload);
  if (out.data) applyChanges(ctx.data, out.data);
  if (out.clientData) applyChanges(ctx.client.data, out.clientData);
  if (out.verdict?.[0] === "drop") {
    ctx.drop();
  } else if (out.verdict) {
    const [verdict, ...words] = out.verdict;
    ctx[verdict](...words);
  }
}

function applyChanges(map: Map<string, unknown>, { set, deleted }: MapChanges): void {
  for (const [key, value] of set) map.set(key, fromCarry(value));
  for (const key of deleted) map.delete(key);
}
