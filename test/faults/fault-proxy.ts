/**
 * A TCP proxy that does to the connections between a gateway and Kafka, or NATS, what networks do: they hang, break, slow down, and
 * go on living on one side only.
 */
import { createServer, connect, type Socket } from "node:net";

/**
 * - `pass`: everything goes through.
 * - `hang`: connections are accepted and kept, and nothing goes through in either direction; it does when that is over.
 * - `mute`: requests go through, and answers are lost for good, their connection with them.
 * - `halfOpen`: the server's side is closed; the gateway's is kept, and what it sends is swallowed, also on new connections.
 * - `refuse`: connections are reset, new ones at once.
 * - `delay`: everything goes through, late.
 */
export type FaultMode = "pass" | "hang" | "mute" | "halfOpen" | "refuse" | "delay";

export interface FaultProxy {
  readonly port: number;
  readonly mode: FaultMode;
  /** @param delayMs for `delay`: milliseconds for each piece, one way */
  set(mode: FaultMode, delayMs?: number): void;
  /** Resets every connection; new ones are served as the mode says. */
  cut(): void;
  /** Connections that were made so far. */
  readonly connections: number;
  close(): Promise<void>;
}

interface Pair {
  readonly client: Socket;
  readonly server: Socket;
  /** An answer was swallowed, so that what comes behind it can't be understood any more. */
  isDeaf: boolean;
}

/** @param target port on loopback @param port to listen on; 0 takes any free one */
export async function startFaultProxy(target: number, port = 0): Promise<FaultProxy> {
  const pairs = new Set<Pair>();
  let mode: FaultMode = "pass";
  let delay = 0;
  let connections = 0;

  function pump(from: Socket, to: Socket, isDead: () => boolean): void {
    from.on("data", (chunk: Buffer) => {
      if (isDead()) return;
      if (mode === "hang") {
        // What was read already waits in front of the rest.
        from.pause();
        from.unshift(chunk);
        return;
      }
      if (mode === "delay") setTimeout(() => to.writable && to.write(chunk), delay);
      else to.write(chunk);
    });
  }

  const server = createServer((client) => {
    connections++;
    if (mode === "refuse") {
      client.resetAndDestroy();
      return;
    }
    const upstream = connect(target, "127.0.0.1");
    const pair: Pair = { client, server: upstream, isDeaf: false };
    pairs.add(pair);
    client.setNoDelay(true);
    upstream.setNoDelay(true);
    pump(client, upstream, () => mode === "halfOpen" || pair.isDeaf);
    pump(upstream, client, () => {
      if (mode === "mute") pair.isDeaf = true;
      return pair.isDeaf;
    });
    for (const [one, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      one.on("error", () => undefined);
      one.on("close", () => {
        // Nobody is told of it: that is what half open means.
        if (one === upstream && (mode === "halfOpen" || mode === "hang")) return;
        other.destroy();
        pairs.delete(pair);
      });
    }
    if (mode === "halfOpen") upstream.destroy();
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", resolve);
  });
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");

  function cut(): void {
    for (const { client, server: upstream } of pairs) {
      client.resetAndDestroy();
      upstream.destroy();
    }
    pairs.clear();
  }

  return {
    port: address.port,
    get mode() {
      return mode;
    },
    get connections() {
      return connections;
    },
    set(next, delayMs = 0) {
      const before = mode;
      mode = next;
      delay = delayMs;
      for (const { client, server: upstream } of before === "hang" ? pairs : []) {
        if (upstream.destroyed || client.destroyed) client.resetAndDestroy();
        client.resume();
        upstream.resume();
      }
      if (next === "refuse") cut();
      if (next === "halfOpen") for (const pair of pairs) pair.server.destroy();
      // What was half open or has lost an answer is of no use any more.
      if (before === "halfOpen" || before === "mute") cut();
    },
    cut,
    async close() {
      cut();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
