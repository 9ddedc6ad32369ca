/** The store as other processes of the gateway use it: their calls come in by streams, and are made here. */
import type { Duplex } from "node:stream";
import { SluiceError } from "./errors.ts";
import { createLastWords } from "./last-words.ts";
import { tellBack } from "./moved-clients.ts";
import type { Clock } from "./plugin.ts";
import { serveStore, type StoreLink } from "./store-link.ts";
import type { Link, ServedProxy, Shared } from "./store-parties.ts";
import type { WillOfClient } from "./store.ts";
import { tell, writeLastWords } from "./store-wire.ts";
import { createWhereabouts } from "./whereabouts.ts";

export type { ServedProxy } from "./store-parties.ts";

export interface StoreServer {
  /** Serves one worker until its stream ends; what it was connected to counts as lost then. */
  connect(stream: Duplex): StoreLink;
  /** Clients that are connected to workers: now, and at most at a time. */
  connected(proxy: string): { readonly now: number; readonly peak: number };
  /** The session was removed from here: whoever has something of it is told. */
  ended(proxy: string, clientId: string): void;
  /** The client is connected to another node. @param resumed its session goes on there */
  back(proxy: string, clientId: string, resumed: boolean): void;
  /** Of a client that was never connected here. Resolves when it has left a worker's pipeline, or is not to. */
  speakFor(proxy: string, will: WillOfClient, dueAt: number): Promise<void>;
  /** The workers are about to be stopped: what is still to be said is, or will not be. */
  close(): Promise<void>;
}

/** @param proxyOf the proxy that is running, or about to, under this name */
export function createStoreServer(proxyOf: (name: string) => ServedProxy | undefined, clock: Clock): StoreServer {
  const shared = new Map<string, Shared>();

  function sharedOf(name: string): Shared {
    const served = proxyOf(name);
    let known = shared.get(name);
    if (known && served) known.served = served;
    else if (served) {
      known = share(served);
      shared.set(name, known);
    }
    if (!known) throw new SluiceError("PROXY_NOT_FOUND", `no proxy is named ${name}`);
    return known;
  }

  function share(served: ServedProxy): Shared {
    const lastWords = createLastWords<Link>({
      clock,
      give(link, id, words) {
        link.post(tell.speakFor, () => {
          link.channel.out.number(link.numberOf(proxy) ?? 0);
          link.channel.out.number(id);
          writeLastWords(link.channel.out, words);
        });
      },
      dropped: (count) => proxy.served.willsLost(count),
    });
    const whereabouts = createWhereabouts<Link>();
    const proxy: Shared = {
      served,
      holders: new Map(),
      whereabouts,
      movedOn: new Map(),
      lastWords,
      publishing: new Map(),
      lastOrdinal: 0,
      peak: 0,
    };
    return proxy;
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
    back(name, clientId, resumed) {
      const proxy = shared.get(name);
      if (!proxy) return;
      const what = resumed ? 1 : 0;
      tellBack(proxy, clientId, undefined, what);
      const holder = proxy.movedOn.get(clientId);
      // That its will waits has been told when it answers.
      if (holder) holder.gaveUp = () => tellBack(proxy, clientId, undefined, what);
      proxy.movedOn.delete(clientId);
    },
    speakFor(name, { will, client }, dueAt) {
      const { promise, resolve } = Promise.withResolvers<void>();
      const delaySec = Math.max(0, (dueAt - clock.now()) / 1000);
      sharedOf(name).lastWords.left({ client, will, connection: undefined }, delaySec, resolve);
      return promise;
    },
    async close() {
      await Promise.all([...shared.values()].map(({ lastWords }) => lastWords.close()));
    },
    connect: (stream) => serveStore(stream, sharedOf),
  };
}
