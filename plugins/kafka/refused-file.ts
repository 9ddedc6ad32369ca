/** `refused.ndjson` in a buffer's folder: records that were acknowledged and that Kafka will never take, for people to look at. */
import { open, stat } from "node:fs/promises";
import { join } from "node:path";
import { toHeaderObject } from "./headers.ts";
import type { Content } from "./record.ts";

export interface RefusedFile {
  /** Resolves when it is on the disk. In the order of calls. */
  append(content: Content, reason: string): Promise<void>;
  readonly bytes: number;
}

export async function openRefusedFile(folder: string): Promise<RefusedFile> {
  const path = join(folder, "refused.ndjson");
  let bytes = await stat(path).then(
    ({ size }) => size,
    () => 0,
  );
  let last: Promise<void> = Promise.resolve();

  async function write(line: string): Promise<void> {
    const handle = await open(path, "a");
    try {
      await handle.appendFile(line);
      await handle.datasync();
      bytes += Buffer.byteLength(line);
    } finally {
      await handle.close();
    }
  }

  return {
    append({ topic, key, headers, value, timestamp }, reason) {
      const texts = Object.fromEntries(
        Object.entries(toHeaderObject(headers)).map(([name, each]) => [name, String(each)]),
      );
      const record = { reason, topic, key, headers: texts, value: value.toString("base64"), encoding: "base64" };
      const line = `${JSON.stringify({ ...record, timestamp })}\n`;
      last = last.catch(() => undefined).then(() => write(line));
      return last;
    },
    get bytes() {
      return bytes;
    },
  };
}
