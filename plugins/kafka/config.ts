/** The options of KafkaMQTT once they have passed schema.json, and what a schema can't say about them. */
import type { FieldProblem } from "@sluice/kernel";
import { compressionProblem, type Compression } from "./compression.ts";
import { templateProblem } from "./template.ts";

/** How a cluster is reached: KafkaMQTT and KafkaSource take the same. */
export interface Access {
  readonly backend: readonly string[];
  readonly clientId?: string;
  readonly requestTimeoutMs: number;
  readonly connectionTimeoutMs: number;
  readonly ssl: boolean | TlsOptions;
  readonly sasl?: SaslOptions;
}

export interface Config extends Access {
  readonly topic: { readonly default: string; readonly template?: string; readonly create: TopicCreation };
  readonly mqtt: {
    readonly topicKey?: string;
    readonly headerKey?: string;
    readonly payloadKey?: string;
    readonly errorKey: string;
  };
  /** `clientId`, `topic`, `username`, `none`, or a template. */
  readonly key: string;
  /** Name -> template. */
  readonly headers: Readonly<Record<string, string>>;
  readonly addHeaders: readonly AddedHeader[];
  readonly partition?: number | string;
  readonly timestamp?: string;
  readonly ack: "kafka" | "buffered" | "received";
  readonly buffer?: BufferOptions;
  readonly acks: "all" | "leader" | "none" | -1 | 1 | 0;
  readonly idempotent?: boolean;
  readonly compression: Compression;
  readonly encoder: "fast" | "stock";
  readonly lingerMs: number;
  readonly inFlight: number;
  readonly maxQueuedRecords: number;
  readonly maxQueuedBytes: number;
  readonly maxBatchBytes: number;
  readonly deliveryTimeoutMs: number;
}

export type TopicCreation = "broker" | "never" | { readonly partitions?: number; readonly replicationFactor?: number };

export type AddedHeader =
  | "qos"
  | "retain"
  | "dup"
  | "packetId"
  | "receivedAt"
  | "proxy"
  | "node"
  | "messageId"
  | "userProperties";

export interface BufferOptions {
  readonly dir: string;
  readonly maxBytes: number;
  /** Seconds. */
  readonly maxAge?: number;
  readonly fsync: "always" | "interval" | "never";
  readonly fsyncIntervalMs: number;
  readonly onFull: "reject" | "dropOldest" | "block";
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

export interface SaslOptions {
  readonly mechanism: "plain" | "scram-sha-256" | "scram-sha-512" | "oauthbearer";
  readonly username?: string;
  readonly password?: string;
  /** For oauthbearer: the token itself, or where to get one. */
  readonly token?: string;
  readonly tokenEndpoint?: string;
  readonly clientId?: string;
  readonly clientSecret?: string;
  readonly scope?: string;
}

/** Kafka's numbers: -1 all in-sync replicas, 1 the leader, 0 nobody. */
export function acksOf({ acks }: Pick<Config, "acks">): -1 | 0 | 1 {
  if (acks === "all") return -1;
  if (acks === "leader") return 1;
  return acks === "none" ? 0 : acks;
}

/** An entry may hold several brokers, separated by commas, as clients of Kafka write them. */
export function brokersOf({ backend }: Pick<Access, "backend">): string[] {
  return backend.flatMap((each) => each.split(",").map((broker) => broker.trim()));
}

export function validate(config: Config): FieldProblem[] {
  return [
    ...judgeAccess(config),
    ...judgeModes(config),
    ...judgeTemplates(config),
    ...problemAt(["compression"], compressionProblem(config.compression)),
  ];
}

export function judgeAccess(access: Access): FieldProblem[] {
  return [...judgeBrokers(access), ...judgeSasl(access.sasl)];
}

function judgeBrokers(config: Access): FieldProblem[] {
  const problems: FieldProblem[] = [];
  const seen = new Set<string>();
  for (const [index, entry] of config.backend.entries()) {
    for (const broker of entry.split(",").map((each) => each.trim())) {
      const message = judgeBroker(broker) ?? (seen.has(broker) ? `${broker} is listed twice: remove one` : undefined);
      problems.push(...problemAt(["backend", index], message));
      seen.add(broker);
    }
  }
  return problems;
}

function judgeBroker(broker: string): string | undefined {
  if (broker.startsWith("[")) return `${broker} is an IPv6 address, which kafkajs can't take: use a host name`;
  const match = /^[^\s:/]+:(\d{1,5})$/.exec(broker);
  const port = Number(match?.[1]);
  return match && port > 0 && port < 65_536 ? undefined : `"${broker}" is not host:port: write for instance kafka:9092`;
}

function judgeModes(config: Config): FieldProblem[] {
  const problems: FieldProblem[] = [];
  if (config.idempotent === true && acksOf(config) !== -1) {
    const message = "needs acks: all, without which Kafka can't tell what it has: set acks: all, or remove idempotent";
    problems.push({ field: ["idempotent"], message });
  }
  if (config.ack === "buffered" && !config.buffer) {
    problems.push({ field: ["ack"], message: "needs a buffer: set buffer.dir to a folder on a disk that lasts" });
  }
  if (config.ack !== "buffered" && config.buffer) {
    const message = `is only used with ack: buffered, not with ack: ${config.ack}: remove it, or set ack: buffered`;
    problems.push({ field: ["buffer"], message });
  }
  if (config.ack === "buffered" && acksOf(config) === 0) {
    const message = "leaves the buffer before anybody has a record: with ack: buffered set all or leader";
    problems.push({ field: ["acks"], message });
  }
  return problems;
}

function judgeTemplates({ topic, key, headers, partition, timestamp }: Config): FieldProblem[] {
  const fields: [FieldProblem["field"], string | number | undefined][] = [
    [["topic", "template"], topic.template],
    [["key"], key],
    [["partition"], partition],
    [["timestamp"], timestamp],
    ...Object.entries(headers).map(([name, text]): [string[], string] => [["headers", name], text]),
  ];
  return fields.flatMap(([field, text]) => problemAt(field, templateProblem(String(text ?? ""))));
}

function judgeSasl(sasl: SaslOptions | undefined): FieldProblem[] {
  if (!sasl) return [];
  if (sasl.mechanism !== "oauthbearer") {
    return (["username", "password"] as const).flatMap((field) =>
      problemAt(["sasl"], sasl[field] === undefined ? `${sasl.mechanism} needs ${field}` : undefined),
    );
  }
  if ((sasl.token === undefined) === (sasl.tokenEndpoint === undefined)) {
    return problemAt(["sasl"], "oauthbearer needs either token, or tokenEndpoint with clientId and clientSecret");
  }
  const incomplete = sasl.tokenEndpoint !== undefined && (!sasl.clientId || sasl.clientSecret === undefined);
  return problemAt(["sasl"], incomplete ? "tokenEndpoint needs clientId and clientSecret" : undefined);
}

export function problemAt(field: FieldProblem["field"], message: string | undefined): FieldProblem[] {
  return message === undefined ? [] : [{ field, message }];
}
