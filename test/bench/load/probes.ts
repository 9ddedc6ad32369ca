/** What a device that does little sees: how soon its PINGREQ, its PUBLISH and a new CONNECT are answered. */
import { type Address, openClient } from "./client.ts";
import { createRing, disconnect, nowMs, pingreq, types } from "./frames.ts";
import { createLatencies, type Latencies } from "./latencies.ts";
import type { Load } from "./load.ts";

export interface ProbesOptions {
  readonly address: Address;
  /** Milliseconds between two of each. */
  readonly intervalMs: number;
  readonly topic: string;
}

/** `latencies` are those of PINGREQ; `more` has those of acks and connects. `skipped` counts what failed. */
export const probes: Load<ProbesOptions> = {
  async start({ address, intervalMs, topic }) {
    const pings = createLatencies();
    const acks = createLatencies();
    const connects = createLatencies();
    const totals = { sent: 0, acked: 0, skipped: 0, closed: 0 };
    const client = await openClient(address, { clientId: "probe" });
    const ring = createRing([topic], Buffer.alloc(128, "p"), 1, 4096);
    const waiting = { pings: [] as number[], acks: [] as number[] };
    let slot = 0;
    let connected = 0;

    function answered(of: Latencies, queue: number[]): void {
      totals.acked++;
      of.add(nowMs() - queue.shift()!);
    }
    client.onFrame = (type) => {
      if (type === types.pingresp) answered(pings, waiting.pings);
      else if (type === types.puback) answered(acks, waiting.acks);
    };
    client.onClose = () => totals.closed++;

    async function connect(): Promise<void> {
      const at = nowMs();
      totals.sent++;
      try {
        const { socket } = await openClient(address, { clientId: `probe-${connected++}` });
        totals.acked++;
        connects.add(nowMs() - at);
        socket.end(disconnect);
      } catch {
        totals.skipped++;
      }
    }
    const timer = setInterval(() => {
      const now = nowMs();
      totals.sent += 2;
      waiting.pings.push(now);
      waiting.acks.push(now);
      client.socket.write(pingreq);
      client.socket.write(ring.bytes.subarray(slot * ring.frameBytes, (slot + 1) * ring.frameBytes));
      slot = (slot + 1) % ring.slots;
      void connect();
    }, intervalMs);

    const read = () => ({
      ...totals,
      latencies: pings.read(),
      more: { acks: acks.read(), connects: connects.read() },
    });
    return {
      read,
      async stop() {
        clearInterval(timer);
        const until = nowMs() + 10_000;
        while (totals.acked + totals.skipped < totals.sent && totals.closed === 0 && nowMs() < until) {
          await new Promise((resolve) => setTimeout(resolve, 20));
        }
        client.destroy();
        return read();
      },
    };
  },
};
