/** The `sluice` bin as a process of its own, to its end. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdir, readFile, readlink } from "node:fs/promises";
import { join, relative } from "node:path";
import { nodeEnv } from "./plugin-packages.ts";

export const bin: string = join(import.meta.dirname, "../../kernel/cli.ts");

export interface Ended {
  /** Null where a signal ended it. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** @param o.flags of node */
export async function sluice(
  cwd: string,
  args: readonly string[],
  o: { env?: NodeJS.ProcessEnv; flags?: readonly string[] } = {},
): Promise<Ended> {
  const child = spawn(process.execPath, [...(o.flags ?? []), bin, ...args], {
    cwd,
    env: { ...nodeEnv, ...o.env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const [stdout, stderr, [code]] = await Promise.all([
    child.stdout.setEncoding("utf8").toArray(),
    child.stderr.setEncoding("utf8").toArray(),
    once(child, "close") as Promise<[number | null]>,
  ]);
  return { code, stdout: stdout.join(""), stderr: stderr.join("") };
}

/** Every file below a folder with its content, links with their target: two that are equal mean that nothing changed. */
export async function snapshot(folder: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    const shown = relative(folder, path);
    if (entry.isDirectory()) found[`${shown}/`] = "";
    else found[shown] = entry.isSymbolicLink() ? `-> ${await readlink(path)}` : await readFile(path, "latin1");
  }
  return found;
}
