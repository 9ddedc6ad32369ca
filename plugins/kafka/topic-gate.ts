/** A topic that is missing or forbidden is looked for here, away from the producer that the other topics use. */
import type { Failure } from "./failure.ts";
import type { Producer } from "./producer.ts";

/** Milliseconds between two looks, doubled from the first to the last: waiting alone does not mend it. */
const backoff = { from: 100, to: 2000 };
const attempts = 20;

export interface TopicGate {
  readonly isShut: boolean;
  shut(): void;
  /**
   * Looks until the topic is there, then is open. `failed` is told each time, and answers whether anybody still waits;
   * where nobody does, it stays shut.
   */
  pass(failed: (failure: Failure) => boolean, wait: (ms: number) => Promise<void>): Promise<void>;
}

/** @param isShutAtFirst the topic is looked for before the first send, and never asked for as a producer does */
export function createTopicGate(topic: string, producer: Producer, isShutAtFirst: boolean): TopicGate {
  let isShut = isShutAtFirst;
  return {
    get isShut() {
      return isShut;
    },
    shut() {
      isShut = true;
    },
    async pass(failed, wait) {
      for (let attempt = 0; ; attempt++) {
        const failure = await producer.probeTopic(topic);
        // Only a producer's question makes a broker create a topic, so where it may, ask that way once in a while.
        if (!failure || (attempt === attempts && !isShutAtFirst)) {
          isShut = false;
          return;
        }
        if (!failed(failure)) return;
        await wait(Math.min(backoff.from * 2 ** Math.min(attempt, 10), backoff.to));
      }
    },
  };
}
