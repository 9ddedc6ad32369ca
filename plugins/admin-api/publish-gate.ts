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
  /** For one message; throws 503 where as many as `max` are under way. */
  enter(): Passage;
}

export function createPublishGate(max: number, metrics: Metrics): PublishGate {
  const refused = metrics.counter(
    "sluice_http_publishes_refused_total",
    "Publish requests refused because as many messages as maxPublishes were under way.",
  );
  let underWay = 0;
  metrics.gauge(
    "sluice_http_publishes_under_way",
    "Messages of publish requests that are not answered yet.",
    [],
    (gauge) => gauge.set({}, underWay),
  );

  return {
    enter() {
      if (underWay >= max) {
        refused.inc();
        throw problem(
          503,
          `${underWay} messages are under way, as many as the maxPublishes of this AdminAPI: try again later`,
        );
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
