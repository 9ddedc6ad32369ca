/** Clients that connect and do nothing but stay. */
import { type Address, type LoadClient, openClient } from "./client.ts";
import { disconnect, nowMs, pingreq, subscribeFrame, types } from "./frames.ts";
import { createLatencies } from "./latencies.ts";
import type { Load } from "./load.ts";

export interface ConnectionsOptions {
  readonly address: Address;
  readonly clients: number;
  /** CONNECTs under way at once. */
  readonly atOnce: number;
  /** Seconds; each client sends a PINGREQ every half of it. */
  readonly keepAlive: number;
  /** Connections a second; without it, as fast as they are answered. */
  readonly rate?: number | undefined;
  /** False: the session stays, and has one subscription. */
  readonly clean?: boolean | undefined;
  /** Clients leave as soon as they are connected, for ever new ones. */
  readonly leave?: boolean | undefined;
  readonly prefix?: string | undefined;
}

const tickMs = 50;

/** `sent` counts connections, `acked` PINGRESPs. Begins to connect at once and goes on behind the start. */
export const connections: Load<ConnectionsOptions> = {
  start({ address, clients: count, atOnce, keepAlive, rate, clean = true, leave = false, prefix = "idle" }) {
    const latencies = createLatencies();
    const totals = { sent: 0, acked: 0, closed: 0, skipped: 0 };
    const clients: LoadClient[] = [];
    let next = 0;
    const startedAt = nowMs();
    let tookMs = 0;
    let stopping = false;

    async function open(n: number): Promise<void> {
      const at = nowMs();
      try {
        const client = await openClient(address, { clientId: `${prefix}-${n}`, keepAlive, clean });
        const now = nowMs();
        latencies.add(now - at);
        tookMs = now - startedAt;
        totals.sent++;
        if (stopping) client.destroy();
        else if (leave) client.socket.end(disconnect);
        else {
          client.onFrame = (type) => {
            if (type === types.pingresp) totals.acked++;
          };
          client.onClose = () => totals.closed++;
          if (!clean) client.socket.write(subscribeFrame(`${prefix}/${n}`, 1));
          clients.push(client);
        }
      } catch {
        totals.skipped++;
      }
    }

    async function lane(): Promise<void> {
      while (next < count && !stopping) await open(next++);
    }
    if (rate === undefined) for (let n = 0; n < Math.min(atOnce, count); n++) void lane();

    let pinged = 0;
    let sinceMs = nowMs();
    const timer = setInterval(() => {
      const now = nowMs();
      if (rate !== undefined) {
        const due = Math.min(count, Math.floor(((now - startedAt) * rate) / 1000));
        while (next < due) void open(next++);
      }
      if (keepAlive === 0 || leave) return;
      // Spread evenly over half the keep alive.
      const share = Math.min(clients.length, ((now - sinceMs) * clients.length) / (keepAlive * 500));
      if (share < 1) return;
      sinceMs = now;
      for (let n = 0; n < Math.floor(share); n++) clients[pinged++ % clients.length]!.socket.write(pingreq);
    }, tickMs);
    const read = () => ({ ...totals, tookMs, latencies: latencies.read() });
    return Promise.resolve({
      read,
      stop() {
        stopping = true;
        clearInterval(timer);
        for (const client of clients) client.destroy();
        return Promise.resolve(read());
      },
    });
  },
};
