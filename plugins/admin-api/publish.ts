/** `sluice publish`: send a message to a proxy's subscribers. */
import { open } from "node:fs/promises";
import { addAbortSignal, Readable } from "node:stream";
import { parseArgs } from "node:util";
import type { CommandIo } from "@sluice/kernel";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import { defineCommand } from "./command.ts";

const help = `Usage: sluice publish <proxy> <topic> [payload] [options]

Send a message to the clients that are subscribed to a topic of a proxy. Without a payload it is read from --file or,
to its end, from standard input; binary data arrives as it is.

Options:
  -q, --qos 0|1       quality of service (default 0)
  -f, --file FILE     the payload is FILE's content ("-": standard input)
  --base64            the payload given is base64: send what it stands for
${apiHelp}

Examples:
  sluice publish mqttproxy Beijing/Phone/Update "time to update" -q 1
  sluice publish mqttproxy cmd/dev1 --file firmware.bin
  date | sluice publish mqttproxy clock`;

/** MQTT's largest packet: nothing longer can be delivered. */
const maxPayloadBytes = 268_435_455;

export default defineCommand("send a message to a proxy's subscribers", help, async (args, io) => {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      qos: { type: "string", short: "q", default: "0" },
      file: { type: "string", short: "f" },
      base64: { type: "boolean", default: false },
      api: { type: "string" },
      json: { type: "boolean", default: false },
    },
  });
  const [proxy, topic, given, ...rest] = positionals;
  if (!proxy || topic === undefined || rest.length > 0) {
    throw failure(
      exit.usage,
      "sluice publish takes a proxy, a topic and perhaps a payload (quote one with spaces). See --help.",
    );
  }
  if (given !== undefined && values.file !== undefined) {
    throw failure(exit.usage, "sluice publish takes a payload or --file, not both.");
  }
  if (values.qos !== "0" && values.qos !== "1") throw failure(exit.usage, `--qos must be 0 or 1, not "${values.qos}".`);

  const api = openApi(values.api, io);
  const payload = given === undefined ? await readPayload(values.file ?? "-", io) : Buffer.from(given);
  const answer = await api.request("POST", `/mqttproxy/${encodeURIComponent(proxy)}/topics/publish`, {
    topic,
    qos: Number(values.qos),
    payload: values.base64 ? payload.toString().replace(/\s/g, "") : payload.toString("base64"),
    base64: true,
  });
  io.stdout.write(`${values.json ? JSON.stringify(answer) : describe(answer)}\n`);
  return exit.done;
});

function describe(answer: unknown): string {
  const { matched, connected } = answer as { matched: number; connected: number };
  if (matched === 0) return "no session is subscribed to this topic";
  return `${matched} ${matched === 1 ? "session" : "sessions"} matched, ${connected} connected`;
}

async function readPayload(file: string, io: CommandIo): Promise<Buffer> {
  if (file === "-") {
    if ("isTTY" in io.stdin && io.stdin.isTTY === true) io.stderr.write("reading the payload; end it with Ctrl-D\n");
    if (io.stdin instanceof Readable) addAbortSignal(io.signal, io.stdin);
    return collect(io.stdin, "standard input");
  }
  let handle;
  try {
    handle = await open(file);
  } catch (error) {
    throw failure(exit.usage, `can't read --file: ${error instanceof Error ? error.message : String(error)}`);
  }
  try {
    return await collect(handle.createReadStream({ autoClose: false }), file);
  } finally {
    await handle.close();
  }
}

async function collect(stream: NodeJS.ReadableStream, name: string): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of stream) {
    const bytes = typeof chunk === "string" ? Buffer.from(chunk) : chunk;
    size += bytes.length;
    if (size > maxPayloadBytes) {
      throw failure(exit.usage, `${name} is longer than MQTT's largest packet, ${maxPayloadBytes} bytes.`);
    }
    chunks.push(bytes);
  }
  return Buffer.concat(chunks, size);
}
