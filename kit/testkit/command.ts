/** Runs a plugin's command in this process, as the command line does. */
import { Readable, Writable } from "node:stream";
import type { Command, ConfigDocument } from "@sluice/kernel";

export interface CommandRun {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export async function runCommand(
  command: Command,
  args: readonly string[],
  options: {
    env?: NodeJS.ProcessEnv;
    stdin?: Buffer | string | NodeJS.ReadableStream;
    signal?: AbortSignal;
    /** What `loadConfig` finds. */
    documents?: readonly ConfigDocument[];
  } = {},
): Promise<CommandRun> {
  const { stdin = "", documents } = options;
  let stdout = "";
  let stderr = "";
  const code = await command.run(args, {
    stdin: typeof stdin === "object" && "read" in stdin ? stdin : Readable.from([Buffer.from(stdin)]),
    stdout: new Writable({
      write(chunk, _encoding, done) {
        stdout += String(chunk);
        done();
      },
    }),
    stderr: new Writable({
      write(chunk, _encoding, done) {
        stderr += String(chunk);
        done();
      },
    }),
    env: options.env ?? {},
    colors: false,
    signal: options.signal ?? new AbortController().signal,
    loadConfig(from = "sluice.yaml") {
      if (!documents) return Promise.reject(new Error("no config here"));
      return Promise.resolve({ path: from, folder: ".", documents });
    },
  });
  return { code, stdout, stderr };
}
