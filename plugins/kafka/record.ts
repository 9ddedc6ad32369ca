/** From a packet to the record that Kafka gets. */
import type { FilterContext } from "@sluice/kernel";
import type { Config } from "./config.ts";

/** A record on its way to Kafka. The first members are what kafkajs reads of a message. */
export interface Entry {
  readonly key: string | null;
  readonly value: Buffer;
  readonly headers: Record<string, string | Buffer>;
  /** Milliseconds since the epoch, as Kafka's clients write it: when the packet came, not when it was sent. */
  readonly timestamp: string;
  /** Set when the record is first sent, so that a batch sent again is the same batch (see lane.ts). */
  partition?: number;
  /** Estimated size in a record batch. */
  readonly bytes: number;
  /** Milliseconds since the epoch after which it is given up. */
  readonly expiresAt: number;
  /** Nothing, or the name of a result. */
  resolve(result?: string): void;
  reject(error: Error): void;
}

/** What of an entry comes from the packet. */
export type Content = Pick<Entry, "key" | "value" | "headers" | "bytes"> & { readonly topic: string };

const legalTopic = /^[a-zA-Z0-9._-]{1,249}$/;
/** Length, attributes, deltas and counts: at most 5+1+10+5+5+5+5 bytes, and for each header 5+5. */
const recordOverhead = 36;
const headerOverhead = 10;

/** Content, or the name of the result. Reads `config` once: what it returns is on the hot path. */
export function createRecordBuilder(config: Config): (ctx: FilterContext) => Content | string {
  const { topicKey, headerKey, payloadKey } = config.mqtt;
  const { key: keyOption } = config;

  function chooseKey(ctx: FilterContext): string | null {
    if (keyOption === "clientId") return ctx.client.id;
    if (keyOption === "username") return ctx.client.username ?? null;
    return keyOption === "topic" && ctx.type === "Publish" ? ctx.packet.topic : null;
  }

  return (ctx) => {
    let topic = config.topic.default;
    if (topicKey !== undefined) {
      const found = ctx.data.get(topicKey);
      // Set, but left empty: a mapper found no topic and says that the default is wanted.
      const isDefault = found === undefined && ctx.data.has(topicKey);
      if (!isDefault) {
        if (typeof found !== "string" || found === "") return "getDataFailed";
        if (!isLegalTopic(found)) return "illegalTopic";
        topic = found;
      }
    }

    const value =
      payloadKey === undefined
        ? ctx.type === "Publish"
          ? ctx.packet.payload
          : undefined
        : toBuffer(ctx.data.get(payloadKey));
    if (value === undefined) return "getDataFailed";

    // No prototype, so that a header may be called `__proto__`.
    const headers: Record<string, string | Buffer> = Object.create(null) as Record<string, string | Buffer>;
    headers["clientID"] = ctx.client.id;
    if (ctx.client.username !== undefined) headers["username"] = ctx.client.username;
    if (ctx.type === "Publish") headers["mqttTopic"] = ctx.packet.topic;
    if (headerKey !== undefined && !addHeaders(headers, ctx.data.get(headerKey))) return "getDataFailed";

    const key = chooseKey(ctx);
    let bytes = recordOverhead + value.length + (key === null ? 0 : Buffer.byteLength(key));
    for (const name in headers)
      bytes += headerOverhead + Buffer.byteLength(name) + Buffer.byteLength(headers[name] ?? "");
    return { topic, key, value, headers, bytes };
  };
}

export function isLegalTopic(name: string): boolean {
  return legalTopic.test(name) && name !== "." && name !== "..";
}

/**
 * False where a value is neither text nor bytes. One undefined, null or number among the headers of one record would
 * make kafkajs fail the whole batch with a TypeError, so it must not come so far.
 */
function addHeaders(headers: Record<string, string | Buffer>, found: unknown): boolean {
  if (typeof found !== "object" || found === null) return false;
  for (const [name, value] of Object.entries(found)) {
    const text = typeof value === "string" ? value : toBuffer(value);
    if (text === undefined) return false;
    headers[name] = text;
  }
  return true;
}

/** kafkajs would write a Uint8Array that is not a Buffer as text, and the broker refuse the batch. */
function toBuffer(found: unknown): Buffer | undefined {
  if (Buffer.isBuffer(found)) return found;
  return found instanceof Uint8Array ? Buffer.from(found.buffer, found.byteOffset, found.byteLength) : undefined;
}
