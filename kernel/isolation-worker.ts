/** The thread of an isolated filter: imports its kind, creates it, and hands it the packets that come. */
import { X509Certificate } from "node:crypto";
import { workerData } from "node:worker_threads";
import {
  cell,
  cloneProblemOf,
  createPacker,
  fromCarry,
  toCarry,
  unpack,
  type Declaration,
  type Inward,
  type MapChanges,
  type Outward,
  type PacketIn,
  type PacketOut,
  type ThreadData,
  type ThreadError,
} from "./crossing.ts";
import { messageOf } from "./errors.ts";
import { createThreadHost } from "./isolation-host.ts";
import { importKind } from "./plugin-code.ts";
import type { Client, FilterContext, FilterKind, FilterResult, Reason } from "./plugin.ts";

/** How often health, gauges and what is not sent with packets cross. */
const tickMs = 250;
/** A batch's results are sent before its end where it takes longer, so that one packet that hangs holds few of them back. */
const holdMs = 5;

const { port, cells, source, importDeadlineMs, run, options } = workerData as ThreadData;

try {
  const code = (await importKind(source, importDeadlineMs)) as FilterKind;
  if (run) await serve(code, run);
  else port.postMessage({ ready: declarationOf(code), faults: code.validate?.(options) ?? [] } satisfies Outward);
} catch (error) {
  port.postMessage({ failed: toThreadError(error) } satisfies Outward);
}

function declarationOf({ kind, packets, results, discards, concurrent }: FilterKind): Declaration {
  return { kind, packets, results, ...(discards && { discards }), ...(concurrent && { concurrent }) };
}

function toThreadError(error: unknown): ThreadError {
  const code = (error as { code?: unknown } | undefined)?.code;
  return { message: messageOf(error) ?? "undefined was thrown", code: typeof code === "string" ? code : undefined };
}

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
class Context {
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

  reject(reason: Reason): void {
    this.verdict = ["reject", reason];
  }

  disconnect(reason: Reason): void {
    this.verdict = ["disconnect", reason];
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

async function serve(kind: FilterKind, o: NonNullable<ThreadData["run"]>): Promise<void> {
  let packets: PacketOut[] = [];
  let packer = createPacker();
  let watched: number[] = [];
  let scheduled = false;
  let lastHealth = "";
  const inside = new Map<number, Context>();

  /** One message a turn of the event loop, with all that has come up in it. */
  function wake(): void {
    if (scheduled) return;
    scheduled = true;
    setImmediate(post);
  }
  const threadHost = createThreadHost({ ...o, wake });

  function post(): void {
    scheduled = false;
    const payloads = packer.block();
    const out: Outward = { ...threadHost.take(), ...(watched.length > 0 && { watched }) };
    const transfer = payloads ? [payloads] : [];
    const full = { ...out, packets, payloads };
    packets = [];
    packer = createPacker();
    watched = [];
    try {
      port.postMessage(full, transfer);
    } catch {
      // Rare: one of them holds what can't be cloned. The others are not to suffer for it.
      const sound = full.packets.map((each) => {
        const message = cloneProblemOf({
          data: each.data?.set ?? [],
          clientData: each.clientData?.set ?? [],
          packet: each.packet,
        });
        return message === undefined ? each : { id: each.id, error: { message, code: "ISOLATION_NOT_CLONEABLE" } };
      });
      port.postMessage({ ...full, packets: sound }, transfer);
    }
  }

  function settle(ctx: Context, result: FilterResult): void {
    inside.delete(ctx.id);
    packets.push(ctx.outcome(result, packer));
  }
  function fail(ctx: Context, error: unknown): void {
    inside.delete(ctx.id);
    packets.push({ id: ctx.id, error: toThreadError(error) });
  }

  function answered(step: () => void): void {
    step();
    wake();
  }

  const filter = await kind.create(options, threadHost.host);

  function enter(sent: PacketIn, payloads: ArrayBuffer | undefined): void {
    const ctx = new Context(sent, payloads, (id) => {
      watched.push(id);
      wake();
    });
    Atomics.store(cells, cell.entered, sent.id);
    Atomics.add(cells, cell.progress, 1);
    inside.set(ctx.id, ctx);
    try {
      const result = filter.handle(ctx as unknown as FilterContext);
      if (typeof (result as { then?: unknown } | undefined)?.then !== "function") {
        settle(ctx, result as FilterResult);
        return;
      }
      (result as Promise<FilterResult>).then(
        (value) => answered(() => settle(ctx, value)),
        (error: unknown) => answered(() => fail(ctx, error)),
      );
    } catch (error) {
      fail(ctx, error);
    }
  }

  async function close(): Promise<void> {
    try {
      await filter.close?.();
    } catch (error) {
      threadHost.host.log.error({ error: messageOf(error) }, "Closing failed");
    }
    threadHost.close();
    clearInterval(ticker);
    post();
    port.postMessage({ closed: true } satisfies Outward);
  }

  port.on("message", (message: Inward) => {
    Atomics.add(cells, cell.progress, 1);
    if (message.published) threadHost.published(message.published);
    for (const id of message.aborted ?? []) inside.get(id)?.abort();
    let since = performance.now();
    for (const sent of message.packets ?? []) {
      enter(sent, message.payloads);
      const now = performance.now();
      if (now - since < holdMs) continue;
      post();
      since = now;
    }
    if (packets.length > 0) post();
    if (message.close) void close();
  });

  function tick(): void {
    threadHost.collect();
    const health = filter.health?.();
    const text = JSON.stringify(health) ?? "";
    const out = threadHost.take();
    if (text !== lastHealth) port.postMessage({ ...out, health } satisfies Outward);
    else if (Object.keys(out).length > 0) port.postMessage(out);
    lastHealth = text;
  }
  const ticker = setInterval(tick, tickMs).unref();
  tick();
  // What was done before a crash or process.exit counts.
  process.once("exit", post);
  port.postMessage({ ready: declarationOf(kind) } satisfies Outward);
}
