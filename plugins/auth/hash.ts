import { createInterface } from "node:readline";
import { addAbortSignal, Readable, Writable } from "node:stream";
import { parseArgs } from "node:util";
import type { Command, CommandIo } from "@sluice/kernel";
import { saltedSha256 } from "./salted-hash.ts";
import type { Order } from "./salted-hash.ts";

const help = `Usage: sluice hash [--salt SALT] [--order saltPassword|passwordSalt] <username>

Prints an entry for the \`auth\` list of an MQTTClientAuth filter. The password is asked for on a terminal,
else read from standard input (one line end at its end is left out); it is never an argument, where other
users of the machine could see it.

      --salt SALT    the filter's \`salt\` (default: none)
      --order ORDER  saltPassword (default), or passwordSalt, which Easegress takes too; with the filter's
                     default \`order: any\` both are right

Exit codes: 0 printed, 2 the arguments or the password can't be used, 130 interrupted.

Example: printf %s "$PASSWORD" | sluice hash --salt salt test
`;

/** The longest password that CONNECT can carry, in bytes. */
const longestPassword = 65_535;

const command: Command = {
  summary: "print a user entry for MQTTClientAuth",
  help,
  async run(args, io) {
    const wish = readArgs(args);
    if (typeof wish === "string") return refuse(io, wish);
    const password = isTerminal(io.stdin) ? await askTwice(io) : await readAll(io);
    if (password === undefined) return 130;
    if (typeof password === "string") return refuse(io, password);
    if (password.length === 0) return refuse(io, "the password is empty");
    if (password.length > longestPassword) return refuse(io, `a password has at most ${longestPassword} bytes in MQTT`);
    const digest = saltedSha256(wish.order, Buffer.from(wish.salt), password).toString("hex");
    // JSON strings are YAML strings, whatever the name holds, and a hash of digits stays a string.
    io.stdout.write(`- username: ${JSON.stringify(wish.username)}\n  saltedSha256Pass: ${JSON.stringify(digest)}\n`);
    return 0;
  },
};
export default command;

interface Wish {
  readonly username: string;
  readonly salt: string;
  readonly order: Order;
}

/** A text is what is wrong with the arguments. */
function readArgs(args: readonly string[]): Wish | string {
  try {
    const { values, positionals } = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: { salt: { type: "string", default: "" }, order: { type: "string", default: "saltPassword" } },
    });
    const [username, ...others] = positionals;
    if (username === undefined || username === "") return "name the user, for example: sluice hash --salt salt test";
    if (others.length > 0) return "one user at a time, and no password: it is read from standard input";
    const { salt, order } = values;
    if (order !== "saltPassword" && order !== "passwordSalt") return "--order is saltPassword or passwordSalt";
    return { username, salt, order };
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

function refuse(io: CommandIo, message: string): number {
  io.stderr.write(`sluice hash: ${message}\n`);
  return 2;
}

function isTerminal(stdin: NodeJS.ReadableStream): boolean {
  return "isTTY" in stdin && stdin.isTTY === true;
}

/** Bytes, since a password need not be text; undefined where the signal came first. */
async function readAll(io: CommandIo): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  let size = 0;
  const stdin = io.stdin instanceof Readable ? addAbortSignal(io.signal, io.stdin) : io.stdin;
  try {
    for await (const chunk of stdin) {
      const bytes = Buffer.from(chunk);
      chunks.push(bytes);
      size += bytes.length;
      if (size > longestPassword + 2) break;
    }
  } catch (error) {
    if (io.signal.aborted) return undefined;
    throw error;
  }
  const all = Buffer.concat(chunks);
  if (all.at(-1) !== 0x0a) return all;
  return all.subarray(0, all.at(-2) === 0x0d ? -2 : -1);
}

/** Two lines from the terminal, which shows nothing of them. A text is what is wrong; undefined means interrupted. */
async function askTwice(io: CommandIo): Promise<Buffer | string | undefined> {
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() });
  const terminal = createInterface({ input: io.stdin, output: silent, terminal: true, signal: io.signal });
  const lines = terminal[Symbol.asyncIterator]();
  // Raw mode hands Ctrl-C to us.
  terminal.once("SIGINT", () => terminal.close());
  const answers: string[] = [];
  try {
    for (const prompt of ["Password: ", "Again: "]) {
      io.stderr.write(prompt);
      const line = await lines.next();
      io.stderr.write("\n");
      if (line.done === true) return undefined;
      answers.push(line.value);
    }
  } finally {
    terminal.close();
  }
  const [first = "", second] = answers;
  return first === second ? Buffer.from(first) : "the two passwords differ";
}
