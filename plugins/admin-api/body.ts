/** Request bodies: read whole, up to a limit; those of readObject are JSON whatever their Content-Type (curl -d says it is a form). */
import { isUtf8 } from "node:buffer";
import type { ParameterizedContext } from "koa";
import { problem } from "./problem.ts";

/** Easegress' words, which callers may look for. */
export const invalidJson = "invalid json data from request body";

/**
 * Of a body over the limit, this much more is read and thrown away, so that a caller who only listens when it has sent
 * everything gets to see the 413 and not a reset connection.
 */
const drainBytes = 8 * 1024 * 1024;

/** The body as JSON, undefined for what is none. Throws 413 for more than `limit` bytes. */
export async function readJson(ctx: ParameterizedContext, limit: number): Promise<unknown> {
  const bytes = await readBody(ctx, limit);
  // JSON.parse would see U+FFFD in the place of bytes that aren't UTF-8, and a payload would change unnoticed.
  return isUtf8(bytes) ? parse(bytes.toString()) : undefined;
}

/** The body as a JSON object. Throws 400 for anything else and 413 for more than `limit` bytes. */
export async function readObject(ctx: ParameterizedContext, limit: number): Promise<Record<string, unknown>> {
  const value = await readJson(ctx, limit);
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw problem(400, invalidJson);
  return value as Record<string, unknown>;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** The body's bytes. Throws 413 for more than `limit` of them. */
export function readBody(ctx: ParameterizedContext, limit: number): Promise<Buffer> {
  const { req } = ctx;
  const declared = Number(req.headers["content-length"] ?? 0);
  const waits = req.headers.expect !== undefined;
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;

    function refuse(): void {
      req.off("data", take).off("end", finish).off("error", reject).off("close", abandon);
      ctx.set("Connection", "close");
      reject(problem(413, `the body is over ${limit} bytes, the maxBodyBytes of this AdminAPI`));
    }
    function take(chunk: Buffer): void {
      size += chunk.length;
      if (size <= limit) chunks.push(chunk);
      else {
        chunks.length = 0;
        if (size > limit + drainBytes) refuse();
      }
    }
    function finish(): void {
      // Each request closes in the end, and an error that nobody gets is dear to make.
      req.off("close", abandon);
      if (size > limit) refuse();
      else resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, size));
    }
    function abandon(): void {
      reject(new Error("the caller closed the connection before the body was complete"));
    }

    // A caller that waits for "100 Continue" has sent nothing yet and needn't.
    if (declared > limit + drainBytes || (declared > limit && waits)) refuse();
    else {
      if (waits) ctx.res.writeContinue();
      req.on("data", take).on("end", finish).on("error", reject).on("close", abandon);
    }
  });
}
