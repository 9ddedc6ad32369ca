/** Proxies without a network, for tests of what reaches them through `Host`: real topic rules, and a record of messages. */
import type { Host, Message, ProxyHandle, QoS, SessionInfo } from "@sluice/kernel";
import { matches, SluiceError, topicNameProblem } from "@sluice/kernel/internal";

export interface MemoryProxies extends Pick<Host, "publish" | "proxies"> {
  /** Adds a session, subscribed to these topic filters at QoS 1. */
  subscribe(proxy: string, clientId: string, topicFilters: readonly string[], more?: Partial<SessionInfo>): void;
  readonly published: readonly (Message & { readonly proxy: string })[];
}

export function createMemoryProxies(...names: string[]): MemoryProxies {
  const published: (Message & { proxy: string })[] = [];
  const sessions = new Map(names.map((name) => [name, new Map<string, SessionInfo>()]));
  const handles = new Map(names.map((name) => [name, createHandle(name, sessions.get(name)!)]));

  return {
    published,
    subscribe(proxy, clientId, topicFilters, more = {}) {
      const subscriptions = topicFilters.map((topicFilter) => ({ topicFilter, qos: 1 as QoS }));
      sessions.get(proxy)!.set(clientId, {
        clientId,
        connected: true,
        clean: true,
        username: "test",
        address: "127.0.0.1",
        connectedAt: Date.UTC(2026, 0, 2, 3, 4, 5),
        queued: 0,
        inflight: 0,
        ...more,
        subscriptions,
      });
    },
    async publish(proxy, message) {
      const here = sessions.get(proxy);
      if (!here) throw new SluiceError("PROXY_NOT_FOUND", `no proxy is named "${proxy}"`);
      const problem = topicNameProblem(message.topic);
      if (problem !== undefined) throw new SluiceError("TOPIC_INVALID", `not a valid topic name: ${problem}`);
      published.push({ proxy, ...message });
      const found = [...here.values()].filter(({ subscriptions }) =>
        subscriptions.some(({ topicFilter }) => matches(topicFilter, message.topic)),
      );
      return { matched: found.length, connected: found.filter(({ connected }) => connected).length, durable: true };
    },
    proxies: { get: (name) => handles.get(name), list: () => [...handles.values()] },
  };
}

function createHandle(name: string, sessions: Map<string, SessionInfo>): ProxyHandle {
  return {
    name,
    sessions: {
      query: async () => [...sessions.values()].sort((a, b) => (a.clientId < b.clientId ? -1 : 1)),
      remove: async (clientId) => sessions.delete(clientId),
    },
    status: () => ({ connections: [...sessions.values()].filter(({ connected }) => connected).length }),
  };
}
