/** The options of KafkaMQTT once they have passed schema.json, and what a schema can't say about them. */
import type { FieldProblem } from "@sluice/kernel";
import type { SASLOptions } from "kafkajs";

export interface Config {
  readonly backend: readonly string[];
  readonly topic: { readonly default: string };
  readonly mqtt: { readonly topicKey?: string; readonly headerKey?: string; readonly payloadKey?: string };
  readonly key: "clientId" | "topic" | "username" | "none";
  readonly acks: "all" | "leader" | "none" | -1 | 1 | 0;
  readonly idempotent?: boolean;
  readonly clientId?: string;
  readonly createTopics: "broker" | "create" | "never";
  readonly newTopic: { readonly partitions: number; readonly replicationFactor: number };
  readonly maxQueuedRecords: number;
  readonly maxQueuedBytes: number;
  readonly maxBatchBytes: number;
  readonly deliveryTimeoutMs: number;
  readonly requestTimeoutMs: number;
  readonly connectionTimeoutMs: number;
  readonly ssl: boolean | TlsOptions;
  readonly sasl?: Extract<SASLOptions, { mechanism: "plain" | "scram-sha-256" | "scram-sha-512" }>;
}

/** Named as node:tls names them; certificates and keys are PEM. */
export interface TlsOptions {
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
  readonly passphrase?: string;
  readonly servername?: string;
  readonly rejectUnauthorized?: boolean;
}

/** Kafka's numbers: -1 all in-sync replicas, 1 the leader, 0 nobody. */
export function acksOf({ acks }: Config): -1 | 0 | 1 {
  if (acks === "all") return -1;
  if (acks === "leader") return 1;
  return acks === "none" ? 0 : acks;
}

/** An entry may hold several brokers, separated by commas, as clients of Kafka write them. */
export function brokersOf({ backend }: Config): string[] {
  return backend.flatMap((each) => each.split(",").map((broker) => broker.trim()));
}

export function validate(config: Config): FieldProblem[] {
  const problems: FieldProblem[] = [];
  const seen = new Set<string>();
  for (const [index, entry] of config.backend.entries()) {
    for (const broker of entry.split(",").map((each) => each.trim())) {
      const message = judgeBroker(broker) ?? (seen.has(broker) ? `${broker} is listed twice: remove one` : undefined);
      if (message) problems.push({ field: ["backend", index], message });
      seen.add(broker);
    }
  }
  if (config.idempotent === true && acksOf(config) !== -1) {
    const message = "needs acks: all, without which Kafka can't tell what it has: set acks: all, or remove idempotent";
    problems.push({ field: ["idempotent"], message });
  }
  return problems;
}

function judgeBroker(broker: string): string | undefined {
  if (broker.startsWith("[")) return `${broker} is an IPv6 address, which kafkajs can't take: use a host name`;
  const match = /^[^\s:/]+:(\d{1,5})$/.exec(broker);
  const port = Number(match?.[1]);
  return match && port > 0 && port < 65_536 ? undefined : `"${broker}" is not host:port: write for instance kafka:9092`;
}
