/** What a proxy tells its operator: each kind of line now and then, however often it happens. */
import type { Refusal } from "./codec.ts";
import { messageOf } from "./errors.ts";
import { nameOf, type Outcome } from "./outcome.ts";
import type { Logger } from "./plugin.ts";
import type { DeadLetter } from "./poison.ts";
import { createThrottle } from "./throttle.ts";

/** Milliseconds between two lines of a kind; those that were left out are counted. */
const betweenMs = 5000;

export interface ProxyLog {
  /** A CONNECT was not accepted. */
  refused(address: string | undefined, reason: string, clientId: string | undefined, error: unknown): void;
  /** A connection is closed for what it sent. */
  refusedBytes(address: string | undefined, refusal: Refusal): void;
  /** The same, before MQTT. */
  refusedStream(code: string, why: string): void;
  /** The gateway's own code has failed at a packet. */
  failed(address: string | undefined, error: unknown): void;
  /** @param outcome of the dead-letter pipeline, where the packet did not pass it */
  buried(clientId: string, letter: DeadLetter, outcome: Outcome | undefined): void;
  storeFailed(clientId: string, error: unknown): void;
  /** A $SYS message could not be published. */
  sysFailed(topic: string, error: unknown): void;
}

export function createProxyLog(log: Logger): ProxyLog {
  const throttle = createThrottle(betweenMs);
  return {
    refused(address, reason, clientId, error) {
      throttle(`refused ${reason}`, (suppressed) =>
        log.info({ clientId, address, reason, error: messageOf(error), suppressed }, "Refused"),
      );
    },
    refusedBytes(address, { code, message: reason }) {
      throttle(code, (suppressed) =>
        log.info({ address, reason, suppressed }, "Closed for a packet that is not allowed"),
      );
    },
    refusedStream(code, reason) {
      throttle(code, (suppressed) => log.info({ reason, suppressed }, "Closed for what came on its WebSocket"));
    },
    failed(address, err) {
      throttle("failure", (suppressed) =>
        log.error({ address, err, suppressed }, "A packet could not be handled; its connection is closed"),
      );
    },
    buried(clientId, { error, errorTopic: topic, errorReason: reason, errorFaults }, outcome) {
      if (outcome) {
        throttle("unburied", (suppressed) =>
          log.error(
            { clientId, topic, error, outcome: nameOf(outcome), suppressed },
            "A packet faults again and again, and did not pass the dead-letter pipeline either; it is not acknowledged",
          ),
        );
        return;
      }
      throttle(`buried ${error}`, (suppressed) =>
        log.warn(
          { clientId, topic, error, reason, faults: Number(errorFaults), suppressed },
          "A packet faulted again and again; the dead-letter pipeline has it, and it is acknowledged",
        ),
      );
    },
    storeFailed(clientId, error) {
      throttle("store", (suppressed) =>
        log.error({ clientId, error: messageOf(error), suppressed }, "The session store failed"),
      );
    },
    sysFailed(topic, error) {
      throttle("sys", (suppressed) =>
        log.warn({ topic, error: messageOf(error), suppressed }, "A $SYS message could not be published"),
      );
    },
  };
}
