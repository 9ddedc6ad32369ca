/**
 * Runs the test suites: `node test/run.ts [--long] [name ...]`. Without --long, files named *.long.test.ts are left
 * out, and others may be content with a part (SLUICE_TEST_LONG says which it is); names pick the files whose path
 * contains one of them. One Kafka, if one can be had, serves all suites that don't harm it. Ends with node's counts;
 * exit code 1 on any failure.
 */
import { spawn } from "node:child_process";
import { glob, mkdir, mkdtemp, rm } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { join, relative } from "node:path";
import { startKafka } from "./helpers/kafka.ts";

const root = join(import.meta.dirname, "..");
const args = process.argv.slice(2);
const long = args.includes("--long");
const names = args.filter((arg) => !arg.startsWith("--"));

const files: string[] = [];
for await (const file of glob("test/**/*.test.ts", { cwd: root, exclude: (name) => name === "node_modules" })) {
  if (file.endsWith(".long.test.ts") && !long) continue;
  if (names.length > 0 && !names.some((name) => file.includes(name))) continue;
  files.push(file);
}
if (files.length === 0) {
  process.stderr.write(`no test file matches ${names.join(" ")}\n`);
  process.exit(2);
}

const kafka = await startKafka();
/** What suites share: the packed packages, and what Node has compiled, since they start hundreds of processes. */
const shared = await mkdtemp(join(tmpdir(), "sluice-test-run-"));
const packed = join(shared, "packed");
await mkdir(packed);
const child = spawn(
  process.execPath,
  [
    "--import",
    join(root, "test/helpers/end-of-file.ts"),
    "--test",
    // Suites wait a lot, for brokers that start and nodes that are missed: one more than there are cores.
    `--test-concurrency=${Math.min(availableParallelism() + 1, 4)}`,
    "--test-timeout=300000",
    ...files.toSorted().map((file) => relative(".", join(root, file))),
  ],
  {
    stdio: "inherit",
    env: {
      ...process.env,
      NODE_COMPILE_CACHE: join(shared, "compiled"),
      SLUICE_TEST_PACKED: packed,
      ...(long ? { SLUICE_TEST_LONG: "true" } : {}),
      ...(kafka ? { SLUICE_TEST_KAFKA: kafka.brokers.join(",") } : {}),
    },
  },
);
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => child.kill(signal));
const code = await new Promise<number>((resolve) => child.once("exit", (status) => resolve(status ?? 1)));
await kafka?.stop();
await rm(shared, { recursive: true, force: true });
process.exit(code);
