/** A device of the fault harness: publishes its numbers in order, at QoS 1, over a client library that resends. */
import { connect } from "mqtt";

export interface Device {
  readonly clientId: string;
  /** Numbers whose PUBACK came, with when. */
  readonly acked: ReadonlyMap<number, number>;
  /** Numbers that were under way when a connection ended, and were sent again: Kafka may have them twice. */
  readonly resent: ReadonlySet<number>;
  /** Connections that ended before the device was done. */
  readonly reconnects: number;
  /** Resolves when every number is acknowledged. */
  readonly done: Promise<void>;
  stop(): Promise<void>;
}

export interface DeviceOptions {
  readonly url: string;
  readonly clientId: string;
  readonly topic: string;
  readonly count: number;
  /** Milliseconds between two numbers. */
  readonly intervalMs: number;
  /** Numbers that may be under way. */
  readonly window: number;
}

export function startDevice({ url, clientId, topic, count, intervalMs, window }: DeviceOptions): Device {
  const acked = new Map<number, number>();
  const resent = new Set<number>();
  const underWay = new Set<number>();
  /** What an older connection has left. New numbers wait for it: the library resends, and only then is in order again. */
  const left = new Set<number>();
  const done = Promise.withResolvers<void>();
  const startedAt = performance.now();
  let next = 0;
  let reconnects = 0;

  const client = connect(url, { clientId, clean: false, reconnectPeriod: 200, connectTimeout: 5000, keepalive: 5 });
  client.on("error", () => undefined);
  client.on("close", () => {
    if (acked.size === count) return;
    reconnects++;
    for (const number of underWay) {
      resent.add(number);
      left.add(number);
    }
  });

  function settle(number: number, error: Error | null | undefined): void {
    if (error) {
      // The library has given it up, which it does for nothing that this device sends.
      if (!client.disconnecting) done.reject(error);
      return;
    }
    underWay.delete(number);
    left.delete(number);
    acked.set(number, performance.now());
    if (acked.size === count) done.resolve();
  }

  const timer = setInterval(() => {
    const due = Math.min(count, Math.ceil((performance.now() - startedAt) / intervalMs));
    while (client.connected && left.size === 0 && next < due && underWay.size < window) {
      const number = next++;
      underWay.add(number);
      client.publish(topic, `${clientId} ${number}`, { qos: 1 }, (error) => settle(number, error));
    }
    if (next === count) clearInterval(timer);
  }, 5);

  return {
    clientId,
    acked,
    resent,
    get reconnects() {
      return reconnects;
    },
    done: done.promise,
    async stop() {
      clearInterval(timer);
      await client.endAsync(true);
    },
  };
}
