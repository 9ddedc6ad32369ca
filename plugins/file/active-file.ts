/** The file of a topic that is written to: opened, its torn end dropped, appended to whole batches at a time. */
import { open } from "node:fs/promises";
import { findEnd } from "./recovery.ts";

export interface ActiveFile {
  /** Bytes of whole records. */
  readonly size: number;
  /** Of the last record found at opening. */
  readonly lastOffset: number | undefined;
  /** Bytes of a record cut off that were dropped at opening. */
  readonly tornBytes: number;
  /** True where the file may hold part of a failed write, or of one that may not be safe: close it and open it anew. */
  readonly broken: boolean;
  /** All of it or nothing; with `sync` it is on the disk when this resolves. */
  write(bytes: Buffer, sync: boolean): Promise<void>;
  sync(): Promise<void>;
  /** False where the file was deleted, replaced or changed by others. */
  isIntact(): Promise<boolean>;
  close(): Promise<void>;
}

export async function openActiveFile(path: string): Promise<ActiveFile> {
  const handle = await open(path, "a+");
  try {
    const found = await handle.stat();
    const { keep, offset } = await findEnd(handle, found.size, path);
    if (keep < found.size) await handle.truncate(keep);
    let size = keep;
    let broken = false;

    return {
      get size() {
        return size;
      },
      get broken() {
        return broken;
      },
      lastOffset: offset,
      tornBytes: found.size - keep,

      async write(bytes, sync) {
        let written = 0;
        try {
          // A disk that fills up takes a part first, and says so at the next attempt.
          while (written < bytes.length) written += (await handle.write(bytes, written)).bytesWritten;
          if (sync) await handle.datasync();
        } catch (error) {
          // A failed sync leaves the kernel believing that the pages are clean: only a new look at the file tells.
          broken = written === bytes.length;
          await handle.truncate(size).catch(() => {
            broken = true;
          });
          throw error;
        }
        size += bytes.length;
      },
      sync: () => handle.datasync(),
      async isIntact() {
        const now = await handle.stat();
        return now.nlink > 0 && now.size === size;
      },
      close: () => handle.close(),
    };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** Makes new and renamed files of a folder outlive a power cut. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
