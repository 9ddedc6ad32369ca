/**
 * Eclipse Paho's clients for tests, each as a command that runs a file of test/fixtures/clients: Python's with Python 3,
 * its package in a virtual environment; Java's with a JDK 17+, its jars fetched by Maven. Both are kept in .cache/clients.
 * Where one can't be had: undefined and one line on stderr, or an error where CI=true.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const execute = promisify(execFile);
const cacheFolder = join(import.meta.dirname, "../../.cache/clients");
const clientsFolder = join(import.meta.dirname, "../fixtures/clients");
const fetchTimeoutMs = 120_000;

/** Runs the client with these arguments; resolves with the lines that it prints, rejects where it fails or takes too long. */
export type Client = (...args: readonly string[]) => Promise<string[]>;

export async function findPythonClient(): Promise<Client | undefined> {
  return find("Python's paho", async () => {
    const pinned = join(clientsFolder, "requirements.txt");
    const folder = await keep("python", pinned, async (part) => {
      await execute("python3", ["-m", "venv", part], { timeout: fetchTimeoutMs });
      const options = ["--quiet", "--disable-pip-version-check", "--require-hashes", "--requirement", pinned];
      await execute(join(part, "bin/python"), ["-m", "pip", "install", ...options], { timeout: fetchTimeoutMs });
    });
    return command(join(folder, "bin/python"), [join(clientsFolder, "paho_client.py")]);
  });
}

export async function findJavaClient(): Promise<Client | undefined> {
  return find("Java's Paho", async () => {
    const { stdout } = await execute("javac", ["-version"]);
    const version = Number(/^javac (\d+)/.exec(stdout)?.[1]);
    if (!(version >= 17)) throw new Error(`Java ${version} is too old`);
    const pom = join(clientsFolder, "pom.xml");
    const source = join(clientsFolder, "PahoClient.java");
    const jars = await keep("java", pom, async (part) => {
      const output = `-DoutputDirectory=${part}`;
      const goal = ["-q", "-B", "-f", pom, "dependency:copy-dependencies", output];
      await execute("mvn", goal, { timeout: fetchTimeoutMs });
    });
    return command("java", ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", join(jars, "*"), source]);
  });
}

async function find(what: string, make: () => Promise<Client>): Promise<Client | undefined> {
  try {
    return await make();
  } catch (cause) {
    const { stderr, message } = cause as { stderr?: string; message: string };
    const why = (stderr || message).trim().split("\n").at(-1);
    if (process.env["CI"] === "true") throw new Error(`no client: ${what}: ${why}`, { cause });
    process.stderr.write(`tests with ${what} skipped: ${why}\n`);
    return undefined;
  }
}

/** The folder that `make` filled once for this content of the file that pins versions. */
async function keep(name: string, pinned: string, make: (part: string) => Promise<void>): Promise<string> {
  const hash = createHash("sha256").update(await readFile(pinned));
  const folder = join(cacheFolder, `${name}-${hash.digest("hex").slice(0, 12)}`);
  if (existsSync(folder)) return folder;
  await mkdir(cacheFolder, { recursive: true });
  const part = `${folder}.${process.pid}.part`;
  try {
    await make(part);
    await rename(part, folder);
  } catch (error) {
    // Another process that made the same may have been first.
    if (!existsSync(folder)) throw error;
  } finally {
    await rm(part, { recursive: true, force: true });
  }
  return folder;
}

function command(file: string, first: readonly string[]): Client {
  return async (...args) => {
    const { stdout } = await execute(file, [...first, ...args], { timeout: 60_000 });
    return stdout.trimEnd().split(/\r?\n/);
  };
}
