/** Any other MQTT server: one that runs already, or a command that starts one. */
import { findFreePort } from "../../helpers/free-port.ts";
import { listenerOf } from "../usage.ts";
import { listening, type ServerKind, spawnServer } from "./server.ts";

/** It runs already and keeps running; where it runs on this machine, its CPU is that of who listens on the port. */
export function running(host: string, port: number): ServerKind {
  return {
    name: `${host}:${port}`,
    setups: ["broker"],
    async start() {
      const address = { host, port };
      await listening(address);
      return { address, pid: listenerOf(port), stop: () => Promise.resolve() };
    },
  };
}

/** A shell command in which `{port}` stands for the port to listen on, of 127.0.0.1. */
export function command(line: string): ServerKind {
  return {
    name: line.split(/[\s/]+/).find((word) => !word.includes("=")) || line,
    setups: ["broker"],
    async start() {
      const address = { host: "127.0.0.1", port: await findFreePort() };
      return spawnServer("sh", ["-c", `exec ${line.replaceAll("{port}", String(address.port))}`], address);
    },
  };
}
