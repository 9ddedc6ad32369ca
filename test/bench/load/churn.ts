/** Clients that have subscribed, each to topic filters of its own that nobody publishes to, and that may leave one and come back. */
import { type Address, type LoadClient, openClients } from "./client.ts";
import { nowMs, subscribeFrame, types, unsubscribeFrame } from "./frames.ts";
import { createLatencies } from "./latencies.ts";
import type { Load } from "./load.ts";

export interface ChurnOptions {
  readonly address: Address;
  readonly clients: number;
  /** What each subscribes to; `{n}` is its number, `{m}` that of the subscription. */
  readonly filter: string;
  /** Subscriptions of each. */
  readonly each?: number | undefined;
  /** UNSUBSCRIBEs from the last one and SUBSCRIBEs to it, a second of all together, in turns; 0 = none. */
  readonly rate: number;
}

const tickMs = 5;
const filtersAtOnce = 200;

/**
 * Starts when all have subscribed. `sent` counts what comes and goes then, `acked` its answers. A client whose last one is
 * not answered is passed over: `skipped`.
 */
export const churn: Load<ChurnOptions> = {
  async start({ address, clients: count, filter, each = 1, rate }) {
    const latencies = createLatencies();
    const totals = { sent: 0, acked: 0, skipped: 0, closed: 0 };
    const opened = await openClients(address, count, (n) => ({ clientId: `churn-${n}` }));
    const filterOf = (n: number, m: number): string => filter.replaceAll("{n}", String(n)).replaceAll("{m}", String(m));
    await Promise.all(
      opened.map((client, n) =>
        subscribe(
          client,
          Array.from({ length: each }, (_, m) => filterOf(n, m)),
        ),
      ),
    );
    const senders = opened.map((client, n) => {
      const own = filterOf(n, each - 1);
      const [again, leave] = [subscribeFrame(own, 1), unsubscribeFrame(own)];
      let sentAt = 0;
      let isSubscribed = true;
      client.onFrame = (type) => {
        if (type !== types.suback && type !== types.unsuback) return;
        totals.acked++;
        latencies.add(nowMs() - sentAt);
        sentAt = 0;
      };
      client.onClose = () => totals.closed++;
      return (now: number): void => {
        if (sentAt > 0) {
          totals.skipped++;
          return;
        }
        sentAt = now;
        totals.sent++;
        client.socket.write(isSubscribed ? leave : again);
        isSubscribed = !isSubscribed;
      };
    });
    const startedAt = nowMs();
    let offered = 0;
    const timer = setInterval(() => {
      const now = nowMs();
      const due = Math.floor(((now - startedAt) * rate) / 1000);
      for (; offered < due; offered++) senders[offered % count]!(now);
    }, tickMs);
    const read = () => ({ ...totals, latencies: latencies.read() });
    return {
      read,
      stop() {
        clearInterval(timer);
        for (const client of opened) client.destroy();
        return Promise.resolve(read());
      },
    };
  },
};

/** Resolves with the last SUBACK; rejects where one refuses. */
async function subscribe(client: LoadClient, filters: readonly string[]): Promise<void> {
  for (let at = 0; at < filters.length; at += filtersAtOnce) {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    client.onFrame = (type, bytes, body, end) => {
      if (type !== types.suback) return;
      if (bytes.subarray(body + 2, end).includes(0x80)) reject(new Error("a subscription was refused"));
      else resolve();
    };
    client.onClose = () => reject(new Error("the server has closed a connection that subscribed"));
    client.socket.write(subscribeFrame(filters.slice(at, at + filtersAtOnce), 1));
    await promise;
  }
}
