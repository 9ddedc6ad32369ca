/** The store of a worker: in memory on the other side of a stream. */
import { createServer, connect, type Socket } from "node:net";
import { once } from "node:events";
import { createTestHost } from "@sluice/testkit";
import { createMemoryStore } from "../../kernel/memory-store.ts";
import { createRemoteStore } from "../../kernel/remote-store.ts";
import { createStoreServer, type ServedProxy } from "../../kernel/store-server.ts";
import { window } from "../../kernel/store-wire.ts";
import type { Store } from "../../kernel/store.ts";
import { storeContract } from "../helpers/store-contract.ts";

/** The two ends of a stream. */
async function pair(): Promise<[Socket, Socket]> {
  const server = createServer({ noDelay: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  const near = connect({ port, host: "127.0.0.1", noDelay: true });
  const [far] = (await once(server, "connection")) as [Socket];
  server.close();
  return [near, far];
}

async function start(): Promise<Store> {
  const { host, close } = createTestHost();
  const node = { id: "n", incarnation: "1" };
  const inner = createMemoryStore({ node, log: host.log, metrics: host.metrics, now: Date.now });
  await inner.start();
  close();
  const proxies = new Map<string, ServedProxy>();
  const server = createStoreServer((name) => proxies.get(name));
  const [near, far] = await pair();
  const link = server.connect(far);
  const remote = createRemoteStore({ node, caps: inner.caps, stream: near });
  return {
    ...remote,
    open(name, options) {
      const store = inner.open(name, options);
      proxies.set(name, { name, store, maxConnections: 0, admit: () => true, now: () => Date.now() });
      return remote.open(name);
    },
    async stop() {
      await remote.stop();
      await link.closed;
      await inner.stop();
    },
  };
}

storeContract(start, { ahead: window.count });
