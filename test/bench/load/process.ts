/** A generator's own process: its parent tells it what to run, by messages. See ../generator.ts. */
import { churn } from "./churn.ts";
import { connections } from "./connections.ts";
import { fanOut } from "./fan-out.ts";
import { kafkaReader } from "./kafka-reader.ts";
import type { Running } from "./load.ts";
import { probes } from "./probes.ts";
import { publishers } from "./publishers.ts";
import { requests } from "./requests.ts";

const loads = { churn, connections, fanOut, kafkaReader, probes, publishers, requests };
export type Loads = typeof loads;

export interface Call {
  readonly id: number;
  readonly call: "start" | "read" | "stop";
  /** Of a load; for `start` a new one. */
  readonly load: number;
  readonly kind?: keyof Loads;
  readonly options?: unknown;
}

const running = new Map<number, Running>();

async function answer({ call, load, kind, options }: Call): Promise<unknown> {
  if (call === "start") {
    running.set(load, await loads[kind!].start(options as never));
    return undefined;
  }
  const found = running.get(load)!;
  if (call === "read") return found.read();
  running.delete(load);
  return found.stop();
}

process.on("message", (message: Call) => {
  void answer(message).then(
    (result) => reply(message.id, { result }),
    (error: unknown) => reply(message.id, { error: error instanceof Error ? error.message : String(error) }),
  );
});
process.on("disconnect", () => process.exit());

function reply(id: number, answered: object): void {
  const { user, system } = process.cpuUsage();
  process.send?.({ id, ...answered, cpuUs: user + system });
}
