/** New texts on their way to the config's files: written beside them first, then moved into place. */
import { randomBytes } from "node:crypto";
import { access, constants, lstat, open, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { Overlay } from "./config-files.ts";
import { messageOf, SluiceError } from "./errors.ts";

export interface StagedFiles {
  /**
   * Moves all of it into place.
   * @throws SluiceError CONFIG_READ_ONLY, CONFIG_CONFLICT (a file is not any more what the change was made to); the files
   *   are as they were
   */
  commit(): Promise<void>;
  /** Removes what was not committed. */
  discard(): Promise<void>;
}

interface StagedFile {
  readonly file: string;
  /** Undefined: `file` goes. */
  readonly temporary: string | undefined;
  /** What it held; undefined = it was not there. */
  readonly before: string | undefined;
}

/**
 * @param newMode of files that are not there yet
 * @throws SluiceError CONFIG_READ_ONLY; nothing is left behind
 */
export async function stageFiles(
  texts: Overlay,
  before: ReadonlyMap<string, string>,
  newMode = 0o600,
): Promise<StagedFiles> {
  const staged: StagedFile[] = [];
  const discard = async (): Promise<void> => {
    for (const { temporary } of staged) if (temporary !== undefined) await rm(temporary, { force: true });
  };
  try {
    for (const [file, text] of texts) {
      const mode = (await writableMode(file)) ?? newMode;
      const name = `.${basename(file)}.${randomBytes(6).toString("hex")}.tmp`;
      const temporary = text === undefined ? undefined : join(dirname(file), name);
      staged.push({ file, temporary, before: before.get(file) });
      if (temporary !== undefined) await writeSynced(temporary, text ?? "", mode);
    }
  } catch (error) {
    await discard();
    throw readOnly(error);
  }
  return {
    discard,
    async commit() {
      const done: StagedFile[] = [];
      try {
        for (const each of staged) {
          if ((await contentOf(each.file)) !== each.before)
            throw new SluiceError("CONFIG_CONFLICT", `${each.file} has just been edited: try again`);
          if (each.temporary === undefined) await rm(each.file);
          else await rename(each.temporary, each.file);
          done.push(each);
        }
        for (const folder of new Set(staged.map(({ file }) => dirname(file)))) await sync(folder);
      } catch (error) {
        for (const { file, before: old } of done) await (old === undefined ? rm(file) : writeFile(file, old));
        throw readOnly(error);
      }
    },
  };
}

/** The mode of the file; undefined where there is none. A link would be replaced by a file, and its source would win in the end. */
async function writableMode(file: string): Promise<number | undefined> {
  await access(dirname(file), constants.W_OK | constants.X_OK);
  const stats = await lstat(file).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
  if (!stats) return undefined;
  if (stats.isSymbolicLink())
    throw new Error(`${file} is a symbolic link, as of a ConfigMap: change what it is made from`);
  if (!stats.isFile()) throw new Error(`${file} is there already, and is no file`);
  // Root may write it all the same; whoever took the right away meant it.
  if ((stats.mode & 0o222) === 0) throw new Error(`${file} is marked read-only`);
  await access(file, constants.W_OK);
  return stats.mode & 0o777;
}

async function writeSynced(file: string, text: string, mode: number): Promise<void> {
  const handle = await open(file, "wx", mode);
  try {
    await handle.writeFile(text);
    // What the umask took.
    await handle.chmod(mode);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function sync(folder: string): Promise<void> {
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

function contentOf(file: string): Promise<string | undefined> {
  return readFile(file, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
}

function readOnly(error: unknown): SluiceError {
  if (error instanceof SluiceError) return error;
  const message = `the config can't be written, and nothing was changed: ${messageOf(error) ?? "unknown"}`;
  return new SluiceError("CONFIG_READ_ONLY", message, { cause: error });
}
