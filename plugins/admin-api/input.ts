/** What a command is given: a file, or standard input where its name is "-". */
import { open } from "node:fs/promises";
import { addAbortSignal, Readable } from "node:stream";
import type { CommandIo, ConfigDocument } from "@sluice/kernel";
import { exit, failure } from "./api.ts";
import { readDocuments } from "./documents.ts";

/** @param what what standard input is for, told to somebody who has to type it */
export async function readInput(file: string, what: string, maxBytes: number, io: CommandIo): Promise<Buffer> {
  if (file === "-") {
    if ("isTTY" in io.stdin && io.stdin.isTTY === true) io.stderr.write(`reading ${what}; end it with Ctrl-D\n`);
    if (io.stdin instanceof Readable) addAbortSignal(io.signal, io.stdin);
    return collect(io.stdin, "standard input", maxBytes);
  }
  let handle;
  try {
    handle = await open(file);
  } catch (error) {
    throw failure(exit.usage, `can't read --file: ${error instanceof Error ? error.message : String(error)}`);
  }
  try {
    return await collect(handle.createReadStream({ autoClose: false }), file, maxBytes);
  } finally {
    await handle.close();
  }
}

/** The API takes no more unless its maxBodyBytes says so; far more than any config. */
const maxConfigBytes = 64 * 1024 * 1024;

/** The documents of all these files. Fails where one of them can't be read as documents, and says where. */
export async function readDocumentFiles(files: readonly string[], io: CommandIo): Promise<readonly ConfigDocument[]> {
  const read: ConfigDocument[] = [];
  const lines: string[] = [];
  for (const file of files) {
    const text = (await readInput(file, "documents", maxConfigBytes, io)).toString();
    const { documents, problems } = readDocuments(text, file === "-" ? "standard input" : file, file.endsWith(".json"));
    read.push(...documents);
    lines.push(...problems.map(({ where, message }) => `${where}: ${message}`));
  }
  if (lines.length > 0) throw failure(exit.refused, lines.join("\n"));
  return read;
}

async function collect(stream: NodeJS.ReadableStream, name: string, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of stream) {
    const bytes = typeof chunk === "string" ? Buffer.from(chunk) : chunk;
    size += bytes.length;
    if (size > maxBytes) throw failure(exit.usage, `${name} is longer than ${maxBytes} bytes.`);
    chunks.push(bytes);
  }
  return Buffer.concat(chunks, size);
}
