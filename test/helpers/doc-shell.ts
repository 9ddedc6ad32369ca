/**
 * Runs the shell blocks of pages as a reader would, in a bash each, one after the other. What differs from what is
 * printed: `npm start` does not install first, the ports are those that the gateway under test really has, and what
 * npm fetches comes from a registry of the workspace's own packages.
 */
import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, realpath, writeFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** How long a block may take, and how long something that keeps running may take to be ready or to print. */
const patienceMs = 120_000;
const pollMs = 20;

export interface DocShell {
  /** Runs commands to their end; rejects where one of them fails. Returns what they wrote to standard output. */
  run(commands: string): Promise<string>;
  /** Starts a gateway, or a subscriber, and resolves when it listens or is subscribed. */
  keepRunning(command: string): Promise<void>;
  /** Resolves when what was started last by that name has printed these lines, and nothing else. */
  hasPrinted(name: string, expected: string): Promise<void>;
  write(path: string, text: string): Promise<void>;
  /** Of a file that was generated or written. */
  read(path: string): Promise<string>;
  /** Replaces this text of a file; where `npm run dev` runs, resolves when it has taken the change over. */
  change(path: string, from: string, to: string): Promise<void>;
  /** Goes on in a folder of its own, without the clone's commands, for the rest of the page. @param env of npm */
  enterEmptyFolder(env: NodeJS.ProcessEnv): Promise<void>;
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
  /** Of a page that begins with nothing. */
  let outside: NodeJS.ProcessEnv | undefined;
  const state = join(root, "cwd");

  /** The commands that a page may use are narrowed to this machine's gateway under test. */
  function script(commands: string): string {
    const api = `http://127.0.0.1:${ports.http}`;
    return [
      "set -euo pipefail",
      `export SLUICE_API=${api}`,
      `mosquitto_pub() { command mosquitto_pub -p ${ports.mqtt} "$@"; }`,
      `mosquitto_sub() { exec stdbuf -oL mosquitto_sub -d -p ${ports.mqtt} "$@"; }`,
      'curl() { command curl -fsS "$@"; echo; }',
      ...(outside
        ? []
        : [
            `export PATH=${join(home, "node_modules/.bin")}:$PATH`,
            'npm() { if [ "$1" = start ]; then exec npm start --ignore-scripts; else command npm --offline "$@"; fi; }',
          ]),
      'sluice() { if [ "$1" = run ]; then exec sluice "$@"; else command sluice "$@"; fi; }',
      commands.replaceAll("http://127.0.0.1:2381", api),
      `pwd -P > ${state}`,
    ].join("\n");
  }

  function start(commands: string, extra: NodeJS.ProcessEnv = {}): ChildProcess {
    const { KAFKA_BROKERS: _, ...env } = process.env;
    return spawn("bash", ["-c", script(commands)], {
      cwd,
      env: { ...(outside ?? env), ...extra },
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

  async function until(each: Running, isReady: () => boolean | Promise<boolean>): Promise<void> {
    const deadline = performance.now() + patienceMs;
    while (!(await isReady())) {
      assert.equal(each.child.exitCode, null, `${each.command} has ended:\n${each.output}`);
      assert.ok(performance.now() < deadline, `${each.command} is not ready:\n${each.output}`);
      await sleep(pollMs);
    }
  }

  async function keepRunning(command: string): Promise<void> {
    const isGateway = /^(npm start|npm run dev|(npx )?sluice run)/.test(command);
    if (isGateway) await end(running.filter((each) => each.isGateway));
    if (command.includes("sluice run")) await takeAnyPort(join(cwd, "sluice.yaml"));
    const each: Running = { child: start(command, { SLUICE_MQTT_PORT: "0" }), command, isGateway, output: "" };
    running.push(each);
    for (const stream of [each.child.stdout, each.child.stderr]) {
      stream?.setEncoding("utf8").on("data", (text: string) => (each.output += text));
    }
    if (!isGateway) {
      await until(each, () => /^Subscribed /m.test(each.output));
      return;
    }
    await until(each, () => {
      const mqtt = /\bmqtt:\/\/127\.0\.0\.1:(\d+)/.exec(each.output)?.[1];
      const http = /\bhttp:\/\/127\.0\.0\.1:(\d+)/.exec(each.output)?.[1];
      ports = { mqtt: Number(mqtt), http: Number(http) };
      // A kernel by itself has no HTTP API.
      return mqtt !== undefined && (http !== undefined || outside !== undefined);
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

  async function write(path: string, text: string): Promise<void> {
    const file = join(cwd, path);
    await mkdir(dirname(file), { recursive: true });
    assert.ok(!relative(root, await realpath(dirname(file))).startsWith(".."), `${path} lies outside`);
    await writeFile(file, text);
  }

  return {
    run,
    keepRunning,
    async hasPrinted(name, expected) {
      const each = running.findLast(({ command }) => command.startsWith(name));
      assert.ok(each, `${name} does not run`);
      // What -d says of the connection is not what a reader sees.
      const printed = () => each.output.replaceAll(/^(Client .*|Subscribed .*)\n/gm, "");
      await until(each, () => printed().split("\n").length >= expected.split("\n").length);
      assert.equal(printed(), expected);
    },
    write,
    read: (path) => readFile(join(cwd, path), "utf8"),
    async change(path, from, to) {
      const text = await readFile(join(cwd, path), "utf8");
      assert.ok(text.includes(from), `${path} does not have\n${from}`);
      const dev = running.find(({ command }) => command.startsWith("npm run dev"));
      const seen = dev?.output.length ?? 0;
      await write(
        path,
        text.replace(from, () => to),
      );
      if (dev) await until(dev, () => dev.output.slice(seen).includes("The config has changed"));
    },
    async enterEmptyFolder(env) {
      cwd = await mkdtemp(join(root, "empty-"));
      outside = env;
    },
    async nextPage(keepGateway) {
      outside = undefined;
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
