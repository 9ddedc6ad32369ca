/** One publisher and many subscribers of its topic: the next message goes out when all have got an earlier one. */
import { type Address, type LoadClient, openClients } from "./client.ts";
import { createRing, nowMs, pubackFrames, subscribeFrame, types } from "./frames.ts";
import { createLatencies } from "./latencies.ts";
import type { Load } from "./load.ts";

export interface FanOutOptions {
  readonly address: Address;
  readonly subscribers: number;
  readonly qos: 0 | 1;
  /** Messages that not all subscribers have got yet; 1 = one at a time. 0 = none is published: somebody else does. */
  readonly window: number;
  readonly payloadBytes: number;
  readonly topic: string;
  /** Subscribers acknowledge nothing. */
  readonly isStill?: boolean | undefined;
  readonly prefix?: string | undefined;
}

/** No delivery for this long: what has not come by then never comes, and the next messages are published. */
const stalledMs = 500;

export const fanOut: Load<FanOutOptions> = {
  async start({ address, subscribers: count, qos, window, payloadBytes, topic, isStill = false, prefix = "load" }) {
    const latencies = createLatencies();
    const totals = { sent: 0, acked: 0, received: 0, closed: 0 };
    let lost = 0;
    let stopping = false;
    const subscribers = await openClients(address, count, (n) => ({ clientId: `${prefix}-sub-${n}` }));
    await Promise.all(subscribers.map((client) => subscribe(client, topic, qos)));
    for (const client of subscribers) take(client);
    const [publisher] = window > 0 ? await openClients(address, 1, () => ({ clientId: `${prefix}-pub` })) : [undefined];
    const slots = Math.min(65_535, Math.max(64, window * 4));
    const ring = createRing([topic], Buffer.alloc(payloadBytes, "x"), qos, slots);
    const sentAt = new Float64Array(slots);
    let cursor = 0;
    let movedAt = nowMs();

    function take(client: LoadClient): void {
      const ids: number[] = [];
      client.onFrame = (type, bytes, body) => {
        if (type !== types.publish) return;
        totals.received++;
        if (qos === 0 || isStill) return;
        const idAt = body + 2 + ((bytes[body]! << 8) | bytes[body + 1]!);
        ids.push((bytes[idAt]! << 8) | bytes[idAt + 1]!);
      };
      client.onChunk = () => {
        if (ids.length > 0) {
          client.socket.write(pubackFrames(ids));
          ids.length = 0;
        }
        go();
      };
      client.onClose = () => totals.closed++;
    }

    /** Whole messages, of which every subscriber has got one. */
    const done = (): number => Math.floor((totals.received + lost) / count);

    function go(): void {
      if (!publisher || stopping) return;
      const now = nowMs();
      let room = window - (totals.sent - Math.min(done(), qos === 1 ? totals.acked : totals.sent));
      if (room <= 0) return;
      movedAt = now;
      totals.sent += room;
      while (room > 0) {
        const run = Math.min(room, slots - cursor);
        sentAt.fill(now, cursor, cursor + run);
        publisher.socket.write(ring.bytes.subarray(cursor * ring.frameBytes, (cursor + run) * ring.frameBytes));
        cursor = (cursor + run) % slots;
        room -= run;
      }
    }

    if (publisher) {
      publisher.onFrame = (type, bytes, body) => {
        if (type !== types.puback) return;
        totals.acked++;
        latencies.add(nowMs() - sentAt[((bytes[body]! << 8) | bytes[body + 1]!) - 1]!);
      };
      publisher.onChunk = go;
      publisher.onClose = () => totals.closed++;
    }
    let seen = 0;
    const timer = setInterval(() => {
      if (totals.received !== seen) movedAt = nowMs();
      seen = totals.received;
      if (!publisher || nowMs() - movedAt < stalledMs) return;
      lost = totals.sent * count - totals.received;
      go();
    }, stalledMs / 2);
    go();

    const read = () => ({ ...totals, latencies: latencies.read() });
    return {
      read,
      async stop() {
        stopping = true;
        clearInterval(timer);
        const until = nowMs() + stalledMs * 4;
        const isOver = () => totals.received >= totals.sent * count;
        while (publisher && !isOver() && nowMs() < until) await new Promise((resolve) => setTimeout(resolve, 20));
        for (const client of subscribers) client.destroy();
        publisher?.destroy();
        return read();
      },
    };
  },
};

/** Resolves with the SUBACK; rejects where it refuses. */
function subscribe(client: LoadClient, topic: string, qos: 0 | 1): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  client.onFrame = (type, bytes, _body, end) => {
    if (type !== types.suback) return;
    if (bytes[end - 1] === qos) resolve();
    else reject(new Error(`SUBSCRIBE to ${topic} at QoS ${qos} was granted ${bytes[end - 1]}`));
  };
  client.socket.write(subscribeFrame(topic, qos));
  return promise;
}
