/** Clients whose subscriptions come and go, each to a topic filter of its own that nobody publishes to. */
import { type Address, openClients } from "./client.ts";
import { nowMs, subscribeFrame, types, unsubscribeFrame } from "./frames.ts";
import { createLatencies } from "./latencies.ts";
import type { Load } from "./load.ts";

export interface ChurnOptions {
  readonly address: Address;
  readonly clients: number;
  /** What each subscribes to; `{n}` is its number. */
  readonly filter: string;
  /** SUBSCRIBEs and UNSUBSCRIBEs a second of all together, in turns. */
  readonly rate: number;
}

const tickMs = 5;

/** `sent` counts both, `acked` their answers. A client whose last one is not answered is passed over: `skipped`. */
export const churn: Load<ChurnOptions> = {
  async start({ address, clients: count, filter, rate }) {
    const latencies = createLatencies();
    const totals = { sent: 0, acked: 0, skipped: 0, closed: 0 };
    const opened = await openClients(address, count, (n) => ({ clientId: `churn-${n}` }));
    const senders = opened.map((client, n) => {
      const own = filter.replaceAll("{n}", String(n));
      const [subscribe, unsubscribe] = [subscribeFrame(own, 1), unsubscribeFrame(own)];
      let sentAt = 0;
      let isSubscribed = false;
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
        client.socket.write(isSubscribed ? unsubscribe : subscribe);
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
