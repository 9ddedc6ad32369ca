/** A topic of a folder has one writer: of a gateway with several workers the first has the folder itself, the others one in it. */
import { readdir } from "node:fs/promises";
import { join } from "node:path";

export function workerFolder(dir: string, worker: number): string {
  return worker === 0 ? dir : join(dir, `worker-${worker}`);
}

/** The folder and those of workers in it, as far as there are any. */
export async function workerFolders(dir: string): Promise<string[]> {
  const names = await readdir(dir).catch((): string[] => []);
  const workers = names.flatMap((name) => /^worker-([1-9]\d{0,2})$/.exec(name)?.[1] ?? []).map(Number);
  return [dir, ...workers.toSorted((a, b) => a - b).map((worker) => workerFolder(dir, worker))];
}
