/** What a client is told of its QoS 1 or 2 PUBLISH: the reason code by how its run ended, and the packet. */
import { encodeAck, shortAck, type ShortAck } from "./encoder.ts";
import { isFinal, type Outcome, textOf } from "./outcome.ts";
import { codes, firstError, reasonCodeFor, reasonCodes } from "./reasons.ts";
import type { ProxySpec } from "./spec.ts";

/**
 * The ack's reason code, 0 before MQTT 5; undefined = no ack.
 * @param matched sessions that got the message; -1 = not known
 */
export function ackCodeOf(
  outcome: Outcome,
  matched: number,
  isV5: boolean,
  v5FaultAck: ProxySpec["v5FaultAck"],
): number | undefined {
  if (!isFinal(outcome)) {
    const isTold = isV5 && outcome.kind !== "disconnected" && v5FaultAck === "reasonCode";
    return isTold ? reasonCodes.implementationSpecificError : undefined;
  }
  if (!isV5) return 0;
  switch (outcome.kind) {
    case "passed":
      return matched === 0 ? codes.noMatchingSubscribers : 0;
    case "rejected":
      return reasonCodeFor("puback", outcome.reason);
    case "unhandled":
      return reasonCodes.implementationSpecificError;
    default:
      return 0;
  }
}

/**
 * @param wantsReasons the client's Request Problem Information [MQTT-3.1.2-29]
 * @param maxBytes what does not fit is sent without words
 */
export function encodePublishAck(
  cmd: "puback" | "pubrec",
  packetId: number,
  code: number,
  outcome: Outcome,
  wantsReasons: boolean,
  maxBytes: number,
): Buffer | ShortAck {
  if (code === 0) return shortAck(cmd, packetId);
  const text = outcome.kind === "unhandled" ? outcome.result : textOf(outcome);
  const isWanted = code >= firstError && wantsReasons;
  const ack = encodeAck(cmd, packetId, code, isWanted ? text : undefined);
  return ack.length > maxBytes ? encodeAck(cmd, packetId, code) : ack;
}
