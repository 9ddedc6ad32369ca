/** `sluice publish`: send a message to a proxy's subscribers. */
import { parseArgs } from "node:util";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import { defineCommand } from "./command.ts";
import { readInput } from "./input.ts";

const help = `Usage: sluice publish <proxy> <topic> [payload] [options]

Send a message to the clients that are subscribed to a topic of a proxy. Without a payload it is read from --file or,
to its end, from standard input; binary data arrives as it is.

Options:
  -q, --qos 0|1|2     quality of service (default 0)
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
  if (!/^[012]$/.test(values.qos)) throw failure(exit.usage, `--qos must be 0, 1 or 2, not "${values.qos}".`);

  const api = openApi(values.api, io);
  const payload =
    given === undefined ? await readInput(values.file ?? "-", "the payload", maxPayloadBytes, io) : Buffer.from(given);
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
