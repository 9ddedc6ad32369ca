/** Wills that wait: MQTT 5's will delay gives a client time to come back before its will is published [MQTT-3.1.3-9]. */
import type { Clock } from "./plugin.ts";

export interface Wills {
  /** Publishes after `delaySec`, unless the client comes back before: then it calls `forgotten`. One a client. */
  wait(clientId: string, delaySec: number, publish: () => void, forgotten?: () => void): void;
  /** The client is here again. @param resumed its session goes on, else that has ended, and with it the delay */
  back(clientId: string, resumed: boolean): void;
  /** The session has ended: the will is published now. */
  ended(clientId: string): void;
  /** Publishes all that wait. */
  close(): void;
  /** Others publish them. */
  leave(): void;
}

interface Waiting {
  readonly publish: () => void;
  readonly forgotten: (() => void) | undefined;
  timer: { clear(): void };
}

/** The longest that a timer takes. */
const maxTimeoutMs = 2 ** 31 - 1;

/** @param changed told which clients have a will that waits, and which no longer */
export function createWills(clock: Clock, changed?: (clientId: string, waits: boolean) => void): Wills {
  const waiting = new Map<string, Waiting>();

  function take(clientId: string): Waiting | undefined {
    const will = waiting.get(clientId);
    if (!will) return undefined;
    waiting.delete(clientId);
    will.timer.clear();
    changed?.(clientId, false);
    return will;
  }

  return {
    wait(clientId, delaySec, publish, forgotten) {
      take(clientId)?.publish();
      const until = clock.now() + delaySec * 1000;
      const arm = (): { clear(): void } => {
        const left = until - clock.now();
        if (left <= maxTimeoutMs) return clock.setTimeout(() => take(clientId)?.publish(), Math.max(0, left));
        return clock.setTimeout(() => {
          const will = waiting.get(clientId);
          if (will) will.timer = arm();
        }, maxTimeoutMs);
      };
      waiting.set(clientId, { publish, forgotten, timer: arm() });
      changed?.(clientId, true);
    },
    back(clientId, resumed) {
      const will = take(clientId);
      if (resumed) will?.forgotten?.();
      else will?.publish();
    },
    ended(clientId) {
      take(clientId)?.publish();
    },
    close() {
      for (const clientId of waiting.keys()) take(clientId)?.publish();
    },
    leave() {
      for (const { timer } of waiting.values()) timer.clear();
      waiting.clear();
    },
  };
}
