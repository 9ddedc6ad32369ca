/** The store as other processes of the gateway use it: their calls come in by streams, and are made here. */
import type { Duplex } from "node:stream";
import { SluiceError } from "./errors.ts";
import { tellBack } from "./moved-clients.ts";
import { serveStore, type StoreLink } from "./store-link.ts";
import type { ServedProxy, Shared } from "./store-parties.ts";
import { createWhereabouts } from "./whereabouts.ts";

export type { ServedProxy } from "./store-parties.ts";

export interface StoreServer {
  /** Serves one worker until its stream ends; what it was connected to counts as lost then. */
  connect(stream: Duplex): StoreLink;
  /** Clients that are connected to workers: now, and at most at a time. */
  connected(proxy: string): { readonly now: number; readonly peak: number };
  /** The session was removed from here: whoever has something of it is told. */
  ended(proxy: string, clientId: string): void;
}

/** @param proxyOf the proxy that is running, or about to, under this name */
export function createStoreServer(proxyOf: (name: string) => ServedProxy | undefined): StoreServer {
  const shared = new Map<string, Shared>();

  function sharedOf(name: string): Shared {
    const served = proxyOf(name);
    let known = shared.get(name);
    if (known && served) known.served = served;
    else if (served) {
      known = { served, holders: new Map(), whereabouts: createWhereabouts(), lastOrdinal: 0, peak: 0 };
      shared.set(name, known);
    }
    if (!known) throw new SluiceError("PROXY_NOT_FOUND", `no proxy is named ${name}`);
    return known;
  }

  return {
    connected(name) {
      const proxy = shared.get(name);
      return { now: proxy?.holders.size ?? 0, peak: proxy?.peak ?? 0 };
    },
    ended(name, clientId) {
      const proxy = shared.get(name);
      if (proxy) tellBack(proxy, clientId, undefined, 2);
    },
    connect: (stream) => serveStore(stream, sharedOf),
  };
}
