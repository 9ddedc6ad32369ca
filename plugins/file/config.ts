/** The options of FileMQTT once they have passed schema.json, and what a schema can't say about them. */
import type { FieldProblem } from "@sluice/kernel";
import { isLegalTopic } from "./topic-file.ts";

export type Fsync = "always" | "interval" | "never";

export interface Retention {
  /** Of one topic, all its files together. */
  readonly maxBytes?: number;
  /** Seconds. */
  readonly maxAge?: number;
}

export interface Config {
  readonly dir: string;
  readonly topic: { readonly default: string };
  readonly mqtt: { readonly topicKey?: string; readonly headerKey?: string; readonly payloadKey?: string };
  readonly key: "clientId" | "topic" | "username" | "none";
  readonly fsync: Fsync;
  readonly fsyncIntervalMs: number;
  readonly rotateBytes: number;
  readonly retention?: Retention;
  readonly maxQueuedBytes: number;
  readonly maxOpenFiles: number;
}

export function validate(config: Config): FieldProblem[] {
  const problems: FieldProblem[] = [];
  if (!isLegalTopic(config.topic.default)) {
    const message = `"${config.topic.default}" can't be a file's name: use 1 to 230 of a-z A-Z 0-9 . _ -, but not . or ..`;
    problems.push({ field: ["topic", "default"], message });
  }
  const maxBytes = config.retention?.maxBytes;
  if (maxBytes !== undefined && maxBytes < config.rotateBytes) {
    const message = `is less than rotateBytes (${config.rotateBytes}), and only whole rotated files are deleted: lower rotateBytes, or raise this`;
    problems.push({ field: ["retention", "maxBytes"], message });
  }
  return problems;
}
