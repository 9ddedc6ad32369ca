/** A message that comes past all pipelines, from HTTP or a service, on its way to a proxy's sessions. */
import { SluiceError } from "./errors.ts";
import type { Clock, Message, PublishOutcome, PublishRequest } from "./plugin.ts";
import { propertiesProblem } from "./properties.ts";
import { withReceipts } from "./receipts.ts";
import type { Awaitable, ProxyStore, PublishOptions } from "./store.ts";
import { topicNameProblem } from "./topics.ts";

export type OutsidePublish = (message: Message, request?: PublishRequest) => Promise<PublishOutcome>;

/** @param taken counts a message that is valid */
export function createOutsidePublish(store: ProxyStore, clock: Clock, taken: () => void): OutsidePublish {
  return async (message, { clientId, waitMs, countAll } = {}) => {
    const { topic, properties } = message;
    const invalid = topicNameProblem(topic);
    if (invalid) throw new SluiceError("TOPIC_INVALID", `the topic is not valid: ${invalid}`);
    const unfit = properties && propertiesProblem(properties);
    if (unfit) throw new SluiceError("PROPERTIES_INVALID", `the properties can't be sent: ${unfit}`);
    taken();
    const send = (o?: PublishOptions): Awaitable<PublishOutcome> =>
      clientId === undefined ? store.publish(message, o) : store.publishTo(clientId, message, o);
    return waitMs === undefined
      ? await send({ countAll })
      : await withReceipts(waitMs, clock, (receipts) => send({ receipts }));
  };
}
