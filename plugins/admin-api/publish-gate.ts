/** How many messages may be on their way through this API: a caller too many is told at once, instead of waiting too. */
import type { Metrics } from "@sluice/kernel";
import { problem } from "./problem.ts";

export interface Passage {
  /** The request turned out to have so many messages. */
  widen(messages: number): void;
  /** Once. */
  leave(): void;
}

export interface PublishGate {
  /** For one message; undefined where as many as `max` are under way. */
  enter(): Passage | undefined;
  /** What is thrown then: 503. One for all, for it need not say where it was thrown. */
  readonly refusal: Error;
}

export function createPublishGate(max: number, metrics: Metrics): PublishGate {
  const refused = metrics.counter(
    "sluice_http_publishes_refused_total",
    "Publish requests refused because as many messages as maxPublishes were under way.",
  );
  const refusal = problem(
    503,
    `${max} messages are under way, as many as the maxPublishes of this AdminAPI: try again later`,
  );
  let underWay = 0;
  metrics.gauge(
    "sluice_http_publishes_under_way",
    "Messages of publish requests that are not answered yet.",
    [],
    (gauge) => gauge.set({}, underWay),
  );

  return {
    refusal,
    enter() {
      if (underWay >= max) {
        refused.inc();
        return undefined;
      }
      let own = 1;
      underWay++;
      return {
        widen(messages) {
          underWay += messages - own;
          own = messages;
        },
        leave() {
          underWay -= own;
        },
      };
    },
  };
}
