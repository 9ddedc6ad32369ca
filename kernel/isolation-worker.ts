/** The thread of an isolated filter: imports its kind, creates it, and hands it the packets that come. */
import { constants, setPriority } from "node:os";
import { workerData } from "node:worker_threads";
import {
  cell,
  cloneProblemOf,
  createPacker,
  type Declaration,
  type Inward,
  type Outward,
  type PacketIn,
  type PacketOut,
  type ThreadData,
  type ThreadError,
} from "./crossing.ts";
import { messageOf } from "./errors.ts";
import { Context } from "./isolation-context.ts";
import { createThreadHost } from "./isolation-host.ts";
import { importKind } from "./plugin-code.ts";
import type { FilterContext, FilterKind, FilterResult, PendingResult } from "./plugin.ts";

/** How often health, gauges and what is not sent with packets cross. */
const tickMs = 250;
/** A batch's results are sent before its end where it takes longer, so that one packet that hangs holds few of them back. */
const holdMs = 5;

/** Below the gateway's thread where cores are scarce. On Linux 0 means this thread; elsewhere it would be the process. */
function yieldToOthers(): void {
  if (process.platform !== "linux") return;
  try {
    setPriority(0, constants.priority.PRIORITY_BELOW_NORMAL);
  } catch {
    // Where that is forbidden it has to do without.
  }
}

const { port, cells, source, importDeadlineMs, run, options } = workerData as ThreadData;

yieldToOthers();
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
  const { code, poison } = (error ?? {}) as { code?: unknown; poison?: unknown };
  return {
    message: messageOf(error) ?? "undefined was thrown",
    code: typeof code === "string" ? code : undefined,
    poison: typeof poison === "boolean" ? poison : undefined,
  };
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
    try {
      packets.push(ctx.outcome(result, packer));
      inside.delete(ctx.id);
    } catch (error) {
      fail(ctx, error);
    }
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
      void (result as PendingResult).then(
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
