/**
 * The names of a topic's files: `<topic>.ndjson` is written to, `<topic>.<n>.ndjson` were, the lower n the older.
 * Two dots of a topic would make that ambiguous and are written `%2E`, a sign that no topic has: one at its beginning
 * (names that begin with a dot are FileMQTT's own) and one before digits at its end (topic `line.1` is not the first
 * rotated file of topic `line`).
 */
import { readdir } from "node:fs/promises";
import { join } from "node:path";

/** Leaves room in a file system's 255 bytes for `.<n>.ndjson` and the lock's name. */
const longestStem = 230;

export interface TopicFile {
  readonly topic: string;
  /** Undefined for the file that is written to. */
  readonly n: number | undefined;
  readonly path: string;
}

/** Kafka's rule, so that a topic fits both sinks, within what a file's name may be. */
export function isLegalTopic(topic: string): boolean {
  return (
    /^[a-zA-Z0-9._-]{1,249}$/.test(topic) && topic !== "." && topic !== ".." && stemOf(topic).length <= longestStem
  );
}

export function stemOf(topic: string): string {
  return topic.replaceAll(/^\.|\.(?=\d+$)/g, "%2E");
}

export function fileName(topic: string, n?: number): string {
  return n === undefined ? `${stemOf(topic)}.ndjson` : `${stemOf(topic)}.${n}.ndjson`;
}

/** Undefined for a name that FileMQTT would not give. */
export function parseFileName(name: string): { topic: string; n: number | undefined } | undefined {
  const match = /^([a-zA-Z0-9_%-][a-zA-Z0-9._%-]*?)(?:\.([1-9]\d{0,14}))?\.ndjson$/.exec(name);
  const stem = match?.[1];
  if (stem === undefined) return undefined;
  const topic = stem.replaceAll("%2E", ".");
  if (!isLegalTopic(topic) || stemOf(topic) !== stem) return undefined;
  return { topic, n: match?.[2] === undefined ? undefined : Number(match[2]) };
}

/** The files of every topic in the folder, or of one; each topic's from the oldest to the one that is written to. */
export async function listTopicFiles(folder: string, only?: string): Promise<Map<string, TopicFile[]>> {
  const found = new Map<string, TopicFile[]>();
  for (const name of await readdir(folder)) {
    const parsed = parseFileName(name);
    if (!parsed || (only !== undefined && parsed.topic !== only)) continue;
    const files = found.get(parsed.topic) ?? [];
    files.push({ ...parsed, path: join(folder, name) });
    found.set(parsed.topic, files);
  }
  for (const files of found.values()) files.sort((a, b) => (a.n ?? Infinity) - (b.n ?? Infinity));
  return found;
}
