/** A gateway in this process, from YAML, on free ports, with the distribution's own plugins. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { pino } from "pino";
import { loadSpec } from "../../kernel/config.ts";
import type { Overlay } from "../../kernel/config-files.ts";
import { createGateway, type Gateway } from "../../kernel/gateway.ts";
import { schemaCompiler } from "../../kernel/schema.ts";
import { createReloader, type Reloaded } from "../../kernel/reload.ts";

export interface TestGateway {
  readonly gateway: Gateway;
  /** Of the proxy's listener: `mqtt://127.0.0.1:port`. */
  readonly url: (proxy?: string) => string;
  readonly port: (proxy?: string) => number;
  /** The AdminAPI's address: `http://127.0.0.1:port`. */
  readonly api: string;
  /** The folder of its config, where FileMQTT's `dir` is. */
  readonly folder: string;
  /** Every log line so far. */
  readonly logs: readonly Record<string, unknown>[];
  /** A metric's value summed over the series that have these labels. */
  readonly metric: (name: string, labels?: Record<string, string>) => Promise<number>;
  /** Writes the config and has it read again. */
  readonly reload: (yaml: string) => Promise<Reloaded>;
  /** Also removes the folder. */
  readonly stop: () => Promise<void>;
}

const bin = fileURLToPath(new URL("../../kernel/cli.ts", import.meta.url));

/** @param yaml proxies with `port: 0`; an AdminAPI on a free port is added unless it has one */
export async function startTestGateway(
  yaml: string,
  options: { env?: Record<string, string>; folder?: string; startDeadlineMs?: number } = {},
): Promise<TestGateway> {
  const folder = options.folder ?? (await mkdtemp(join(tmpdir(), "sluice-")));
  const file = join(folder, "sluice.yaml");
  const write = (text: string): Promise<void> =>
    writeFile(file, text.includes("AdminAPI") ? text : `${text}\n---\nkind: AdminAPI\nname: admin-api\nport: 0\n`);
  await write(yaml);
  const logs: Record<string, unknown>[] = [];
  const log = pino({ level: "debug" }, { write: (line: string) => void logs.push(JSON.parse(line)) });
  const gateway = createGateway({
    log,
    version: "0.0.0-test",
    ...(options.startDeadlineMs === undefined ? {} : { startDeadlineMs: options.startDeadlineMs }),
  });
  const compile = schemaCompiler();
  const load = (overlay: Overlay = new Map()) =>
    loadSpec({ path: file, cwd: folder, env: { ...process.env, ...options.env }, bins: [bin], overlay, compile });
  const reloader = createReloader({ load, gateway, log });
  const { plan, problems } = await reloader.reload("start");
  if (!plan) {
    await gateway.stop();
    const text = problems.map(({ where, message }) => `${where}: ${message}`).join("\n");
    throw Object.assign(new Error(text), { code: problems[0]?.code });
  }
  const statusOf = (name: string): string => String(gateway.host.proxies.get(name)?.status().address);
  const port = (name = "mqttproxy"): number => Number(statusOf(name).split(":").at(-1));
  const detail = gateway.host.health().find(({ name }) => name === "admin-api")?.detail ?? "";
  return {
    gateway,
    port,
    url: (name) => `mqtt://127.0.0.1:${port(name)}`,
    api: /https?:\/\/[^\s/]+/.exec(detail)?.[0] ?? "",
    folder,
    logs,
    async metric(name, labels = {}) {
      const text = await gateway.host.metrics.text();
      return text
        .split("\n")
        .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
        .filter((line) => Object.entries(labels).every(([label, value]) => line.includes(`${label}="${value}"`)))
        .reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
    },
    async reload(next) {
      await write(next);
      return reloader.reload("file");
    },
    async stop() {
      await gateway.stop();
      if (!options.folder) await rm(folder, { recursive: true, force: true });
    },
  };
}
