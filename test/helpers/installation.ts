/** `sluice` installed from a registry in a project of its own, and the end-to-end suites run against it. */
import assert from "node:assert/strict";
import { mkdtemp, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import rootManifest from "../../package.json" with { type: "json" };
import { run, type Registry } from "./published.ts";

const root = join(import.meta.dirname, "../..");

export type Layout = "npm" | "pnpm" | "pnpm, hoisted";

const pnpm = ["npx", "--yes", rootManifest.packageManager];
const quietNpm = ["--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];

const commands: Record<Layout, readonly string[]> = {
  npm: ["npm", "install", ...quietNpm],
  pnpm: [...pnpm, "add", "--prefer-offline", "--ignore-scripts"],
  "pnpm, hoisted": [...pnpm, "add", "--prefer-offline", "--ignore-scripts", "--node-linker=hoisted"],
};

export interface Installation {
  readonly home: string;
  /** With the same package manager. @param names packages or tarballs */
  readonly add: (...names: readonly string[]) => Promise<void>;
  /** Runs the installed command in the project. Returns what it prints; rejects where it fails. */
  readonly sluice: (...args: readonly string[]) => Promise<string>;
  /** What `sluice check` finds wrong with the config; rejects where it finds nothing. */
  readonly problems: (config: string) => Promise<string>;
  readonly remove: () => Promise<void>;
}

/** An empty project. */
export async function createProject(layout: Layout, registry: Registry): Promise<Installation> {
  const home = await realpath(await mkdtemp(join(tmpdir(), "sluice-site-")));
  await writeFile(join(home, "package.json"), JSON.stringify({ name: "site", version: "1.0.0", private: true }));
  const sluice = async (...args: readonly string[]): Promise<string> =>
    (await run(join(home, "node_modules/.bin/sluice"), args, home)).stdout;
  return {
    home,
    sluice,
    problems: (config) =>
      sluice("check", "-c", config).then(
        () => assert.fail(`${config} has no problems`),
        (error: { code: number; stdout: string; stderr: string }) => {
          assert.equal(error.code, 1);
          return error.stdout + error.stderr;
        },
      ),
    async add(...names) {
      const [file = "", ...args] = commands[layout];
      await run(file, [...args, ...names], home, registry.env);
    },
    remove: () => rm(home, { recursive: true, force: true }),
  };
}

/** The HTTP API that the distribution implies takes any free port, so that suites don't disturb each other. */
export async function takeAnyApiPort(home: string): Promise<void> {
  const file = await realpath(join(home, "node_modules/sluice/package.json"));
  const manifest = JSON.parse(await readFile(file, "utf8")) as { sluice: { implied: object[] } };
  const implied = manifest.sluice.implied.map((document) => ({ ...document, port: 0 }));
  await writeFile(file, JSON.stringify({ ...manifest, sluice: { implied } }, undefined, 2));
}

/**
 * Runs suites against what is installed there. Rejects with their output where one fails; returns the counts.
 * @param node the executable that runs both suites and gateway
 */
export async function runSuites(
  home: string,
  files: readonly string[],
  node = process.execPath,
): Promise<{ pass: number; skipped: number }> {
  // A test runner in a test takes itself for a part of the outer one.
  const extra = { SLUICE_TEST_HOME: home, NODE_TEST_CONTEXT: undefined };
  const args = ["--test", "--test-concurrency=2", "--test-reporter=tap", "--test-timeout=300000", ...files];
  const { stdout } = await run(node, args, root, extra).catch((error: { stdout?: string; message: string }) => {
    throw new Error(failuresIn(error.stdout ?? error.message));
  });
  const count = (what: string): number => Number(new RegExp(`^# ${what} (\\d+)$`, "m").exec(stdout)?.[1]);
  return { pass: count("pass"), skipped: count("skipped") };
}

/** Of the TAP output: what is not ok, with its diagnosis. */
function failuresIn(tap: string): string {
  const failures = [...tap.matchAll(/^ *not ok .*\n(?: *---\n(?:.*\n)*? *\.\.\.\n)?/gm)].map(([text]) => text);
  return failures.join("\n") || tap;
}
