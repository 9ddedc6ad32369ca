/** A packet as an isolated filter sees it in its thread: a copy, which knows what the filter has done to it. */
import { X509Certificate } from "node:crypto";
import {
  createPacker,
  fromCarry,
  toCarry,
  unpack,
  type MapChanges,
  type PacketIn,
  type PacketOut,
} from "./crossing.ts";
import type { Client, FilterContext, FilterResult } from "./plugin.ts";

/** A Map that knows what was done to it. */
interface Tracked {
  readonly map: Map<string, unknown>;
  changes(): MapChanges | undefined;
}

function track(entries: Iterable<readonly [string, unknown]>): Tracked {
  const map = new Map<string, unknown>();
  for (const [key, value] of entries) map.set(key, fromCarry(value));
  const touched = new Set<string>();
  const set = map.set.bind(map);
  const remove = map.delete.bind(map);
  const clear = map.clear.bind(map);
  map.set = (key, value) => {
    touched.add(key);
    return set(key, value);
  };
  map.delete = (key) => {
    touched.add(key);
    return remove(key);
  };
  map.clear = () => {
    for (const key of map.keys()) touched.add(key);
    clear();
  };
  return {
    map,
    changes() {
      if (touched.size === 0) return undefined;
      const keys = [...touched];
      return {
        set: keys.filter((key) => map.has(key)).map((key) => [key, toCarry(map.get(key))]),
        deleted: keys.filter((key) => !map.has(key)),
      };
    },
  };
}

/** A packet as the filter sees it here. A class, since one is made a packet. */
export class Context {
  readonly id: number;
  readonly type: PacketIn["type"];
  readonly origin: PacketIn["origin"];
  readonly packet: Record<string, unknown>;
  readonly client: Client;
  private readonly sent: PacketIn;
  private readonly original: Record<string, unknown>;
  private readonly watch: (id: number) => void;
  private verdict: PacketOut["verdict"];
  private tracked: Tracked | undefined;
  private clientTracked: Tracked | undefined;
  private controller: AbortController | undefined;

  constructor(sent: PacketIn, payloads: ArrayBuffer | undefined, watch: (id: number) => void) {
    this.id = sent.id;
    this.type = sent.type;
    this.origin = sent.origin;
    this.sent = sent;
    this.watch = watch;
    const packet: Record<string, unknown> = {};
    for (const key of Object.keys(sent.packet)) packet[key] = fromCarry(sent.packet[key]);
    if (sent.payload) packet["payload"] = unpack(payloads, sent.payload);
    this.packet = packet;
    this.original = { ...packet };
    const data = (): Tracked => (this.clientTracked ??= track(sent.clientData));
    this.client = {
      ...(sent.client as Client),
      get certificate() {
        const { certificate } = sent.client as { certificate?: Uint8Array };
        return certificate && new X509Certificate(certificate);
      },
      get data() {
        return data().map;
      },
    };
  }

  get data(): Map<string, unknown> {
    return (this.tracked ??= track([["PIPELINE", {}], ...this.sent.data])).map;
  }

  get signal(): AbortSignal {
    if (!this.controller) {
      this.controller = new AbortController();
      this.watch(this.id);
    }
    return this.controller.signal;
  }

  drop(): void {
    this.verdict = ["drop"];
  }

  reject(...words: Parameters<FilterContext["reject"]>): void {
    this.verdict = ["reject", ...words];
  }

  disconnect(...words: Parameters<FilterContext["disconnect"]>): void {
    this.verdict = ["disconnect", ...words];
  }

  abort(): void {
    this.controller?.abort();
  }

  /** What the filter made of it, for the way back. */
  outcome(result: FilterResult, packer: ReturnType<typeof createPacker>): PacketOut {
    let packet: Record<string, unknown> | undefined;
    let payload: PacketOut["payload"];
    for (const key of Object.keys(this.packet)) {
      const value = this.packet[key];
      const isObject = typeof value === "object" && value !== null;
      if (isObject ? value instanceof Uint8Array && value === this.original[key] : value === this.original[key])
        continue;
      if (key === "payload" && value instanceof Uint8Array) payload = packer.add(value);
      // Parts of objects may have been written to: they go back as they are.
      else (packet ??= {})[key] = toCarry(value);
    }
    return {
      id: this.id,
      // Whatever else it returns is for the pipeline to refuse.
      ...((result ?? undefined) !== undefined && { result: String(result) }),
      ...(this.verdict && { verdict: this.verdict }),
      ...(packet && { packet }),
      ...(payload && { payload }),
      ...(this.tracked && { data: this.tracked.changes() }),
      ...(this.clientTracked && { clientData: this.clientTracked.changes() }),
    };
  }
}
