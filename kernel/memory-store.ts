/** The store of a single node: everything in memory. */
import { SluiceError } from "./errors.ts";
import { createExpiries } from "./expiries.ts";
import { createProxyStore, type MemoryProxyStore } from "./proxy-store.ts";
import type { Store } from "./store.ts";

/** @param now milliseconds since the epoch */
export function createMemoryStore(node: Store["node"], now: () => number = Date.now): Store {
  const proxies = new Map<string, MemoryProxyStore>();
  const expiries = createExpiries(now);
  let closed = false;
  return {
    node,
    caps: { multiNode: false, ackDurability: "memory" },
    start: () => Promise.resolve(),
    stop() {
      closed = true;
      expiries.close();
      return Promise.resolve();
    },
    health: () => ({ live: !closed, durable: !closed, reasons: closed ? ["the store is closed"] : [] }),
    open(proxy, options) {
      const known = proxies.get(proxy);
      known?.reopen(options);
      if (known) return known;
      const opened = createProxyStore(proxy, options, {
        expiries,
        check() {
          if (closed) throw new SluiceError("STORE_CLOSED", `the session store is closed; ${proxy} takes no messages`);
        },
      });
      proxies.set(proxy, opened);
      return opened;
    },
  };
}
