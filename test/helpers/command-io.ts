/** What a command is handed, with its output kept. */
import { Readable, Writable } from "node:stream";
import type { CommandIo, ConfigDocument } from "../../kernel/plugin.ts";

export interface TestIo {
  readonly io: CommandIo;
  readonly stdout: () => string;
  readonly stderr: () => string;
}

export function createTestIo(
  options: { input?: string | Buffer; documents?: readonly ConfigDocument[]; signal?: AbortSignal } = {},
): TestIo {
  const out: Buffer[] = [];
  const err: Buffer[] = [];
  const into = (chunks: Buffer[]) =>
    new Writable({
      write(chunk: Buffer, _encoding, done) {
        chunks.push(chunk);
        done();
      },
    });
  return {
    io: {
      stdin: Readable.from([Buffer.from(options.input ?? "")], { objectMode: false }),
      stdout: into(out),
      stderr: into(err),
      env: {},
      colors: false,
      signal: options.signal ?? new AbortController().signal,
      loadConfig: (from = "/config/sluice.yaml") =>
        Promise.resolve({ path: from, folder: "/config", documents: options.documents ?? [] }),
    },
    stdout: () => Buffer.concat(out).toString(),
    stderr: () => Buffer.concat(err).toString(),
  };
}
