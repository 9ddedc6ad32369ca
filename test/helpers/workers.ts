/** A gateway with workers, as a process, and clients that are put to a worker of one's choice. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { connect as connectTcp } from "node:net";
import { tmpdir } from "node:os";
import { kill } from "node:process";
import { join } from "node:path";
import type { IConnectPacket } from "mqtt-packet";
import { eventually } from "./eventually.ts";
import { openRawClient, type RawClient, type RawOptions } from "./raw-client.ts";
import { spawnGateway, type SpawnedGateway } from "./spawned-gateway.ts";

export interface WorkersGateway {
  readonly process: SpawnedGateway;
  readonly folder: string;
  /** A client that is admitted, at this worker. */
  connect(worker: number, clientId: string, more?: Partial<IConnectPacket>, how?: RawOptions): Promise<RawClient>;
  /** Opens a connection whose CONNECT is up to the caller. */
  open(how?: RawOptions): Promise<RawClient>;
  /** Of the worker processes. */
  pids(): Promise<number[]>;
  /** Ends this worker at once. */
  kill(worker: number): void;
  write(yaml: string): Promise<void>;
  /** An answer of the HTTP API below `/apis/v2`. */
  api(path: string, init?: RequestInit): Promise<{ status: number; body: unknown }>;
  readyz(): Promise<{ status: number; text: string }>;
  metric(name: string, labels?: Record<string, string>): Promise<number>;
}

/** A proxy whose messages go through the pipeline `pub`. */
export const proxyYaml = (more = ""): string => `kind: MQTTProxy
name: mqttproxy
port: 0
brokerMode: true
rules: [{ when: { packetType: Publish }, pipeline: pub }]
${more}`;

/** What the filter `Gated` does is said by files in its folder: see {@link gated}. */
const gatedPlugin = {
  "package.json": JSON.stringify({
    name: "sluice-gated",
    version: "1.0.0",
    type: "module",
    keywords: ["sluice-plugin"],
    engines: { sluice: "*" },
    sluice: { kinds: { Gated: { family: "filter", entry: "./index.js", schema: "./schema.json" } } },
  }),
  "schema.json": JSON.stringify({
    description: "Waits for a file, and notes what it was given.",
    type: "object",
    additionalProperties: false,
    properties: { failIn: { type: "integer" }, gate: { type: "string" } },
  }),
  // Each line it writes is shorter than what a system writes at once.
  "index.js": `
import { appendFileSync, existsSync } from "node:fs";
import { join } from "node:path";
export default {
  kind: "Gated",
  packets: ["Connect", "Publish", "Subscribe", "Unsubscribe", "Disconnect"],
  results: [],
  concurrent: true,
  create(config, host) {
    if (existsSync(join(host.folder, "die-" + host.worker.index))) process.exit(9);
    if (config.failIn === host.worker.index) throw new Error("not in worker " + host.worker.index);
    const open = () => config.gate === undefined || existsSync(join(host.folder, config.gate));
    let last = Promise.resolve();
    const note = (line) => appendFileSync(join(host.folder, "runs.log"), host.worker.index + " of " + host.worker.count + " " + line + "\\n");
    return {
      handle(ctx) {
        if (ctx.type !== "Publish") return;
        const { topic, payload } = ctx.packet;
        note(topic + " " + payload);
        if (open()) return;
        return new Promise((resolve) => {
          const timer = setInterval(() => { if (open()) { clearInterval(timer); resolve(); } }, 5);
        });
      },
      health: () => ({ ok: !existsSync(join(host.folder, "ill-" + host.worker.index)), detail: "gated" }),
    };
  },
};
`,
};

/**
 * @param yaml with a proxy `mqttproxy`, its port 0; a Gateway document and an AdminAPI are added to it
 * @param prepare puts more into the folder of the config
 */
export async function startWorkers(
  t: { after(clean: () => Promise<void>): void },
  yaml: string,
  gateway = "workers: 2",
  prepare?: (folder: string) => Promise<void>,
): Promise<WorkersGateway> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-workers-"));
  const plugin = join(folder, "plugins", "gated");
  await mkdir(plugin, { recursive: true });
  for (const [file, text] of Object.entries(gatedPlugin)) await writeFile(join(plugin, file), text);
  const config = join(folder, "sluice.yaml");
  const write = (text: string): Promise<void> =>
    writeFile(
      config,
      [
        `kind: Gateway\nname: gateway\n${gateway}\nlog: { level: debug }\nplugins: { dirs: [./plugins] }\n${gateway.includes("drain:") ? "" : "drain: { timeout: 2, rate: 0 }"}`,
        text,
        "kind: AdminAPI\nname: admin-api\nport: 0",
      ].join("\n---\n"),
    );
  await write(yaml);
  await prepare?.(folder);
  const process = await spawnGateway(config, ["--no-watch"]);
  t.after(async () => {
    await process.stop();
    await rm(folder, { recursive: true, force: true });
  });
  let seen = 0;

  /** The worker that admitted this client last. */
  async function workerOf(clientId: string, from: number): Promise<number> {
    const { worker } = await process.logged(({ msg, clientId: id }) => msg === "Connected" && id === clientId, from);
    return worker as number;
  }

  async function metric(name: string, labels: Record<string, string> = {}): Promise<number> {
    const text = await (await fetch(`${process.api}/metrics`)).text();
    return text
      .split("\n")
      .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
      .filter((line) => Object.entries(labels).every(([label, value]) => line.includes(`${label}="${value}"`)))
      .reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  }

  return {
    process,
    folder,
    write,
    metric,
    open: (how) => openRawClient(process.port, how),
    async connect(worker, clientId, more = {}, how = {}) {
      // Connections go to the workers in turn; a probe tells whose turn it is.
      for (let attempt = 0; attempt < 10; attempt++) {
        const probe = `probe-${++seen}`;
        const from = process.logs.length;
        const first = await openRawClient(process.port);
        await first.connect({ clientId: probe });
        const at = await workerOf(probe, from);
        await first.disconnect();
        if (at === worker) await skip(process.port);
        const mark = process.logs.length;
        const client = await openRawClient(process.port, how);
        const known = await workerIfNext(client, mark);
        if (known === worker) return client;
      }
      throw new Error(`no connection came to worker ${worker}`);

      async function workerIfNext(client: RawClient, mark: number): Promise<number> {
        await client.connect({ clientId, ...more });
        return workerOf(clientId, mark);
      }
    },
    kill(worker) {
      const started = process.logs.findLast(({ msg, worker: at }) => msg === "A worker is started" && at === worker);
      assert.ok(Number(started?.["pid"]) > 0);
      kill(Number(started?.["pid"]), "SIGKILL");
    },
    async pids() {
      const children = await childrenOf(process.pid);
      return children.toSorted((a, b) => a - b);
    },
    async api(path, init): Promise<{ status: number; body: unknown }> {
      const response = await fetch(`${process.api}/apis/v2${path}`, init);
      const text = await response.text();
      return { status: response.status, body: (text === "" ? undefined : JSON.parse(text)) as unknown };
    },
    async readyz() {
      const response = await fetch(`${process.api}/readyz`);
      return { status: response.status, text: await response.text() };
    },
  };
}

/** Takes one turn. */
async function skip(port: number): Promise<void> {
  const socket = connectTcp({ port, host: "127.0.0.1" });
  socket.on("error", () => undefined);
  await once(socket, "connect");
  socket.destroy();
}

/** As a device does: again, where the worker that its connection was on its way to has just ended. */
export async function comeBack(device: { connect(port: number): Promise<void> }, port: number): Promise<void> {
  const until = performance.now() + 20_000;
  for (;;) {
    try {
      await device.connect(port);
      return;
    } catch (error) {
      if (performance.now() > until || !/the connection was closed|ECONNRESET/.test(String(error))) throw error;
    }
  }
}

/** Of a process, as the system tells it. */
export async function childrenOf(pid: number): Promise<number[]> {
  const found: number[] = [];
  for (const task of await readdir(`/proc/${pid}/task`).catch((): string[] => [])) {
    const text = await readFile(`/proc/${pid}/task/${task}/children`, "utf8").catch(() => "");
    found.push(...text.trim().split(" ").filter(Boolean).map(Number));
  }
  return found;
}

export async function isAlive(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  return stat !== "" && !/\) [ZX] /.test(stat);
}

/** What the filters `Gated` were given: `worker of count topic payload` a line. */
export async function gated({ folder }: Pick<WorkersGateway, "folder">): Promise<string[]> {
  const text = await readFile(join(folder, "runs.log"), "utf8").catch(() => "");
  return text.split("\n").filter(Boolean);
}

/** A worker that ends again and again is started after 30 s at last. */
export async function allRun(gateway: WorkersGateway, count = 2): Promise<void> {
  await eventually(async () => (await gateway.pids()).length, count, 60_000);
  await eventually(async () => await gateway.metric("sluice_workers"), count, 60_000);
}

export function present<T>(value: T | undefined): T {
  assert.ok(value !== undefined);
  return value;
}
