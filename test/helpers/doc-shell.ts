/**
 * Runs the shell blocks of pages as a reader would, in a bash each, one after the other. What differs from what is
 * printed: `npm start` does not install first, and the ports are those that the gateway under test really has.
 */
import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdir, readFile, realpath, writeFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** How long a block may take, and how long something that keeps running may take to be ready or to print. */
const patienceMs = 60_000;
const pollMs = 20;

export interface DocShell {
  /** Runs commands to their end; rejects where one of them fails. Returns what they wrote to standard output. */
  run(commands: string): Promise<string>;
  /** Starts a gateway, or a subscriber, and resolves when it listens or is subscribed. */
  keepRunning(command: string): Promise<void>;
  /** Resolves when what was started last by that name has printed these lines, and nothing else. */
  hasPrinted(name: string, expected: string): Promise<void>;
  write(path: string, text: string): Promise<void>;
  /** Back to the folder it began in; ends what keeps running, except a gateway where `keepGateway`. */
  nextPage(keepGateway: boolean): Promise<void>;
}

interface Running {
  readonly child: ChildProcess;
  readonly command: string;
  readonly isGateway: boolean;
  output: string;
}

/** @param root what a page may not leave: `write` only writes below it */
export function createDocShell(home: string, root: string): DocShell {
  let cwd = home;
  let ports = { mqtt: 0, http: 0 };
  let running: Running[] = [];
  const state = join(root, "cwd");

  /** The commands that a page may use are narrowed to this machine's gateway under test. */
  function script(commands: string): string {
    const api = `http://127.0.0.1:${ports.http}`;
    return [
      "set -euo pipefail",
      `export PATH=${join(home, "node_modules/.bin")}:$PATH SLUICE_API=${api}`,
      `mosquitto_pub() { command mosquitto_pub -p ${ports.mqtt} "$@"; }`,
      `mosquitto_sub() { exec mosquitto_sub -p ${ports.mqtt} "$@"; }`,
      'curl() { command curl -fsS "$@"; echo; }',
      'npm() { if [ "$1" = start ]; then exec npm start --ignore-scripts; else command npm --offline "$@"; fi; }',
      'sluice() { if [ "$1" = run ]; then exec sluice "$@"; else command sluice "$@"; fi; }',
      commands.replaceAll("http://127.0.0.1:2381", api),
      `pwd -P > ${state}`,
    ].join("\n");
  }

  function start(commands: string, extra: NodeJS.ProcessEnv = {}): ChildProcess {
    const { KAFKA_BROKERS: _, ...env } = process.env;
    return spawn("bash", ["-c", script(commands)], {
      cwd,
      env: { ...env, ...extra },
      stdio: ["ignore", "pipe", "pipe"],
      // A group of its own, so that what npm starts ends with npm.
      detached: true,
    });
  }

  async function run(commands: string): Promise<string> {
    const child = start(commands);
    const timer = setTimeout(() => kill(child, "SIGKILL"), patienceMs);
    let stdout = "";
    let stderr = "";
    child.stdout?.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.stderr?.setEncoding("utf8").on("data", (text: string) => (stderr += text));
    const [code] = (await once(child, "close")) as [number | null];
    clearTimeout(timer);
    assert.equal(code, 0, `${commands}\nended with ${code}\n${stdout}${stderr}`);
    cwd = (await readFile(state, "utf8")).trim();
    return stdout;
  }

  async function subscriptions(): Promise<number> {
    const text = await (await fetch(`http://127.0.0.1:${ports.http}/metrics`)).text();
    return Number(/^sluice_subscriptions\{[^}]*\} (\d+)$/m.exec(text)?.[1]);
  }

  async function until(each: Running, isReady: () => boolean | Promise<boolean>): Promise<void> {
    const deadline = performance.now() + patienceMs;
    while (!(await isReady())) {
      assert.equal(each.child.exitCode, null, `${each.command} has ended:\n${each.output}`);
      assert.ok(performance.now() < deadline, `${each.command} is not ready:\n${each.output}`);
      await sleep(pollMs);
    }
  }

  async function keepRunning(command: string): Promise<void> {
    const isGateway = /^(npm start|sluice run)/.test(command);
    const before = isGateway ? 0 : await subscriptions();
    if (isGateway) await end(running.filter((each) => each.isGateway));
    if (command.startsWith("sluice run")) await takeAnyPort(join(cwd, "sluice.yaml"));
    const each: Running = { child: start(command, { SLUICE_MQTT_PORT: "0" }), command, isGateway, output: "" };
    running.push(each);
    for (const stream of [each.child.stdout, each.child.stderr]) {
      stream?.setEncoding("utf8").on("data", (text: string) => (each.output += text));
    }
    if (!isGateway) {
      await until(each, async () => (await subscriptions()) > before);
      return;
    }
    await until(each, () => {
      const mqtt = /\bmqtt:\/\/127\.0\.0\.1:(\d+)/.exec(each.output)?.[1];
      const http = /\bhttp:\/\/127\.0\.0\.1:(\d+)/.exec(each.output)?.[1];
      ports = { mqtt: Number(mqtt), http: Number(http) };
      return mqtt !== undefined && http !== undefined;
    });
  }

  async function end(some: readonly Running[]): Promise<void> {
    running = running.filter((each) => !some.includes(each));
    await Promise.all(
      some.map(async ({ child }) => {
        if (child.exitCode !== null || child.signalCode !== null) return;
        const closed = once(child, "close");
        kill(child, "SIGTERM");
        const timer = setTimeout(() => kill(child, "SIGKILL"), patienceMs);
        await closed;
        clearTimeout(timer);
      }),
    );
  }

  return {
    run,
    keepRunning,
    async hasPrinted(name, expected) {
      const each = running.findLast(({ command }) => command.startsWith(name));
      assert.ok(each, `${name} does not run`);
      await until(each, () => each.output.split("\n").length >= expected.split("\n").length);
      assert.equal(each.output, expected);
    },
    async write(path, text) {
      const file = join(cwd, path);
      await mkdir(dirname(file), { recursive: true });
      assert.ok(!relative(root, await realpath(dirname(file))).startsWith(".."), `${path} lies outside`);
      await writeFile(file, text);
    },
    async nextPage(keepGateway) {
      await end(running.filter((each) => !(keepGateway && each.isGateway)));
      cwd = home;
    },
  };
}

/** Of the proxy in a page's own config. */
async function takeAnyPort(file: string): Promise<void> {
  const text = await readFile(file, "utf8");
  await writeFile(file, text.replaceAll(/^port: 1883$/gm, "port: 0"));
}

function kill({ pid }: ChildProcess, signal: NodeJS.Signals): void {
  if (pid !== undefined) process.kill(-pid, signal);
}
