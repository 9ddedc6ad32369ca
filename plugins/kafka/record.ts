/** From a packet to the record that Kafka gets. */
import type { FilterContext } from "@sluice/kernel";
import type { AddedHeaders } from "./added-headers.ts";
import type { Config } from "./config.ts";
import { addAll, setHeader } from "./headers.ts";
import { boundOf, type HeaderList } from "./record-batch.ts";
import { compileTemplate, createScope, isTemplate, type Template, type TemplateScope } from "./template.ts";

/** What of a record comes from the packet; also what the disk buffer keeps. */
export interface Content {
  readonly topic: string;
  readonly key: string | null;
  readonly value: Buffer;
  readonly headers: HeaderList;
  /** Milliseconds since the epoch: when the packet came, not when it was sent. */
  readonly timestamp: number;
  /** Undefined: by the key. */
  readonly partition: number | undefined;
  /** What it takes in a record batch at most. */
  readonly bytes: number;
}

const legalTopic = /^[a-zA-Z0-9._-]{1,249}$/;

/** Content, or the name of the result. Reads `config` once: what it returns is on the hot path. */
export function createRecordBuilder(
  config: Config,
  added: AddedHeaders,
): (ctx: FilterContext, now: number) => Content | string {
  const { topicKey, headerKey, payloadKey } = config.mqtt;
  const { key: keyOption } = config;
  const keyTemplate = isTemplate(keyOption) ? compileTemplate(keyOption) : undefined;
  const topicTemplate = config.topic.template === undefined ? undefined : compileTemplate(config.topic.template);
  const headerTemplates = Object.entries(config.headers).map(([name, text]) => [name, compileTemplate(text)] as const);
  const timestampTemplate = config.timestamp === undefined ? undefined : compileTemplate(config.timestamp);
  const { partition } = config;
  const partitionTemplate = typeof partition === "string" ? compileTemplate(partition) : undefined;
  const isTemplated = [keyTemplate, topicTemplate, timestampTemplate, partitionTemplate, ...headerTemplates].some(
    Boolean,
  );

  function chooseKey(ctx: FilterContext): string | null {
    if (keyOption === "clientId") return ctx.client.id;
    if (keyOption === "username") return ctx.client.username ?? null;
    return keyOption === "topic" && ctx.type === "Publish" ? ctx.packet.topic : null;
  }

  return (ctx, now) => {
    const scope = isTemplated ? createScope(ctx) : undefined;
    let topic = config.topic.default;
    if (topicKey !== undefined) {
      const found = ctx.data.get(topicKey);
      // Set, but left empty: a mapper found no topic and says that the default is wanted.
      const isDefault = found === undefined && ctx.data.has(topicKey);
      if (!isDefault) {
        if (typeof found !== "string" || found === "") return "getDataFailed";
        topic = found;
      }
    } else if (topicTemplate && scope) {
      topic = topicTemplate(scope) || topic;
    }
    if (topic !== config.topic.default && !isLegalTopic(topic)) return "illegalTopic";

    const value =
      payloadKey === undefined
        ? ctx.type === "Publish"
          ? ctx.packet.payload
          : undefined
        : toBuffer(ctx.data.get(payloadKey));
    if (value === undefined) return "getDataFailed";

    const headers = added.beforeOwn ? [] : ownHeaders(ctx);
    if (added.beforeOwn) {
      added.beforeOwn(headers, ctx);
      addAll(headers, ownHeaders(ctx));
    }
    added.afterOwn?.(headers, ctx, now);
    if (scope) {
      for (const [name, render] of headerTemplates) {
        const text = render(scope);
        if (text !== "") setHeader(headers, name, text);
      }
    }
    if (headerKey !== undefined && !addHeaders(headers, ctx.data.get(headerKey))) return "getDataFailed";

    let key: string | null;
    let timestamp = now;
    let chosen = typeof partition === "number" ? partition : undefined;
    if (scope) {
      key = keyTemplate ? keyTemplate(scope) || null : chooseKey(ctx);
      const time = renderNumber(timestampTemplate, scope, readTime);
      const number = renderNumber(partitionTemplate, scope, readPartition);
      if (time === false || number === false) return "getDataFailed";
      timestamp = time ?? now;
      chosen = number ?? chosen;
    } else {
      key = chooseKey(ctx);
    }
    const bytes = boundOf(key, value, headers);
    return { topic, key, value, headers, timestamp, partition: chosen, bytes };
  };
}

export function isLegalTopic(name: string): boolean {
  return legalTopic.test(name) && name !== "." && name !== "..";
}

/** As Easegress names them. Of a fixed length, so that it is made at once. */
function ownHeaders(ctx: FilterContext): (string | Buffer)[] {
  const { id, username } = ctx.client;
  if (ctx.type !== "Publish") return username === undefined ? ["clientID", id] : ["clientID", id, "username", username];
  const { topic } = ctx.packet;
  if (username === undefined) return ["clientID", id, "mqttTopic", topic];
  return ["clientID", id, "username", username, "mqttTopic", topic];
}

/** Undefined where it renders empty, false where to no such number. */
function renderNumber(
  template: Template | undefined,
  scope: TemplateScope,
  read: (text: string) => number,
): number | false | undefined {
  const text = template?.(scope).trim() ?? "";
  if (text === "") return undefined;
  const number = read(text);
  return Number.isSafeInteger(number) && number >= 0 && number < 8.64e15 ? number : false;
}

/** Milliseconds since the epoch, or a date as ISO 8601 writes it. */
function readTime(text: string): number {
  return /^\d+(\.\d+)?$/.test(text) ? Math.floor(Number(text)) : Date.parse(text);
}

function readPartition(text: string): number {
  return /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
}

/**
 * False where a value is neither text nor bytes. One undefined, null or number among the headers of one record would
 * make kafkajs fail the whole batch with a TypeError, so it must not come so far.
 */
function addHeaders(headers: (string | Buffer)[], found: unknown): boolean {
  if (typeof found !== "object" || found === null) return false;
  for (const name of Object.keys(found)) {
    const value: unknown = (found as Record<string, unknown>)[name];
    const text = typeof value === "string" ? value : toBuffer(value);
    if (text === undefined) return false;
    setHeader(headers, name, text);
  }
  return true;
}

/** kafkajs would write a Uint8Array that is not a Buffer as text, and the broker refuse the batch. */
function toBuffer(found: unknown): Buffer | undefined {
  if (Buffer.isBuffer(found)) return found;
  return found instanceof Uint8Array ? Buffer.from(found.buffer, found.byteOffset, found.byteLength) : undefined;
}
