import { resolve } from "node:path";
import { parseArgs } from "node:util";
import type { Command, CommandIo, LoadedConfig } from "@sluice/kernel";
import { readLines } from "./reader.ts";
import { parseRecord } from "./record.ts";
import { listTopicFiles } from "./topic-file.ts";
import { workerFolders } from "./worker-folder.ts";

const help = `Usage: sluice tail [-f] [-n N] [-c FILE|FOLDER | --dir DIR] [--json] <topic>

Prints the last records of a topic that FileMQTT has written, each on a line: time, offset, key, headers, value.
Control characters of a value are shown as \\u escapes, bytes that are not text as base64:... .

  -f, --follow              go on with what is written from now on, through rotations, until interrupted
  -n, --lines N             how many of the last records (default 10)
  -c, --config FILE|FOLDER  the config whose FileMQTT filters say where the files are; without it, the one that
                            \`sluice run\` would find
      --dir DIR             the folder of the files, without a config
      --json                the lines as they are in the file

Exit codes: 0 printed, 1 there is no such topic (those that there are, are listed), 2 the arguments or the config
don't allow an answer.

Example: sluice tail -f -c config/sluice.yaml gate-log
`;

const command: Command = {
  summary: "print what FileMQTT has written to a topic",
  help,
  async run(args, io) {
    const wish = readArgs(args);
    if (typeof wish === "string") return refuse(io, wish);
    const folders = wish.dir === undefined ? foldersOf(await io.loadConfig(wish.config)) : [resolve(wish.dir)];
    if (folders.length === 0)
      return refuse(io, "the config has no FileMQTT filter; say where the files are with --dir");

    const topics = await Promise.all(folders.map(findTopics));
    const holding = folders.filter((_, index) => topics[index]?.includes(wish.topic));
    const [dir, ...others] = holding;
    if (dir === undefined) {
      const known = folders.map((each, index) => `${each}: ${topics[index]?.join(", ") || "no topics"}`);
      io.stderr.write(`sluice tail: no topic ${JSON.stringify(wish.topic)} in\n  ${known.join("\n  ")}\n`);
      return 1;
    }
    if (others.length > 0) {
      return refuse(io, `the topic is in several folders, choose one with --dir: ${holding.join(", ")}`);
    }
    await print(io, wish, dir);
    return 0;
  },
};
export default command;

interface Wish {
  readonly topic: string;
  readonly follow: boolean;
  readonly last: number;
  readonly dir: string | undefined;
  readonly config: string | undefined;
  readonly json: boolean;
}

/** A text is what is wrong with the arguments. */
function readArgs(args: readonly string[]): Wish | string {
  try {
    const { values, positionals } = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        follow: { type: "boolean", short: "f", default: false },
        lines: { type: "string", short: "n", default: "10" },
        config: { type: "string", short: "c" },
        dir: { type: "string" },
        json: { type: "boolean", default: false },
      },
    });
    const [topic, ...others] = positionals;
    if (topic === undefined || others.length > 0) return "name one topic, for example: sluice tail -f gate-log";
    if (!/^\d{1,9}$/.test(values.lines)) return "--lines is a number of records";
    if (values.dir !== undefined && values.config !== undefined) return "either --dir or --config";
    const { follow, dir, config, json } = values;
    return { topic, follow, last: Number(values.lines), dir, config, json };
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

function refuse(io: CommandIo, message: string): number {
  io.stderr.write(`sluice tail: ${message}\n`);
  return 2;
}

/** Of every FileMQTT in a pipeline, each once. */
function foldersOf({ folder, documents }: LoadedConfig): string[] {
  const dirs = documents.flatMap(({ kind, filters }) => {
    if (kind !== "Pipeline" || !Array.isArray(filters)) return [];
    return (filters as { kind?: unknown; dir?: unknown }[])
      .filter((filter) => filter.kind === "FileMQTT" && typeof filter.dir === "string")
      .map((filter) => resolve(folder, String(filter.dir)));
  });
  return [...new Set(dirs)];
}

async function findTopics(folder: string): Promise<string[]> {
  const all = await Promise.all((await workerFolders(folder)).map(listTopics));
  return [...new Set(all.flat())].toSorted();
}

async function listTopics(folder: string): Promise<string[]> {
  try {
    return [...(await listTopicFiles(folder)).keys()];
  } catch (error) {
    // Nothing was written yet.
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return [];
    throw error;
  }
}

async function print(io: CommandIo, wish: Wish, dir: string): Promise<void> {
  // Whoever reads us (`| head`) may stop first.
  const gone = new AbortController();
  const stop = () => gone.abort();
  io.stdout.once("error", stop);
  const signal = AbortSignal.any([io.signal, gone.signal]);
  try {
    const folders = await workerFolders(dir);
    const shown =
      wish.follow || folders.length === 1 ? folders.map((folder) => readLines({ ...wish, folder, signal })) : [];
    const lines = shown.length > 0 ? shown : [lastOf(folders, wish, signal)];
    await Promise.all(
      lines.map(async (each) => {
        for await (const line of each) {
          const text = wish.json ? line : describeLine(line, io.colors);
          if (!io.stdout.write(`${text}\n`)) await drained(io.stdout, signal);
          if (signal.aborted) break;
        }
      }),
    );
  } finally {
    io.stdout.removeListener("error", stop);
  }
}

/** Of what several workers have written, in the order of its time. */
async function* lastOf(folders: readonly string[], { topic, last }: Wish, signal: AbortSignal): AsyncGenerator<string> {
  const found: { readonly line: string; readonly timestamp: number }[] = [];
  for (const folder of folders) {
    for await (const line of readLines({ folder, topic, last, follow: false, signal })) {
      found.push({ line, timestamp: parseRecord(line)?.timestamp ?? 0 });
    }
  }
  const sorted = found.toSorted((a, b) => a.timestamp - b.timestamp);
  for (const { line } of last === 0 ? [] : sorted.slice(-last)) yield line;
}

/** Resolves too where the signal comes first. */
function drained(stream: NodeJS.WritableStream, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  const { promise, resolve: done } = Promise.withResolvers<void>();
  const finish = () => done();
  stream.once("drain", finish);
  signal.addEventListener("abort", finish, { once: true });
  return promise.finally(() => {
    stream.removeListener("drain", finish);
    signal.removeEventListener("abort", finish);
  });
}

function describeLine(line: string, colors: boolean): string {
  const record = parseRecord(line);
  if (!record) return `not a record: ${escape(line)}`;
  const dim = (text: string) => (colors ? `\u001b[2m${text}\u001b[22m` : text);
  const headers = Object.entries(record.headers).map(([name, value]) => escape(`${name}=${value}`));
  const place = `${new Date(record.timestamp).toISOString()} ${record.offset}`;
  const value = record.encoding === "base64" ? `base64:${record.value}` : escape(record.value);
  return `${dim(place)}  ${escape(record.key ?? "-")}  ${dim(headers.join(" "))}  ${value}`;
}

/** A device must not be able to move the cursor, or worse, of the terminal that shows its payload. */
function escape(text: string): string {
  return text.replaceAll(/\p{Cc}|[\u2028\u2029\u202a-\u202e\u2066-\u2069]/gu, (character) => {
    return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}
