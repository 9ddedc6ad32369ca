/** Why Kafka did not take a batch, in the words the lane decides by. */

/**
 * - `unconnected`: no connection; nothing was sent. `unavailable`: sent or not, an answer is missing; the default.
 * - `unknownTopic`, `unauthorized`: this topic can't be written now.
 * - `tooLarge`, `invalidRecord`: a record of the batch never will be; `illegalTopic`: none of them.
 * - `sequence`: the broker lost track of an idempotent producer, or the producer of the broker.
 * - `internal`: kafkajs stumbled over its own state; records can't do that, as record.ts lets nothing else through.
 */
export type Reason =
  | "unconnected"
  | "unavailable"
  | "unknownTopic"
  | "unauthorized"
  | "illegalTopic"
  | "tooLarge"
  | "invalidRecord"
  | "sequence"
  | "internal";

export interface Failure {
  readonly reason: Reason;
  /** One line, without payloads. */
  readonly message: string;
  /** Of `unavailable`: a partition has no leader, or not enough replicas; the topic's others may be well. */
  readonly ofPartition?: boolean;
  /** `host:port` of the broker that it is about, where one is known. */
  readonly broker?: string;
  /** Partitions of the batch whose records the broker has acknowledged all the same. */
  readonly stored?: readonly number[];
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

const ofPartition: ReadonlySet<string> = new Set([
  "LEADER_NOT_AVAILABLE",
  "NOT_LEADER_FOR_PARTITION",
  "REPLICA_NOT_AVAILABLE",
  "NOT_ENOUGH_REPLICAS",
  "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
  "KAFKA_STORAGE_ERROR",
  "FENCED_LEADER_EPOCH",
  // A partition without a leader is looked for at the broker -1.
  "KafkaJSBrokerNotFound",
]);

/** What fast-produce.ts has noted of an answer that was an error for some partitions. */
export function storedOf(error: unknown): readonly number[] {
  for (let cause = error, depth = 0; cause instanceof Error && depth < 8; cause = cause.cause, depth++) {
    if ("stored" in cause && Array.isArray(cause.stored)) return cause.stored as number[];
  }
  return [];
}

/** kafkajs wraps what the broker said once per layer of retries. */
export function judgeError(error: unknown): Failure {
  let message = "unknown error";
  let broker: string | undefined;
  for (let cause = error, depth = 0; cause instanceof Error && depth < 8; cause = cause.cause, depth++) {
    if (depth === 0) message = cause.message;
    if ("broker" in cause && typeof cause.broker === "string") broker ??= cause.broker;
    const at = broker === undefined ? {} : { broker };
    const type = "type" in cause && typeof cause.type === "string" ? cause.type : cause.name;
    const reason = reasonByType[type];
    if (reason) return { reason, message: cause.message, ...at };
    if (type === "CLUSTER_AUTHORIZATION_FAILED") {
      return {
        reason: "unavailable",
        message: `${cause.message} (an idempotent producer may need IdempotentWrite)`,
        ...at,
      };
    }
    if (ofPartition.has(type)) return { reason: "unavailable", message: cause.message, ofPartition: true, ...at };
    if (cause.name === "TypeError" || cause.name === "RangeError") {
      return { reason: "internal", message, ...at };
    }
  }
  return { reason: "unavailable", message, ...(broker === undefined ? {} : { broker }) };
}
