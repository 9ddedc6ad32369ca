/** A buffer's folder has one process: of a gateway with several workers the first has it, the others one in it. */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import type { Host } from "@sluice/kernel";
import { findSegments, mendLast, readCheckpoint } from "./segment-files.ts";

export function workerFolder(dir: string, { index }: Host["worker"]): string {
  return index === 0 ? dir : join(dir, `worker-${index}`);
}

/**
 * Records that were acknowledged must not stay where nobody sends them from.
 * @throws where a worker that there was once, and is not any more, has left some
 */
export async function checkLeftBehind(dir: string, { index, count }: Host["worker"]): Promise<void> {
  if (index > 0) return;
  for (const name of await readdir(dir).catch((): string[] => [])) {
    const worker = Number(/^worker-([1-9]\d{0,2})$/.exec(name)?.[1] ?? 0);
    if (worker < count) continue;
    const records = await recordsIn(join(dir, name));
    if (records > 0) {
      throw new Error(
        `${join(dir, name)} holds ${records} records that Kafka does not have, of a gateway with more workers: start it with workers: ${worker + 1} until they are sent`,
      );
    }
  }
}

/** What is not done, of records to be sent and of those of topics that were missing. */
async function recordsIn(folder: string): Promise<number> {
  const parked = await readdir(join(folder, "parked")).catch((): string[] => []);
  let records = 0;
  for (const each of [folder, ...parked.map((topic) => join(folder, "parked", topic))]) {
    const segments = await findSegments(each);
    const { nextSequence } = await mendLast(segments);
    const doneUpTo = Math.max(await readCheckpoint(each), (segments[0]?.first ?? 1) - 1);
    records += Math.max(0, nextSequence - 1 - doneUpTo);
  }
  return records;
}
