import { parseArgs } from "node:util";
import type { Command, CommandIo } from "@sluice/kernel";
import { dryRun, pipelinesWithMapper } from "./dry-run.ts";
import type { DryRun } from "./dry-run.ts";

const help = `Usage: sluice map [-c FILE|FOLDER] [--pipeline NAME] [--json] <topic>

Shows the topic, key and headers of the record that a message published to <topic> would become,
without Kafka and without a running gateway. Every pipeline with a TopicMapper is tried.

  -c, --config FILE|FOLDER  the config; without it, the one that \`sluice run\` would find
  -p, --pipeline NAME       only this pipeline
      --json                machine-readable output

Exit codes: 0 the topic is mapped (by one of the pipelines, where there are several), 1 it is not, or the
config has problems, 2 wrong arguments, or no TopicMapper in the config.

Example: sluice map -c config/sluice.yaml gateway/gate123/iphone/log
`;

const command: Command = {
  summary: "show what a topic would be mapped to",
  help,
  async run(args, io) {
    const wish = readArgs(args);
    if (typeof wish === "string") return refuse(io, wish);
    const config = await io.loadConfig(wish.config);
    const candidates = pipelinesWithMapper(config.documents);
    const chosen = candidates.filter(({ name }) => wish.pipeline === undefined || name === wish.pipeline);
    if (chosen.length === 0) {
      const names = candidates.map(({ name }) => name).join(", ");
      if (names === "") return refuse(io, `no pipeline of ${config.path} has a TopicMapper in its flow`);
      return refuse(io, `no pipeline ${wish.pipeline} with a TopicMapper in ${config.path}; there are: ${names}`);
    }
    const runs = chosen.map((document) => dryRun(document, wish.topic));
    io.stdout.write(
      wish.json ? `${JSON.stringify({ mqttTopic: wish.topic, pipelines: runs }, null, 2)}\n` : table(runs),
    );
    return runs.some((run) => run.mapped) ? 0 : 1;
  },
};
export default command;

interface Wish {
  readonly topic: string;
  readonly config: string | undefined;
  readonly pipeline: string | undefined;
  readonly json: boolean;
}

/** A text is what is wrong with the arguments. */
function readArgs(args: readonly string[]): Wish | string {
  try {
    const { values, positionals } = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        config: { type: "string", short: "c" },
        pipeline: { type: "string", short: "p" },
        json: { type: "boolean", default: false },
      },
    });
    const [topic, ...others] = positionals;
    if (topic === undefined || topic === "") return "name the MQTT topic to map";
    if (others.length > 0)
      return `one topic at a time; ${JSON.stringify(others[0])} is one too many (quote a topic with spaces)`;
    if (/[+#\0]/.test(topic)) return `${JSON.stringify(topic)} is no topic name: wildcards are for subscriptions`;
    return { topic, config: values.config, pipeline: values.pipeline, json: values.json };
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

function refuse(io: CommandIo, message: string): number {
  io.stderr.write(`sluice map: ${message}\n`);
  return 2;
}

function table(runs: readonly DryRun[]): string {
  const blocks = runs.map((run) => {
    const rows: [string, string][] = [["pipeline", run.pipeline]];
    for (const note of run.notes) rows.push(["note", note]);
    for (const record of run.records) {
      rows.push(["filter", record.filter ?? "(no sink behind the mapper)"]);
      rows.push(["topic", record.topic]);
      rows.push(["key", record.key ?? "(none)"]);
      const width = Math.max(...Object.keys(record.headers).map((name) => name.length), 0);
      for (const [name, value] of Object.entries(record.headers))
        rows.push(["header", `${name.padEnd(width)}  ${value}`]);
    }
    return rows.map(([label, value]) => `${label.padEnd(9)} ${printable(value)}\n`).join("");
  });
  return blocks.join("\n");
}

/** Control characters in a topic must not reach a terminal. */
function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
