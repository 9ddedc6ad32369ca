/** `sluice publish`: send a message to a proxy's subscribers. */
import { parseArgs } from "node:util";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import { defineCommand } from "./command.ts";
import { readInput } from "./input.ts";
import { formatTable, printable } from "./table.ts";

const help = `Usage: sluice publish <proxy> <topic> [payload] [options]

Send a message to the clients that are subscribed to a topic of a proxy. Without a payload it is read from --file or,
to its end, from standard input; binary data arrives as it is.

Options:
  -q, --qos 0|1|2     quality of service (default 0)
  -f, --file FILE     the payload is FILE's content ("-": standard input)
  --base64            the payload given is base64: send what it stands for
  -r, --retain        also keep it for clients that subscribe later (an empty payload: forget what is kept)
  --client ID         send it to this client alone, whatever it has subscribed to
  --wait SECONDS      wait, at most so long, until clients have acknowledged it, and say what became of it for each;
                      needs --qos 1 or 2; exits with 1 where one of them did not get it
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
      retain: { type: "boolean", short: "r", default: false },
      client: { type: "string" },
      wait: { type: "string" },
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
  if (!["0", "1", "2"].includes(values.qos)) throw failure(exit.usage, `--qos must be 0, 1 or 2, not "${values.qos}".`);
  if (values.wait !== undefined && !/^\d+(\.\d+)?$/.test(values.wait)) {
    throw failure(exit.usage, `--wait must be a number of seconds, not "${values.wait}".`);
  }

  const api = openApi(values.api, io);
  const payload =
    given === undefined ? await readInput(values.file ?? "-", "the payload", maxPayloadBytes, io) : Buffer.from(given);
  const wait = values.wait === undefined ? "" : `?wait=acked&timeout=${values.wait}s`;
  const answer = (await api.request("POST", `/mqttproxy/${encodeURIComponent(proxy)}/topics/publish${wait}`, {
    topic,
    qos: Number(values.qos),
    payload: values.base64 ? payload.toString().replace(/\s/g, "") : payload.toString("base64"),
    base64: true,
    retain: values.retain,
    ...(values.client !== undefined && { clientID: values.client }),
  })) as PublishAnswer;
  io.stdout.write(`${values.json ? JSON.stringify(answer) : describe(answer, values.client)}\n`);
  const { refused = 0, timeout = 0 } = answer.outcomes ?? {};
  return refused + timeout === 0 ? exit.done : exit.refused;
});

interface PublishAnswer {
  readonly matched: number;
  readonly connected: number;
  readonly uncounted?: readonly string[];
  readonly clients?: readonly { readonly clientID: string; readonly outcome: string }[];
  readonly outcomes?: Readonly<Record<string, number>>;
}

const notCounted: Readonly<Record<string, string>> = {
  absent: "clients that are away are not counted",
  otherNodes: "nor all that are connected to other nodes",
};

function describe({ matched, connected, clients, uncounted = [] }: PublishAnswer, client: string | undefined): string {
  const rest = uncounted.map((each) => notCounted[each] ?? each).join(", ");
  const note = rest === "" ? "" : ` (${rest})`;
  if (matched === 0) {
    if (client !== undefined) return `no session has the client id ${printable(client)}${note}`;
    return `no ${note === "" ? "session" : "connected client"} is subscribed to this topic${note}`;
  }
  const summary = `${matched} ${matched === 1 ? "session" : "sessions"} matched, ${connected} connected${note}`;
  const rows = clients?.map(({ clientID, outcome }) => [clientID, outcome]) ?? [];
  return rows.length === 0 ? summary : `${summary}\n${formatTable([["CLIENT", "OUTCOME"], ...rows]).trimEnd()}`;
}
