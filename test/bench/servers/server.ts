/** An MQTT server that is measured, ours or another: how it is started for what is measured, and found again. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { Address } from "../load/client.ts";
import type { Identity } from "../../helpers/certificates.ts";

/** `broker`: hands on to subscribers; `kafka`, `mapper`: writes to Kafka, by TopicMapper; `tls`: as broker, by TLS. */
export type Setup = "broker" | "kafka" | "mapper" | "tls";

export interface Need {
  readonly setup: Setup;
  /** An empty folder that is removed afterwards. */
  readonly folder: string;
  /** Of `kafka` and `mapper`. */
  readonly kafka: { readonly brokers: readonly string[]; readonly topic: string } | undefined;
  /** Of `tls`. */
  readonly identity: Identity;
}

export interface Server {
  readonly address: Address;
  /** Of the process whose CPU counts; undefined where it is not on this machine. */
  readonly pid: number | undefined;
  /** Publishes by HTTP. */
  readonly http?: Omit<Address, "ca"> & { readonly path: string };
  /** Garbage is collected now, so that memory is what is in use; undefined where nobody can ask for it. */
  readonly collect?: () => Promise<void>;
  stop(): Promise<void>;
}

export interface ServerKind {
  readonly name: string;
  readonly setups: readonly Setup[];
  /** Does it publish by HTTP? */
  readonly http?: boolean;
  /** Rejects where it does not listen in time. */
  start(need: Need): Promise<Server>;
}

const startTimeoutMs = 30_000;

/** Runs a server; `address` tells where it will listen. */
export async function spawnServer(
  command: string,
  args: readonly string[],
  address: Address,
  env: NodeJS.ProcessEnv = process.env,
): Promise<Server> {
  const child = spawn(command, args, { stdio: ["ignore", "ignore", "pipe"], env });
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (said = (said + text).slice(-2000)));
  const kill = (): void => void child.kill("SIGKILL");
  process.once("exit", kill);
  let failed: Error | undefined;
  child.once("error", (error) => (failed = error));
  const { promise: ended, resolve } = Promise.withResolvers<void>();
  child.once("close", () => resolve());
  const hasEnded = (): boolean => failed !== undefined || child.exitCode !== null || child.signalCode !== null;
  async function stop(): Promise<void> {
    process.removeListener("exit", kill);
    if (hasEnded()) return;
    child.kill("SIGTERM");
    const timer = setTimeout(kill, 3000);
    await ended;
    clearTimeout(timer);
  }
  try {
    await listening(address, () => {
      if (hasEnded()) throw failed ?? new Error(`${command} has ended: ${said}`);
    });
  } catch (error) {
    await stop();
    throw error;
  }
  return { address, pid: child.pid, stop };
}

/** Resolves when the port takes a connection. @param check throws where it never will */
export async function listening(
  { host, port }: Address,
  check: () => void = () => undefined,
  timeoutMs: number = startTimeoutMs,
): Promise<void> {
  const until = performance.now() + timeoutMs;
  for (;;) {
    check();
    const socket = connect({ host, port });
    try {
      await once(socket, "connect");
      return;
    } catch {
      if (performance.now() > until) throw new Error(`nothing listens on ${host}:${port}`);
    } finally {
      socket.destroy();
    }
    await sleep(50);
  }
}
