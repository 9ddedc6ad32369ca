/** Any other MQTT server: one that runs already, or a command that starts one. */
import { findFreePort } from "../../helpers/free-port.ts";
import { listenerOf } from "../usage.ts";
import { listening, type ServerKind, spawnServer } from "./server.ts";

/** What runs already answers soon. */
const reachTimeoutMs = 3000;

/** It runs already and keeps running; where it runs on this machine, its CPU is that of who listens on the port. */
export function running(host: string, port: number): ServerKind {
  return {
    name: `${host}:${port}`,
    setups: ["broker"],
    async start() {
      const address = { host, port };
      await listening(address, undefined, reachTimeoutMs);
      return { address, pid: listenerOf(port), stop: () => Promise.resolve() };
    },
  };
}

/**
 * A command of the shell, its variables before it, in which `{port}` stands for the port to listen on, of 127.0.0.1. Its CPU
 * is that of its process and of those below it: of a server that runs elsewhere (in a container) it tells nothing.
 */
export function command(line: string): ServerKind {
  return {
    name: line.split(/[\s/]+/).find((word) => !word.includes("=")) || line,
    setups: ["broker"],
    async start() {
      const address = { host: "127.0.0.1", port: await findFreePort() };
      return spawnServer("sh", ["-c", `exec env ${line.replaceAll("{port}", String(address.port))}`], address);
    },
  };
}
