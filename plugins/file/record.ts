/** From a packet to the line of its record; the options mean what they mean in KafkaMQTT. */
import { isUtf8 } from "node:buffer";
import type { FilterContext } from "@sluice/kernel";
import type { Config } from "./config.ts";
import { isLegalTopic } from "./topic-file.ts";

/** One line of a file. */
export interface FileRecord {
  readonly topic: string;
  readonly key: string | null;
  readonly headers: Readonly<Record<string, string>>;
  /** As `encoding` says: the payload where it is valid UTF-8, else its base64. */
  readonly value: string;
  readonly encoding: "utf8" | "base64";
  /** Milliseconds since the epoch: when the packet came to the filter. */
  readonly timestamp: number;
  /** Counts a topic's records from 0, through rotations and restarts. */
  readonly offset: number;
}

/** A line as far as its offset, which only the writer knows. */
export interface PendingLine {
  readonly topic: string;
  readonly text: string;
}

/** `now` is in milliseconds since the epoch. Returns the line, or the name of a result. */
export function createLineBuilder(config: Config): (ctx: FilterContext, now: number) => PendingLine | string {
  const { topicKey, headerKey, payloadKey } = config.mqtt;

  function chooseKey(ctx: FilterContext): string | null {
    if (config.key === "clientId") return ctx.client.id;
    if (config.key === "username") return ctx.client.username ?? null;
    return config.key === "topic" && ctx.type === "Publish" ? ctx.packet.topic : null;
  }

  return (ctx, timestamp) => {
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

    let value: unknown = ctx.type === "Publish" ? ctx.packet.payload : undefined;
    if (payloadKey !== undefined) value = ctx.data.get(payloadKey);
    if (!(value instanceof Uint8Array)) return "getDataFailed";

    // No prototype, so that a header may be called `__proto__`.
    const headers = Object.create(null) as Record<string, string>;
    headers["clientID"] = ctx.client.id;
    if (ctx.client.username !== undefined) headers["username"] = ctx.client.username;
    if (ctx.type === "Publish") headers["mqttTopic"] = ctx.packet.topic;
    if (headerKey !== undefined && !addHeaders(headers, ctx.data.get(headerKey))) return "getDataFailed";

    const encoding = isUtf8(value) ? "utf8" : "base64";
    const record: Omit<FileRecord, "offset"> = {
      topic,
      key: chooseKey(ctx),
      headers,
      value: toText(value, encoding),
      encoding,
      timestamp,
    };
    return { topic, text: `${JSON.stringify(record).slice(0, -1)},"offset":` };
  };
}

/** Undefined for a line that is not a record. */
export function parseRecord(line: string): FileRecord | undefined {
  let found: unknown;
  try {
    found = JSON.parse(line);
  } catch {
    return undefined;
  }
  if (typeof found !== "object" || found === null) return undefined;
  const { headers, value, timestamp, offset } = found as Partial<Record<keyof FileRecord, unknown>>;
  const whole = typeof headers === "object" && headers !== null && typeof value === "string";
  return whole && isCount(timestamp) && isCount(offset) ? (found as FileRecord) : undefined;
}

function isCount(found: unknown): boolean {
  return Number.isSafeInteger(found) && Number(found) >= 0;
}

/** False where a value is neither text nor bytes that are text: a header of a file's record is a string. */
function addHeaders(headers: Record<string, string>, found: unknown): boolean {
  if (typeof found !== "object" || found === null) return false;
  for (const [name, value] of Object.entries(found)) {
    if (typeof value === "string") headers[name] = value;
    else if (value instanceof Uint8Array && isUtf8(value)) headers[name] = toText(value, "utf8");
    else return false;
  }
  return true;
}

/** A view of the same bytes, since `toString` of a Uint8Array that is no Buffer gives numbers. */
function toText(bytes: Uint8Array, encoding: "utf8" | "base64"): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString(encoding);
}
