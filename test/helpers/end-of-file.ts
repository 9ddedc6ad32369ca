/**
 * Loaded before each test file (`--import`): where something that a test opened keeps its process alive after the last
 * test, the file fails and says what it was. The runner's own time limit is one for tests, not for what they leave
 * behind, and would wait for ever.
 */
import { after } from "node:test";
import { isMainThread } from "node:worker_threads";

const graceMs = 20_000;

// Processes and threads that tests start are given the same arguments.
if (isMainThread && process.argv[1]?.endsWith(".test.ts")) {
  after(() => {
    setTimeout(() => {
      const kept = process.getActiveResourcesInfo().join(", ");
      process.stderr.write(`${process.argv[1]} does not end ${graceMs / 1000} s after its tests: ${kept}\n`);
      process.exit(1);
    }, graceMs).unref();
  });
}
