/**
 * Notices that a config's files have changed, whatever changed them: an editor that writes a new file and renames it, a
 * ConfigMap whose `..data` link is moved, a file system that tells nobody. Events are only a hint to look; looking every
 * few seconds is what it rests on.
 */
import { createHash } from "node:crypto";
import { type FSWatcher, watch } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { dirname, join } from "node:path";

export interface Watcher {
  /** From here on these are watched: what a change is compared with is what they hold now. */
  follow(inputs: ReadonlySet<string>): Promise<void>;
  close(): void;
}

/** @param o.quietMs how long nothing may move before a change counts, so that half a file is not taken for a whole one */
export function watchInputs(o: { onChange: () => void; quietMs?: number; pollMs?: number }): Watcher {
  const { quietMs = 250, pollMs = 2000 } = o;
  let inputs: ReadonlySet<string> = new Set();
  let known = "";
  let folders = new Map<string, FSWatcher>();
  let quiet: NodeJS.Timeout | undefined;
  let isClosed = false;
  const poll = setInterval(() => void look(), pollMs);
  poll.unref();

  /** Two looks with the same result, `quietMs` apart, are a change that is complete. */
  async function look(before?: string): Promise<void> {
    const seen = await fingerprint(inputs);
    if (isClosed || seen === known) return;
    if (seen === before) {
      known = seen;
      o.onChange();
      return;
    }
    clearTimeout(quiet);
    quiet = setTimeout(() => void look(seen), quietMs);
  }

  function hint(): void {
    clearTimeout(quiet);
    quiet = setTimeout(() => void look(), quietMs);
  }

  function watchFolders(): void {
    const wanted = new Set([...inputs].flatMap((input) => [dirname(input), input]));
    for (const [folder, watcher] of folders) if (!wanted.has(folder)) watcher.close();
    const next = new Map<string, FSWatcher>();
    for (const folder of wanted) {
      const watcher = folders.get(folder) ?? tryWatch(folder, hint);
      if (watcher) next.set(folder, watcher);
    }
    folders = next;
  }

  return {
    async follow(next) {
      inputs = next;
      watchFolders();
      known = await fingerprint(inputs);
    },
    close() {
      isClosed = true;
      clearInterval(poll);
      clearTimeout(quiet);
      for (const watcher of folders.values()) watcher.close();
    },
  };
}

/** Undefined where it can't be watched: then looking has to do. */
function tryWatch(path: string, onEvent: () => void): FSWatcher | undefined {
  try {
    const watcher = watch(path, { persistent: false }, onEvent);
    watcher.on("error", () => watcher.close());
    return watcher;
  } catch {
    return undefined;
  }
}

/** Of the content, so that a touch is no change; of a folder, the names of the config files in it and their content. */
async function fingerprint(inputs: ReadonlySet<string>): Promise<string> {
  const hash = createHash("sha256");
  const add = async (path: string): Promise<void> => {
    hash.update(`\0${path}\0`);
    try {
      if ((await stat(path)).isDirectory()) {
        for (const name of (await readdir(path)).toSorted()) {
          if (/\.(ya?ml|json)$/.test(name)) await add(join(path, name));
        }
      } else {
        hash.update(await readFile(path));
      }
    } catch (error) {
      hash.update(`\0${(error as NodeJS.ErrnoException).code}`);
    }
  };
  for (const input of [...inputs].toSorted()) await add(input);
  return hash.digest("hex");
}
