/** What the filters have left of a PUBLISH, on its way to subscribers. */
import { SluiceError } from "./errors.ts";
import type { Message, PublishPacket } from "./plugin.ts";
import { propertiesProblem } from "./properties.ts";
import { topicNameProblem } from "./topics.ts";

/**
 * @param topicBefore as it came, like the properties: what came has been judged
 * @throws SluiceError TOPIC_INVALID, PROPERTIES_INVALID
 */
export function filteredMessage(
  { topic, payload, qos, retain, properties }: PublishPacket,
  topicBefore: string,
  propertiesBefore: PublishPacket["properties"],
): Message {
  const invalid = topic === topicBefore ? undefined : topicNameProblem(topic);
  if (invalid) throw new SluiceError("TOPIC_INVALID", `a filter left a topic that is not valid: ${invalid}`);
  const unfit = properties && properties !== propertiesBefore ? propertiesProblem(properties) : undefined;
  if (unfit) throw new SluiceError("PROPERTIES_INVALID", `a filter left properties that can't be sent: ${unfit}`);
  return { topic, payload, qos, retain, properties };
}
