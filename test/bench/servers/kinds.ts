/** What `--vs` names. */
import { easegress } from "./easegress.ts";
import { mosquitto } from "./mosquitto.ts";
import { rival } from "./rival.ts";
import { command, running } from "./running.ts";
import type { ServerKind } from "./server.ts";

/** Throws where nothing is meant by it. */
export function serverKind(given: string): ServerKind {
  const [name = "", path] = given.split(/=(.*)/s);
  if (name === "easegress") {
    if (!path) throw new Error("say where its binary is: --vs easegress=/path/to/easegress-server");
    return easegress(path);
  }
  if (given === "mosquitto") return mosquitto;
  if (given.includes("{port}")) return command(given);
  const at = /^([^\s/]+):(\d+)$/.exec(given);
  if (at) return running(at[1]!, Number(at[2]));
  const found = rival(given);
  if (found) return found;
  throw new Error(
    `--vs ${given}: give easegress=PATH, mosquitto, aedes, mochi, host:port of a server that runs, or a command with {port} in it`,
  );
}
