/**
 * A project with an installed plugin, and commands in it that meet a fault at each of their changes in turn: the disk is
 * full, or the process is killed.
 */
import assert from "node:assert/strict";
import { cp, mkdir, mkdtemp, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { packPlugin, readJson, type Tarball } from "./plugin-packages.ts";
import { sluice, snapshot, type Ended } from "./sluice.ts";

const preload = ["--import", join(import.meta.dirname, "../fixtures/broken-disk.ts")];
const config =
  "kind: Pipeline\nname: publish\nfilters: [{ name: mark, kind: Mark }]\n---\nkind: MQTTProxy\nname: mqttproxy\nport: 1883\n";

export interface FaultyProject {
  readonly home: string;
  /** Of the version that is installed. */
  readonly mark1: Tarball;
  /** Of a newer one. */
  readonly mark2: Tarball;
  /** A project in which version 1.0.0 is installed, and used. */
  copy(): Promise<string>;
  /** Runs a command with a fault at its first change, its second, and so on, until it has come through without one. */
  atEachChange(
    args: readonly string[],
    env: NodeJS.ProcessEnv,
    judge: (fault: Fault) => Promise<void>,
    from?: string,
  ): Promise<number>;
  remove(): Promise<void>;
}

export interface Fault {
  /** Which change it was. */
  readonly at: number;
  readonly ended: Ended;
  readonly folder: string;
  /** {@link snapshot} of the folder in front of the command. */
  readonly before: Record<string, string>;
}

export async function faultyProject(): Promise<FaultyProject> {
  const home = await realpath(await mkdtemp(join(tmpdir(), "sluice-faults-")));
  const mark1 = await packPlugin(home, { name: "sluice-mark", version: "1.0.0" });
  const mark2 = await packPlugin(home, { name: "sluice-mark", version: "1.1.0" });
  const installed = join(home, "installed");
  await mkdir(installed);
  await writeFile(join(installed, "sluice.yaml"), config);
  const { code, stderr } = await sluice(installed, ["plugin", "add", mark1.path]);
  assert.equal(code, 0, stderr);
  let count = 0;
  async function copy(from = installed): Promise<string> {
    const folder = join(home, `copy-${++count}`);
    await cp(from, folder, { recursive: true });
    return folder;
  }
  return {
    home,
    mark1,
    mark2,
    copy,
    async atEachChange(args, env, judge, from) {
      for (let at = 1; ; at++) {
        const folder = await copy(from);
        const before = await snapshot(folder);
        const log = join(home, "changes.log");
        await writeFile(log, "");
        const faults = { ...env, BREAK_AT: String(at), BREAK_LOG: log };
        const ended = await sluice(folder, args, { flags: preload, env: faults });
        const changes = (await readFile(log, "utf8")).split("\n").filter((line) => line.startsWith(`${at} `));
        if (changes.length === 0) {
          assert.equal(ended.code, 0, "without a fault it succeeds");
          return at - 1;
        }
        await judge({ at, ended, folder, before });
        await rm(folder, { recursive: true });
      }
    },
    remove: () => rm(home, { recursive: true }),
  };
}

/** What counts: which version is active, that its files are those that were installed, and that the config's kinds are there. */
export async function activeVersion(folder: string): Promise<string> {
  const { plugins } = (await readJson(join(folder, "plugins.lock"))) as {
    plugins: Record<string, { version: string }>;
  };
  const doctor = await sluice(folder, ["plugin", "doctor", "--json"]);
  const { findings } = JSON.parse(doctor.stdout) as { findings: { level: string }[] };
  assert.deepEqual(
    findings.filter(({ level }) => level === "problem"),
    [],
  );
  return plugins["sluice-mark"]?.version ?? "none";
}

/** The config's own files; a file on its way into place is nobody's until it is there. */
export function withoutStore(files: Record<string, string>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(files).filter(([path]) => !path.startsWith(".sluice") && !path.endsWith(".tmp")),
  );
}
