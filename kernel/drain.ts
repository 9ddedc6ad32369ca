/** Connections are closed gradually, so that their clients don't all come back at one moment. */
import { type Connection, type Farewell, pause } from "./connection.ts";
import type { DrainSpec } from "./spec.ts";

/** How often it looks which connections may go. */
const tickMs = 10;

/** Closes them at the drain's rate, each when its packets under way are through; those left at the time-out at once, and waits for them. */
export async function drain(
  connections: Iterable<Connection>,
  { timeoutMs, rate, serverReference }: DrainSpec,
): Promise<void> {
  const farewell: Farewell | undefined =
    serverReference === undefined ? undefined : { reason: "useAnotherServer", serverReference };
  const until = performance.now() + timeoutMs;
  const staying = new Set(connections);
  const leaving = new Set<Connection>();
  // Polled: it happens seldom, and a counter on the hot path would cost every packet.
  for (let allowed = 1; performance.now() < until; allowed += (rate * tickMs) / 1000) {
    for (const connection of staying) {
      if (rate > 0 && allowed < 1) break;
      allowed--;
      staying.delete(connection);
      // Nothing more is read from it; what was is finished.
      connection.pause(pause.shutdown);
      leaving.add(connection);
    }
    for (const connection of leaving) {
      if (connection.working > 0) continue;
      connection.close("shutdown", farewell);
      leaving.delete(connection);
    }
    if (leaving.size + staying.size === 0) return;
    await new Promise((resolve) => setTimeout(resolve, tickMs));
  }
  const left = [...staying, ...leaving];
  const closed = left.map(
    ({ socket }) =>
      new Promise<void>((resolve) => (socket.destroyed ? resolve() : socket.once("close", () => resolve()))),
  );
  for (const connection of left) connection.close("shutdown", farewell);
  await Promise.all(closed);
}
