/**
 * The disk buffer of a filter, which outlives a change of its options: the filter that a reload builds appends to the same
 * one, and sends what is there once the one before it has stopped doing so.
 */
import { readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import type { Host } from "@sluice/kernel";
import { createBufferMeter } from "./buffer-meter.ts";
import type { BufferOptions } from "./config.ts";
import { openDiskBuffer, type DiskBuffer } from "./disk-buffer.ts";
import { createParking, type Parking } from "./parking.ts";
import { openRefusedFile, type RefusedFile } from "./refused-file.ts";
import { checkLeftBehind, workerFolder } from "./worker-folder.ts";

export interface BufferHandle {
  readonly buffer: DiskBuffer;
  readonly refused: RefusedFile;
  readonly parking: Parking;
  /**
   * `start` is called when nobody else sends what the buffer holds, at once where nobody does. From then on the buffer has
   * this filter's options.
   */
  attach(start: () => void): void;
  /** The last one closes the buffer. */
  leave(): Promise<void>;
}

interface Shared {
  readonly owner: string;
  readonly opened: Promise<Pick<BufferHandle, "buffer" | "refused" | "parking">>;
  users: number;
  closing?: Promise<void>;
  /** The first one sends; the others wait for it to leave. */
  readonly starts: (() => void)[];
}

/** By gateway, which each has one `proxies`, and folder. It holds nothing that is not in use. */
const buffersOf = new WeakMap<Host["proxies"], Map<string, Shared>>();

/** Rejects where the folder can't be used, or is another filter's or gateway's. */
export async function joinBuffer(options: BufferOptions, host: Host): Promise<BufferHandle> {
  const buffers = buffersOf.get(host.proxies) ?? new Map<string, Shared>();
  buffersOf.set(host.proxies, buffers);
  const dir = resolve(host.folder, options.dir);
  await checkLeftBehind(dir, host.worker);
  const folder = workerFolder(dir, host.worker);
  await buffers.get(folder)?.closing;
  const known = buffers.get(folder);
  if (known && known.owner !== host.name) {
    throw new Error(`buffer.dir ${folder} is in use by the filter ${known.owner}: give each filter its own`);
  }
  const shared = known ?? open(options, folder, host);
  buffers.set(folder, shared);
  shared.users++;

  async function release(): Promise<void> {
    if (--shared.users > 0) return;
    const { buffer, parking } = await shared.opened;
    const closeAll = async (): Promise<void> => {
      await parking.close();
      await buffer.close();
    };
    shared.closing = closeAll().finally(() => buffers.delete(folder));
    await shared.closing;
  }

  try {
    const { buffer, refused, parking } = await shared.opened;
    let mine: (() => void) | undefined;
    return {
      buffer,
      refused,
      parking,
      attach(start) {
        mine = () => {
          buffer.configure(options);
          start();
        };
        shared.starts.push(mine);
        if (shared.starts.length === 1) mine();
      },
      async leave() {
        const at = mine ? shared.starts.indexOf(mine) : -1;
        if (at >= 0) shared.starts.splice(at, 1);
        if (at === 0) shared.starts[0]?.();
        await release();
      },
    };
  } catch (error) {
    if (--shared.users === 0) buffers.delete(folder);
    throw error;
  }
}

function open(options: BufferOptions, folder: string, host: Host): Shared {
  const { clock, log } = host;
  const meter = createBufferMeter(host.metrics, host.name);
  const opened = (async () => {
    const deps = { owner: host.name, clock, log, meter };
    const buffer = await openDiskBuffer(options, { ...deps, folder });
    try {
      const refused = await openRefusedFile(folder);
      const parked = join(folder, "parked");
      const left = await readdir(parked).catch((): string[] => []);
      // It gives nothing up: the main one's limit counts what is here, and half of it is the most.
      const settings: BufferOptions = { ...options, maxBytes: Math.ceil(options.maxBytes / 2), onFull: "reject" };
      const openParked = (topic: string) => openDiskBuffer(settings, { ...deps, folder: join(parked, topic) });
      const parking = await createParking(left, openParked);
      buffer.reserve(() => refused.bytes + parking.stats().bytes);
      return { buffer, refused, parking };
    } catch (error) {
      await buffer.close();
      throw error;
    }
  })();
  return { owner: host.name, opened, users: 0, starts: [] };
}
