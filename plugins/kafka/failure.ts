/** Why Kafka did not take a batch, in the words the lane decides by. */

/**
 * - `unconnected`: no connection; nothing was sent. `unavailable`: sent or not, an answer is missing; the default.
 * - `unknownTopic`, `unauthorized`: this topic can't be written now.
 * - `tooLarge`, `invalidRecord`: a record of the batch never will be; `illegalTopic`: none of them.
 * - `sequence`: the broker lost track of an idempotent producer, or the producer of the broker.
 */
export type Reason =
  | "unconnected"
  | "unavailable"
  | "unknownTopic"
  | "unauthorized"
  | "illegalTopic"
  | "tooLarge"
  | "invalidRecord"
  | "sequence";

export interface Failure {
  readonly reason: Reason;
  /** One line, without payloads. */
  readonly message: string;
}

const reasonByType: Readonly<Record<string, Reason>> = {
  MESSAGE_TOO_LARGE: "tooLarge",
  RECORD_LIST_TOO_LARGE: "tooLarge",
  INVALID_RECORD: "invalidRecord",
  INVALID_TIMESTAMP: "invalidRecord",
  INVALID_TOPIC_EXCEPTION: "illegalTopic",
  UNKNOWN_TOPIC_OR_PARTITION: "unknownTopic",
  TOPIC_AUTHORIZATION_FAILED: "unauthorized",
  OUT_OF_ORDER_SEQUENCE_NUMBER: "sequence",
  DUPLICATE_SEQUENCE_NUMBER: "sequence",
  INVALID_PRODUCER_EPOCH: "sequence",
  INVALID_PRODUCER_ID_MAPPING: "sequence",
  UNKNOWN_PRODUCER_ID: "sequence",
};

/** kafkajs wraps what the broker said once per layer of retries. */
export function judgeError(error: unknown): Failure {
  let message = "unknown error";
  for (let cause = error, depth = 0; cause instanceof Error && depth < 8; cause = cause.cause, depth++) {
    if (depth === 0) message = cause.message;
    const type = "type" in cause ? cause.type : undefined;
    const reason = typeof type === "string" ? reasonByType[type] : undefined;
    if (reason) return { reason, message: cause.message };
    // What can't be encoded fails before it is sent, for ever, and with it all records of its batch.
    if (cause.name === "TypeError" || cause.name === "RangeError") {
      return { reason: "invalidRecord", message: cause.message };
    }
  }
  return { reason: "unavailable", message };
}
