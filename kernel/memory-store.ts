/** The store of a single node: everything in memory and, where there is a journal, what has to outlive the process there. */
import { SluiceError } from "./errors.ts";
import { createExpiries } from "./expiries.ts";
import { createJournalWriter, type JournalWriter } from "./journal.ts";
import { createLedger, format, type ProxyState, readRecords } from "./ledger.ts";
import type { Journal, Logger, Metrics } from "./plugin.ts";
import { createProxyStore, type MemoryProxyStore } from "./proxy-store.ts";
import type { Store } from "./store.ts";

export interface MemoryStoreOptions {
  readonly node: Store["node"];
  /** Ready to be read; who made it closes it, after the store has stopped. */
  readonly journal?: Journal | undefined;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
}

/** Bytes of it can't belong to a record, whose keys have parts. */
const formatKey = "format";

export function createMemoryStore({ node, journal, log, metrics, now }: MemoryStoreOptions): Store {
  const proxies = new Map<string, MemoryProxyStore>();
  const expiries = createExpiries(now);
  let writer: JournalWriter | undefined;
  let found = new Map<string, ProxyState>();
  let closed = false;

  async function open(from: Journal): Promise<void> {
    const startedAt = performance.now();
    const records: [string, Buffer][] = [];
    let version: string | undefined;
    for await (const piece of from.read()) {
      for (const { key, value } of piece) {
        if (key === formatKey) version = value.toString();
        else records.push([key, value]);
      }
    }
    if (records.length > 0 && version !== format) {
      throw new SluiceError(
        "STORE_FAILED",
        `the journal is in format ${version ?? "unknown"}, and this version of Sluice reads format ${format}`,
      );
    }
    found = readRecords(records);
    writer = createJournalWriter(from, { log, metrics });
    writer.put(formatKey, () => Buffer.from(format), false);
    await writer.commit();
    if (records.length === 0) return;
    const sessions = [...found.values()].reduce((sum, proxy) => sum + proxy.sessions.length, 0);
    log.info({ records: records.length, sessions, ms: Math.round(performance.now() - startedAt) }, "Read the journal");
  }

  return {
    node,
    caps: {
      multiNode: false,
      ackDurability: journal?.durability ?? "memory",
    },
    async start() {
      if (journal) await open(journal);
    },
    async stop() {
      if (closed) return;
      closed = true;
      expiries.close();
      await writer?.close();
    },
    health() {
      const reasons = [
        ...(closed ? ["the store is closed"] : []),
        ...(writer?.failure === undefined ? [] : [`the journal can't be written: ${writer.failure}`]),
      ];
      return { live: !closed, durable: reasons.length === 0, reasons };
    },
    open(proxy, options) {
      const known = proxies.get(proxy);
      known?.reopen(options);
      if (known) return known;
      const opened = createProxyStore(proxy, options, {
        expiries,
        ledger: writer && createLedger(proxy, writer),
        state: found.get(proxy),
        check() {
          if (closed) throw new SluiceError("STORE_CLOSED", `the session store is closed; ${proxy} takes no messages`);
        },
      });
      found.delete(proxy);
      proxies.set(proxy, opened);
      return opened;
    },
  };
}
