/**
 * Where records of topics that are missing or forbidden wait, each topic's in a buffer of its own beside the main one, so
 * that they hold up no others however long it takes. A topic's records stay in order: those that come later follow them
 * there until the last one has gone.
 */
import type { DiskBuffer } from "./disk-buffer.ts";

/** Topics may be named by what clients send, and each of these costs an open file. */
const maxParked = 100;

export interface Parking {
  /** The buffer that the topic's records wait in; undefined where they don't. */
  get(topic: string): DiskBuffer | undefined;
  /** Whether the topic has one, or may still get one. */
  mayOpen(topic: string): boolean;
  /** Opens one. */
  open(topic: string): Promise<DiskBuffer>;
  /** All that are open. */
  all(): Iterable<[topic: string, buffer: DiskBuffer]>;
  /** Of all of them together, for the main one's limit. */
  stats(): { readonly records: number; readonly bytes: number };
  close(): Promise<void>;
}

/** Opens those that `topics` left behind. */
export async function createParking(
  topics: readonly string[],
  openBuffer: (topic: string) => Promise<DiskBuffer>,
): Promise<Parking> {
  const buffers = new Map<string, DiskBuffer>();

  async function close(): Promise<void> {
    await Promise.all([...buffers.values()].map((buffer) => buffer.close()));
  }

  async function open(topic: string): Promise<DiskBuffer> {
    const known = buffers.get(topic);
    if (known) return known;
    const buffer = await openBuffer(topic);
    buffers.set(topic, buffer);
    return buffer;
  }

  try {
    for (const topic of topics) await open(topic);
  } catch (error) {
    await close();
    throw error;
  }
  return {
    get(topic) {
      const buffer = buffers.get(topic);
      return buffer && buffer.stats().records > 0 ? buffer : undefined;
    },
    mayOpen: (topic) => buffers.has(topic) || buffers.size < maxParked,
    open,
    all: () => buffers,
    stats() {
      let [records, bytes] = [0, 0];
      for (const buffer of buffers.values()) {
        const each = buffer.stats();
        records += each.records;
        bytes += each.bytes;
      }
      return { records, bytes };
    },
    close,
  };
}
