/** POST /mqttproxy/:name/topics/publish: a backend's message to a proxy's subscribers. */
import type { Host } from "@sluice/kernel";
import { invalidJson, readObject } from "./body.ts";
import { send } from "./negotiate.ts";
import { problem } from "./problem.ts";
import type { Route } from "./route.ts";

type Field = "topic" | "qos" | "payload" | "base64" | "retain";

export function publishRoutes(host: Host, maxBodyBytes: number): Route[] {
  return [
    {
      method: "POST",
      path: "/mqttproxy/:name/topics/publish",
      summary: 'publish {"topic", "qos", "payload", "base64", "retain"} to the subscribers of a proxy',
      async handle(ctx) {
        const name = ctx.params["name"]!;
        if (!host.proxies.get(name)) throw problem(404, `no proxy is named ${JSON.stringify(name)}`);
        const body = await readObject(ctx, maxBodyBytes);
        const topic = read(body, "topic", "string") ?? "";
        const qos = read(body, "qos", "number") ?? 0;
        const text = read(body, "payload", "string") ?? "";
        const base64 = read(body, "base64", "boolean") ?? false;
        // `distributed`, by which Easegress' nodes tell each other to deliver locally, and unknown fields are ignored.
        if (!Number.isInteger(qos)) throw problem(400, `${invalidJson}: qos must be an integer`);
        if (qos !== 0 && qos !== 1 && qos !== 2) {
          throw problem(400, "qos of MQTT is 0, 1, 2, and choose 1 for most cases");
        }
        const retain = read(body, "retain", "boolean") ?? false;
        if (!topic.isWellFormed() || !text.isWellFormed()) {
          throw problem(400, "topic and payload must not hold half a surrogate pair: send binary data as base64");
        }
        const payload = base64 ? decodeBase64(text) : Buffer.from(text);
        if (!payload) throw problem(400, "base64 set to true, but payload decode failed");
        const { matched, connected } = await host.publish(name, { topic, payload, qos, retain });
        send(ctx, { matched, connected });
      },
    },
  ];
}

interface TypeOf {
  string: string;
  number: number;
  boolean: boolean;
}

/** One field of the body; undefined where it is absent or null. Keys count in any case, as they do in Easegress (Go). */
function read<T extends keyof TypeOf>(body: Record<string, unknown>, field: Field, type: T): TypeOf[T] | undefined {
  let value = Object.hasOwn(body, field) ? body[field] : undefined;
  if (value === undefined) {
    for (const key in body) if (key.toLowerCase() === field) value = body[key];
    if (value === undefined) return undefined;
  }
  if (value === null) return undefined;
  if (typeof value !== type) throw problem(400, `${invalidJson}: ${field} must be a ${type}`);
  return value as TypeOf[T];
}

/** Standard alphabet with padding, line breaks allowed (`base64` prints them); undefined for anything else. */
function decodeBase64(text: string): Buffer | undefined {
  const packed = text.includes("\n") || text.includes("\r") ? text.replace(/[\r\n]/g, "") : text;
  // Buffer.from skips what it doesn't know and takes URL-safe characters, so it can't be asked whether the text is valid.
  const padding = packed.endsWith("==") ? 2 : packed.endsWith("=") ? 1 : 0;
  const digits = packed.slice(0, packed.length - padding);
  if (packed.length % 4 !== 0 || /[^A-Za-z0-9+/]/.test(digits)) return undefined;
  return Buffer.from(packed, "base64");
}
