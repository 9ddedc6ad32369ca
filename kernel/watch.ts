/**
 * Notices that a config's files have changed, whatever changed them: an editor that writes a new file and renames it, a
 * ConfigMap whose `..data` link is moved, a file system that tells nobody. Events are only a hint to look; looking every
 * few seconds is what it rests on.
 */
import { createHash } from "node:crypto";
import { type FSWatcher, watch } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { isDeepStrictEqual } from "node:util";

export interface Watcher {
  /** Before the config is read: what the files hold now is the oldest that the reading can be of. */
  mark(): Promise<void>;
  /**
   * After it was read: from here on these are watched. What has changed since `mark`, or in a file that was not watched
   * yet since `readAt` (ms since the epoch, when reading began), counts as a change.
   */
  follow(inputs: ReadonlySet<string>, readAt: number): Promise<void>;
  close(): void;
}

/** A file's time of change may lag behind the clock by a tick of the kernel. */
const tickMs = 20;

/** @param o.quietMs how long nothing may move before a change counts, so that half a file is not taken for a whole one */
export function watchInputs(o: { onChange: () => void; quietMs?: number; pollMs?: number }): Watcher {
  const { quietMs = 250, pollMs = 2000 } = o;
  let inputs: ReadonlySet<string> = new Set();
  let known: ReadonlyMap<string, string> = new Map();
  let folders = new Map<string, FSWatcher>();
  let quiet: NodeJS.Timeout | undefined;
  let isClosed = false;
  const poll = setInterval(hint, pollMs);
  poll.unref();

  /** Two looks with the same result, `quietMs` apart, are a change that is complete. */
  async function look(before?: ReadonlyMap<string, string>): Promise<void> {
    quiet = undefined;
    const seen = await digestAll(inputs);
    if (isClosed || isDeepStrictEqual(seen, known)) return;
    if (before && isDeepStrictEqual(seen, before)) {
      known = seen;
      o.onChange();
      return;
    }
    clearTimeout(quiet);
    quiet = setTimeout(() => void look(seen), quietMs);
  }

  /** Never puts a look off: in a folder where something always moves, none would come. */
  function hint(): void {
    quiet ??= setTimeout(() => void look(), quietMs);
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
    async mark() {
      known = await digestAll(inputs);
    },
    async follow(next, readAt) {
      const found = new Map<string, string>();
      for (const [input, content] of await digestAll(next)) {
        const isOld = known.has(input) || (await changedAt(input)) < readAt - tickMs;
        found.set(input, known.get(input) ?? (isOld ? content : "unknown"));
      }
      inputs = next;
      known = found;
      watchFolders();
      // What happened before there was anything to hint at it.
      hint();
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

async function digestAll(inputs: ReadonlySet<string>): Promise<Map<string, string>> {
  return new Map(await Promise.all([...inputs].map(async (input) => [input, await digest(input)] as const)));
}

/** Of the content, so that a touch is no change; of a folder, the names of the config files in it and their content. */
async function digest(input: string): Promise<string> {
  const hash = createHash("sha256");
  const add = async (path: string): Promise<void> => {
    try {
      if ((await stat(path)).isDirectory()) {
        for (const name of (await readdir(path)).toSorted()) {
          if (!/\.(ya?ml|json)$/.test(name)) continue;
          hash.update(`\0${name}\0`);
          await add(join(path, name));
        }
      } else {
        hash.update(await readFile(path));
      }
    } catch (error) {
      hash.update(`\0${(error as NodeJS.ErrnoException).code}`);
    }
  };
  await add(input);
  return hash.digest("hex");
}

/** Milliseconds since the epoch; of what isn't there, never. */
async function changedAt(path: string): Promise<number> {
  try {
    return (await stat(path)).ctimeMs;
  } catch {
    return 0;
  }
}
