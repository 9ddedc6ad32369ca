/** What a proxy tells its subscribers of itself, by the topic names that Mosquitto made usual. */
import type { Clock, Message } from "./plugin.ts";
import type { ProxyTotals } from "./proxy-metrics.ts";
import type { StoreCounts } from "./store.ts";

/** With it begin the topics that only the proxy publishes to. */
export const sysPrefix = "$SYS/";

export interface SysReading extends StoreCounts {
  readonly version: string;
  readonly uptimeSec: number;
  readonly connected: number;
  readonly maxConnected: number;
  readonly totals: ProxyTotals;
}

const topics: readonly (readonly [topic: string, value: (reading: SysReading) => string | number])[] = [
  ["version", ({ version }) => `sluice version ${version}`],
  ["uptime", ({ uptimeSec }) => `${uptimeSec} seconds`],
  ["clients/connected", ({ connected }) => connected],
  ["clients/disconnected", ({ connected, sessions }) => sessions - connected],
  ["clients/total", ({ sessions }) => sessions],
  ["clients/maximum", ({ maxConnected }) => maxConnected],
  ["subscriptions/count", ({ subscriptions }) => subscriptions],
  ["retained messages/count", ({ retained }) => retained],
  ["store/messages/count", ({ queued }) => queued],
  ["store/messages/bytes", ({ queuedBytes }) => queuedBytes],
  ["messages/received", ({ totals }) => totals.packetsReceived],
  ["messages/sent", ({ totals }) => totals.packetsSent],
  ["publish/messages/received", ({ totals }) => totals.messagesReceived],
  ["publish/messages/sent", ({ totals }) => totals.messagesSent],
  ["publish/messages/dropped", ({ totals }) => totals.messagesDropped],
];

export interface SysTopics {
  /** Starts telling, at once and each `intervalSec`; 0 ends it, and forgets what was retained. */
  every(intervalSec: number): void;
  close(): void;
}

/** @param o.failed a message could not be published: no news to anybody but the log */
export function createSysTopics(o: {
  clock: Clock;
  read: () => SysReading;
  publish: (message: Message) => unknown;
  failed: (topic: string, error: unknown) => void;
}): SysTopics {
  let interval = 0;
  let timer: { clear(): void } | undefined;

  function publishAll(payloadOf: (value: (reading: SysReading) => string | number) => string): void {
    for (const [name, value] of topics) {
      void publish(`${sysPrefix}broker/${name}`, Buffer.from(payloadOf(value)));
    }
  }

  async function publish(topic: string, payload: Buffer): Promise<void> {
    try {
      await o.publish({ topic, payload, qos: 0, retain: true });
    } catch (error) {
      o.failed(topic, error);
    }
  }

  function tell(): void {
    const reading = o.read();
    publishAll((value) => String(value(reading)));
    timer = o.clock.setTimeout(tell, interval * 1000);
  }

  function close(): void {
    timer?.clear();
    timer = undefined;
  }

  return {
    every(intervalSec) {
      if (intervalSec === interval) return;
      close();
      const was = interval;
      interval = intervalSec;
      if (interval > 0) tell();
      else if (was > 0) publishAll(() => "");
    },
    close,
  };
}
