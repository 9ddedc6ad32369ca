/** A record's headers: names and values in turn, which are read and written faster than an object's. */
import type { HeaderList } from "./record-batch.ts";

/** In the place of one of the same name, else behind the others. */
export function setHeader(headers: (string | Buffer)[], name: string, value: string | Buffer): void {
  for (let at = 0; at < headers.length; at += 2) {
    if (headers[at] !== name) continue;
    headers[at + 1] = value;
    return;
  }
  headers.push(name, value);
}

export function addAll(headers: (string | Buffer)[], more: HeaderList): void {
  for (let at = 0; at < more.length; at += 2) setHeader(headers, String(more[at]), more[at + 1] ?? "");
}

/** No prototype, so that a header may be called `__proto__`. */
export function toHeaderObject(headers: HeaderList): Record<string, string | Buffer> {
  const found = Object.create(null) as Record<string, string | Buffer>;
  for (let at = 0; at < headers.length; at += 2) found[String(headers[at])] = headers[at + 1] ?? "";
  return found;
}
