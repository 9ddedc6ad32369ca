/**
 * How NATS is: how long an answer takes to come, and whether a majority of the servers is there. One that is cut off from
 * the others keeps its connections, and answers pings.
 */
import type { Clock } from "@sluice/kernel";
import type { Connection } from "./connection.ts";

export interface Pulse {
  /** How long an answer is waited for: as the options say, or longer where NATS is far away. Milliseconds. */
  patienceMs(): number;
  /** A majority has shown itself lately, and pings are answered. */
  readonly isReached: boolean;
  /** A ping has not been answered for {@link lateMs}, or on a slow way for longer. */
  readonly isLate: boolean;
  /** Half of the time after which another node takes this one to be away. */
  readonly lateMs: number;
  /** What has shown itself before counts no more. */
  lose(): void;
  /** It has just now: something was confirmed. */
  confirmed(): void;
  start(): void;
  stop(): void;
}

export interface PulseDeps {
  readonly connection: Connection;
  readonly clock: Clock;
  /** Whether there is a majority. Undefined: there is nothing to be asked about yet. */
  readonly ask: () => Promise<boolean> | undefined;
}

const askEveryMs = 2000;
/** Longer than a hiccup, shorter than most elections: then what is owned may move, and nobody is told. */
const silentMs = 6000;

export function createPulse(
  { ackMs, totalMs, kickMs }: { readonly ackMs: number; readonly totalMs: number; readonly kickMs: number },
  { connection, clock, ask }: PulseDeps,
): Pulse {
  const everyMs = kickMs / 3;
  const lateMs = kickMs / 2;
  let shownAt = -Infinity;
  let roundTripMs = 0;
  let pingedAt: number | undefined;
  let isAsking = false;
  let timer: { clear(): void } | undefined;
  let isStopped = false;

  async function ping(): Promise<void> {
    if (pingedAt !== undefined) return;
    pingedAt = clock.now();
    try {
      await connection.flush();
      roundTripMs = clock.now() - pingedAt;
    } catch {
      roundTripMs = 0;
    } finally {
      pingedAt = undefined;
    }
  }

  async function askOne(): Promise<void> {
    if (isAsking || clock.now() - shownAt < askEveryMs) return;
    isAsking = true;
    try {
      if (await ask()) shownAt = clock.now();
    } catch {
      // Nobody has answered: that is what there is to know.
    } finally {
      isAsking = false;
    }
  }

  function isLate(): boolean {
    return pingedAt !== undefined && clock.now() - pingedAt > Math.max(lateMs, 3 * roundTripMs);
  }

  function beat(): void {
    timer?.clear();
    if (isStopped) return;
    if (connection.isUp) {
      void ping();
      void askOne();
    }
    timer = clock.setTimeout(beat, everyMs);
  }

  return {
    patienceMs() {
      const waitedMs = pingedAt === undefined ? 0 : clock.now() - pingedAt;
      return Math.min(totalMs, Math.max(ackMs, 2 * Math.max(roundTripMs, waitedMs)));
    },
    get isReached() {
      return connection.isUp && clock.now() - shownAt < silentMs && !isLate();
    },
    get isLate() {
      return isLate();
    },
    lateMs,
    lose() {
      shownAt = -Infinity;
      void askOne();
    },
    confirmed() {
      shownAt = clock.now();
    },
    start() {
      connection.onChange((isUp) => {
        if (isUp) beat();
      });
      beat();
    },
    stop() {
      isStopped = true;
      timer?.clear();
    },
  };
}
